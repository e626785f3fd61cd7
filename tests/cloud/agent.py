"""An agent's cloud side in a process of its own, to be killed: python -m tests.cloud.agent URL FOLDER FIRST

Reads one device every 20 ms; its counter begins at FIRST + 1.
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path

from tests.cloud.harness import Agent, make_config


def main(url: str, folder: str, first: str) -> None:
    agent = Agent(make_config(url), Path(folder), boot=secrets.token_hex(4))
    agent.counts["press1"] = int(first)
    agent.cloud.start()
    while True:
        agent.read()
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])

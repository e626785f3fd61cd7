"""The demo's vessel and an agent that runs a loop on it, each a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

CONFIG = """\
gateway: {gateway}
state_dir: {folder}/state
mqtt: {mqtt}
page: off
predict: off
devices:
  vessel:
    url: tcp://127.0.0.1:{plant}
    every: 100ms
    on_loss: zero
    tags:
      temperature: {{holding: 100, type: float32}}
      heater: {{holding: 102, scale: 0.1, write: {{range: [0, 100], function: 6, min_interval: 0s, daily: 1000000}}}}
loops:
  heat:
    pv: vessel/temperature
    out: vessel/heater
    setpoint: 90
    every: 100ms
    limits: [0, 100]
"""


class DemoVessel:
    """Starts both. `more` is YAML after CONFIG: further keys of the loop, indented by four, and further sections."""

    def __init__(self, folder: Path, *, gateway: str, mqtt: str, more: str) -> None:
        self.plant = subprocess.Popen(
            [sys.executable, "-m", "agent.demo.plant"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.plant.stdout is not None
        port = json.loads(self.plant.stdout.readline())["port"]
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(folder=folder, gateway=gateway, mqtt=mqtt, plant=port) + more)
        with (folder / "agent.log").open("wb") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", str(self.config)], stderr=log, stdout=log
            )

    def end(self) -> None:
        self.agent.send_signal(signal.SIGTERM)
        self.agent.wait(timeout=30)
        self.plant.communicate(timeout=30)  # it prints its books when its input ends

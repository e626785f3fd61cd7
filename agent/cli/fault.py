"""What a command raises to end with one line of plain words."""

from __future__ import annotations

import os
import sys


class Failure(Exception):
    """Ends a command with one line on stderr and an exit status (1 failed, 2 usage, 78 configuration)."""

    def __init__(self, words: str, *, status: int = 1) -> None:
        super().__init__(words)
        self.status = status


def tell(words: object, *, priority: int = 3) -> None:
    """One line on stderr; with its syslog priority (3 error, 4 warning) before it where journald takes it."""
    mark = ""
    if "JOURNAL_STREAM" in os.environ:
        from agent.runtime.logs import under_journal  # only what a service starts pays for it

        mark = f"<{priority}>" if under_journal() else ""
    print(f"{mark}{words}", file=sys.stderr)

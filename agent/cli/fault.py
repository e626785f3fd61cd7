"""What a command raises to end with one line of plain words."""

from __future__ import annotations


class Failure(Exception):
    """Ends a command with one line on stderr and an exit status (1 failed, 2 usage, 78 configuration)."""

    def __init__(self, words: str, *, status: int = 1) -> None:
        super().__init__(words)
        self.status = status

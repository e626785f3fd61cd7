"""A seam for tests: which batches were closed, written down before anything else happens to them.

With EDGETWIN_JOURNAL=FILE in the environment each closed batch is appended to that file and synced, so that after any
kill a test knows what had been promised a number. Without it nothing is opened and nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from agent.cloud.batch import Batch

VARIABLE = "EDGETWIN_JOURNAL"

Entry = tuple[str, str, int, int]
"""(device, stream, seq, readings)"""


class Journal:
    """An open journal. `note` raises OSError when the file cannot be written: the test's own fault."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @classmethod
    def from_environment(cls) -> Self | None:
        """None unless the environment names a file. Raises OSError when it cannot be opened."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named)) if named else None

    def note(self, stream: str, batches: Sequence[Batch]) -> None:
        """One line a batch, all in one write; durable on return."""
        lines = [json.dumps([one.device, stream, one.seq, one.readings]) + "\n" for one in batches]
        os.write(self._file, "".join(lines).encode())
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


def entries(path: Path) -> Iterator[Entry]:
    """What was noted, in order, over all runs. A last line that a kill cut short was never promised: left out."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            device, stream, seq, readings = json.loads(line)
            yield device, stream, seq, readings

"""A process that the demo starts: it speaks JSON lines on its standard output and never outlives the demo."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
LINE_LIMIT = 64 << 20
"""Bytes of one line: the plant's books of a long run are one line."""


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One process; `log` is the file that takes its standard error."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    @classmethod
    async def start(cls, folder: Path, module: str, *args: str) -> Child:
        """Starts `python -m module args`, in a session of its own so that Ctrl-C reaches the demo alone."""
        log = folder / f"{module}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=LINE_LIMIT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return cls(process, log)

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects that it prints, until it ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            yield json.loads(line)

    def tell(self, word: dict[str, Any]) -> None:
        """Writes one JSON line to its standard input."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.process.stdin.write(json.dumps(word).encode() + b"\n")

    async def stop(self, patience: float) -> None:
        """SIGTERM, then SIGKILL after `patience` seconds."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), patience)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    def last_words(self) -> str:
        """The end of what it wrote to standard error, as one line."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-3:])

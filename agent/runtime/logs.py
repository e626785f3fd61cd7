"""Logging: to standard error by a thread of its own, so that a stuck journal never holds the main loop up."""

from __future__ import annotations

import atexit
import logging
import logging.handlers
import os
import sys
from queue import SimpleQueue

PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
"""syslog priorities as journald takes them from the start of a line: <3> (man 3 sd-daemon)."""
QUIET = ("pymodbus", "paho", "numba", "asyncio")
"""Libraries whose log says the same as ours, only oftener and longer."""


class JournalFormatter(logging.Formatter):
    """`<priority>` before each line and no time: journald has its own."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


def under_journal() -> bool:
    """True where standard error is journald's ($JOURNAL_STREAM names its device and inode)."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


MOST_WAITING = 5000
"""Lines that may wait for a journal that takes none; a memory full of them would end the agent."""


class BoundedQueueHandler(logging.handlers.QueueHandler):
    """Hands records to the writing thread; what is too much is counted, and told when there is room again."""

    queue: SimpleQueue[logging.LogRecord]

    def __init__(self, records: SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(records)
        self._lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= MOST_WAITING:
            self._lost += 1
            return
        if self._lost:
            text = f"{self._lost} lines of the log are lost: nobody took them"
            self._lost = 0
            self.queue.put(logging.LogRecord("edgetwin", logging.WARNING, __file__, 0, text, None, None))
        self.queue.put(record)


def setup(level: str) -> None:
    """Sets the root logger up; `level` is error, warning, info or debug."""
    handler = logging.StreamHandler(sys.stderr)
    if under_journal():
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    listener = logging.handlers.QueueListener(records, handler)
    listener.start()
    atexit.register(listener.stop)
    root = logging.getLogger()
    root.handlers[:] = [BoundedQueueHandler(records)]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)

"""What other threads leave for the cloud thread, in their order; most of it without waking it.

Each wake-up costs a switch of threads and a turn of all that the thread looks after, some hundred microseconds. A row
of readings or an acknowledgement can wait for the next turn, which is due by itself.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Mailbox:
    """One reader, any writers; nobody waits but the reader. quiet: items that can wait for the reader's next turn."""

    def __init__(self, quiet: Callable[[Any], bool]) -> None:
        self._quiet = quiet
        self._items: deque[Any] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._eager = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> None:
        """Leaves an item, and wakes the reader unless it is a quiet one and the reader does not wait for those."""
        self._items.append(item)
        if self._eager or not self._quiet(item):
            self._bell.put(None)

    def wait(self, seconds: float, *, eager: bool) -> None:
        """Returns after so many seconds, or when woken before. eager: wants to be woken by quiet items too."""
        self._eager = eager
        if eager and self._items:  # what was left just before
            return
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()

    def take(self, most: int) -> Iterator[Any]:
        """The oldest items, up to so many; where some are left, the next `wait` returns at once."""
        count = len(self._items)
        for _ in range(min(most, count)):
            yield self._items.popleft()
        if count > most:
            self._bell.put(None)

"""When a loop steps, and when its heartbeat counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

HEARTBEAT_SHARE = 3.02
"""Of the PLC's timeout; a little more than 3, so that a late wake-up still comes within a third."""
SAME_RATE = 0.75
"""Of the loop's period: a PV that comes not much more often than that is stepped at each sample."""


@dataclass(slots=True)
class Grid:
    """Thins a PV that is scanned faster than the loop steps out to the loop's own grid. Seconds, monotonic."""

    every: float
    sampled: float
    due: float = -math.inf

    def step_now(self, now: float) -> bool:
        """True when a step is due; the next one is then a period later, skipping what was missed."""
        if self.sampled >= SAME_RATE * self.every:
            return True
        if now < self.due - self.sampled / 2:
            return False
        self.due += self.every
        if not self.due > now:
            self.due = now + self.every
        return True


@dataclass(slots=True)
class Heart:
    """Counts through lowest … highest, inclusive. `timeout` is the PLC's, in seconds."""

    timeout: float
    lowest: int = 0
    highest: int = 32_767
    count: int = 0
    due: float = -math.inf

    def beat(self, now: float) -> int | None:
        """The count to be written now; None while it is not time."""
        if now < self.due:
            return None
        self.due += self.timeout / HEARTBEAT_SHARE
        if not self.due > now:
            self.due = now + self.timeout / HEARTBEAT_SHARE
        self.count = self.count + 1 if self.lowest <= self.count < self.highest else self.lowest
        return self.count

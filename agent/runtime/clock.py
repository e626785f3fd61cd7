"""The only file that asks the machine for the time. Everything else is handed a Clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for schedules, ages and timeouts; wall time only for what leaves the gateway."""

    def mono(self) -> float:
        """Monotonic seconds."""

    def wall(self) -> float:
        """Seconds since 1970 UTC, as the machine believes."""


class SystemClock:
    """The machine's own clocks."""

    def mono(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@dataclass
class FakeClock:
    """A clock that a test moves by hand."""

    now: float = 1000.0
    wall_offset: float = 1_800_000_000.0

    def mono(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_offset + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Anchor:
    """Wall time as an anchor plus the monotonic difference, so that readings keep their distances when the clock steps.

    The anchor moves only when the wall clock is more than `step` seconds away from it.
    """

    def __init__(self, clock: Clock, step: float = 0.5) -> None:
        self._clock = clock
        self._step = step
        self._offset = clock.wall() - clock.mono()

    def refresh(self) -> float:
        """Looks at both clocks; returns by how many seconds the anchor moved (0.0 mostly)."""
        offset = self._clock.wall() - self._clock.mono()
        moved = offset - self._offset
        if abs(moved) < self._step:
            return 0.0
        self._offset = offset
        return moved

    def ms(self, mono: float) -> int:
        """Milliseconds since 1970 UTC of a monotonic time."""
        return round((mono + self._offset) * 1000.0)

"""What is known of the output: what was written, whether it arrived, and whether somebody else writes it too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from agent.control.signals import Sample

MISMATCHES = 3
"""Readings of the output that differ from what was written before the loop gives way to whoever writes it."""
WRITE_FAILURES = 3
"""Writes that failed one after the other before somebody is told."""


class Output:
    """The output register as a loop sees it. `same`: whether a value read back is the one that was written.

    `written` is NaN while the device's value is not known to be ours. `error`: why the last write did not arrive.
    """

    def __init__(self, same: Callable[[float, float], bool]) -> None:
        self.written = math.nan
        self.error: str | None = None
        self.mismatches = 0
        self._same = same
        self._confirmed = -math.inf  # inf: a write is under way
        self._readback = Sample()
        self._pushed: float | None = None
        self._missed = False
        self._told = False  # the writer said of this write that it reads back different
        self._failures = 0

    def forget(self, now: float) -> None:
        """What the device holds from now on is not ours."""
        self.written, self.mismatches, self._confirmed = math.nan, 0, now
        self._pushed, self._missed = None, False

    def take_over(self, now: float, value: float) -> None:
        """The loop goes on from what the device shows."""
        self.forget(now)
        self.written = value

    def ask(self, value: float) -> None:
        """A write begins."""
        self.written, self._confirmed, self._told = value, math.inf, False

    def look_back(self, out: Sample) -> None:
        """Holds a reading of the output against what was written; one older than the write says nothing."""
        if not out.good or out.t <= max(self._readback.t, self._confirmed):
            return
        self._readback = out
        if not math.isfinite(self.written):
            return
        if self._same(self.written, out.value):
            self.mismatches = 0
        else:
            self.mismatches += not self._told  # the same write is not counted by both
            self._pushed = out.value
        self._told = False

    def answered(
        self, now: float, *, ok: bool, readback: float | None, error: str | None, safety: bool
    ) -> Literal["raised", "cleared"] | None:
        """The write under way was answered; whether an alarm about writes that fail begins or ends with it."""
        self._confirmed = now
        if ok or readback is not None:
            told = self._failures >= WRITE_FAILURES
            self._failures, self.error = 0, None
            if readback is not None and not self._same(self.written, readback):
                self.mismatches, self._pushed, self._told = self.mismatches + 1, readback, True
            return "cleared" if told else None
        self._failures += 1
        self.error = f"the output could not be written: {error or 'no answer'}"
        if not safety:  # the next step writes again, from what the device shows
            self.written, self._missed = math.nan, True
        return "raised" if self._failures == WRITE_FAILURES else None

    def fresh(self, out: Sample) -> bool:
        """True where the reading tells what the device holds now: nothing was written, nor could be, since."""
        return out.good and out.t > self._confirmed

    def now(self, out: Sample) -> float:
        """What the device holds: what was written since this reading of it, else the reading."""
        return out.value if self.fresh(out) or not math.isfinite(self.written) else self.written

    def missed(self) -> float | None:
        """Once after a write that did not arrive: the value that the device still has, as far as is known."""
        missed, self._missed = self._missed, False
        return self._readback.value if missed and self._readback.good else None

    def pushed(self) -> float | None:
        """Once: the value that the device was found to show in place of what was written."""
        value, self._pushed = self._pushed, None
        return value

    def is_ours(self, out: Sample) -> bool:
        """True while the output shows what was written."""
        return out.good and math.isfinite(self.written) and self._same(self.written, out.value)

"""What reaches the controller beside the PV: the setpoint within its limits and ramp, and the lagged feed-forward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.config.types import LoopConfig
from agent.control.signals import Sample


@dataclass(slots=True)
class Setpoint:
    """`target` is what was asked for, `value` what the loop controls to; both NaN until known."""

    target: float = math.nan
    value: float = math.nan

    def move(self, config: LoopConfig, sample: Sample | None, elapsed: float, *, ramping: bool) -> None:
        """One step of `elapsed` seconds. `sample` is that of the setpoint's tag; a bad one holds the last target."""
        if sample is not None and sample.good:
            self.target = sample.value
        goal = within(self.target, config.setpoint_limits)
        if config.ramp is None or not ramping or math.isnan(self.value) or math.isnan(goal):
            self.value = goal
        else:
            step = config.ramp * max(elapsed, 0.0)
            self.value = min(max(goal, self.value - step), self.value + step)

    @property
    def shown(self) -> float:
        return self.target if math.isnan(self.value) else self.value


@dataclass(slots=True)
class FeedForward:
    """gain * tag behind a first-order lag. A bad sample holds the last value; before the first good one it is 0."""

    value: float = 0.0
    known: bool = False

    def move(self, config: LoopConfig, sample: Sample | None, elapsed: float) -> bool:
        """One step of `elapsed` seconds; True when the value became known with it."""
        block = config.feed_forward
        if block is None or sample is None or not sample.good:
            return False
        goal = block.gain * sample.value
        if not self.known:
            self.value, self.known = goal, True
            return True
        share = 1.0 if block.lag <= 0.0 else min(1.0, elapsed / (block.lag + elapsed)) if elapsed > 0 else 0.0
        self.value += (goal - self.value) * share
        return False


def within(value: float, limits: tuple[float, float] | None) -> float:
    """The nearest value inside the limits; NaN stays NaN."""
    if limits is None or math.isnan(value):
        return value
    return min(max(value, limits[0]), limits[1])

"""What a loop looks at and what it decides: the records at its door."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.twin.records import Event


@dataclass(frozen=True, slots=True)
class Sample:
    """A value with the time of its reply (monotonic). `value` is NaN where there is none.

    A value that is not `good` (outside its range) counts for nothing but `trip`.
    """

    value: float = math.nan
    good: bool = False
    t: float = -math.inf


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a loop looks at. `setpoint` None: the setpoint is no tag. `ahead`: forecasts of the PV, for `trip`."""

    pv: Sample
    out: Sample
    setpoint: Sample | None = None
    interlocks: tuple[Sample, ...] = ()
    feed_forward: Sample | None = None
    ahead: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done.

    A step of the loop without `write` withdraws what still waits to be written. `safety`: the one write to a fail or
    stop value, which no interval may hold up.
    """

    write: float | None = None
    safety: bool = False
    heartbeat: int | None = None
    events: tuple[Event, ...] = ()

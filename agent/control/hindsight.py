"""What came of a change of the setpoint, against what was foretold of it. Pure: time and samples are handed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.control.whatif import LONGEST, Foretold, Response, response, tidy

MOST_SAMPLES = 1024
LONGER = 1.5
"""Times the foretold settling time, after which the two are compared."""
LEAST_SAMPLES = 10
RESTLESS = 0.1
"""Share of the step by which the PV may have been off its setpoint before it, to count as at rest."""


@dataclass(slots=True)
class Trace:
    """A bounded record of the PV: when it is full, every second sample goes, and from then on every second is kept.

    `every`: seconds between samples, at least. t is in seconds from the change.
    """

    every: float
    t: list[float] = field(default_factory=list)
    pv: list[float] = field(default_factory=list)

    def add(self, t: float, pv: float) -> None:
        if self.t and t - self.t[-1] < 0.5 * self.every:
            return
        if len(self.t) >= MOST_SAMPLES:
            del self.t[1::2], self.pv[1::2]
            self.every *= 2.0
        self.t.append(t)
        self.pv.append(pv)


@dataclass(frozen=True, slots=True)
class Compared:
    """foretold, real: figures over the same `seconds`. misfit: mean of |PV - foretold PV|, in the PV's unit.

    at_rest: whether the PV stood at its setpoint before; where not, the model is not to blame for the misfit alone.
    """

    begin: float
    goal: float
    seconds: float
    foretold: Response
    real: Response
    misfit: float
    at_rest: bool


def due(found: Foretold) -> float:
    """Seconds after the change at which the comparison can be made."""
    settling = found.step.settling
    whole = float(found.t[-1])
    return min(
        whole if settling is None else max(LONGER * settling, LEAST_SAMPLES * float(found.t[1])),
        whole,
        LONGEST,
    )


def compare(found: Foretold, trace: Trace, *, noise: float) -> Compared | None:
    """What was foretold against what was recorded; None where too little was. noise: as `response` takes it."""
    t, pv = np.array(trace.t), np.array(trace.pv)
    if len(t) < LEAST_SAMPLES:
        return None
    end = min(float(t[-1]), float(found.t[-1]))
    inside = t <= end
    t, pv = t[inside], pv[inside]
    expected = np.interp(t, found.t, found.pv)
    start = found.start
    step = abs(found.goal - start.setpoint)
    return Compared(
        begin=start.setpoint,
        goal=found.goal,
        seconds=end,
        foretold=response(t, expected, start.pv, found.goal, noise=noise),
        real=response(t, pv, start.pv, found.goal, noise=noise),
        misfit=float(np.mean(np.abs(pv - expected))),
        at_rest=abs(start.pv - start.setpoint) <= max(RESTLESS * step, 3.0 * noise),
    )


def words(one: Compared) -> str:
    """For a person, on one line."""
    foretold, real = one.foretold, one.real
    share = 100.0 * one.misfit / abs(one.goal - one.begin) if one.goal != one.begin else 0.0
    text = (
        f"setpoint {one.begin:.5g} -> {one.goal:.5g}: {_settling(real)} (foretold: {_settling(foretold)}), overshoot "
        f"{_percent(real)} (foretold {_percent(foretold)}), IAE {real.iae:.4g} (foretold {foretold.iae:.4g}); off by "
        f"{one.misfit:.3g} on average, {share:.1f} % of the step"
    )
    return text if one.at_rest else f"{text}; the loop was not at rest before"


def body(one: Compared) -> dict[str, Any]:
    """`compared` of `status --json`; `settling_s` null where the PV did not stay within 2 % of the step."""
    return {
        "from": one.begin,
        "to": one.goal,
        "seconds": tidy(one.seconds),
        "foretold": _figures(one.foretold),
        "real": _figures(one.real),
        "misfit": tidy(one.misfit),
        "at_rest": one.at_rest,
    }


def _figures(one: Response) -> dict[str, Any]:
    return {"settling_s": tidy(one.settling), "overshoot": tidy(one.overshoot), "iae": tidy(one.iae)}


def _settling(one: Response) -> str:
    return "not settled" if one.settling is None else f"settled after {one.settling:.4g} s"


def _percent(one: Response) -> str:
    return "none" if one.overshoot is None else f"{one.overshoot:.1f} %"

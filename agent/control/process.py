"""A loop's identified process, simulated: lags, an integrator, dead time and bias, exact for an output that is held."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import NamedTuple

from agent.config.types import ModelConfig

WHOLE = 1e-9
"""Of a period: a delay this close to a multiple of the period is one."""


class Held(NamedTuple):
    """How two states move while the input is held: inner' = p inner + (1 - p) g, outer' = q outer + c inner + r g.

    g is the gain times the input, outer the deviation of the PV, all as deviations from rest.
    """

    p: float
    q: float
    c: float
    r: float


def held(model: ModelConfig, seconds: float) -> Held:
    """The exact movement over `seconds` of a held input (van Loan's integrals, in closed form)."""
    if seconds <= 0.0:
        return Held(1.0, 1.0, 0.0, 0.0)
    if model.integrating:
        kept = _kept(seconds, model.t2)
        passed = model.t2 * (1.0 - kept)
        return Held(kept, 1.0, passed, seconds - passed)
    slow, fast = max(model.t1, model.t2), min(model.t1, model.t2)
    p, q = _kept(seconds, slow), _kept(seconds, fast)
    if fast <= 0.0:
        crossed = p
    else:
        apart = seconds / fast - seconds / slow
        crossed = seconds / fast * p * (-math.expm1(-apart) / apart if apart > 0.0 else 1.0)
    return Held(p, q, crossed, 1.0 - q - crossed)


def split_delay(delay: float, period: float) -> tuple[int, float]:
    """(whole periods, seconds left over): delay = whole * period + rest, 0 <= rest < period."""
    whole = math.floor(delay / period + WHOLE)
    return whole, max(delay - whole * period, 0.0)


class Process:
    """K / ((T1 s + 1)(T2 s + 1)) e^(-L s), or K / (s (T2 s + 1)) e^(-L s) where the model is integrating.

    It starts at rest at (`pv`, `out`): where the model's bias says otherwise, the difference is a load that was there
    before and stays. `period`: seconds for which each output is held; the delay need not be a multiple of it. T1 of an
    integrating model is not used.
    """

    def __init__(self, model: ModelConfig, period: float, *, pv: float, out: float) -> None:
        if not period > 0.0:
            raise ValueError(f"the period must be above 0, not {period:g}")
        whole, rest = split_delay(model.delay, period)
        self.pv = pv
        self._k = model.k
        self._rest = (pv, out)
        self._early, self._late = held(model, rest), held(model, period - rest)
        self._line = deque([0.0] * (whole + 2), maxlen=whole + 2)
        self._inner = self._outer = 0.0

    def step(self, out: float, load: float = 0.0) -> float:
        """Holds `out` for a period; returns the PV at its end. `load`: a disturbance that is added to the output."""
        self._line.append(out + load - self._rest[1])
        for move, acting in ((self._early, self._line[0]), (self._late, self._line[1])):
            goal = self._k * acting
            self._outer = move.q * self._outer + move.c * self._inner + move.r * goal
            self._inner = move.p * self._inner + (1.0 - move.p) * goal
        self.pv = self._rest[0] + self._outer
        return self.pv


def with_error(model: ModelConfig, *, gain: float = 1.0, delay: float = 1.0) -> ModelConfig:
    """The same process with its gain and its delay times these factors; a `Process` still starts at rest with it."""
    return dataclasses.replace(model, k=model.k * gain, delay=model.delay * delay)


def resting_output(model: ModelConfig, pv: float) -> float:
    """The output at which this PV stays where it is, by the model's bias.

    Raises ValueError for a self-regulating process of gain 0, which no output moves.
    """
    if model.integrating:
        return model.bias
    if model.k == 0.0:
        raise ValueError("a process of gain 0 rests wherever it is")
    return (pv - model.bias) / model.k


def _kept(seconds: float, lag: float) -> float:
    """What is left of a deviation behind a lag after `seconds`."""
    return math.exp(-seconds / lag) if lag > 0.0 else 0.0

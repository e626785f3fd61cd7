"""A loop's process, simulated: lags, an integrator or a swing, dead time and bias, exact for an output that is held."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import NamedTuple

from agent.config.types import ModelConfig

WHOLE = 1e-9
"""Of a period: a delay this close to a multiple of the period is one."""
LEAST_LAG = 1e-12
"""Of a period: a lag this short is none."""


class Held(NamedTuple):
    """How two states move while the input is held, as deviations from rest; g is the gain times the input.

    inner' = p inner + b outer + e g, outer' = c inner + q outer + r g: outer is the PV, inner what is behind the first
    lag, or the speed of the PV times T1 where the process oscillates.
    """

    p: float
    b: float
    e: float
    c: float
    q: float
    r: float


def held(model: ModelConfig, seconds: float) -> Held:
    """The exact movement over `seconds` of a held input (the matrix exponential, in closed form)."""
    if seconds <= 0.0:
        return Held(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    if model.damping < 1.0:
        return _swinging(model, seconds)
    if model.integrating:
        kept = _kept(seconds, model.t2)
        passed = model.t2 * (1.0 - kept)
        return Held(kept, 0.0, 1.0 - kept, passed, 1.0, seconds - passed)
    slow, fast = max(model.t1, model.t2), min(model.t1, model.t2)
    p, q = _kept(seconds, slow), _kept(seconds, fast)
    # a lag as short as a float can be is none: seconds / fast would be infinite
    if fast <= LEAST_LAG * seconds:
        crossed = p
    else:
        apart = seconds / fast - seconds / slow
        crossed = seconds / fast * p * (-math.expm1(-apart) / apart if apart > 0.0 else 1.0)
    return Held(p, 0.0, 1.0 - p, crossed, q, 1.0 - q - crossed)


def _swinging(model: ModelConfig, seconds: float) -> Held:
    """T1^2 y'' + 2 damping T1 y' + y = g."""
    zeta, turned = model.damping, seconds / model.t1
    speed = math.sqrt(1.0 - zeta * zeta)
    kept = math.exp(-zeta * turned)
    across, along = kept * math.sin(speed * turned) / speed, kept * math.cos(speed * turned)
    q = along + zeta * across
    return Held(along - zeta * across, -across, across, across, q, 1.0 - q)


def split_delay(delay: float, period: float) -> tuple[int, float]:
    """(whole periods, seconds left over): delay = whole * period + rest, 0 <= rest < period."""
    whole = math.floor(delay / period + WHOLE)
    return whole, max(delay - whole * period, 0.0)


class Process:
    """K / ((T1 s + 1)(T2 s + 1)) e^(-L s), or K / (s (T2 s + 1)) e^(-L s) where the model is integrating.

    With a damping below 1 it oscillates: K / (T1^2 s^2 + 2 damping T1 s + 1) e^(-L s).

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
            inner, outer = self._inner, self._outer
            self._outer = move.q * outer + move.c * inner + move.r * goal
            self._inner = move.p * inner + move.b * outer + move.e * goal
        self.pv = self._rest[0] + self._outer
        return self.pv


def with_error(model: ModelConfig, *, gain: float = 1.0, delay: float = 1.0, t1: float = 1.0) -> ModelConfig:
    """The same process with gain, delay and T1 times these factors; a `Process` still starts at rest with it."""
    return dataclasses.replace(model, k=model.k * gain, delay=model.delay * delay, t1=model.t1 * t1)


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

"""Gains of a PID by rule from a process model: SIMC and AMIGO.

The delay that the rules see is lengthened by half a period, for the output is held between two steps. `kp` has the sign
of the process's gain; a loop takes its size and the sign as `action`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agent.config.types import ModelConfig

FILTER = 8.0
"""The derivative's filter, td / FILTER, as the PID has it unless its `n` is given."""


@dataclass(frozen=True, slots=True)
class Gains:
    """`rule` names where they are from; kp in output per PV, ti and td in seconds, b the setpoint's weight."""

    rule: str
    kp: float
    ti: float
    td: float = 0.0
    b: float = 0.7

    @property
    def action(self) -> Literal["reverse", "direct"]:
        return "reverse" if self.kp >= 0.0 else "direct"


def reduced(model: ModelConfig, period: float) -> tuple[float, float]:
    """(lag, delay) of the model with one lag: half of the shorter lag goes to each (Skogestad's half rule).

    Of one that oscillates: the time constant with which its swing dies down.
    """
    if model.damping < 1.0:
        return model.t1 / model.damping, model.delay + period / 2
    slow, fast = max(model.t1, model.t2), min(model.t1, model.t2)
    if model.integrating:
        return math.inf, model.delay + model.t2 + period / 2
    return slow + fast / 2, model.delay + fast / 2 + period / 2


def simc(model: ModelConfig, period: float) -> Gains:
    """PI by S. Skogestad (J. Process Control 13, 2003), closed-loop time constant max(delay, 2 periods).

    Raises ValueError for a gain of 0, and for a process that oscillates.
    """
    lag, delay = _checked(model, period)
    closed = max(delay, 2 * period)
    if model.integrating:
        return Gains("SIMC PI", 1 / (model.k * (closed + delay)), 4 * (closed + delay))
    if lag <= 0.0:  # dead time alone: an integral controller, as a PI with a short ti
        ti = period
        return Gains("SIMC PI", ti / (model.k * (closed + delay)), ti)
    return Gains("SIMC PI", lag / (model.k * (closed + delay)), min(lag, 4 * (closed + delay)))


def amigo_pid(model: ModelConfig, period: float) -> Gains:
    """PID by Astrom & Hagglund, Advanced PID Control (2006), 7.4.

    Raises ValueError for a gain of 0, and for a process that oscillates.
    """
    lag, delay = _checked(model, period)
    if model.integrating:
        return Gains("AMIGO PID", 0.45 / (model.k * delay), 8 * delay, 0.5 * delay, 0.5)
    kp = (0.2 + 0.45 * lag / delay) / model.k
    ti = delay * (0.4 * delay + 0.8 * lag) / (delay + 0.1 * lag)
    td = 0.5 * delay * lag / (0.3 * delay + lag)
    return Gains("AMIGO PID", kp, ti, td, 0.5)


def amigo_pi(model: ModelConfig, period: float) -> Gains:
    """PI by Astrom & Hagglund, Advanced PID Control (2006), 7.3.

    Raises ValueError for a gain of 0, and for a process that oscillates.
    """
    lag, delay = _checked(model, period)
    if model.integrating:
        return Gains("AMIGO PI", 0.35 / (model.k * delay), 13.4 * delay, 0.0, 0.5)
    kp = (0.15 + (0.35 - delay * lag / (delay + lag) ** 2) * lag / delay) / model.k
    ti = 0.35 * delay + 13 * delay * lag**2 / (lag**2 + 12 * delay * lag + 7 * delay**2)
    return Gains("AMIGO PI", kp, ti, 0.0, 0.5)


def _checked(model: ModelConfig, period: float) -> tuple[float, float]:
    if model.k == 0.0:
        raise ValueError("a process of gain 0 cannot be controlled")
    if model.damping < 1.0:
        raise ValueError("the rules of SIMC and AMIGO are for processes that do not oscillate")
    return reduced(model, period)

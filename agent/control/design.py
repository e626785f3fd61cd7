"""From a process model to the numbers that the predictive controller's step works with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.config.types import ModelConfig
from agent.control import columns as c
from agent.control.process import Process, held, split_delay

MOST_INTERVALS = 30
"""In dead time and lags together; a loop that steps more often than that plans every second, third ... step. With more
the moves of a plan are over long before the PV shows them: a zero that the model lacks makes it swing."""
TRUST, DRIFT = 0.4, 0.075
"""Shares of a surprise; a DRIFT above TRUST / 5 is fragile."""
REACH = 0.7
"""The horizon ends a little after a step response is that far."""
SWING = 1.5
"""Times T for a swing, whose horizon is two dead times longer: with both it bears twice the gain."""
SHORTEST = 8
AFTER_DEAD = 12
"""Intervals of the horizon after the dead time: at least, and with an integrator."""
MOVE_WEIGHT = 0.3
"""Of a move against the mean square of the step response."""
FLAT_WEIGHT = 0.012
"""Added to it for two lags that are alike, and for a swing: a response that starts flat asks for large moves at first,
just where a process with more lags, or with a zero, is another one than its model. Times the square of the intervals
in the lags and in the dead time, where more lags show: in half as long an interval a move is half as large at the
same rate of the output, and counts a quarter, while errors count the same. A swing's dead time is one."""


@dataclass(frozen=True)
class Design:
    """`arrays`: par (DESIGN,), response (n,) and weight (MOVES, MOVES), as the step takes them.

    `interval`: seconds between two plans, a multiple of the loop's period. `approach`: time constant in seconds with
    which the setpoint is approached. `window`: seconds in which a loop that oscillates shows it. `penalty`: how much
    dearer a move is than by MOVE_WEIGHT and FLAT_WEIGHT.
    """

    model: ModelConfig
    interval: float
    approach: float
    window: float
    penalty: float
    arrays: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def design(
    model: ModelConfig,
    period: float,
    *,
    limits: tuple[float, float],
    rate: float = math.inf,
    slow: bool = False,
    penalty: float = 1.0,
    hurry: float = 1.0,
) -> Design:
    """Generalised predictive control of this process, stepped every `period` seconds.

    The setpoint is approached with `hurry` times 0.2 (L + T) + 0.2 L, or 0.7 (L + T) where `slow`; L and T from the
    step response (dead time, and time to 63 % after it, SWING times that for a swing). `rate`: of the output, per
    second.
    Raises ValueError for a gain of 0.
    """
    if model.k == 0.0 or not math.isfinite(model.k):
        raise ValueError("a process of gain 0 cannot be controlled")
    interval = interval_of(model, period)
    dead, _ = split_delay(model.delay, interval)
    a, b = _polynomials(model, interval)
    horizon, lag, rising = _shape(model, interval, dead)
    total = rising + lag
    approach = hurry * (0.7 * total if slow else 0.2 * total + 0.2 * rising)
    response = _step_response(model, interval, horizon)
    later = [np.concatenate([np.zeros(j), response[: horizon - j]]) for j in range(c.MOVES)]
    acting = np.array(later)[:, dead:]
    weight = acting @ acting.T
    weight += penalty * _move_weight(model, interval) * float(np.mean(response[dead:] ** 2)) * np.eye(c.MOVES)
    share = math.exp(-interval / approach)
    par = np.array([*a, *b, dead, TRUST, DRIFT, share, *limits, rate, interval])
    window = 12.0 * (dead * interval + approach + 3.0 * interval)
    return Design(model, interval, approach, window, penalty, (par, response, np.ascontiguousarray(weight)))


def interval_of(model: ModelConfig, period: float) -> float:
    """Seconds between two plans of a loop that steps every `period` seconds."""
    return period * max(1, math.ceil(_span(model) / (MOST_INTERVALS * period)))


def _span(model: ModelConfig) -> float:
    """Dead time and lags together, in seconds."""
    return model.delay + _lags(model)


def _lags(model: ModelConfig) -> float:
    """In seconds; half a turn of a swing."""
    if model.damping < 1.0:
        return math.pi * model.t1
    return model.t2 if model.integrating else model.t1 + model.t2


def _move_weight(model: ModelConfig, interval: float) -> float:
    if model.damping < 1.0:
        return MOVE_WEIGHT + FLAT_WEIGHT * (_lags(model) / interval) ** 2
    both = (model.t1 + model.t2) ** 2
    alike = 4.0 * model.t1 * model.t2 / both if both > 0.0 and not model.integrating else 0.0
    return MOVE_WEIGHT + FLAT_WEIGHT * alike * (_span(model) / interval) ** 2


def _step_response(model: ModelConfig, interval: float, steps: int) -> NDArray[np.float64]:
    """(steps,) the PV at the end of each interval after the output rose by 1."""
    process = Process(model, interval, pv=0.0, out=0.0)
    return np.array([process.step(1.0) for _ in range(steps)])


def _polynomials(model: ModelConfig, interval: float) -> tuple[tuple[float, float], list[float]]:
    """(A1, A2) from the poles, (B1, B2, B3) from the response to a pulse."""
    move = held(model, interval)
    a1, a2 = move.p + move.q, move.b * move.c - move.p * move.q
    dead, _ = split_delay(model.delay, interval)
    process = Process(model, interval, pv=0.0, out=0.0)
    pulse = [process.step(float(k == 0)) for k in range(dead + 3)][dead:]
    return (a1, a2), [pulse[0], pulse[1] - a1 * pulse[0], pulse[2] - a1 * pulse[1] - a2 * pulse[0]]


def _shape(model: ModelConfig, interval: float, dead: int) -> tuple[int, float, float]:
    """(horizon in intervals, T, L in seconds) of the sampled step response."""
    rising = max(dead + 0.5, 1.0)
    if model.integrating:
        return dead + AFTER_DEAD, max(2.0 * (dead + 2) - rising, 1.0) * interval, rising * interval
    lags = (model.t1 + model.t2) / interval
    response = _step_response(model, interval, math.ceil(dead + 3.0 * lags) + 3) / model.k
    most = int(np.argmax(response > 0.63)) + 1
    lag = max(most - rising, 1.0)
    horizon = max(dead + SHORTEST, dead + int(np.argmax(response > REACH)) + 3)
    if model.damping < 1.0:
        horizon, lag = horizon + 2 * dead, SWING * lag
    return horizon, lag * interval, rising * interval

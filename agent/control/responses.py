"""Many PIDs on one process at once, simulated without limits: which of them answers best without overshooting."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from agent.config.types import ModelConfig
from agent.control.gains import FILTER
from agent.control.process import held, split_delay

Floats = NDArray[np.float64]

WEIGHTS: Floats = np.linspace(1.0, 0.0, 11)
"""Of the setpoint in the proportional part."""
MOST_OVERSHOOT = 0.08
"""Of a step of the setpoint; noise adds its own."""
LOADS = 2.0
"""A load counts as much as so many steps of the setpoint, in the product of both errors."""
LENGTH, STEPS = 12.0, 600
"""Of a simulation: in time scales of the process, and steps at most."""


def best_of(
    model: ModelConfig, gains: Floats, times: Floats, rates: Floats, *, period: float, scale: float
) -> tuple[int, float]:
    """(which of the PIDs, which weight of the setpoint): the least IAE after a step of the setpoint and after a load.

    gains, times, rates: (n,) kp with the process's sign, ti above 0 and td in seconds. scale: seconds, the process's
    own. Where none stays within MOST_OVERSHOOT, the one that overshoots least.
    """
    step = max(period, LENGTH * scale / STEPS)
    # a coarser step holds the output longer, which is a delay of its own
    model = dataclasses.replace(model, delay=max(model.delay - (step - period) / 2, 0.0))
    paths = _paths(model, (gains, times, rates), step, math.ceil(LENGTH * scale / step))
    # the integral of the error is known: it is what the path's end would still bring
    rest = np.abs(times / gains)
    load = np.maximum(np.abs(paths[:, :, 2]).sum(axis=0) * step, rest)
    whole = 0.0 if model.integrating else rest / abs(model.k)
    errors, beyond = np.empty((len(WEIGHTS), len(gains))), np.empty((len(WEIGHTS), len(gains)))
    for i, weight in enumerate(WEIGHTS):
        path = paths[:, :, 0] + weight * paths[:, :, 1]  # the loop is linear
        errors[i] = np.maximum(np.abs(1.0 - path).sum(axis=0) * step, whole)
        beyond[i] = path.max(axis=0) - 1.0
    allowed = beyond <= MOST_OVERSHOOT
    cost = np.where(allowed, np.log(errors) + LOADS * np.log(load), np.inf) if allowed.any() else beyond
    row, which = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return int(which), round(float(WEIGHTS[row]), 2)


def _paths(model: ModelConfig, pid: tuple[Floats, Floats, Floats], step: float, steps: int) -> Floats:
    """(steps, n, 3) the PV after a setpoint's step by 1 at weight 0, what weight 1 adds to it, and after a load of 1.

    The PID is stepped as `kernels.pid`, with weight 0 of the setpoint in its derivative.
    """
    kp, ti, td = (column[:, None] for column in pid)
    filtered = td / FILTER
    setpoint, weighted, load = (np.eye(3)[i] for i in (0, 1, 2))
    whole, late = split_delay(model.delay, step)
    moves = held(model, late), held(model, step - late)
    shape = (len(kp), 3)
    integral, derivative, inner, outer, before = (np.zeros(shape) for _ in range(5))
    line = [np.zeros(shape) for _ in range(whole + 2)]
    paths = np.empty((steps, *shape))
    for k in range(steps):
        derivative = (filtered * derivative - kp * td * (outer - before)) / (filtered + step)
        before = outer
        out = kp * (weighted - outer) + integral + derivative
        integral = integral + kp * step / ti * (setpoint - outer)
        line = [*line[1:], out + load]
        for move, acting in zip(moves, line, strict=False):
            goal = model.k * acting
            inner, outer = (
                move.p * inner + move.b * outer + move.e * goal,
                move.q * outer + move.c * inner + move.r * goal,
            )
        paths[k] = outer
    return paths

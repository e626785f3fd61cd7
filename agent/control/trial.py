"""A controller against a simulated process: a step of the setpoint, then a load, with noise on the PV."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent.config.types import ModelConfig
from agent.control.process import Process

QUARTER = 0.25
"""Of the output's range, which the step of the setpoint needs in the end; the load is half of it."""
NOISE = 0.005
"""Standard deviation, of the PV's range, where nothing better is known."""
SEED = 1


class Controller(Protocol):
    """`agent.control.pid.Pid` and `agent.control.mpc.Mpc`."""

    def take_over(self, output: float, setpoint: float, pv: float, feed_forward: float) -> None: ...

    def step(self, setpoint: float, pv: float, feed_forward: float, dt: float, elapsed: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Task:
    """What a trial does: from rest at PV 0 and the middle of `limits`; `half` periods each for setpoint and load."""

    limits: tuple[float, float]
    period: float
    half: int
    step: float
    noise: float


@dataclass(frozen=True, slots=True)
class Trial:
    """`iae`: integral of the absolute error, PV times seconds; `travel`: way that the output went (total variation)."""

    iae: float
    travel: float


def task(model: ModelConfig, period: float, window: float, *, limits: tuple[float, float]) -> Task:
    """One that suits the process. `window`: seconds in which it settles with room to spare."""
    reach = abs(model.k) * (limits[1] - limits[0]) * (window / 4.0 if model.integrating else 1.0)
    half = min(max(math.ceil(window / period), 200), 500)
    return Task(limits, period, half, QUARTER * reach, model.noise or NOISE * reach)


def run(controller: Controller, truth: ModelConfig, task: Task) -> Trial:
    """The trial of a controller that has not stepped yet. The same noise each time."""
    middle = sum(task.limits) / 2.0
    load = -QUARTER / 2.0 * (task.limits[1] - task.limits[0])
    noise = task.noise * np.random.default_rng(SEED).normal(size=2 * task.half)
    process = Process(truth, task.period, pv=0.0, out=middle)
    controller.take_over(middle, 0.0, 0.0, 0.0)
    iae, travel, last = 0.0, 0.0, middle
    for k in range(2 * task.half):
        out = controller.step(task.step, process.pv + float(noise[k]), 0.0, task.period, task.period)
        travel, last = travel + abs(out - last), out
        iae += abs(task.step - process.step(out, load if k >= task.half else 0.0)) * task.period
    return Trial(iae, travel)

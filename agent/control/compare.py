"""What gains give in simulation with the product's own controllers: a step of the setpoint, then a load, and errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.gains import Gains, reduced
from agent.control.pid import Pid
from agent.control.process import Process, with_error
from agent.control.robust import sensitivity

Floats = NDArray[np.float64]

STEP_SHARE, LOAD_SHARE = 0.1, 0.1
"""Of the output's range: what the step of the setpoint needs of it in the end, and the load."""
ERRORS = ((1.3, 1.3), (1.3, 1.0), (0.7, 1.0), (1.0, 0.7))
"""Factors of gain and delay that the process may have over its model."""
SWINGS = (0.85, 1.15)
"""Factors of T1, besides, where it oscillates: a spring 30 % stiffer has 30 % less gain and swings 15 % faster."""
LEAST, MOST = 100, 6000
"""Steps of each half of a run."""
SEED = 1


class Controller(Protocol):
    """`agent.control.pid.Pid`, and what else may stand in its place in a loop."""

    def take_over(self, output: float, setpoint: float, pv: float, feed_forward: float) -> None: ...

    def step(self, setpoint: float, pv: float, feed_forward: float, dt: float, elapsed: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Run:
    """A run's series, each (n,): seconds, setpoint, PV and output, all from rest at PV 0; the load comes at half."""

    t: Floats
    setpoint: Floats
    pv: Floats
    out: Floats


@dataclass(frozen=True, slots=True)
class Scores:
    """iae_setpoint, iae_load: PV times seconds. overshoot: share of the step. travel: way of the output.

    ms: maximum sensitivity, None where the controller has none. worst: largest IAE with a wrong process over the one
    with the right process; infinite where one of them is not stable.
    """

    name: str
    gains: Gains | None
    iae_setpoint: float
    iae_load: float
    overshoot: float
    travel: float
    ms: float | None
    worst: float
    run: Run


@dataclass(frozen=True, slots=True)
class Plan:
    """Size and length of the runs: step of the setpoint, load at the process's input, steps of each half, noise."""

    loop: LoopConfig
    period: float
    step: float
    load: float
    half: int
    noise: float


def plan(loop: LoopConfig, model: ModelConfig, period: float, *, noise: float = 0.0) -> Plan:
    """Runs that suit the loop: limits and rate are its own, the size is a tenth of the output's range."""
    lag, delay = reduced(model, period)
    reach = loop.limits[1] - loop.limits[0]
    slow = 8 * delay if math.isinf(lag) else lag + delay
    gain = model.k * (4 * delay if math.isinf(lag) else 1.0)
    half = min(max(math.ceil(12 * slow / period), LEAST), MOST)
    return Plan(loop, period, STEP_SHARE * reach * abs(gain), -LOAD_SHARE * reach, half, noise)


def score_pid(gains: Gains, model: ModelConfig, plan: Plan) -> Scores:
    """The product's PID with these gains."""
    loop = with_gains(plan.loop, gains)
    ms = sensitivity(model, gains, plan.period, loop.controller.n)
    found = score(gains.rule, lambda: Pid(loop, plan.period), model, plan)
    return dataclasses.replace(found, gains=gains, ms=ms)


def with_gains(loop: LoopConfig, gains: Gains) -> LoopConfig:
    """The loop with these gains in its controller."""
    controller = ControllerConfig(
        kp=abs(gains.kp), ti=gains.ti, td=gains.td, b=gains.b, c=loop.controller.c, n=loop.controller.n
    )
    return dataclasses.replace(loop, controller=controller, action=gains.action)


def score(name: str, make: Callable[[], Controller], model: ModelConfig, plan: Plan) -> Scores:
    """A controller that `make` makes anew for each run."""
    right = simulate(make(), model, plan)
    whole = sum(_iae(right, plan))
    others = [with_error(model, gain=k, delay=late) for k, late in ERRORS]
    if model.damping < 1.0:
        others += [with_error(model, t1=t1) for t1 in SWINGS]
    wrong = [sum(_iae(simulate(make(), other, plan), plan)) for other in others]
    half = plan.half
    iae_setpoint, iae_load = _iae(right, plan)
    return Scores(
        name=name,
        gains=None,
        iae_setpoint=iae_setpoint,
        iae_load=iae_load,
        overshoot=max(float(right.pv[:half].max()) / plan.step - 1.0, 0.0),
        travel=float(np.abs(np.diff(right.out)).sum()),
        ms=None,
        worst=max(wrong) / whole if whole > 0.0 else 1.0,
        run=right,
    )


def simulate(controller: Controller, truth: ModelConfig, plan: Plan) -> Run:
    """One run from rest at PV 0 and the middle of the limits. The same noise each time, on what the controller sees."""
    middle = sum(plan.loop.limits) / 2.0
    count = 2 * plan.half
    noise = plan.noise * np.random.default_rng(SEED).normal(size=count)
    process = Process(truth, plan.period, pv=0.0, out=middle)
    controller.take_over(middle, 0.0, 0.0, 0.0)
    pv, out = np.empty(count), np.empty(count)
    for k in range(count):
        pv[k] = process.pv
        out[k] = controller.step(plan.step, process.pv + float(noise[k]), 0.0, plan.period, plan.period)
        process.step(float(out[k]), plan.load if k >= plan.half else 0.0)
    t: Floats = np.linspace(0.0, plan.period * (count - 1), count)
    return Run(t, np.full(count, plan.step), pv, out)


def _iae(run: Run, plan: Plan) -> tuple[float, float]:
    """(after the step, after the load)."""
    error = np.abs(run.setpoint - run.pv) * plan.period
    return float(error[: plan.half].sum()), float(error[plan.half :].sum())

"""Whether a loop may be controlled by its model: judged by simulation, once, before the loop runs."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control import trial
from agent.control.design import Design, design
from agent.control.gains import simc
from agent.control.mpc import Mpc
from agent.control.pid import Pid
from agent.control.process import with_error
from agent.control.robust import most_sensitive

ERRORS = ((1.3, 1.3), (1.3, 1.0), (0.7, 1.0), (1.0, 0.7))
"""Factors of gain and delay that the process may have over its model."""
FRAGILE = 1.3
"""Times its error with the right model, to which the worst of ERRORS may raise it."""
MOST_TRAVEL = 2.0
"""Times the way that the output goes under the PID."""
DEARER = 2.0
DEAREST = 300.0
"""Steps of the move penalty, and where that ends."""


@dataclass(frozen=True)
class Grant:
    """`design` None: the PID runs, and `why` says why. `noise`: standard deviation of the PV.

    `pid`: gains of the PID beneath; a gain of 0, where no model can give any, leaves the output where it is.
    """

    design: Design | None
    pid: ControllerConfig
    why: str | None
    noise: float


def grant(config: LoopConfig, period: float) -> Grant:
    """For a loop whose controller is predictive. It takes a few hundred ms, and the same question is not worked out
    twice: asked on another thread first, it costs the loops no time. `period`: seconds between steps."""
    plain = LoopConfig(
        name="",
        pv=("", ""),
        out=("", ""),
        setpoint=0.0,
        limits=config.limits,
        controller=config.controller,
        model=config.model,
        action=config.action,
        rate=config.rate,
    )
    return _grant(plain, period)


@functools.lru_cache(maxsize=64)
def _grant(config: LoopConfig, period: float) -> Grant:
    model = config.model
    if model is None:
        return Grant(None, config.controller, "there is no model", 0.0)
    if model.k == 0.0 or (model.k > 0.0) != (config.action == "reverse"):
        why = f"the model's gain {model.k:g} does not go with action {config.action}"
        return Grant(None, config.controller, why, 0.0)
    plan = _design(config, model, period, slow=model.grade != "good")
    pid = config.controller
    if pid.kp == 0.0:
        gains = most_sensitive(model, period) or simc(model, period)
        pid = dataclasses.replace(pid, kp=abs(gains.kp), ti=gains.ti, td=gains.td)
    task = trial.task(model, plan.interval, plan.window, limits=config.limits)
    if model.grade == "poor":
        return Grant(None, pid, "the model's grade is poor", task.noise)
    most = (
        MOST_TRAVEL
        * trial.run(Pid(dataclasses.replace(config, controller=pid), plan.interval), model, task).travel
    )
    least = math.inf
    for slow in (False, True) if model.grade == "good" else (True,):
        found, worst = _judge(config, model, period, task, slow=slow, most=most)
        if found is not None:
            return Grant(found, pid, None, task.noise)
        least = min(least, worst)
    off = round(100 * (ERRORS[0][0] - 1))
    why = f"its error would grow {least:.2f} times with a model that is {off} % wrong, more than {FRAGILE:g}"
    if math.isinf(least):
        why = f"the output would move more than {MOST_TRAVEL:g} times as much as under the PID"
    return Grant(None, pid, why, task.noise)


def _judge(
    config: LoopConfig, model: ModelConfig, period: float, task: trial.Task, *, slow: bool, most: float
) -> tuple[Design | None, float]:
    """(the design with the cheapest moves that passes, the least growth of the error by a wrong model seen)."""
    penalty, least = 1.0, math.inf
    while penalty <= DEAREST:
        plan = _design(config, model, period, slow=slow, penalty=penalty)
        right = trial.run(Mpc(plan), model, task)
        if right.travel <= most:
            wrong = [trial.run(Mpc(plan), with_error(model, gain=k, delay=d), task).iae for k, d in ERRORS]
            least = min(least, max(wrong) / right.iae)
            if least <= FRAGILE:
                return plan, least
        penalty *= DEARER
    return None, least


def _design(
    config: LoopConfig, model: ModelConfig, period: float, *, slow: bool, penalty: float = 1.0
) -> Design:
    rate = math.inf if config.rate is None else config.rate
    return design(model, period, limits=config.limits, rate=rate, slow=slow, penalty=penalty)

"""Whether a loop may be controlled by its model: judged by simulation, once, before the loop runs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent.config.types import Config, ControllerConfig, LoopConfig, ModelConfig
from agent.control.compare import Plan, Run, Scores, plan, score, simulate, with_gains
from agent.control.design import Design, design, interval_of
from agent.control.gains import Gains, simc
from agent.control.mpc import Mpc
from agent.control.pid import Pid
from agent.control.robust import most_sensitive

FRAGILE = 1.3
"""Times its error with the right model, to which one whose gain and delay are 30 % wrong may raise it."""
NOISE = 0.05
"""Standard deviation of the PV over the step that is simulated, half a percent of the range, where none is known."""
MOST_TRAVEL = 2.0
"""Times the way that the output goes under the PID."""
PENALTIES = (1.0, 4.0, 16.0, 64.0)
"""Of a move: tried where the first makes the loop fragile or the output restless."""
HURRIES = (0.5, 0.6, 0.7, 0.85)
"""Shares of the time in which the setpoint is approached by rule: the rule is one for every process, and what a single
one bears, the more so one with lags and little dead time, is only known from its simulation."""
MOST_OVERSHOOT = 0.03
"""Of a step, in a design that is quicker than the rule."""


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
    """For a loop whose controller is predictive; `period`: seconds between two of its steps.

    It takes up to a few hundred ms; the same question is not worked out twice (see `prepare`).
    """
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


def prepare(config: Config) -> None:
    """Asks for all loops: on another thread, before they take this configuration, it costs them no time."""
    for loop in config.loops.values():
        if loop.controller.type == "predictive":
            grant(loop, max(loop.every, config.tag(loop.pv).every))


@functools.lru_cache(maxsize=64)
def _grant(config: LoopConfig, period: float) -> Grant:
    model = config.model
    if model is None:
        return Grant(None, config.controller, "there is no model", 0.0)
    if model.k == 0.0 or (model.k > 0.0) != (config.action == "reverse"):
        why = f"the model's gain {model.k:g} does not go with action {config.action}"
        return Grant(None, config.controller, why, 0.0)
    gains = _gains(model, period)
    pid = config.controller
    if gains is None:
        return Grant(None, pid, "no PID suits the model, to fall back on", 0.0)
    if pid.kp == 0.0:
        pid = dataclasses.replace(pid, kp=abs(gains.kp), ti=gains.ti, td=gains.td, b=gains.b)
    runs = plan(config, model, interval_of(model, period))
    runs = dataclasses.replace(runs, noise=model.noise or NOISE * runs.step)
    if model.grade == "poor":
        return Grant(None, pid, "the model's grade is poor", runs.noise)
    under_pid = simulate(Pid(with_gains(config, gains), runs.period), model, runs)
    most = MOST_TRAVEL * _travel(under_pid)
    found, least = _choice(config, model, period, runs, most)
    if found is not None:
        return Grant(found, pid, None, runs.noise)
    why = f"its error would grow {least:.2f} times with a model that is 30 % wrong, more than {FRAGILE:g}"
    if math.isinf(least):
        why = f"the output would move more than {MOST_TRAVEL:g} times as much as under the PID"
    return Grant(None, pid, why, runs.noise)


def _gains(model: ModelConfig, period: float) -> Gains | None:
    found = most_sensitive(model, period)
    return found if found is not None or model.damping < 1.0 else simc(model, period)


def _choice(
    config: LoopConfig, model: ModelConfig, period: float, runs: Plan, most: float
) -> tuple[Design | None, float]:
    """(the design that is wanted if it passes, else of those that pass the one with the least error; how fragile).

    Where one that approaches the setpoint by rule passes, the quickest that passes too stands in its place.
    """
    rate = math.inf if config.rate is None else config.rate
    speeds = (False, True) if model.grade == "good" else (True,)
    best: tuple[float, Design | None] = (math.inf, None)
    least = math.inf
    for slow, penalty in itertools.product(speeds, PENALTIES):
        make = functools.partial(design, model, period, limits=config.limits, rate=rate, penalty=penalty)
        found = make(slow=slow)
        scores = _judged(found, runs, most)
        if scores is None:
            continue
        least = min(least, scores.worst)
        if scores.worst > FRAGILE:
            continue
        if not slow:
            found, scores = _hurried(make, runs, most) or (found, scores)
        best = min(best, (scores.iae_setpoint + scores.iae_load, found), key=lambda one: one[0])
        if (slow, penalty) == (speeds[0], PENALTIES[0]):
            break
    return best[1], least


def _hurried(make: Callable[..., Design], runs: Plan, most: float) -> tuple[Design, Scores] | None:
    """The quickest that passes: a slower one leaves more error."""
    for hurry in HURRIES:
        found = make(hurry=hurry)
        scores = _judged(found, runs, most)
        if scores is not None and scores.worst <= FRAGILE and scores.overshoot <= MOST_OVERSHOOT:
            return found, scores
    return None


def _judged(found: Design, runs: Plan, most: float) -> Scores | None:
    """None where its output moves more than `most`."""
    if _travel(simulate(Mpc(found), found.model, runs)) > most:
        return None
    return score("", functools.partial(Mpc, found), found.model, runs)


def _travel(run: Run) -> float:
    return float(np.abs(np.diff(run.out)).sum())

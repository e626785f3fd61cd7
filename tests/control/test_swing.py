"""Control of a process that oscillates by itself: the PID by sensitivity, and prediction where it is granted."""

from __future__ import annotations

import dataclasses

import pytest

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.compare import ERRORS, Plan, Scores, plan, score_pid, simulate, with_gains
from agent.control.grant import FRAGILE, grant
from agent.control.pid import Pid
from agent.control.process import with_error
from agent.control.robust import most_sensitive
from agent.control.tuning import PREDICTIVE, compare

MODEL = ModelConfig(k=1.0, t1=5.0, damping=0.3, delay=2.0, grade="good", noise=0.05)
LOOP = LoopConfig(
    "loop",
    ("a", "pv"),
    ("a", "out"),
    0.0,
    (0.0, 100.0),
    controller=ControllerConfig(type="predictive", kp=0.0),
)
PERIOD = 1.0


def runs(model: ModelConfig) -> Plan:
    return plan(LOOP, model, PERIOD, noise=model.noise)


def whole(scores: Scores) -> float:
    return scores.iae_setpoint + scores.iae_load


@pytest.mark.parametrize(("damping", "share"), [(0.1, 0.8), (0.3, 0.9), (0.5, 1.0)])
def test_prediction_is_granted_and_better_than_the_pid(damping: float, share: float) -> None:
    model = dataclasses.replace(MODEL, damping=damping)
    rows = compare(model, runs(model))
    assert set(rows) == {"ms", PREDICTIVE}
    assert whole(rows[PREDICTIVE]) < share * whole(rows["ms"])
    assert rows[PREDICTIVE].worst <= FRAGILE
    assert rows[PREDICTIVE].overshoot < 0.1


def test_a_swing_that_no_model_can_hold_is_refused_in_words() -> None:
    """It hardly dies down, and answers a third of its period late."""
    model = dataclasses.replace(MODEL, damping=0.05, delay=10.0, noise=0.005)
    granted = grant(dataclasses.replace(LOOP, model=model), PERIOD)
    assert granted.design is None
    assert granted.why is not None and "times with a model that is 30 % wrong" in granted.why
    assert granted.pid.kp > 0.0


def test_a_swing_that_is_slower_than_the_model_counts_as_an_error() -> None:
    gains = most_sensitive(MODEL, PERIOD)
    assert gains is not None
    plan_, loop = runs(MODEL), with_gains(LOOP, gains)

    def error(model: ModelConfig) -> float:
        run = simulate(Pid(loop, PERIOD), model, plan_)
        return float(abs(run.setpoint - run.pv).sum())

    slower = error(with_error(MODEL, t1=1.15)) / error(MODEL)
    assert slower > max(error(with_error(MODEL, gain=k, delay=late)) for k, late in ERRORS) / error(MODEL)
    assert score_pid(gains, MODEL, plan_).worst == pytest.approx(slower)

"""The controller: no bump, no windup, dt within bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.types import ControllerConfig, ModelConfig
from agent.control.pid import Pid
from agent.control.process import Process
from tests.control.bench import config

PID = ControllerConfig(kp=2.0, ti=20.0, td=3.0, b=0.7, c=0.5)


def controller(**changes: Any) -> Pid:
    return Pid(config(**{"controller": PID, **changes}), 1.0)


@given(
    output=st.floats(0, 100),
    setpoint=st.floats(-500, 500),
    pv=st.floats(-500, 500),
    ff=st.floats(-50, 50),
    rate=st.sampled_from([None, 0.5]),
)
def test_takes_over_without_a_bump(
    output: float, setpoint: float, pv: float, ff: float, rate: float | None
) -> None:
    pid = controller(rate=rate)
    pid.take_over(output, setpoint, pv, ff)
    assert pid.step(setpoint, pv, ff, 1.0, 1.0) == pytest.approx(output, abs=1e-7)


CHANGES: list[dict[str, Any]] = [
    {"controller": ControllerConfig(kp=9.0, ti=20.0, td=3.0)},
    {"controller": ControllerConfig(kp=2.0, ti=1.0, td=3.0)},
    {"controller": ControllerConfig(kp=2.0, ti=0.0, td=0.0)},
    {"controller": ControllerConfig(kp=2.0, ti=20.0, td=30.0, b=0.0, c=1.0, n=2.0)},
    {"action": "direct"},
    {"rate": 0.1},
    {"limits": (-50.0, 200.0)},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_no_bump_when_parameters_change(change: dict[str, Any]) -> None:
    pid = controller()
    pid.take_over(40.0, 50.0, 48.0, 0.0)
    for pv in (48.0, 47.5, 47.7, 47.6):
        before = pid.step(50.0, pv, 1.0, 1.0, 1.0)
    assert 0.0 < before < 100.0
    pid.set_parameters(config(**{"controller": PID, **change}), 1.0)
    assert pid.step(50.0, 47.6, 1.0, 1.0, 1.0) == pytest.approx(before, abs=1e-7)


def windup(pid: Pid, *, ceiling: float) -> tuple[int, float]:
    """Steps that the output stays at its ceiling after an unreachable setpoint is lowered, and the PV's first value."""
    pv = 0.0
    pid.take_over(0.0, 80.0, 0.0, 0.0)
    for _ in range(150):
        out = min(pid.step(80.0, pv, 0.0, 1.0, 1.0), ceiling)
        pid.pushed_to(out)
        pv += (0.5 * out - pv) * (1 - math.exp(-1 / 10))
    reached = pv
    for stuck in range(100):
        if min(pid.step(20.0, pv, 0.0, 1.0, 1.0), ceiling) < ceiling - 1.0:
            return stuck, reached
        pv += (0.5 * ceiling - pv) * (1 - math.exp(-1 / 10))
    return 100, reached


@pytest.mark.parametrize("td", [0.0, 2.0])
@pytest.mark.parametrize("ceiling", [100.0, 70.0], ids=["own limit", "the PLC's limit"])
def test_does_not_wind_up(td: float, ceiling: float) -> None:
    stuck, reached = windup(controller(controller=ControllerConfig(kp=2.0, ti=10.0, td=td)), ceiling=ceiling)
    assert reached < 60.0
    assert stuck <= 1


@pytest.mark.parametrize("b", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("td", [0.0, 4.0])
@pytest.mark.parametrize("setpoint", [60.0, 110.0])
def test_a_setpoint_far_beyond_reach_is_forgotten_at_once(b: float, td: float, setpoint: float) -> None:
    """500 where the PV reaches 120: then a setpoint within reach is gone to at once, and not past it."""
    pid = controller(controller=ControllerConfig(kp=2.0, ti=20.0, td=td, b=b))
    process = Process(ModelConfig(k=1.2, t1=20.0, delay=1.0), 1.0, pv=60.0, out=50.0)
    pid.take_over(50.0, 60.0, 60.0, 0.0)
    for _ in range(300):
        process.step(pid.step(500.0, process.pv, 0.0, 1.0, 1.0))
    assert process.pv == pytest.approx(120.0, abs=0.1)
    assert pid.step(setpoint, process.pv, 0.0, 1.0, 1.0) < 99.0
    lowest = process.pv
    for _ in range(300):
        lowest = min(lowest, process.step(pid.step(setpoint, process.pv, 0.0, 1.0, 1.0)))
    assert lowest > setpoint - 0.08 * (120.0 - setpoint)
    assert process.pv == pytest.approx(setpoint, abs=0.5)


def test_does_not_wind_up_against_a_rate() -> None:
    pid = controller(controller=ControllerConfig(kp=5.0, ti=5.0, b=1.0), rate=1.0)
    pid.take_over(0.0, 0.0, 0.0, 0.0)
    for _ in range(50):
        last = pid.step(40.0, 0.0, 0.0, 1.0, 1.0)
    assert last == pytest.approx(50.0)
    assert pid.step(-40.0, 0.0, 0.0, 1.0, 1.0) == pytest.approx(49.0)


@pytest.mark.parametrize(("dt", "used"), [(1.0, 1.0), (0.01, 0.5), (-5.0, 0.5), (60.0, 3.0)])
def test_dt_stays_within_half_a_period_and_three(dt: float, used: float) -> None:
    pid = controller(controller=ControllerConfig(kp=1.0, ti=10.0, b=1.0))
    pid.take_over(40.0, 50.0, 45.0, 0.0)
    pid.step(50.0, 45.0, 0.0, dt, 1.0)
    assert pid.step(50.0, 45.0, 0.0, 1.0, 1.0) == pytest.approx(40.0 + 5.0 * used / 10.0)


def test_without_integral_action_the_bias_is_the_output_taken_over() -> None:
    pid = controller(controller=ControllerConfig(kp=1.0, ti=0.0, b=1.0))
    pid.take_over(40.0, 50.0, 50.0, 0.0)
    for _ in range(20):
        assert pid.step(50.0, 45.0, 0.0, 1.0, 1.0) == pytest.approx(45.0)


def test_direct_action_raises_the_output_with_the_pv() -> None:
    for action, sign in (("reverse", -1), ("direct", 1)):
        pid = controller(action=action, controller=ControllerConfig(kp=1.0, ti=0.0))
        pid.take_over(40.0, 50.0, 50.0, 0.0)
        assert pid.step(50.0, 52.0, 0.0, 1.0, 1.0) == pytest.approx(40.0 + 2.0 * sign)


def test_a_setpoint_step_kicks_by_its_weights_only() -> None:
    for b, c in ((0.0, 0.0), (0.7, 0.0), (1.0, 0.5)):
        pid = controller(controller=ControllerConfig(kp=1.0, ti=50.0, td=1.0, b=b, c=c, n=10.0))
        pid.take_over(40.0, 50.0, 50.0, 0.0)
        kick = pid.step(60.0, 50.0, 0.0, 1.0, 1.0) - 40.0
        assert kick == pytest.approx(10.0 * b + 10.0 * c / 1.1)


def test_limited_says_whether_something_was_cut_off() -> None:
    pid = controller(controller=ControllerConfig(kp=1.0, ti=0.0))
    pid.take_over(95.0, 50.0, 50.0, 0.0)
    pid.step(50.0, 46.0, 0.0, 1.0, 1.0)
    assert not pid.limited
    pid.step(50.0, 40.0, 0.0, 1.0, 1.0)
    assert pid.limited
    assert pid.output == 100.0

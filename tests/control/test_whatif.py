"""What is foretold of a loop, against a direct simulation with small steps of the process's equations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from agent.config.types import ControllerConfig, FeedForward, LoopConfig, ModelConfig
from agent.control import whatif
from agent.control.whatif import Foretold, Hardware, State, at_rest, foretell
from tests.control.bench import config

MODEL = ModelConfig(k=1.5, t1=12.0, t2=3.0, delay=4.0, bias=10.0, grade="good")
INTEGRATOR = ModelConfig(k=0.02, t2=2.0, delay=3.0, bias=40.0, integrating=True, grade="good")
PI = ControllerConfig(kp=0.8, ti=14.0, b=0.7)
STEP = Hardware(1.0)
FINE = 200


def loop(**changes: Any) -> LoopConfig:
    return config(**{"model": MODEL, "controller": PI, **changes})


def by_hand(
    one: LoopConfig, start: State, goal: float, count: int, *, load: tuple[int, float] = (10**9, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """PV and output: the PI law written down again, and Euler steps of a 200th of a second."""
    model = one.model
    assert model is not None
    c = one.controller
    low, high = one.limits
    late = round(model.delay * FINE)
    line = [0.0] * late
    inner = outer = 0.0
    integral = start.out - c.kp * (c.b * start.setpoint - start.pv)
    out, held, wanted = start.out, start.out, start.setpoint
    pvs, outs = [], []
    for k in range(count):
        pv = start.pv + outer
        wanted = goal if one.ramp is None else wanted + float(np.clip(goal - wanted, -one.ramp, one.ramp))
        free = c.kp * (c.b * wanted - pv) + integral
        limited = min(max(free, low), high)
        if one.rate is not None:
            limited = min(max(limited, out - one.rate), out + one.rate)
        integral += c.kp / c.ti * (wanted - pv) + (limited - free) / (c.b * c.ti)
        out = limited
        if abs(out - held) > one.deadband:
            held = out
        pvs.append(pv)
        outs.append(held)
        for _ in range(FINE):
            line.append(model.k * (held - start.out + (load[1] if k >= load[0] else 0.0)))
            goal_now = line.pop(0)
            first = model.t2 if model.integrating else model.t1
            was, inner = inner, inner + (goal_now - inner) / first / FINE
            through = (was + inner) / 2
            outer += through / FINE if model.integrating else (through - outer) / model.t2 / FINE
    return np.array(pvs), np.array(outs)


def close(found: Foretold, pv: np.ndarray, out: np.ndarray, size: float) -> None:
    np.testing.assert_allclose(found.pv, pv, atol=0.01 * size)
    np.testing.assert_allclose(found.out, out, atol=0.01 * float(np.ptp(out)) + 1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"limits": (0.0, 40.0)},
        {"rate": 0.4},
        {"ramp": 0.5},
        {"model": INTEGRATOR, "controller": ControllerConfig(kp=3.0, ti=60.0)},
    ],
    ids=["plain", "limits", "rate", "ramp", "integrating"],
)
def test_a_step_as_the_equations_have_it(changes: dict[str, Any]) -> None:
    one = loop(**changes)
    start = at_rest(one, 50.0)
    found = foretell(one, start, STEP, setpoint=70.0, seconds=150.0)
    assert len(found.t) == 151 and found.t[-1] == pytest.approx(150.0)
    close(found, *by_hand(one, start, 70.0, 151), 20.0)


def test_a_dead_band_holds_the_output() -> None:
    one = loop(deadband=2.5)
    start = at_rest(one, 50.0)
    found = foretell(one, start, STEP, setpoint=70.0, seconds=150.0)
    pv, out = by_hand(one, start, 70.0, 151)
    np.testing.assert_allclose(found.pv, pv, atol=0.2)
    moves = np.diff(found.out)[np.diff(found.out) != 0.0]
    assert len(moves) == np.count_nonzero(np.diff(out)) < 40 and np.abs(moves).min() > 2.5


def test_a_load_comes_at_half_time() -> None:
    one = loop()
    start = at_rest(one, 50.0)
    found = foretell(one, start, STEP, setpoint=60.0, load=-8.0, seconds=300.0)
    close(found, *by_hand(one, start, 60.0, 301, load=(150, -8.0)), 10.0)
    assert found.disturbed is not None and found.disturbed.settling is not None
    assert found.disturbed.peak == pytest.approx(float(np.abs(found.pv[150:] - 60.0).max()))
    assert found.step.settling is not None and found.step.settling < 150.0
    alone = foretell(one, start, STEP, setpoint=60.0, seconds=149.0)
    assert found.step == alone.step  # the load has no part in the step's figures


def test_figures_are_those_of_the_series() -> None:
    one = loop(controller=dataclasses.replace(PI, kp=1.5))
    found = foretell(one, at_rest(one, 50.0), STEP, setpoint=40.0, seconds=400.0)
    settling = found.step.settling
    assert settling is not None
    outside = np.abs(found.pv - 40.0) > 0.02 * 10.0
    assert not outside[int(settling) :].any() and outside[int(settling) - 1]
    assert (
        found.step.overshoot == pytest.approx(100.0 * (40.0 - found.pv.min()) / 10.0) and found.pv.min() < 39
    )
    assert found.step.iae == pytest.approx(float(np.abs(found.pv - 40.0)[:-1].sum()))
    assert found.move == pytest.approx(
        abs(found.out[0] - found.start.out)
    )  # the kick at first is the largest


def test_what_does_not_settle_has_no_settling_time() -> None:
    one = loop(controller=ControllerConfig(kp=8.0, ti=5.0))
    found = foretell(one, at_rest(one, 50.0), STEP, setpoint=60.0, seconds=300.0)
    assert found.step.settling is None
    assert foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=60.0, seconds=10.0).step.settling is None
    assert foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=60.0).step.settling is not None


def test_it_says_when_limits_bind() -> None:
    tight = loop(limits=(0.0, 35.0))
    found = foretell(tight, at_rest(tight, 50.0), STEP, setpoint=90.0, seconds=200.0)
    assert found.limited > 0.9 and found.step.settling is None and found.out.max() == 35.0
    assert foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=52.0).limited == 0.0


def test_the_predictive_controller_runs_where_it_is_granted() -> None:
    one = loop(controller=ControllerConfig(type="predictive", kp=0.0))
    pid = foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=60.0, seconds=200.0)
    found = foretell(one, at_rest(one, 50.0), STEP, setpoint=60.0, seconds=200.0)
    assert (found.controller, pid.controller) == ("predictive", "pid") and found.notes == ()
    assert found.step.settling is not None and pid.step.settling is not None
    assert found.step.settling < pid.step.settling and found.step.overshoot == pytest.approx(0.0, abs=2.0)
    poor = dataclasses.replace(one, model=dataclasses.replace(MODEL, grade="poor"))
    refused = foretell(poor, at_rest(poor, 50.0), STEP, setpoint=60.0)
    assert refused.controller == "pid" and refused.grade == "poor"
    assert any("graded poor" in note for note in refused.notes)
    assert any("not predictive" in note for note in refused.notes)


def test_it_starts_from_where_the_loop_is() -> None:
    start = State(pv=44.0, out=30.0, setpoint=50.0, mode="manual")
    found = foretell(loop(ramp=0.2), start, STEP, seconds=120.0)
    assert found.pv[0] == 44.0 and found.setpoint[0] == pytest.approx(44.2) and found.goal == 50.0
    assert found.notes == ("the loop is in manual: this is what it would do in auto",)
    running = foretell(
        loop(ramp=0.2), dataclasses.replace(start, mode="auto"), STEP, setpoint=51.0, seconds=120.0
    )
    assert running.setpoint[0] == pytest.approx(50.2) and running.notes == ()


def test_feed_forward_and_interlock_stay_as_they_are() -> None:
    plain = foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=60.0)
    full = loop(interlock=(("plc", "running"),), feed_forward=FeedForward(("plc", "load"), gain=2.0))
    assert foretell(full, at_rest(full, 50.0), STEP, setpoint=60.0).pv == pytest.approx(plain.pv)


def test_the_register_and_its_interval_are_kept() -> None:
    found = foretell(
        loop(), at_rest(loop(), 50.0), Hardware(1.0, quantum=0.5, min_interval=5.0), setpoint=60.0
    )
    moved = np.flatnonzero(np.diff(found.out))
    assert len(moved) > 2 and np.diff(moved).min() >= 5
    assert np.allclose(found.out[5:] * 2, np.round(found.out[5:] * 2))


def test_a_trip_is_foretold() -> None:
    one = loop(trip=(0.0, 58.0))
    found = foretell(one, at_rest(one, 50.0), STEP, setpoint=70.0, seconds=100.0)
    assert found.notes[0].startswith("the loop would fail: PV trip")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"setpoint": 120.0}, "outside setpoint_limits, 0 to 100"),
        ({"setpoint": float("nan")}, "must be a number"),
        ({"load": float("inf")}, "must be a number"),
        ({"seconds": 0.0}, "above 0 and at most 24h"),
        ({"seconds": 86_401.0}, "above 0 and at most 24h"),
        ({"seconds": 0.4}, "at least one step"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, Any], words: str) -> None:
    one = loop(setpoint_limits=(0.0, 100.0))
    with pytest.raises(ValueError, match=words):
        foretell(one, at_rest(one, 50.0), STEP, **asked)


def test_without_a_model_there_is_nothing_to_ask() -> None:
    with pytest.raises(ValueError, match="has no model: run `edgetwin tune`"):
        foretell(loop(model=None), State(1.0, 1.0, 1.0), STEP, setpoint=2.0)
    with pytest.raises(ValueError, match="would not start: PV trip"):
        foretell(loop(trip=(60.0, 70.0)), State(50.0, 30.0, 50.0), STEP, setpoint=65.0)


def test_the_number_of_steps_is_bounded() -> None:
    slow = loop(model=ModelConfig(k=1.5, t1=2000.0, delay=100.0, grade="good"))
    start = State(50.0, 30.0, 50.0)
    found = foretell(slow, start, Hardware(1.0), setpoint=60.0, seconds=86_400.0)
    assert len(found.t) == 86_401
    with pytest.raises(ValueError, match="`for` may be 1000 s at most, for the loop"):
        foretell(loop(model=ModelConfig(t1=0.1)), start, Hardware(0.01), seconds=2000.0)


def test_a_longer_step_is_taken_where_the_process_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whatif, "MOST_STEPS", 1000)
    slow = loop(model=ModelConfig(k=1.5, t1=2000.0, delay=100.0, grade="good"))
    found = foretell(slow, State(50.0, 30.0, 50.0), Hardware(1.0), setpoint=60.0, seconds=10_000.0)
    assert len(found.t) == 1001 and found.notes[-1] == "simulated in steps of 10 s; the loop steps every 1 s"


def test_a_pause_can_end_it() -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=60.0, seconds=600.0, pause=stop)


def test_an_answer_is_short() -> None:
    found = foretell(loop(), at_rest(loop(), 50.0), STEP, setpoint=60.0, load=2.0, seconds=5000.0)
    answer = whatif.body(found)
    assert [len(answer[name]) for name in ("t", "setpoint", "pv", "out")] == [whatif.POINTS] * 4
    assert answer["t"][0] == 0.0 and answer["t"][-1] == 5000.0
    assert answer["settling_s"] == found.step.settling and answer["load"]["size"] == 2.0

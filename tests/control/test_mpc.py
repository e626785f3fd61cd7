"""The predictive controller alone against the process that its model describes, and one that it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.config.types import ModelConfig
from agent.control import columns as c
from agent.control.design import MOST_INTERVALS, Design, design
from agent.control.monitor import Monitor
from agent.control.mpc import Mpc
from agent.control.process import Process, with_error

LAGS = ModelConfig(k=2.0, t1=10.0, t2=4.0, delay=3.3, bias=5.0)
MODELS = {
    "one lag": ModelConfig(k=2.0, t1=10.0, delay=3.0),
    "two lags": LAGS,
    "two equal lags": ModelConfig(k=-0.5, t1=5.0, t2=5.0, delay=0.5),
    "no delay": ModelConfig(k=1.0, t1=8.0),
    "delay alone": ModelConfig(k=1.0, t1=0.01, delay=6.0),
    "integrating": ModelConfig(k=0.05, integrating=True, t2=2.0, delay=2.4),
    "swing": ModelConfig(k=2.0, t1=5.0, damping=0.3, delay=2.3),
}


def run(
    controller: Mpc, process: Process, n: int, setpoint: float, *, load: float = 0.0, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(pv, out) of n periods of a second."""
    generator = np.random.default_rng(7)
    pv, out = np.zeros(n), np.zeros(n)
    for k in range(n):
        measured = process.pv + noise * generator.normal()
        out[k] = controller.step(setpoint, measured, 0.0, 1.0, 1.0)
        pv[k] = process.step(out[k], load)
    return pv, out


def started(
    model: ModelConfig, plan: Design, *, pv: float = 0.0, setpoint: float = 0.0
) -> tuple[Mpc, Process]:
    controller = Mpc(plan)
    controller.take_over(0.0, setpoint, pv, 0.0)
    return controller, Process(model, 1.0, pv=pv, out=0.0)


@pytest.mark.parametrize("name", MODELS)
def test_the_design_holds_the_process_exactly(name: str) -> None:
    """The polynomials and the response are those of the process under held outputs."""
    model = MODELS[name]
    plan = design(model, 1.0, limits=(-10.0, 10.0))
    par, response, weight = plan.arrays
    dead = int(par[c.DEAD])
    process = Process(model, 1.0, pv=0.0, out=0.0)
    outputs = np.random.default_rng(1).normal(size=60)
    pv = [0.0, 0.0]
    for t, out in enumerate(outputs):
        past = [outputs[t - dead - i] if t - dead - i >= 0 else 0.0 for i in range(3)]
        pv.append(par[c.A1] * pv[-1] + par[c.A2] * pv[-2] + float(par[c.B1 : c.B3 + 1] @ past))
        assert pv[-1] == pytest.approx(process.step(float(out)), abs=1e-9)
    assert np.all(response[:dead] == 0.0)
    assert np.linalg.eigvalsh(weight).min() > 0.0


@pytest.mark.parametrize("name", MODELS)
def test_it_settles_without_overshoot_and_rejects_a_load(name: str) -> None:
    model = MODELS[name]
    controller, process = started(model, design(model, 1.0, limits=(-50.0, 50.0)))
    pv, _ = run(controller, process, 150, 1.0)
    assert pv.max() < (1.02 if model.damping == 1.0 else 1.06)
    assert pv[-1] == pytest.approx(1.0, abs=1e-3)
    pv, _ = run(controller, process, 300, 1.0, load=-0.5)
    assert pv[-1] == pytest.approx(1.0, abs=1e-3)


def test_taking_over_is_no_bump_and_the_setpoint_is_reached_all_the_same() -> None:
    plan = design(LAGS, 1.0, limits=(0.0, 100.0))
    controller = Mpc(plan)
    controller.take_over(37.0, 120.0, 80.0, 2.0)
    assert controller.step(120.0, 80.0, 2.0, 1.0, 1.0) == pytest.approx(37.0, abs=1e-9)
    process = Process(LAGS, 1.0, pv=80.0, out=37.0)
    for _ in range(200):
        process.step(controller.step(120.0, process.pv, 2.0, 1.0, 1.0))
    assert process.pv == pytest.approx(120.0, abs=0.05)


def test_feed_forward_moves_the_output_and_no_more() -> None:
    controller, _ = started(LAGS, design(LAGS, 1.0, limits=(-100.0, 100.0)), pv=5.0, setpoint=5.0)
    assert [controller.step(5.0, 5.0, ff, 1.0, 1.0) for ff in (0.0, 3.0, 3.0)] == pytest.approx(
        [0.0, 3.0, 3.0]
    )
    controller.absorb(4.0)
    assert controller.step(5.0, 5.0, 7.0, 1.0, 1.0) == pytest.approx(3.0)


def test_limits_hold_and_do_not_wind_up() -> None:
    controller, process = started(LAGS, design(LAGS, 1.0, limits=(0.0, 10.0)), pv=5.0, setpoint=5.0)
    _, out = run(controller, process, 150, 500.0)
    assert out.max() == 10.0
    assert controller.limited
    _, out = run(controller, process, 5, 15.0)
    assert out[0] < 10.0


def test_an_output_that_stayed_behind_is_what_the_model_sees() -> None:
    controller, process = started(LAGS, design(LAGS, 1.0, limits=(-20.0, 20.0)))
    for _ in range(200):
        controller.stayed_at(min(controller.step(10.0, process.pv, 0.0, 1.0, 1.0), 4.0))
        process.step(controller.output)
    assert process.pv == pytest.approx(8.0, abs=0.1)
    assert controller.surprise == pytest.approx(0.0, abs=0.01)


def test_a_fast_loop_on_a_slow_process_plans_seldom() -> None:
    slow = ModelConfig(k=1.0, t1=600.0, delay=60.0)
    plan = design(slow, 1.0, limits=(0.0, 10.0))
    assert plan.interval == math.ceil(660 / MOST_INTERVALS)
    controller = Mpc(plan)
    controller.take_over(0.0, 1.0, 0.0, 0.0)
    process = Process(slow, 1.0, pv=0.0, out=0.0)
    plans = 0
    for _ in range(2000):
        process.step(controller.step(1.0, process.pv, 0.0, 1.0, 1.0))
        plans += controller.passed > 0
    assert process.pv == pytest.approx(1.0, abs=0.01)
    assert plans == pytest.approx(2000 / plan.interval, abs=1)


def test_a_loop_that_plans_seldom_is_limited_between_its_plans_too() -> None:
    slow = ModelConfig(k=1.0, t1=600.0, delay=60.0)
    controller = Mpc(design(slow, 1.0, limits=(0.0, 10.0)))
    controller.take_over(0.0, 50.0, 0.0, 0.0)
    seen = [(controller.step(50.0, 0.0, 0.0, 1.0, 1.0), controller.limited) for _ in range(400)]
    assert {limited for out, limited in seen if out == 10.0} == {True}
    assert not seen[0][1]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_samples_that_are_late_or_lost_do_not_upset_it(offset: float) -> None:
    plan = design(LAGS, 1.0, limits=(-20.0, 20.0))
    controller, process = started(LAGS, plan, pv=offset, setpoint=offset + 1.0)
    skipped, generator = 0, np.random.default_rng(3)
    for k in range(200):
        process.step(controller.output)
        skipped += 1
        if k < 50 or generator.uniform() > 0.3:
            controller.step(offset + 1.0, process.pv, 0.0, float(skipped), float(skipped))
            skipped = 0
        if k > 20:
            assert abs(controller.surprise) < 0.05
    assert process.pv == pytest.approx(offset + 1.0, abs=0.02)


@pytest.mark.parametrize("times", [0.5, 1.0, 1.5, 2.0, 3.0, 8.0])
def test_a_zero_that_the_model_lacks_is_borne_however_often_the_loop_steps(times: float) -> None:
    """1.3 (1 - 3s)/((10s + 1)(5s + 1)) e^-s as a sum of two lags, and the model that is identified for it."""
    model = ModelConfig(k=1.0, t1=11.3 * times, t2=3.6 * times, delay=3.8 * times)
    parts = [
        Process(ModelConfig(k=1.3 * share, t1=t1 * times, delay=times), 1.0, pv=0.0, out=0.0)
        for share, t1 in ((13.0 / 5.0, 10.0), (-8.0 / 5.0, 5.0))
    ]
    controller = Mpc(design(model, 1.0, limits=(-2.0, 2.0)))
    controller.take_over(0.0, 0.0, 0.0, 0.0)
    pv = [0.0]
    for _ in range(round(200 * times)):
        out = controller.step(1.0, pv[-1], 0.0, 1.0, 1.0)
        pv.append(sum(part.step(out) for part in parts))
    assert max(pv) < 1.15
    assert pv[-1] == pytest.approx(1.0, abs=0.01)


def test_a_gain_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="gain 0"):
        design(ModelConfig(k=0.0), 1.0, limits=(0.0, 1.0))


def watch(truth: ModelConfig, *, noise: float = 0.005, load: float = -0.5) -> str | None:
    """What the monitor says of a controller on LAGS while it controls `truth`."""
    plan = design(LAGS, 1.0, limits=(-4.0, 4.0))
    controller, process = started(truth, plan)
    monitor = Monitor(plan.window, noise)
    monitor.clear(0.0, 0.0)
    generator = np.random.default_rng(2)
    for k in range(600):
        setpoint = 0.0 if k < 20 else 1.0 if k < 400 else -0.5
        measured = process.pv + noise * generator.normal()
        out = controller.step(setpoint, measured, 0.0, 1.0, 1.0)
        if found := monitor.see(1.0, setpoint, measured, controller.alone):
            return found
        process.step(out, load if k > 200 else 0.0)
    return None


@pytest.mark.parametrize("noise", [0.001, 0.005, 0.05])
@pytest.mark.parametrize("error", [(1.0, 1.0), (1.3, 1.3), (0.7, 1.0), (1.3, 1.0), (1.0, 0.7), (0.4, 1.0)])
def test_the_monitor_is_quiet_with_a_model_that_is_right_enough(
    noise: float, error: tuple[float, float]
) -> None:
    assert watch(with_error(LAGS, gain=error[0], delay=error[1]), noise=noise) is None


@pytest.mark.parametrize(
    "truth, found",
    [
        (with_error(LAGS, gain=3.0), "far more"),
        (with_error(LAGS, gain=2.0, delay=2.0), "oscillates"),
        (with_error(LAGS, gain=-1.0), "against"),
    ],
)
def test_the_monitor_finds_a_wrong_model(truth: ModelConfig, found: str) -> None:
    assert found in (watch(truth) or "")

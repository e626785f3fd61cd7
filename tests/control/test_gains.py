"""Gains by rule and by sensitivity, and what they give in simulation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.compare import Scores, plan, score_pid, with_gains
from agent.control.gains import Gains, amigo_pi, amigo_pid, reduced, simc
from agent.control.pid import Pid
from agent.control.process import Process
from agent.control.robust import MOST, most_sensitive, process_response, sensitivity
from tests.control.records import PLANTS

LOOP = LoopConfig("loop", ("a", "pv"), ("a", "out"), 0.0, (0.0, 100.0))
PERIOD = 1.0


def rules(model: ModelConfig) -> list[Gains]:
    found = most_sensitive(model, PERIOD)
    assert found is not None
    return [simc(model, PERIOD), amigo_pi(model, PERIOD), amigo_pid(model, PERIOD), found]


def scores(model: ModelConfig) -> dict[str, Scores]:
    runs = plan(LOOP, model, PERIOD)
    return {gains.rule: score_pid(gains, model, runs) for gains in rules(model)}


def test_simc_as_published() -> None:
    """K 2, T 10, delay 4.5 + half a period: closed-loop time constant 5."""
    gains = simc(ModelConfig(k=2, t1=10, delay=4.5), PERIOD)
    assert (gains.kp, gains.ti, gains.td) == pytest.approx((10 / (2 * 10), 10, 0))


def test_simc_takes_half_of_the_shorter_lag_to_each() -> None:
    assert reduced(ModelConfig(t1=4, t2=10, delay=1), PERIOD) == (12, 3.5)
    assert reduced(ModelConfig(t1=99, t2=2, delay=1, integrating=True), PERIOD) == (math.inf, 3.5)


def test_simc_of_an_integrator() -> None:
    gains = simc(ModelConfig(k=0.1, delay=2.5, integrating=True, t1=0), PERIOD)
    assert (gains.kp, gains.ti) == pytest.approx((1 / (0.1 * 6), 24))


def test_amigo_as_published() -> None:
    """Astrom & Hagglund 2006, (7.20) and (7.24), with T = L = 1: kp .65 and .25, Ti 1.2 / 1.1 and .35 + 13 / 20."""
    model = ModelConfig(k=1, t1=1, delay=1 - 0.005)
    pid, pi = amigo_pid(model, 0.01), amigo_pi(model, 0.01)
    assert (pid.kp, pid.ti, pid.td) == pytest.approx((0.65, 1.2 / 1.1, 0.5 / 1.3))
    assert (pi.kp, pi.ti) == pytest.approx((0.25, 1.0))
    integrating = ModelConfig(k=2, t1=0, delay=0.995, integrating=True)
    assert dataclasses.astuple(amigo_pid(integrating, 0.01))[1:4] == pytest.approx((0.225, 8, 0.5))
    assert dataclasses.astuple(amigo_pi(integrating, 0.01))[1:4] == pytest.approx((0.175, 13.4, 0))


@pytest.mark.parametrize("rule", [simc, amigo_pid, amigo_pi])
def test_no_gains_for_a_process_without_gain(rule: object) -> None:
    with pytest.raises(ValueError, match="gain 0"):
        rule(ModelConfig(k=0), PERIOD)  # type: ignore[operator]


def test_a_negative_gain_makes_the_action_direct() -> None:
    gains = simc(ModelConfig(k=-2, t1=10, delay=3), PERIOD)
    loop = with_gains(LOOP, gains)
    assert loop.action == "direct"
    assert loop.controller.kp == -gains.kp > 0


def measured_sensitivity(model: ModelConfig, gains: Gains) -> float:
    """Largest gain from a disturbance of the PV to the PV, from the impulse response of the loop as it runs."""
    wide = dataclasses.replace(LOOP, limits=(-1e9, 1e9), controller=ControllerConfig(n=8.0))
    pid, process = Pid(with_gains(wide, gains), PERIOD), Process(model, PERIOD, pv=0, out=0)
    pid.take_over(0.0, 0.0, 0.0, 0.0)
    seen = np.empty(4096)
    for i in range(len(seen)):
        seen[i] = process.pv + (1.0 if i == 0 else 0.0)
        process.step(pid.step(0.0, float(seen[i]), 0.0, PERIOD, PERIOD))
    return float(np.abs(np.fft.rfft(seen)).max())


@pytest.mark.parametrize("name", PLANTS)
def test_the_sensitivity_is_that_of_the_loop_as_it_runs(name: str) -> None:
    for gains in rules(PLANTS[name]):
        assert sensitivity(PLANTS[name], gains, PERIOD) == pytest.approx(
            measured_sensitivity(PLANTS[name], gains), rel=0.02
        )


@pytest.mark.parametrize("name", PLANTS)
def test_a_loop_that_is_not_stable_has_no_sensitivity(name: str) -> None:
    gains = simc(PLANTS[name], PERIOD)
    assert sensitivity(PLANTS[name], dataclasses.replace(gains, kp=12 * gains.kp), PERIOD) == math.inf
    assert sensitivity(PLANTS[name], dataclasses.replace(gains, kp=-gains.kp), PERIOD) == math.inf


SIZES = st.sampled_from([-3.0, -0.2, 0.05, 1.0, 40.0])
DELAYS = st.floats(0.0, 40.0)
LAGGING = st.builds(
    ModelConfig,
    k=SIZES,
    t1=st.floats(0.0, 100.0),
    t2=st.floats(0.0, 50.0),
    delay=DELAYS,
    integrating=st.booleans(),
)
SWINGING = st.builds(
    ModelConfig, k=SIZES, t1=st.floats(0.5, 100.0), damping=st.floats(0.05, 0.99), delay=DELAYS
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(LAGGING, SWINGING))
@example(ModelConfig(k=-3.0, t1=1.0, t2=5e-324))
@example(ModelConfig(k=1.0, t1=5e-324, t2=5e-324, delay=2.0))
def test_the_pid_by_sensitivity_keeps_its_bound(model: ModelConfig) -> None:
    gains = most_sensitive(model, PERIOD)
    assert gains is not None
    assert sensitivity(model, gains, PERIOD) <= MOST * 1.02
    assert gains.kp * model.k > 0


@pytest.mark.parametrize("name", PLANTS)
def test_the_pid_by_sensitivity_rejects_loads_better_than_simc(name: str) -> None:
    found = scores(PLANTS[name])
    best, plain = found[f"PID Ms {MOST:g}"], found["SIMC PI"]
    assert best.iae_load < (0.95 if PLANTS[name].integrating else 0.9) * plain.iae_load
    assert best.overshoot < 0.1
    assert best.worst < 1.6


@pytest.mark.parametrize("damping", [0.1, 0.3, 0.7])
def test_a_process_that_oscillates_is_calmed(damping: float) -> None:
    """The swing that the process has by itself is gone; SIMC and AMIGO have no rule for it."""
    model = ModelConfig(k=2.0, t1=5.0, damping=damping, delay=2.0)
    sensitive = most_sensitive(model, PERIOD)
    assert sensitive is not None
    best = score_pid(sensitive, model, plan(LOOP, model, PERIOD))
    assert best.overshoot < 0.1
    assert best.worst < 1.5
    for rule in (simc, amigo_pi, amigo_pid):
        with pytest.raises(ValueError, match="oscillate"):
            rule(model, PERIOD)


def test_its_frequency_response_is_that_of_the_simulation() -> None:
    """Driven with a sine, the process comes to the gain and phase that the response has there."""
    model = ModelConfig(k=2.0, t1=5.0, damping=0.3, delay=2.3)
    w = 2 * math.pi / 25
    process = Process(model, PERIOD, pv=0.0, out=0.0)
    path = np.array([process.step(math.cos(w * k)) for k in range(400)])
    k = np.arange(375, 400)
    seen = 2 / 25 * complex(np.sum(path[375:] * np.exp(-1j * w * (k + 1))))
    assert seen == pytest.approx(complex(process_response(model, PERIOD, np.array([w]))[0]), rel=1e-6)


def test_what_noise_and_limits_do_is_seen() -> None:
    model = PLANTS["L/T 0.5"]
    gains = amigo_pid(model, PERIOD)
    calm = score_pid(gains, model, plan(LOOP, model, PERIOD))
    noisy = score_pid(gains, model, plan(LOOP, model, PERIOD, noise=0.2))
    slow = score_pid(gains, model, plan(dataclasses.replace(LOOP, rate=0.2), model, PERIOD))
    assert noisy.travel > 2 * calm.travel
    assert slow.iae_setpoint > 1.2 * calm.iae_setpoint
    assert calm.worst >= 1.0

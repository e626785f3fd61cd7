"""The simulated process against a fine Euler integration of its differential equations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.types import ModelConfig
from agent.control.process import Process, resting_output, with_error

PERIOD = 1.0
FINE = 500
"""Euler steps in a period."""


def euler(model: ModelConfig, outs: list[float], pv: float, out: float) -> list[float]:
    """PV at the end of each period, by small explicit steps; delays in whole fine steps."""
    late = round(model.delay / PERIOD * FINE)
    inputs = np.concatenate([np.full(late, out), np.repeat(outs, FINE)])
    dt = PERIOD / FINE
    inner = outer = 0.0
    seen = []
    for i, value in enumerate(inputs[: len(outs) * FINE]):
        goal = model.k * (value - out)
        first, second = (model.t2, 1.0) if model.integrating else (model.t1, model.t2)
        was = inner
        inner = inner + dt * (goal - inner) / first if first > 0 else goal
        through = (was + inner) / 2 if first > 0 else inner
        if model.integrating:
            outer += dt * through
        else:
            outer = outer + dt * (through - outer) / second if second > 0 else inner
        if (i + 1) % FINE == 0:
            seen.append(pv + outer)
    return seen


LAGS = st.one_of(st.just(0.0), st.floats(0.3, 20.0))
MODELS = st.builds(
    ModelConfig,
    k=st.floats(-3.0, 3.0),
    t1=LAGS,
    t2=LAGS,
    delay=st.integers(0, 6 * 50).map(lambda steps: steps / 50),
    integrating=st.booleans(),
)
OUTS = st.lists(st.floats(-10.0, 10.0), min_size=3, max_size=25)


@settings(max_examples=60, deadline=None)
@given(MODELS, OUTS, st.floats(-50, 50), st.floats(-10, 10))
def test_it_moves_as_its_equations(model: ModelConfig, outs: list[float], pv: float, out: float) -> None:
    process = Process(model, PERIOD, pv=pv, out=out)
    seen = [process.step(one) for one in outs]
    scale = abs(model.k) * 20.0 * (len(outs) if model.integrating else 1.0)
    assert seen == pytest.approx(euler(model, outs, pv, out), abs=0.01 * scale + 1e-9)


@given(MODELS, st.floats(-50, 50), st.floats(-10, 10))
def test_it_rests_where_it_starts(model: ModelConfig, pv: float, out: float) -> None:
    process = Process(model, PERIOD, pv=pv, out=out)
    assert [process.step(out) for _ in range(20)] == [pv] * 20


@pytest.mark.parametrize("t2", [5.0, 5.0 * (1 + 1e-13), 5.0 * (1 + 1e-7), 5.001])
def test_lags_that_are_nearly_equal_are_no_trouble(t2: float) -> None:
    process = Process(ModelConfig(k=1, t1=5, t2=t2), PERIOD, pv=0, out=0)
    seen = [process.step(1.0) for _ in range(40)]
    t = np.arange(1, 41)
    assert seen == pytest.approx(1 - (1 + t / 5) * np.exp(-t / 5), abs=2e-4)


def test_a_lag_far_shorter_than_the_period_is_no_trouble() -> None:
    process = Process(ModelConfig(k=2, t1=100, t2=1e-6), PERIOD, pv=0, out=0)
    assert process.step(1.0) == pytest.approx(2 * (1 - np.exp(-1 / 100)), rel=1e-6)


def test_a_delay_between_two_samples_is_exact() -> None:
    """2.25 s late and integrating: 0.75 s of the third second are over when it ends."""
    process = Process(ModelConfig(k=1, t2=0, delay=2.25, integrating=True), PERIOD, pv=0, out=0)
    assert [process.step(1.0) for _ in range(4)] == pytest.approx([0, 0, 0.75, 1.75])


@pytest.mark.parametrize("period", [0.1, 0.3, 0.7])
def test_a_delay_of_whole_periods_stays_whole(period: float) -> None:
    process = Process(ModelConfig(k=1, t1=0, t2=0, delay=3 * period), period, pv=0, out=0)
    assert [process.step(1.0) for _ in range(4)] == [0, 0, 0, 1]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 0.999999), st.floats(1.0, 20.0), st.integers(0, 150), OUTS)
def test_a_process_that_oscillates_moves_as_its_equation(
    damping: float, t1: float, delay: int, outs: list[float]
) -> None:
    model = ModelConfig(k=2.0, t1=t1, delay=delay / 50, damping=damping)
    late, dt = round(model.delay * FINE), PERIOD / FINE
    inputs = np.concatenate([np.zeros(late), np.repeat(outs, FINE)])[: len(outs) * FINE]
    y = speed = 0.0
    seen = []
    for i, value in enumerate(inputs):
        pushed = (2.0 * value - y - 2 * damping * t1 * speed) / t1**2
        y += dt * (speed + dt / 2 * pushed)
        speed += dt * pushed
        if (i + 1) % FINE == 0:
            seen.append(y)
    process = Process(model, PERIOD, pv=0.0, out=0.0)
    assert [process.step(one) for one in outs] == pytest.approx(seen, abs=0.4)


def test_a_step_swings_over_by_what_its_damping_says() -> None:
    process = Process(ModelConfig(k=1, t1=5, damping=0.3, delay=0.4), 0.1, pv=0, out=0)
    path = np.array([process.step(1.0) for _ in range(600)])
    assert path.max() - 1 == pytest.approx(np.exp(-np.pi * 0.3 / np.sqrt(1 - 0.09)), abs=1e-4)
    assert 0.1 * (path.argmax() + 1) == pytest.approx(0.4 + 5 * np.pi / np.sqrt(1 - 0.09), abs=0.06)


def test_a_load_is_added_to_the_output() -> None:
    model = ModelConfig(k=2, t1=3, delay=1.5)
    loaded, moved = (Process(model, PERIOD, pv=1, out=4) for _ in range(2))
    assert [loaded.step(4, 0.5) for _ in range(9)] == [moved.step(4.5) for _ in range(9)]


def test_the_resting_output_follows_from_the_bias() -> None:
    assert resting_output(ModelConfig(k=2, bias=10), 30) == 10
    assert resting_output(ModelConfig(k=2, bias=45, integrating=True), 30) == 45
    with pytest.raises(ValueError):
        resting_output(ModelConfig(k=0), 30)


def test_an_error_of_gain_and_delay() -> None:
    model = ModelConfig(k=2, t1=3, delay=4, bias=1)
    assert with_error(model, gain=1.3, delay=0.7) == dataclasses.replace(model, k=2.6, delay=2.8)


def test_a_period_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        Process(ModelConfig(), 0.0, pv=0, out=0)

"""The compiled predictive step against its plain reference, and what no number may do to its state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent import kernelcache
from agent.control import columns as c
from agent.control import kernels, reference

some = st.floats(-1e3, 1e3)
anything = st.floats(allow_nan=True, allow_infinity=True)
dead_times = st.integers(0, 12)
poles = st.floats(0.0, 0.98)
limits = st.tuples(st.floats(-100, 0), st.floats(1, 100), st.one_of(st.just(math.inf), st.floats(0.01, 50)))
step = st.tuples(some, some, st.floats(-5, 5), st.floats(0.01, 4), st.floats(0, 10))
Arrays = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def design(poles: tuple[float, float], dead: int, limits: tuple[float, float, float]) -> Arrays:
    """par, response and weight of a process of gain 2 with these poles; an interval is a second."""
    p, q = poles
    a1, a2 = p + q, -p * q
    total = 2.0 * (1.0 - a1 - a2)
    b = (0.5 * total, 0.3 * total, 0.2 * total)
    par = np.array([a1, a2, *b, dead, 0.4, 0.075, 0.7, *limits, 1.0])
    assert len(par) == c.DESIGN
    horizon = dead + 8
    response = np.zeros(horizon)
    for k in range(horizon):
        past = [response[k - i] if k >= i else 0.0 for i in (1, 2)]
        response[k] = a1 * past[0] + a2 * past[1] + sum(b[i] for i in range(3) if k - dead - i >= 0)
    gains = np.array([np.concatenate([np.zeros(j), response[: horizon - j]]) for j in range(c.MOVES)])
    return par, response, gains @ gains.T + 0.05 * np.eye(c.MOVES)


def at_rest(dead: int, pv: float, par: NDArray[np.float64]) -> NDArray[np.float64]:
    state = np.zeros(c.MEMORY + dead + 4)
    state[c.FILTERED] = state[c.BEFORE] = pv
    state[c.LOAD] = pv * (1.0 - par[c.A1] - par[c.A2])
    return state


def test_it_is_compiled_here() -> None:
    assert kernelcache.choose(kernels.predictive, reference.predictive) is kernels.predictive


@given(poles=st.tuples(poles, poles), dead=dead_times, limits=limits, steps=st.lists(step, max_size=20))
@settings(deadline=None, max_examples=200)
def test_kernel_and_reference_agree(poles: Any, dead: int, limits: Any, steps: Any) -> None:
    arrays = design(poles, dead, limits)
    compiled = at_rest(dead, 1.0, arrays[0])
    plain = compiled.copy()
    for numbers in steps:
        one = kernels.predictive(compiled, *arrays, *numbers)
        two = reference.predictive(plain, *arrays, *numbers)
        assert one == pytest.approx(two, rel=1e-7, abs=1e-6)
        np.testing.assert_allclose(compiled, plain, rtol=1e-7, atol=1e-5)
        plain[:] = compiled


@given(
    poles=st.tuples(poles, poles),
    dead=dead_times,
    limits=limits,
    steps=st.lists(st.tuples(*[anything] * 5), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("stepper", [kernels.predictive, reference.predictive], ids=["kernel", "reference"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_number_poisons_the_state(stepper: Any, poles: Any, dead: int, limits: Any, steps: Any) -> None:
    arrays = design(poles, dead, limits)
    state = at_rest(dead, 0.0, arrays[0])
    for numbers in steps:
        output = stepper(state, *arrays, *numbers)
        assert limits[0] <= output <= limits[1]
        assert np.isfinite(state).all()


@pytest.mark.parametrize("dead", [0, 3])
def test_at_its_setpoint_it_rests(dead: int) -> None:
    arrays = design((0.9, 0.5), dead, (-10.0, 10.0, math.inf))
    state = at_rest(dead, 5.0, arrays[0])
    for _ in range(20):
        assert kernels.predictive(state, *arrays, 5.0, 5.0, 0.0, 1.0, 1.0) == pytest.approx(0.0, abs=1e-9)


def test_a_late_sample_moves_the_model_on_by_what_passed() -> None:
    """Three intervals in one, with the PV as the model has it: the same state as three steps of one."""
    arrays = design((0.9, 0.5), 2, (-10.0, 10.0, math.inf))
    par = arrays[0]
    state = at_rest(2, 5.0, par)
    state[c.MEMORY + 1 :] = 0.3  # an output is under way
    late = state.copy()
    now, before, moves = 5.0, 5.0, list(state[c.MEMORY :])
    for _ in range(3):
        acting = float(par[c.B1 : c.B3 + 1] @ moves[2:5])
        now, before = par[c.A1] * now + par[c.A2] * before + acting + state[c.LOAD], now
        moves = [moves[0], *moves[:-1]]
    kernels.predictive(late, *arrays, 5.0, now, 0.0, 3.0, 3.0)
    assert late[c.SURPRISE] == pytest.approx(0.0, abs=1e-12)
    assert late[c.FILTERED] == pytest.approx(now)
    assert late[c.BEFORE] == pytest.approx(before)


def test_the_rate_binds_the_move_and_the_rest_follows() -> None:
    arrays = design((0.9, 0.0), 0, (-10.0, 10.0, 0.25))
    state = at_rest(0, 0.0, arrays[0])
    outputs = [kernels.predictive(state, *arrays, 5.0, 0.0, 0.0, 1.0, 1.0) for _ in range(4)]
    assert outputs == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert state[c.WISHED] > state[c.SHOWN]

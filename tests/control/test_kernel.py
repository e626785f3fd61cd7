"""The compiled PID step against its plain reference, and what no number may do to its state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import kernelcache
from agent.control import columns as c
from agent.control import kernels, reference

some = st.floats(-1e4, 1e4)
anything = st.floats(allow_nan=True, allow_infinity=True)
parameters = st.tuples(
    st.floats(-20, 20),
    st.one_of(st.just(0.0), st.floats(0.01, 1e3)),
    st.one_of(st.just(0.0), st.floats(0.01, 1e2)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1, 20),
    st.floats(-100, 0),
    st.floats(1, 100),
    st.one_of(st.just(math.inf), st.floats(0.01, 50)),
)
step = st.tuples(some, some, some, st.floats(0.01, 10), st.floats(0, 10))


def test_the_kernel_is_compiled_here() -> None:
    assert kernelcache.backend() == "numba"
    assert kernelcache.choose(kernels.pid, reference.pid) is kernels.pid


@given(par=parameters, steps=st.lists(step, min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_kernel_and_reference_agree(
    par: tuple[float, ...], steps: list[tuple[float, float, float, float, float]]
) -> None:
    values = np.array(par)
    compiled, plain = np.zeros(c.STATE), np.zeros(c.STATE)
    for numbers in steps:
        one = kernels.pid(compiled, values, *numbers)
        two = reference.pid(plain, values, *numbers)
        assert one == pytest.approx(two, rel=1e-9, abs=1e-6)
        np.testing.assert_allclose(compiled, plain, rtol=1e-9, atol=1e-6)
        plain[:] = compiled


@given(par=parameters, steps=st.lists(st.tuples(*[anything] * 5), min_size=1, max_size=20))
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("pid", [kernels.pid, reference.pid], ids=["kernel", "reference"])
def test_no_number_poisons_the_state(
    pid: object, par: tuple[float, ...], steps: list[tuple[float, ...]]
) -> None:
    state = np.zeros(c.STATE)
    state[c.LAST_OUTPUT] = par[c.LOW]
    for numbers in steps:
        before = state.copy()
        output = pid(state, np.array(par), *numbers)  # type: ignore[operator]
        assert np.isfinite(state).all()
        assert par[c.LOW] <= output <= par[c.HIGH]
        if not all(map(math.isfinite, numbers)):
            assert (state == before).all()
            assert output == before[c.LAST_OUTPUT]


@pytest.mark.parametrize("pid", [kernels.pid, reference.pid], ids=["kernel", "reference"])
def test_by_hand(pid: object) -> None:
    """kp 2, ti 10, td 4, n 8, b .5, c 0: two steps as on paper."""
    par = np.array([2.0, 10.0, 4.0, 0.5, 0.0, 8.0, -100.0, 100.0, math.inf])
    state = np.zeros(c.STATE)
    first = pid(state, par, 10.0, 0.0, 1.0, 1.0, 1.0)  # type: ignore[operator]
    assert first == pytest.approx(2 * 5 + 1)
    second = pid(state, par, 10.0, 1.0, 1.0, 1.0, 1.0)  # type: ignore[operator]
    derivative = 2 * 4 * (-1.0) / (0.5 + 1.0)
    assert second == pytest.approx(2 * (5 - 1) + 2.0 + derivative + 1)


@pytest.mark.parametrize("pid", [kernels.pid, reference.pid], ids=["kernel", "reference"])
def test_the_rate_counts_the_time_that_passed(pid: object) -> None:
    par = np.array([10.0, 0.0, 0.0, 1.0, 0.0, 8.0, 0.0, 100.0, 5.0])
    state = np.zeros(c.STATE)
    assert pid(state, par, 10.0, 0.0, 0.0, 1.0, 0.25) == pytest.approx(1.25)  # type: ignore[operator]
    assert pid(state, par, 10.0, 0.0, 0.0, 1.0, 2.0) == pytest.approx(11.25)  # type: ignore[operator]
    assert pid(state, par, 10.0, 0.0, 0.0, 1.0, 0.0) == pytest.approx(11.25)  # type: ignore[operator]

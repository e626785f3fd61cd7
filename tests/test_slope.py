"""The soak's verdict: a leak is found, noise is none, and a plateau that was reached by steps is not taken for sure."""

from __future__ import annotations

import numpy as np
import pytest

from tests.soak.slope import slope

TIMES = np.arange(0.0, 1200.0, 10.0) / 3600.0


def test_a_leak_of_two_megabytes_an_hour_is_found_under_noise() -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, len(TIMES))
    found = slope(TIMES, 150 + 2 * TIMES + noise)
    assert found.fitted == pytest.approx(2, abs=0.3) and found.upper > 1


def test_noise_alone_stays_under_one_megabyte_an_hour() -> None:
    noise = np.random.default_rng(2).normal(0, 0.05, len(TIMES))
    assert slope(TIMES, 150 + noise).upper < 1


def test_a_level_has_no_slope_and_no_doubt() -> None:
    found = slope(TIMES, np.full(len(TIMES), 150.0))
    assert (found.fitted, found.upper) == pytest.approx((0, 0), abs=1e-9)


def test_neighbours_that_are_alike_widen_the_bound() -> None:
    noise = np.random.default_rng(3).normal(0, 0.05, len(TIMES))
    alike = np.repeat(noise[::10], 10)
    narrow, wide = slope(TIMES, noise), slope(TIMES, alike)
    assert wide.upper - wide.fitted > 2 * (narrow.upper - narrow.fitted)

"""The slope of a slowly drifting reading, and a bound that samples like their neighbours do not make too small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOUND = 1.96
"""Standard errors: 95 % of the slopes lie within so many."""


@dataclass(frozen=True)
class Slope:
    """Per unit of the times: the fitted slope, and the upper end of its 95 % interval."""

    fitted: float
    upper: float


def slope(times: Sequence[float], values: Sequence[float]) -> Slope:
    """Least squares over (n,) times and (n,) values, n >= 3.

    Residuals are taken as a first-order autoregression: with correlation r between neighbours the variance grows by
    (1 + r)/(1 − r), as for a mean.
    """
    t, y = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    assert len(t) == len(y) >= 3
    away = t - t.mean()
    spread = float(away @ away)
    fitted = float(away @ y) / spread
    rest = y - y.mean() - fitted * away
    power = float(rest @ rest)
    if power == 0.0:
        return Slope(fitted, fitted)
    r = min(0.95, max(0.0, float(rest[1:] @ rest[:-1]) / power))
    error = math.sqrt(power / (len(t) - 2) / spread * (1 + r) / (1 - r))
    return Slope(fitted, fitted + BOUND * error)

"""Synthetic series and a driver for the predictor's tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.predict.predictor import Predictor

Floats = NDArray[np.float64]


def ar2(n: int, seed: int = 1) -> Floats:
    """A damped oscillator driven by noise: x(t) = 1.8 x(t-1) - 0.9 x(t-2) + e."""
    noise = np.random.default_rng(seed).normal(size=n)
    x = np.zeros(n)
    for i in range(2, n):
        x[i] = 1.8 * x[i - 1] - 0.9 * x[i - 2] + noise[i]
    return x


def walk(n: int, seed: int = 2) -> Floats:
    return np.cumsum(np.random.default_rng(seed).normal(size=n))


def predictor(tags: int = 1, **settings: object) -> Predictor:
    keys = [("plant", f"tag{i}") for i in range(tags)]
    return Predictor(keys, np.ones(tags), **settings)  # type: ignore[arg-type]


def run(model: Predictor, series: Floats, *, start: int = 0) -> tuple[Floats, Floats, Floats]:
    """Feeds a series of shape (n,) or (n, tags), a second apart; forecasts and bounds, each (n, tags, horizons)."""
    series = series.reshape(len(series), -1)
    slots = np.arange(series.shape[1])
    made = np.empty((3, len(series), series.shape[1], len(model.horizon)))
    for i, values in enumerate(series):
        model.update(slots, values, np.full(len(slots), float(start + i)))
        made[:, i] = model.y, model.lo, model.hi
    return made[0], made[1], made[2]


def relative_mae(y: Floats, forecast: Floats, h: int, *, burn: int = 100) -> float:
    """MAE of forecasts made h steps before, over that of the last value."""
    error = np.abs(y[burn + h :] - forecast[burn:-h])
    last = np.abs(y[burn + h :] - y[burn:-h])
    return float(np.nanmean(error) / np.nanmean(last))

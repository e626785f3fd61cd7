"""What the models know, as arrays: one row per tag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.predict import columns as c

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class State:
    """What the models know: one row per tag. n = order + 2 + 5 per input of the tag that has most of them.

    Every array is C-contiguous, so that a row of any of them is plain bytes (that is how it is saved).
    """

    scalars: Floats  # (tags, columns.SCALARS)
    lags: Floats  # (tags, order): the newest difference first
    regressors: Floats  # (tags, n): of the next step
    packed: Floats  # (tags, n (n + 1) / 2): lower triangle of the information matrix, row by row
    side: Floats  # (tags, n)
    thetas: Floats  # (tags, 2, n): coefficients of the short order and of the full one
    ring: Floats  # (tags, sum of horizons, columns.KEPT): forecasts not judged yet
    errors: Floats  # (tags, horizons, columns.JUDGED): discounted absolute errors
    band: Floats  # (tags, horizons, columns.INTERVAL)
    inputs: Floats  # (tags, inputs, columns.X_STATE)
    health: Floats  # (tags, columns.HEALTH): see agent.predict.health


def fresh(tags: int, *, order: int, horizon: tuple[int, ...], inputs: int) -> State:
    """The state of models that have seen nothing."""
    n = order + 2 + inputs * c.INPUT_TERMS
    scalars = np.zeros((tags, c.SCALARS))
    scalars[:, c.SIGMA] = 1.0
    scalars[:, c.SMALLEST] = np.inf
    scalars[:, c.PERIOD] = 1.0
    scalars[:, c.TIME] = np.nan
    scalars[:, c.INNOVATION] = np.nan
    packed = np.zeros((tags, n * (n + 1) // 2))
    packed[:, [(i + 1) * (i + 2) // 2 - 1 for i in range(n)]] = np.where(
        np.arange(n) < order + 2, c.PRIOR, c.PRIOR_INPUT
    )
    band = np.zeros((tags, len(horizon), c.INTERVAL))
    band[:, :, c.Q] = c.Q_START
    return State(
        scalars=scalars,
        lags=np.zeros((tags, order)),
        regressors=np.zeros((tags, n)),
        packed=packed,
        side=np.zeros((tags, n)),
        thetas=np.zeros((tags, 2, n)),
        ring=np.full((tags, sum(horizon), c.KEPT), np.nan),
        errors=np.zeros((tags, len(horizon), c.JUDGED)),
        band=band,
        inputs=np.zeros((tags, inputs, c.X_STATE)),
        health=np.full((tags, c.HEALTH), np.nan),
    )

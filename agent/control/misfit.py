"""Whether a process moves in ways that its model does not follow: more lags, the wrong way first, oscillation."""

from __future__ import annotations

import math

import numpy as np

from agent.control.fit import Fit, Simulation

LAGS = 24
"""Past outputs, spread over the model's response, that what is left over must not depend on."""
SURE = 1.8
"""F value below which what depends on them may be chance (24 and some hundreds: 1 %)."""


def misfit(simulation: Simulation, fit: Fit) -> float:
    """Root mean square of what the past outputs still explain of the residuals, over that of the model's response.

    0 where it may be chance. In a closed loop it says nothing, for there the residuals move the output.
    """
    grid = simulation.grid
    response = fit.delay + 2.5 * (fit.t1 / fit.damping + fit.t2) + 4 * grid.period
    width = max(1, round(response / grid.period / LAGS))
    means = np.convolve(grid.out - grid.out[0], np.ones(width) / width)[: len(grid.out)]
    newest = np.rint(grid.at).astype(int) - 1
    columns = [np.ones(len(fit.residuals))]
    for lag in range(LAGS):
        source = newest - lag * width
        past = np.where(source >= 0, means[np.clip(source, 0, len(means) - 1)], 0.0)
        columns.append(np.convolve(past, simulation.whitening, "valid"))
    matrix = np.column_stack(columns)
    explained = matrix @ np.linalg.lstsq(matrix, fit.residuals, rcond=1e-8)[0]
    left = fit.residuals - explained
    chance = float(left @ left) / max(len(left) - LAGS, 1)
    beyond = float(explained @ explained) - LAGS * chance
    moved = fit.k * simulation.columns(*fit.point)[:, 0]
    moved = moved - moved.mean()
    if beyond <= (SURE - 1.0) * LAGS * chance:
        return 0.0
    return math.sqrt(beyond / max(float(moved @ moved), 1e-300))

"""What moved the output in a record: the loop's own controller, its setpoint, or somebody from outside the loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agent.control.fit import Fit, Floats, Simulation
from agent.control.record import Grid

PAST = 4
"""Samples of the PV from which a controller's move could follow."""
OWN = 0.8
"""Share of the output's moves that follow from the PV, above which the loop was closed."""
TRIMS, TRIMMED = 4, 4.0
"""Rounds, and the multiple of the usual error beyond which a move is left out as somebody else's."""
HELD = 1e-9
PEAK = 0.98
SLOW = 15
"""Samples to each side over which a mean is taken off: of moves and PV, a setpoint that stands then has no part."""


@dataclass(frozen=True, slots=True)
class Source:
    """kind: what moved the output.

    followed: share of the output's usual moves that follow linearly from the PV, 0 to 1. What moved the output beside
    that has an effect on the PV, in multiples of the noise: `effect` at its largest (98 %), `total` over the record.
    """

    kind: Literal["setpoint", "outside"]
    followed: float
    effect: float
    total: float


def source_of(grid: Grid, simulation: Simulation, fit: Fit) -> Source:
    """Where the output's moves come from.

    A linear controller moves the output by a sum of what the PV did lately; in quiet running that is all that moves it,
    and the process cannot be told from the controller's inverse. What is left over is what an experiment put in. A dead
    band or a coarse register leaves something over too, whose effect is small against the noise.
    """
    pv = np.interp(np.arange(len(grid.out)), grid.at, grid.pv)
    moves = np.diff(grid.out)
    matrix, wanted = _past(pv - pv.mean()), moves[PAST - 1 :]
    rest = wanted - matrix @ np.linalg.lstsq(matrix, wanted, rcond=1e-10)[0]
    stirred = np.cumsum(np.concatenate([np.zeros(PAST), rest]))
    followed = 0.0
    if (
        np.median(np.abs(moves)) > HELD * np.abs(moves).max()
    ):  # else it mostly stands: by hand, or by a dead band
        followed = _followed(_fast(wanted), _past(_fast(pv)))
    effect, total = _effect(grid, simulation, fit, stirred)
    stepped = grid.setpoint is not None and bool(np.ptp(grid.setpoint) > 0.0)
    return Source("setpoint" if followed > OWN or stepped else "outside", followed, effect, total)


def _past(pv: Floats) -> Floats:
    """(m - PAST, 1 + PAST): one row per move: a constant, the PV then and before."""
    count = len(pv) - PAST
    return np.column_stack([np.ones(count), *(pv[PAST - lag : PAST - lag + count] for lag in range(PAST))])


def _fast(values: Floats) -> Floats:
    """Without its moving mean."""
    width = min(2 * SLOW + 1, len(values))
    ones = np.ones(width)
    count = np.convolve(np.ones_like(values), ones, "same")
    return values - np.convolve(values, ones, "same") / count


def _followed(moves: Floats, matrix: Floats) -> float:
    """Share of the usual moves that follow; moves that are far off (a setpoint's, a person's) are left out of it."""
    kept = np.ones(len(moves), dtype=bool)
    share = 0.0
    for _ in range(TRIMS):
        factors = np.linalg.lstsq(matrix[kept], moves[kept], rcond=1e-10)[0]
        left = moves - matrix @ factors
        total = float(moves[kept] @ moves[kept])
        share = 1.0 - float(left[kept] @ left[kept]) / total if total > 0.0 else 0.0
        usual = 1.4826 * float(np.median(np.abs(left)))
        kept = np.abs(left) <= max(TRIMMED * usual, 1e-12 * float(np.abs(moves).max()))
        if kept.sum() <= 2 * matrix.shape[1]:
            break
    return share


def _effect(grid: Grid, simulation: Simulation, fit: Fit, stirred: Floats) -> tuple[float, float]:
    """What `stirred`, through the process found, does to the whitened PV, over the noise: (its peaks, its norm)."""
    alone = Simulation(dataclasses.replace(grid, out=stirred), form=fit.form, whitening=simulation.whitening)
    columns = alone.columns(*fit.point)
    moved, others = fit.k * columns[:, 0], columns[:, 1:]
    moved = moved - others @ np.linalg.lstsq(others, moved, rcond=1e-10)[0]
    noise = max(float(np.sqrt(fit.residuals @ fit.residuals / len(fit.residuals))), 1e-300)
    return float(np.quantile(np.abs(moved), PEAK)) / noise, float(np.sqrt(moved @ moved)) / noise

"""What was recorded of a loop, on an even grid: stamps that wander and samples that are missing are dealt with here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 40
"""Samples of the PV, below which nothing is identified."""
LONGEST_GAP = 10.0
"""Of the usual period: a longer gap in the output cuts the record, since nobody knows what it was meanwhile."""
MOST_CELLS = 20_000
"""Of the grid; a longer record is laid on a coarser one."""
COARSER = 1.5
"""Of the usual period: on a grid coarser than this the samples of each cell are taken together."""


@dataclass(frozen=True, slots=True)
class Record:
    """A loop's recorded samples, each of shape (n,); NaN: missing. `t` in seconds, rising.

    `out` is what the output is from its row's time on, until the next row with one. `setpoint` None: not recorded.
    """

    t: Floats
    pv: Floats
    out: Floats
    setpoint: Floats | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """The same on an even grid of m cells of `period` seconds.

    out: (m,) mean output in each cell. pv: (n,) the samples and `at`: (n,) when they were, in periods from the start of
    the grid, 0 <= at <= m. setpoint: (m,) or None. `cut`: samples left out beside a gap.
    """

    period: float
    out: Floats
    pv: Floats
    at: Floats
    setpoint: Floats | None
    cut: int


def to_grid(record: Record, period: float | None = None) -> Grid:
    """Lays a record on an even grid; its longest stretch without a gap in the output is what counts.

    period: seconds; None: the usual time between two samples of the PV. Raises ValueError, in words for the user, for a
    record that has too little in it.
    """
    rows = np.isfinite(record.t)
    if np.any(np.diff(record.t[rows]) <= 0.0):
        raise ValueError("the times must rise from row to row")
    known, sampled = rows & np.isfinite(record.out), rows & np.isfinite(record.pv)
    if known.sum() < 2 or sampled.sum() < FEWEST:
        raise ValueError(
            f"{sampled.sum()} samples of the PV and {known.sum()} of the output; {FEWEST} are needed"
        )
    usual = float(np.median(np.diff(record.t[sampled])))
    first, last = _longest(record.t[known], LONGEST_GAP * usual)
    times, outs = record.t[known][first:last], record.out[known][first:last]
    start, end = float(times[0]), float(times[-1]) + usual
    inside = sampled & (record.t >= start) & (record.t <= end)
    if inside.sum() < FEWEST:
        raise ValueError(
            f"only {inside.sum()} samples of the PV lie between two gaps in the output; {FEWEST} are needed"
        )
    if period is None:
        period = max(usual, (end - start) / MOST_CELLS)
    cells = max(round((end - start) / period), 1)
    edges: Floats = np.linspace(start, start + period * cells, cells + 1)
    setpoint = None
    if record.setpoint is not None and np.isfinite(record.setpoint).any():
        told = np.isfinite(record.setpoint)
        setpoint = _held_means(record.t[told], record.setpoint[told], edges)
    at, pv = np.minimum((record.t[inside] - start) / period, float(cells)), record.pv[inside]
    if period > COARSER * usual:
        at, pv = _cell_means(at, pv)
    cut = int(sampled.sum() - inside.sum())
    return Grid(period, _held_means(times, outs, edges), pv, at, setpoint, cut)


def _longest(times: Floats, gap: float) -> tuple[int, int]:
    """First and one past the last index of the longest stretch without a gap."""
    breaks = [0, *(np.flatnonzero(np.diff(times) > gap) + 1).tolist(), len(times)]
    stretches = list(pairwise(breaks))
    return max(stretches, key=lambda ends: float(times[ends[1] - 1] - times[ends[0]]))


def _cell_means(at: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Mean time and mean value of the samples in each cell that has any."""
    cells, index = np.unique(np.floor(at), return_inverse=True)
    count = np.bincount(index, minlength=len(cells))
    means = [np.bincount(index, weights=one, minlength=len(cells)) / count for one in (at, values)]
    return means[0], means[1]


def _held_means(times: Floats, values: Floats, edges: Floats) -> Floats:
    """Mean over each cell, shape (len(edges) - 1,), of a signal that holds each value until the next."""
    ends = max(float(edges[-1]), float(times[-1])) + 1.0
    area = np.concatenate([[0.0], np.cumsum(values * np.diff(np.append(times, ends)))])
    total = np.interp(edges, np.append(times, ends), area)
    before = np.minimum(edges - times[0], 0.0) * values[0]  # held back to before the first one
    means: Floats = np.diff(total + before) / np.diff(edges)
    return means

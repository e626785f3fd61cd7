"""Fits a process by simulation (output error): K and offsets by least squares, lags and delay by Levenberg-Marquardt.

The PV is the output convolved with the process's exact pulse response under a zero-order hold, so a delay between two
samples is exact and a whole simulation is one FFT. An output-error fit needs no noise model and was better than ARX on
routine data by a factor (L. Ljung, System Identification, 2nd ed., 4.2 and 10.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.control.record import Grid

Floats = NDArray[np.float64]

STARTS = 4
"""The best points of the coarse search that are refined."""
ROUNDS = 40
LAST_GAIN = 1e-7
"""Relative fall of the sum of squares at which a fit is done."""
NEAR = 1e-4
"""Relative difference of two lags below which they count as equal in the closed form."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Highest lag and delay that a record can tell, seconds."""

    lag: float
    delay: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Lags and delay in seconds; `k` is per second for an integrating process.

    linear: (3,) factors of `Simulation.columns`, the gain first. residuals: (n,), whitened as the simulation was.
    """

    integrating: bool
    t1: float
    t2: float
    delay: float
    linear: Floats
    residuals: Floats
    bounds: Bounds

    @property
    def k(self) -> float:
        return float(self.linear[0])

    @property
    def sum_squares(self) -> float:
        return float(self.residuals @ self.residuals)


class Simulation:
    """A record made ready for many simulations with other parameters.

    whitening: (p + 1,) polynomial, 1 first, by which PV and simulation are filtered so that the residuals become white.
    """

    def __init__(self, grid: Grid, *, integrating: bool, whitening: Floats | None = None) -> None:
        self.grid = grid
        self.integrating = integrating
        self.whitening = np.ones(1) if whitening is None else whitening
        self.cells = len(grid.out)
        self.start_out, self.start_pv = float(grid.out[0]), float(np.median(grid.pv[:5]))
        self.pv = np.convolve(grid.pv - self.start_pv, self.whitening, "valid")
        self._size = 1 << (2 * self.cells - 1).bit_length()
        self._spectrum = np.fft.rfft(grid.out - self.start_out, self._size)
        self._edges: Floats = np.linspace(0.0, grid.period * self.cells, self.cells + 1)
        self._index = np.arange(self.cells + 1)

    def columns(self, t1: float, t2: float, delay: float) -> Floats:
        """(n, q): the PV for a gain of 1, a constant, and what an unknown state at the start leaves."""
        since = self._edges - delay
        response = _ramp(since, t2) if self.integrating else _step(since, t1, t2)
        pulse = np.diff(response)
        moved = np.fft.irfft(np.fft.rfft(pulse, self._size) * self._spectrum, self._size)[: self.cells]
        at = self.grid.at
        seen = np.interp(at, self._index, np.concatenate([[0.0], moved]))
        seconds = at * self.grid.period
        start = seconds if self.integrating else np.exp(-seconds / max(t1, t2, 1e-3 * self.grid.period))
        plain = np.column_stack([seen, np.ones_like(seen), start])
        return np.column_stack([np.convolve(column, self.whitening, "valid") for column in plain.T])

    def solve(self, t1: float, t2: float, delay: float) -> tuple[Floats, Floats]:
        """(factors of the columns, residuals) of the least squares for these lags and this delay."""
        columns = self.columns(t1, t2, delay)
        scale = np.sqrt((columns * columns).sum(axis=0)) + 1e-300
        scaled = columns / scale
        gram = scaled.T @ scaled + 1e-12 * np.eye(columns.shape[1])
        linear = np.linalg.solve(gram, scaled.T @ self.pv) / scale
        return linear, self.pv - columns @ linear

    def fits(self, bounds: Bounds) -> list[Fit]:
        """Fits from the best points of a coarse search, best first."""
        found = [self._refine(point, bounds, fixed=False) for point in self._coarse(bounds)[:STARTS]]
        return sorted(found, key=lambda fit: fit.sum_squares)

    def fit_from(self, starts: Sequence[Fit], *, delay: float | None = None) -> Fit:
        """The best fit that begins where others ended; `delay`: held at this value."""
        found = []
        for start in starts:
            point = np.array([start.t1, start.t2, start.delay if delay is None else delay])
            found.append(self._refine(point, start.bounds, fixed=delay is not None))
        return min(found, key=lambda fit: fit.sum_squares)

    def _coarse(self, bounds: Bounds) -> list[Floats]:
        """Points of a coarse grid, best first."""
        lags = np.geomspace(min(self.grid.period, bounds.lag) / 2, bounds.lag / 2, 9)
        delays = _delays(self.grid.period, bounds.delay)
        pairs = [(0.0, lag) for lag in lags[::2]] if self.integrating else []
        if not self.integrating:
            pairs = [(lag, share * lag) for lag in lags for share in (0.0, 0.35, 1.0)]
        scored = []
        for t1, t2 in pairs:
            for late in delays:
                residuals = self.solve(t1, t2, late)[1]
                scored.append((float(residuals @ residuals), np.array([t1, t2, late])))
        return [point for _, point in sorted(scored, key=lambda one: one[0])]

    def _refine(self, point: Floats, bounds: Bounds, *, fixed: bool) -> Fit:
        """Levenberg-Marquardt on lags and delay, the linear factors solved for at each point (variable projection)."""
        free = [i for i in (0, 1, 2) if not (i == 0 and self.integrating) and not (i == 2 and fixed)]
        high = np.array([bounds.lag, bounds.lag, bounds.delay])
        linear, residuals = self.solve(*point)
        best, damping = float(residuals @ residuals), 1e-2
        for _ in range(ROUNDS):
            slopes = self.slopes(point, free, high, residuals)
            gram, pull = slopes.T @ slopes, slopes.T @ residuals
            better = False
            while damping < 1e8:
                moved = point.copy()
                moved[free] -= np.linalg.solve(
                    gram + damping * np.diag(np.diag(gram) + 1e-12 * np.trace(gram) + 1e-300), pull
                )
                moved = np.clip(moved, 0.0, high)
                tried, left = self.solve(*moved)
                now = float(left @ left)
                if now < best:
                    better = True
                    break
                damping *= 4.0
            if not better:
                break
            gain, best = (best - now) / max(best, 1e-300), now
            point, linear, residuals, damping = moved, tried, left, max(damping / 6.0, 1e-9)
            if gain < LAST_GAIN:
                break
        t1, t2 = (0.0, point[1]) if self.integrating else (max(point[:2]), min(point[:2]))
        return Fit(self.integrating, float(t1), float(t2), float(point[2]), linear, residuals, bounds)

    def slopes(self, point: Floats, free: list[int], high: Floats, residuals: Floats) -> Floats:
        """(n, len(free)): how the residuals move with lags and delay, by differences that stay within the bounds."""
        columns = np.empty((len(residuals), len(free)))
        for j, i in enumerate(free):
            by = max(1e-3 * point[i], 0.01 * self.grid.period)
            by = -by if point[i] + by > high[i] else by
            beside = point.copy()
            beside[i] += by
            columns[:, j] = (self.solve(*beside)[1] - residuals) / by
        return columns


def whitening_of(residuals: Floats, order: int) -> Floats:
    """(order + 1,): the polynomial that whitens residuals, an autoregression by least squares.

    Yule-Walker would be stable, which a filter of this kind need not be, and is far off for residuals that drift.
    """
    centred = residuals - residuals.mean()
    n = len(centred)
    past = np.column_stack([centred[order - lag : n - lag] for lag in range(1, order + 1)])
    gram = past.T @ past
    ridge = 1e-9 * np.trace(gram) * np.eye(order)
    return np.concatenate([[1.0], -np.linalg.solve(gram + ridge, past.T @ centred[order:])])


def _delays(period: float, longest: float) -> list[float]:
    """Delays of the coarse search: close together where they are short."""
    steps = [0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0]
    while steps[-1] * period < longest:
        steps.append(steps[-1] * 1.35)
    return [step * period for step in steps if step * period <= longest]


def _step(since: Floats, t1: float, t2: float) -> Floats:
    """Unit step response of 1 / ((t1 s + 1)(t2 s + 1)), `since` seconds after the step; 0 before it."""
    t = np.maximum(since, 0.0)
    slow, fast = max(t1, t2), min(t1, t2)
    if slow <= 0.0:
        return np.where(since > 0.0, 1.0, 0.0)
    gone = np.exp(-t / slow)
    if fast <= 0.0:
        return 1.0 - gone
    if slow - fast < NEAR * slow:
        mean = (slow + fast) / 2
        return 1.0 - (1.0 + t / mean) * np.exp(-t / mean)
    return 1.0 - (slow * gone - fast * np.exp(-t / fast)) / (slow - fast)


def _ramp(since: Floats, t2: float) -> Floats:
    """Unit step response of 1 / (s (t2 s + 1))."""
    t = np.maximum(since, 0.0)
    return t - t2 * -np.expm1(-t / t2) if t2 > 0.0 else t

"""Fits a process by simulation (output error): K and offsets by least squares, lags and delay by Levenberg-Marquardt.

The PV is the output convolved with the process's exact pulse response under a zero-order hold, so a delay between two
samples is exact and a whole simulation is one FFT. An output-error fit needs no noise model and was better than ARX on
routine data by a factor (L. Ljung, System Identification, 2nd ed., 4.2 and 10.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.control.record import Grid

Floats = NDArray[np.float64]
Form = Literal["settling", "integrating", "oscillating", "many"]
"""Two lags; an integrator and a lag; one that swings, with a damping below 1; several equal lags."""

STARTS = 4
"""The best points of the coarse search that are refined."""
ROUNDS = 40
LAST_GAIN = 1e-7
"""Relative fall of the sum of squares at which a fit is done."""
NEAR = 1e-4
"""Relative difference of two lags below which they count as equal in the closed form."""
EQUAL = (3.0, 4.0, 6.0, 9.0, 14.0)
"""Numbers of equal lags that are tried."""
LEAST_DAMPING, MOST_DAMPING = 0.05, 0.99


@dataclass(frozen=True, slots=True)
class Bounds:
    """Highest lag and delay that a record can tell, seconds."""

    lag: float
    delay: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Lags and delay in seconds; `k` is per second for an integrating process.

    second: what `Simulation.columns` takes so: the other lag, the damping, or the number of equal lags.
    linear: (q,) factors of `Simulation.columns`, the gain first. residuals: (n,), whitened as the simulation was.
    """

    form: Form
    t1: float
    second: float
    delay: float
    linear: Floats
    residuals: Floats
    bounds: Bounds

    @property
    def integrating(self) -> bool:
        return self.form == "integrating"

    @property
    def t2(self) -> float:
        return self.second if self.form in ("settling", "integrating") else 0.0

    @property
    def damping(self) -> float:
        """1 unless it oscillates."""
        return self.second if self.form == "oscillating" else 1.0

    @property
    def point(self) -> Floats:
        """(3,) what `Simulation.columns` takes."""
        return np.array([self.t1, self.second, self.delay])

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

    def __init__(self, grid: Grid, *, form: Form, whitening: Floats | None = None) -> None:
        self.grid = grid
        self.form = form
        self.whitening = np.ones(1) if whitening is None else whitening
        self.cells = len(grid.out)
        self.start_out, self.start_pv = float(grid.out[0]), float(np.median(grid.pv[:5]))
        self.pv = np.convolve(grid.pv - self.start_pv, self.whitening, "valid")
        self._size = 1 << (2 * self.cells - 1).bit_length()
        self._spectrum = np.fft.rfft(grid.out - self.start_out, self._size)
        self._edges: Floats = np.linspace(0.0, grid.period * self.cells, self.cells + 1)
        self._index = np.arange(self.cells + 1)

    def columns(self, t1: float, second: float, delay: float) -> Floats:
        """(n, q): the PV for a gain of 1, a constant, and what an unknown state at the start leaves.

        second: the other lag, the damping of a process that oscillates, or the number of equal lags.
        """
        since = self._edges - delay
        pulse = np.diff(self._response(since, t1, second))
        moved = np.fft.irfft(np.fft.rfft(pulse, self._size) * self._spectrum, self._size)[: self.cells]
        at = self.grid.at
        seen = np.interp(at, self._index, np.concatenate([[0.0], moved]))
        seconds = at * self.grid.period
        plain = np.column_stack([seen, np.ones_like(seen), *self._starts(seconds, t1, second)])
        return np.column_stack([np.convolve(column, self.whitening, "valid") for column in plain.T])

    def _response(self, since: Floats, t1: float, second: float) -> Floats:
        if self.form == "integrating":
            return _ramp(since, second)
        if self.form == "many":
            return _chain(since, t1, round(second))
        return _swing(since, t1, second) if self.form == "oscillating" else _step(since, t1, second)

    def _starts(self, seconds: Floats, t1: float, second: float) -> list[Floats]:
        """What is left after `seconds` of a state that was not at rest."""
        if self.form == "integrating":
            return [seconds]
        if self.form == "settling":
            return [np.exp(-seconds / max(t1, second, 1e-3 * self.grid.period))]
        if self.form == "many":
            return [np.exp(-seconds / t1), seconds / t1 * np.exp(-seconds / t1)]
        turned = math.sqrt(1.0 - second * second) / t1 * seconds
        left = np.exp(-second / t1 * seconds)
        return [left * np.cos(turned), left * np.sin(turned)]

    def solve(self, t1: float, second: float, delay: float) -> tuple[Floats, Floats]:
        """(factors of the columns, residuals) of the least squares for these lags and this delay."""
        columns = self.columns(t1, second, delay)
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
            point = start.point
            point[2] = start.delay if delay is None else delay
            found.append(self._refine(point, start.bounds, fixed=delay is not None))
        return min(found, key=lambda fit: fit.sum_squares)

    def _coarse(self, bounds: Bounds) -> list[Floats]:
        """Points of a coarse grid, best first."""
        shortest, delays = min(self.grid.period, bounds.lag), _delays(self.grid.period, bounds.delay)
        lags = np.geomspace(shortest / 2, bounds.lag / 2, 9)
        if self.form == "integrating":
            pairs = [(0.0, lag) for lag in lags[::2]]
        elif self.form == "settling":
            pairs = [(lag, share * lag) for lag in lags for share in (0.0, 0.35, 1.0)]
        elif self.form == "many":
            pairs = [(lag / number, number) for lag in lags[1:] for number in EQUAL]
        else:
            lags = np.geomspace(shortest, bounds.lag / 2, 16)
            pairs = [(lag, damping) for lag in lags for damping in (0.12, 0.3, 0.6)]
        scored = []
        for t1, second in pairs:
            for late in delays:
                residuals = self.solve(t1, second, late)[1]
                scored.append((float(residuals @ residuals), np.array([t1, second, late])))
        return [point for _, point in sorted(scored, key=lambda one: one[0])]

    def _refine(self, point: Floats, bounds: Bounds, *, fixed: bool) -> Fit:
        """Levenberg-Marquardt on lags and delay, the linear factors solved for at each point (variable projection)."""
        still = {("integrating", 0), ("many", 1)}
        free = [i for i in (0, 1, 2) if (self.form, i) not in still and not (i == 2 and fixed)]
        low, high = self._box(bounds)
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
                moved = np.clip(moved, low, high)
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
        if self.form == "settling":
            point[:2] = max(point[:2]), min(point[:2])
        t1, second, late = point.tolist()
        return Fit(self.form, t1, second, late, linear, residuals, bounds)

    def _box(self, bounds: Bounds) -> tuple[Floats, Floats]:
        """(lowest, highest) of what `columns` takes."""
        if self.form == "oscillating":
            low = np.array([0.3 * self.grid.period, LEAST_DAMPING, 0.0])
            return low, np.array([bounds.lag, MOST_DAMPING, bounds.delay])
        if self.form == "many":
            low = np.array([0.03 * self.grid.period, min(EQUAL), 0.0])
            return low, np.array([bounds.lag, max(EQUAL), bounds.delay])
        return np.zeros(3), np.array([bounds.lag, bounds.lag, bounds.delay])

    def nudge(self, point: Floats, i: int) -> float:
        """By how much a parameter is moved to see what it does."""
        if i == 1 and self.form == "oscillating":
            return 1e-3
        return float(max(1e-3 * point[i], 0.01 * self.grid.period))

    def slopes(self, point: Floats, free: list[int], high: Floats, residuals: Floats) -> Floats:
        """(n, len(free)): how the residuals move with lags and delay, by differences that stay within the bounds."""
        columns = np.empty((len(residuals), len(free)))
        for j, i in enumerate(free):
            by = self.nudge(point, i)
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


def _swing(since: Floats, t1: float, damping: float) -> Floats:
    """Unit step response of 1 / (t1^2 s^2 + 2 damping t1 s + 1)."""
    t = np.maximum(since, 0.0) / t1
    speed = math.sqrt(1.0 - damping * damping)
    swing: Floats = np.cos(speed * t) + damping / speed * np.sin(speed * t)
    return 1.0 - np.exp(-damping * t) * swing


def _chain(since: Floats, lag: float, number: int) -> Floats:
    """Unit step response of 1 / (lag s + 1)^number."""
    t = np.maximum(since, 0.0) / lag
    term, terms = np.ones_like(t), np.ones_like(t)
    for k in range(1, number):
        term = term * t / k
        terms = terms + term
    return 1.0 - np.exp(-t) * terms

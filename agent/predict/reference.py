"""The predictor in plain NumPy, all tags at once: the tests' oracle and the fallback where numba cannot load.

The same arguments and results as `agent.predict.kernels.step` (to rounding), by other means: least squares by a general
solver on the unpacked matrix, masks instead of branches. A row must not stand twice in one call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.predict import columns as c

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def step(
    rows: Ints,
    values: Floats,
    times: Floats,
    x: Floats,
    horizon: Ints,
    p: int,
    alpha: float,
    scalars: Floats,
    lags: Floats,
    regressors: Floats,
    packed: Floats,
    side: Floats,
    thetas: Floats,
    ring: Floats,
    errors: Floats,
    band: Floats,
    inputs: Floats,
    input_index: Ints,
    input_count: Ints,
    y: Floats,
    lower: Floats,
    upper: Floats,
) -> None:
    """See `agent.predict.kernels.step`."""
    with np.errstate(all="ignore"):
        first = scalars[rows, c.SEEN] == 0.0
        real = np.abs(values) <= c.HUGE
        steps = _pace(scalars[rows], times, first)
        keep = (real | ~first) & (steps != 0)
        if not keep.any():
            return
        rows, values, times = rows[keep], values[keep], times[keep]
        first, real, steps = first[keep], real[keep], steps[keep]
        s, d, phi, theta = scalars[rows], lags[rows], regressors[rows], thetas[rows]
        of_ring, of_errors, of_band, of_inputs = ring[rows], errors[rows], band[rows], inputs[rows]
        regular, gap = steps > 0, np.abs(steps) - 1
        longest = int(horizon[-1])
        s[:, c.TIME] = times
        s[:, c.INNOVATION] = np.nan
        for column in (c.Y, c.MEAN, c.SMOOTH_FAST, c.SMOOTH_SLOW, c.LOW, c.HIGH):
            s[first, column] = values[first]
        for i in range(min(int(gap.max()), longest)):
            _fill(s, d, theta[:, 1], phi, p, gap > i)
        _skip(s, of_ring, horizon, gap)
        _regress(phi, s, d, p, of_inputs, gap > 0)
        s[:, c.STEP] += 1.0
        _take_inputs(of_inputs, x, input_index[rows], input_count[rows])
        s[real, c.REAL] = values[real]
        known = real & ~first
        exact = known & (s[:, c.MISSING] == 0.0) & regular
        s[exact, c.INNOVATION] = values[exact] - of_ring[exact, 0, c.COMBINED]
        _judge(s, of_ring, horizon, of_errors, of_band, alpha, known)
        _fill(s, d, theta[:, 1], phi, p, ~real)
        of_packed, of_side = packed[rows], side[rows]
        _take(s, d, phi, of_packed, of_side, theta, p, values, regular, longest, real)
        s[first, c.CHANGES] = 0.0
        s[~real, c.MISSING] += 1.0
        _regress(phi, s, d, p, of_inputs, np.ones(len(rows), dtype=bool))
        made = np.empty((len(rows), len(horizon), c.EXPERTS))
        made[:, :, 0] = s[:, [c.REAL]]
        made[:, :, 1] = s[:, [c.SMOOTH_FAST]]
        made[:, :, 2] = s[:, [c.SMOOTH_SLOW]]
        made[:, :, 3] = _iterate(s, d, theta[:, 0], phi, min(c.SHORT, p), p, horizon, with_inputs=False)
        made[:, :, 4] = _iterate(s, d, theta[:, 1], phi, p, p, horizon, with_inputs=True)
        value, width = _combine(s, of_ring, horizon, of_errors, of_band, made)
        shown = np.where(s[:, [c.SEEN]] >= c.FIRST_FORECAST, 1.0, np.nan)
        y[rows] = value * shown
        lower[rows] = (value - width) * shown
        upper[rows] = (value + width) * shown
        scalars[rows], lags[rows], regressors[rows], thetas[rows] = s, d, phi, theta
        packed[rows], side[rows] = of_packed, of_side
        ring[rows], errors[rows], band[rows], inputs[rows] = of_ring, of_errors, of_band, of_inputs


def _pace(s: Floats, times: Floats, first: Bools) -> Ints:
    steps = (times - s[:, c.TIME]) / s[:, c.PERIOD]
    whole = np.minimum(np.floor(steps + 0.5), 1e9)
    signed = np.where((np.abs(steps - whole) <= 0.2) | (whole == 0.0), whole, -whole)
    signed = np.where(steps <= -0.5, -1.0, signed)
    simple = first | ~(np.abs(times - s[:, c.TIME]) <= c.HUGE)
    return np.where(simple, 1.0, signed).astype(np.int64)


def _bounds(s: Floats) -> tuple[Floats, Floats]:
    slack = 0.5 * (s[:, c.HIGH] - s[:, c.LOW])
    return s[:, c.LOW] - slack, s[:, c.HIGH] + slack


def _from_inputs(theta: Floats, phi: Floats, p: int, ahead: int) -> Floats:
    """What the inputs, held where they are, add to the scaled difference `ahead` steps after the next one."""
    total = np.zeros(len(phi))
    for at in range(2 + p, phi.shape[1], c.INPUT_TERMS):
        total += theta[:, at] * phi[:, at]
        changes = c.INPUT_TERMS - 1 - ahead
        if changes > 0:
            later = theta[:, at + 1 + ahead : at + c.INPUT_TERMS]
            total += np.sum(later * phi[:, at + 1 : at + 1 + changes], axis=1)
    return total


def _push(d: Floats, change: Floats, where: Bools) -> None:
    d[where, 1:] = d[where, :-1]
    d[where, 0] = change[where]


def _fill(s: Floats, d: Floats, theta: Floats, phi: Floats, p: int, where: Bools) -> None:
    if not where.any():
        return
    scale, level = s[:, c.SCALE], s[:, c.Y]
    change = theta[:, 0] * scale + theta[:, 1] * (level - s[:, c.MEAN])
    change += np.sum(theta[:, 2 : 2 + p] * d, axis=1) + scale * _from_inputs(theta, phi, p, 0)
    reached = np.where(scale > c.TINY, np.clip(level + change, *_bounds(s)), level)
    _push(d, reached - level, where)
    s[where, c.Y] = reached[where]


def _skip(s: Floats, ring: Floats, horizon: Ints, gap: Ints) -> None:
    for row in np.flatnonzero(gap > 0):
        offset = 0
        for h in horizon:
            passed = int(s[row, c.STEP]) + np.arange(1, min(int(gap[row]), int(h)) + 1)
            ring[row, offset + passed % h, c.COMBINED] = np.nan
            offset += int(h)
    s[:, c.STEP] += gap
    s[:, c.MISSING] += gap


def _regress(phi: Floats, s: Floats, d: Floats, p: int, inputs: Floats, where: Bools) -> None:
    scale = s[:, [c.SCALE]]
    moves = scale > c.TINY
    new = np.zeros_like(phi)
    new[:, 0] = 1.0
    level = (s[:, [c.Y]] - s[:, [c.MEAN]]) / scale
    new[:, 1:2] = np.where(moves, np.clip(level, -c.LEVEL_CLIP, c.LEVEL_CLIP), 0.0)
    new[:, 2 : 2 + p] = np.where(moves, np.clip(d / scale, -c.CLIP, c.CLIP), 0.0)
    for k in range(inputs.shape[1]):
        at = 2 + p + k * c.INPUT_TERMS
        size = inputs[:, k, [c.X_SCALE]]
        terms = np.column_stack(
            [
                inputs[:, k, c.X_LAST] - inputs[:, k, c.X_MEAN],
                inputs[:, k, c.X_CHANGES :][:, : c.INPUT_TERMS - 1],
            ]
        )
        new[:, at : at + c.INPUT_TERMS] = np.where(size > c.TINY, terms / size, 0.0)
    phi[where] = new[where]


def _take_inputs(state: Floats, x: Floats, index: Ints, count: Ints) -> None:
    for k in range(state.shape[1]):
        one = state[:, k]
        value = x[index[:, k]] if len(x) else np.full(len(one), np.nan)
        value = np.where(np.abs(value) <= c.HUGE, value, one[:, c.X_LAST])
        value = np.where(k < count, value, np.nan)
        fresh = (one[:, c.X_COUNT] == 0.0) & (k < count)
        one[fresh, c.X_LAST] = one[fresh, c.X_MEAN] = value[fresh]
        known = np.abs(value) <= c.HUGE
        one[known, c.X_COUNT] += 1.0
        change = value - one[:, c.X_LAST]
        one[known, c.X_CHANGES + 1 :] = one[known, c.X_CHANGES : -1]
        one[known, c.X_CHANGES] = change[known]
        one[known, c.X_LAST] = value[known]
        rate = np.maximum(1.0 / one[:, c.X_COUNT], 0.002)
        mean = one[:, c.X_MEAN] + rate * (value - one[:, c.X_MEAN])
        one[known, c.X_MEAN] = mean[known]
        peak = np.maximum(np.abs(value - one[:, c.X_MEAN]), np.abs(change))
        scale = np.maximum(peak, one[:, c.X_SCALE] * (1.0 - c.RANGE_FORGET))
        one[known, c.X_SCALE] = scale[known]


def _half_quantum(s: Floats) -> Floats:
    learnt = np.where(s[:, c.SMALLEST] <= c.HUGE, 0.5 * s[:, c.SMALLEST], 0.0)
    return np.where(s[:, c.QUANTUM] > 0.0, 0.5 * s[:, c.QUANTUM], learnt)


def _judge(
    s: Floats, ring: Floats, horizon: Ints, errors: Floats, band: Floats, alpha: float, where: Bools
) -> None:
    floor = _half_quantum(s)
    offset = 0
    row = np.arange(len(s))
    for j, h in enumerate(horizon):
        kept = ring[row, offset + s[:, c.STEP].astype(np.int64) % h]
        offset += int(h)
        made = where & ~np.isnan(kept[:, c.COMBINED])
        miss = np.abs(s[:, [c.REAL]] - kept)
        short, long = errors[:, j, : c.EXPERTS], errors[:, j, c.MIXED : c.PLAIN + 1]
        cap = c.ERROR_CAP * np.maximum(short[:, 0] * (1.0 - c.MEMORY), s[:, c.SCALE])
        cap = np.where(s[:, c.STEP] - h < 50.0, np.inf, cap)[:, None]
        errors[made, j, : c.EXPERTS] = (c.MEMORY * short + np.minimum(miss[:, : c.EXPERTS], cap))[made]
        errors[made, j, c.MIXED : c.PLAIN + 1] = (c.MEMORY_MIXED * long + miss[:, [c.MIXED, 0]])[made]
        judged = made & (s[:, c.STEP] - h >= 20.0)
        error = miss[:, c.COMBINED]
        q = band[:, j, c.Q]
        gain = c.Q_GAIN * float(h) ** -c.Q_GAIN_AHEAD
        raised = np.minimum(q * np.exp(gain * (1.0 - alpha)), 1e6)
        lowered = np.where(kept[:, c.HALF] > floor, np.maximum(q * np.exp(-gain * alpha), 1e-3), q)
        band[judged, j, c.Q] = np.where(error > kept[:, c.HALF], raised, lowered)[judged]
        band[judged, j, c.COUNT] += 1.0
        booked = made & (s[:, c.SEEN] - (h - 1) >= c.FIRST_FORECAST)
        half = kept[:, c.HALF]
        book = np.column_stack([np.ones(len(s)), error, miss[:, 0], error <= half, 2.0 * half])
        band[booked, j, c.JUDGED_SHOWN :] += book[booked]
        error = error / kept[:, c.WIDENING]
        count, mean = band[:, j, c.COUNT], band[:, j, c.ERROR]
        error = np.where(count > 20.0, np.minimum(error, 5.0 * np.maximum(mean, s[:, c.SCALE])), error)
        moved = mean + np.maximum(1.0 / count, c.ERROR_RATE) * (error - mean)
        band[judged, j, c.ERROR] = moved[judged]


def _unpack(packed: Floats, n: int) -> Floats:
    whole = np.zeros((len(packed), n, n))
    i, j = np.tril_indices(n)
    whole[:, i, j] = packed
    whole[:, j, i] = packed
    return whole


def _learn(
    s: Floats, phi: Floats, packed: Floats, side: Floats, theta: Floats, p: int, change: Floats, where: Bools
) -> None:
    n = phi.shape[1]
    target = np.clip(change / s[:, c.SCALE], -1e6, 1e6)[where]
    z, sigma = phi[where], s[where, c.SIGMA]
    size = np.abs(target - np.sum(theta[where, 1] * z, axis=1))
    weight = np.where(size > c.HUBER * sigma, c.HUBER * sigma / size, 1.0)
    outer = weight[:, None, None] * z[:, :, None] * z[:, None, :]
    prior = np.where(np.arange(n) < 2 + p, c.PRIOR, c.PRIOR_INPUT)
    whole = c.FORGET * _unpack(packed[where], n) + outer + (1.0 - c.FORGET) * np.diag(prior)
    i, j = np.tril_indices(n)
    packed[where] = whole[:, i, j]
    side[where] = c.FORGET * side[where] + (weight * target)[:, None] * z
    k = min(c.SHORT, p) + 2
    right = side[where][:, :, None]
    new = np.zeros((len(z), 2, n))
    new[:, 0, :k] = np.linalg.solve(whole[:, :k, :k], right[:, :k])[:, :, 0]
    new[:, 1] = np.linalg.solve(whole, right)[:, :, 0]
    theta[where] = new
    late = s[where, c.CHANGES] >= 50.0
    moved = np.maximum(sigma + 0.0125 * (np.minimum(size, 4.0 * sigma) - sigma), 1e-3)
    s[where, c.SIGMA] = np.where(late, moved, sigma)


def _take(
    s: Floats,
    d: Floats,
    phi: Floats,
    packed: Floats,
    side: Floats,
    theta: Floats,
    p: int,
    value: Floats,
    regular: Bools,
    longest: int,
    where: Bools,
) -> None:
    change = value - s[:, c.Y]
    steady = where & (s[:, c.MISSING] == 0.0) & regular
    learns = steady & (s[:, c.SCALE] > c.TINY)
    if learns.any():
        _learn(s, phi, packed, side, theta, p, change, learns)
    s[steady, c.CHANGES] += 1.0
    scale = s[:, c.SCALE]
    moved = scale + np.maximum(1.0 / s[:, c.CHANGES], 0.002) * (np.abs(change) - scale)
    s[steady, c.SCALE] = moved[steady]
    changed = steady & (change != 0.0)
    s[changed, c.SMALLEST] = np.minimum(s[:, c.SMALLEST], np.abs(change))[changed]
    late = where & ~steady & (s[:, c.MISSING] > longest)
    d[late] = 0.0
    _push(d, np.where(late, 0.0, change), where)
    s[where, c.SEEN] += 1.0
    s[where, c.MISSING] = 0.0
    s[where, c.Y] = value[where]
    rate = np.maximum(1.0 / s[:, c.SEEN], 0.005)
    distance = np.abs(value - s[:, c.SMOOTH_SLOW])
    for column, speed in ((c.MEAN, rate), (c.SMOOTH_FAST, c.FAST), (c.SMOOTH_SLOW, c.SLOW)):
        s[where, column] = (s[:, column] + speed * (value - s[:, column]))[where]
    deviation, late = s[:, c.DEVIATION], s[:, c.SEEN] > 50.0
    far = np.where(late & (distance > c.FAR_TIMES * deviation), s[:, c.FAR] + 1.0, 0.0)
    held = np.minimum(distance, c.FAR_TIMES * np.maximum(deviation, s[:, c.SCALE]))
    moved = deviation + rate * (np.where(late, held, distance) - deviation)
    s[where, c.DEVIATION] = moved[where]
    new_level = where & (far >= c.FAR_SAMPLES)
    for column in (c.MEAN, c.SMOOTH_FAST, c.SMOOTH_SLOW):
        s[new_level, column] = value[new_level]
    s[where, c.FAR] = np.where(new_level, 0.0, far)[where]
    low = np.minimum(value, s[:, c.LOW] + c.RANGE_FORGET * (value - s[:, c.LOW]))
    high = np.maximum(value, s[:, c.HIGH] + c.RANGE_FORGET * (value - s[:, c.HIGH]))
    s[where, c.LOW], s[where, c.HIGH] = low[where], high[where]


def _iterate(
    s: Floats, d: Floats, theta: Floats, phi: Floats, order: int, p: int, horizon: Ints, *, with_inputs: bool
) -> Floats:
    scale, mean, level = s[:, c.SCALE], s[:, c.MEAN], s[:, c.Y]
    low, high = _bounds(s)
    path = d[:, :order].copy()
    out = np.empty((len(s), len(horizon)))
    for h in range(1, int(horizon[-1]) + 1):
        change = theta[:, 0] * scale + theta[:, 1] * (level - mean)
        change += np.sum(theta[:, 2 : 2 + order] * path, axis=1)
        if with_inputs:
            change += scale * _from_inputs(theta, phi, p, h - 1)
        reached = np.where(scale > c.TINY, np.clip(level + change, low, high), level)
        path[:, 1:] = path[:, :-1].copy()
        path[:, 0] = reached - level
        level = reached
        out[:, horizon == h] = level[:, None]
    return out


def _combine(
    s: Floats, ring: Floats, horizon: Ints, errors: Floats, band: Floats, made: Floats
) -> tuple[Floats, Floats]:
    last = made[:, :, 0]
    judged = errors[:, :, : c.EXPERTS]
    base = judged[:, :, 0]
    excess = (judged - judged.min(axis=2, keepdims=True)) / base[:, :, None]
    weight = np.exp(-c.ETA * excess)
    change = np.sum(weight * (made - last[:, :, None]), axis=2) / np.sum(weight, axis=2)
    plain = errors[:, :, c.PLAIN]
    gate = np.clip((errors[:, :, c.MIXED] - plain) / plain - c.MARGIN_MIXED, -1.0, 1.0)
    change = np.where(base > 0.0, change, 0.0)
    mixed = last + change
    value = last + np.where(base > 0.0, change / (1.0 + np.exp(c.ETA_MIXED * gate)), 0.0)
    tracked = 1.25 * band[:, :, c.Q] * band[:, :, c.ERROR]
    width = np.maximum(tracked, _half_quantum(s)[:, None])
    missing = s[:, c.MISSING]
    widths = np.empty_like(width)
    row = np.arange(len(s))
    offset = 0
    for j, h in enumerate(horizon):
        if j > 0:
            young = band[:, j, c.COUNT] < 10.0
            grown = width[:, j - 1] * np.sqrt(h / horizon[j - 1])
            width[:, j] = np.where(young, np.maximum(width[:, j], grown), width[:, j])
        wide = width[:, j].copy()
        for i in range(j + 1, len(horizon)):
            wide = np.where(horizon[i - 1] < h + missing, np.maximum(wide, tracked[:, i]), wide)
        beyond = np.sqrt(np.minimum((h + missing) / horizon[-1], 1e6))
        wide = np.where(h + missing > horizon[-1], wide * beyond, wide)
        widths[:, j] = np.where(missing > 0.0, wide, width[:, j])
        ratio = np.where((missing > 0.0) & (width[:, j] > 0.0), np.clip(wide / width[:, j], 1.0, 1e6), 1.0)
        slot = offset + s[:, c.STEP].astype(np.int64) % h
        offset += int(h)
        ring[row, slot, : c.EXPERTS] = made[:, j]
        ring[row, slot, c.MIXED] = mixed[:, j]
        ring[row, slot, c.COMBINED] = value[:, j]
        ring[row, slot, c.HALF] = widths[:, j]
        ring[row, slot, c.WIDENING] = ratio
    return value, widths

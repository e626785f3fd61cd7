"""The predictor's compiled kernels: one call moves the models of all due tags by one step.

Arrays are one row per tag, see `agent.predict.state.State` for shapes. `agent.predict.reference` computes the same in
plain NumPy: the tests' oracle and the fallback. Equations: exponentially weighted least squares in information form
with the prior re-injected (so R stays above PRIOR * I for ever), Huber-weighted, on scaled differences plus a level
term; experts combined by exponential weights (Vovk 1990); intervals by multiplicative quantile tracking
(Angelopoulos, Candes, Tibshirani 2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.kernelcache import kernel
from agent.predict import columns as c

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@kernel("float64(float64, float64, float64)")
def clip(value: float, low: float, high: float) -> float:
    """value, held between low and high."""
    return min(max(value, low), high)


@kernel("void(float64[::1], float64[::1], int64, int64, float64[:,::1], float64[::1], float64[:,::1])")
def solve(
    r_packed: Floats, r_side: Floats, n: int, short: int, low: Floats, z: Floats, theta: Floats
) -> None:
    """Coefficients of the short and the full order from one Cholesky factor (low, z: work space)."""
    at = 0
    for i in range(n):
        for j in range(i):
            v = r_packed[at + j]
            for k in range(j):
                v -= low[i, k] * low[j, k]
            low[i, j] = v * low[j, n]
        v = r_packed[at + i]
        for k in range(i):
            v -= low[i, k] * low[i, k]
        low[i, i] = np.sqrt(max(v, 1e-9))
        low[i, n] = 1.0 / low[i, i]
        v = r_side[i]
        for k in range(i):
            v -= low[i, k] * z[k]
        z[i] = v * low[i, n]
        at += i + 1
    for order in range(2):
        size = short if order == 0 else n
        for i in range(size - 1, -1, -1):
            v = z[i]
            for k in range(i + 1, size):
                v -= low[k, i] * theta[order, k]
            theta[order, i] = v * low[i, n]


@kernel("float64(float64[::1], float64[::1], float64[::1], int64, int64, float64[::1], float64, float64)")
def learn(
    phi: Floats,
    r_packed: Floats,
    r_side: Floats,
    n: int,
    own: int,
    theta: Floats,
    target: float,
    sigma: float,
) -> float:
    """One Huber-weighted, forgetting step of the information matrix and its right side; returns |error|.

    The first `own` terms are the tag's own, the rest those of its inputs.
    """
    error = target
    for i in range(n):
        error -= theta[i] * phi[i]
    size = abs(error)
    weight = c.HUBER * sigma / size if size > c.HUBER * sigma else 1.0
    at = 0
    for i in range(n):
        weighted = weight * phi[i]
        r_side[i] = c.FORGET * r_side[i] + weighted * target
        for j in range(i + 1):
            r_packed[at + j] = c.FORGET * r_packed[at + j] + weighted * phi[j]
        r_packed[at + i] += (1.0 - c.FORGET) * (c.PRIOR if i < own else c.PRIOR_INPUT)
        at += i + 1
    return size


@kernel("void(float64[:,::1], float64[::1], int64[::1], int64)")
def take_inputs(state: Floats, x: Floats, index: Ints, count: int) -> None:
    """Moves the exogenous inputs of one tag by one step; x NaN (or an empty x): the input stays where it is."""
    for k in range(count):
        value = x[index[k]] if len(x) > 0 else np.nan
        if not (abs(value) <= c.HUGE):
            value = state[k, c.X_LAST]
        if state[k, c.X_COUNT] == 0.0:
            state[k, c.X_LAST] = value
            state[k, c.X_MEAN] = value
        if abs(value) <= c.HUGE:
            state[k, c.X_COUNT] += 1.0
            for i in range(c.INPUT_TERMS - 2, 0, -1):
                state[k, c.X_CHANGES + i] = state[k, c.X_CHANGES + i - 1]
            state[k, c.X_CHANGES] = value - state[k, c.X_LAST]
            state[k, c.X_LAST] = value
            rate = max(1.0 / state[k, c.X_COUNT], 0.002)
            state[k, c.X_MEAN] += rate * (value - state[k, c.X_MEAN])
            peak = max(abs(value - state[k, c.X_MEAN]), abs(state[k, c.X_CHANGES]))
            state[k, c.X_SCALE] = max(peak, state[k, c.X_SCALE] * (1.0 - c.RANGE_FORGET))


@kernel("void(float64[::1], float64[::1], float64[::1], int64, float64[:,::1], int64)")
def regress(phi: Floats, s: Floats, d: Floats, p: int, inputs: Floats, count: int) -> None:
    """The regressors of the next step: 1, scaled level, scaled differences, scaled inputs."""
    phi[0] = 1.0
    scale = s[c.SCALE]
    if scale > c.TINY:
        phi[1] = clip((s[c.Y] - s[c.MEAN]) / scale, -c.LEVEL_CLIP, c.LEVEL_CLIP)
        for i in range(p):
            phi[2 + i] = clip(d[i] / scale, -c.CLIP, c.CLIP)
    else:
        phi[1 : 2 + p] = 0.0
    for k in range(count):
        at = 2 + p + k * c.INPUT_TERMS
        if inputs[k, c.X_SCALE] > c.TINY:
            phi[at] = (inputs[k, c.X_LAST] - inputs[k, c.X_MEAN]) / inputs[k, c.X_SCALE]
            for i in range(c.INPUT_TERMS - 1):
                phi[at + 1 + i] = inputs[k, c.X_CHANGES + i] / inputs[k, c.X_SCALE]
        else:
            phi[at : at + c.INPUT_TERMS] = 0.0


@kernel("float64(float64[::1], float64[::1], int64, int64, int64)")
def from_inputs(theta: Floats, phi: Floats, p: int, count: int, ahead: int) -> float:
    """What the inputs, held where they are, add to the scaled difference `ahead` steps (from 0) after the next one."""
    total = 0.0
    for k in range(count):
        at = 2 + p + k * c.INPUT_TERMS
        total += theta[at] * phi[at]
        for i in range(ahead, c.INPUT_TERMS - 1):
            total += theta[at + 1 + i] * phi[at + 1 + i - ahead]
    return total


@kernel(
    "void(float64[::1], float64[::1], float64[::1], float64[::1], int64, int64, int64, int64[::1], float64[::1],"
    " float64[:,::1], int64)"
)
def iterate(
    s: Floats,
    d: Floats,
    theta: Floats,
    phi: Floats,
    order: int,
    p: int,
    count: int,
    horizon: Ints,
    path: Floats,
    out: Floats,
    expert: int,
) -> None:
    """Runs one model ahead; out[j, expert] is its forecast at horizon[j]. Each step stays within the range seen."""
    scale, mean, level = s[c.SCALE], s[c.MEAN], s[c.Y]
    slack = 0.5 * (s[c.HIGH] - s[c.LOW])
    low, high = s[c.LOW] - slack, s[c.HIGH] + slack
    moves = scale > c.TINY
    constant = theta[0] * scale
    for i in range(order):
        path[order - 1 - i] = d[i]
    j = 0
    last = horizon[len(horizon) - 1]
    for h in range(1, last + 1):
        if moves:
            step = constant + theta[1] * (level - mean)
            for i in range(order):
                step += theta[2 + i] * path[order + h - 2 - i]
            if count > 0:
                step += scale * from_inputs(theta, phi, p, count, h - 1)
            reached = clip(level + step, low, high)
            path[order + h - 1] = reached - level
            level = reached
        if h == horizon[j]:
            out[j, expert] = level
            j += 1


@kernel("void(float64[::1], float64[::1], float64[::1], float64[::1], int64, int64)")
def fill(s: Floats, d: Floats, theta: Floats, phi: Floats, p: int, count: int) -> None:
    """A step without a sample: the lags move on with the model's own forecast; nothing is learnt."""
    level = s[c.Y]
    scale = s[c.SCALE]
    if scale > c.TINY:
        step = theta[0] * scale + theta[1] * (level - s[c.MEAN])
        for i in range(p):
            step += theta[2 + i] * d[i]
        step += scale * from_inputs(theta, phi, p, count, 0)
        slack = 0.5 * (s[c.HIGH] - s[c.LOW])
        level = clip(level + step, s[c.LOW] - slack, s[c.HIGH] + slack)
    for i in range(p - 1, 0, -1):
        d[i] = d[i - 1]
    d[0] = level - s[c.Y]
    s[c.Y] = level


@kernel("float64(float64[::1])")
def half_quantum(s: Floats) -> float:
    """The least half width: half the signal's quantum, given or learnt."""
    quantum: float = s[c.QUANTUM]
    if quantum <= 0.0:
        quantum = s[c.SMALLEST] if s[c.SMALLEST] <= c.HUGE else 0.0
    return 0.5 * quantum


@kernel("void(float64[::1], float64[:,::1], int64[::1], float64[:,::1], float64[:,::1], float64)")
def judge(s: Floats, ring: Floats, horizon: Ints, errors: Floats, band: Floats, alpha: float) -> None:
    """Holds the sample s[REAL] against what was forecast for it: experts' errors and interval of each horizon."""
    offset = 0
    floor = half_quantum(s)
    for j in range(len(horizon)):
        h = horizon[j]
        slot = offset + int(s[c.STEP]) % h
        offset += h
        if ring[slot, c.COMBINED] != ring[slot, c.COMBINED]:
            continue
        cap = (
            np.inf if s[c.STEP] - h < 50.0 else c.ERROR_CAP * max(errors[j, 0] * (1.0 - c.MEMORY), s[c.SCALE])
        )
        for k in range(c.EXPERTS):
            errors[j, k] = c.MEMORY * errors[j, k] + min(abs(s[c.REAL] - ring[slot, k]), cap)
        errors[j, c.MIXED] = c.MEMORY_MIXED * errors[j, c.MIXED] + abs(s[c.REAL] - ring[slot, c.MIXED])
        errors[j, c.PLAIN] = c.MEMORY_MIXED * errors[j, c.PLAIN] + abs(s[c.REAL] - ring[slot, 0])
        if s[c.STEP] - h < 20.0:
            continue
        error = abs(s[c.REAL] - ring[slot, c.COMBINED])
        gain = c.Q_GAIN * float(h) ** -c.Q_GAIN_AHEAD
        if error > ring[slot, c.HALF]:
            band[j, c.Q] = min(band[j, c.Q] * np.exp(gain * (1.0 - alpha)), 1e6)
        elif ring[slot, c.HALF] > floor:  # at the floor a smaller multiple would change nothing
            band[j, c.Q] = max(band[j, c.Q] * np.exp(-gain * alpha), 1e-3)
        band[j, c.COUNT] += 1.0
        # SEEN is still without this sample: the forecast was shown h steps ago
        if s[c.SEEN] - (h - 1) >= c.FIRST_FORECAST:
            band[j, c.JUDGED_SHOWN] += 1.0
            band[j, c.SUM_ERROR] += error
            band[j, c.SUM_LAST] += abs(s[c.REAL] - ring[slot, 0])
            band[j, c.SUM_INSIDE] += 1.0 if error <= ring[slot, c.HALF] else 0.0
            band[j, c.SUM_WIDTH] += 2.0 * ring[slot, c.HALF]
        error /= ring[slot, c.WIDENING]
        if band[j, c.COUNT] > 20.0:
            error = min(error, 5.0 * max(band[j, c.ERROR], s[c.SCALE]))
        band[j, c.ERROR] += max(1.0 / band[j, c.COUNT], c.ERROR_RATE) * (error - band[j, c.ERROR])


@kernel(
    "void(float64[::1], float64[:,::1], int64[::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[::1],"
    " float64[::1], float64[::1])"
)
def combine(
    s: Floats,
    ring: Floats,
    horizon: Ints,
    errors: Floats,
    band: Floats,
    made: Floats,
    y: Floats,
    lower: Floats,
    upper: Floats,
) -> None:
    """One forecast and interval per horizon out of the experts' `made` (H, EXPERTS); kept in the ring for `judge`."""
    floor = half_quantum(s)
    shown = s[c.SEEN] >= c.FIRST_FORECAST
    offset = 0
    width_before = 0.0
    h_last = horizon[len(horizon) - 1]
    for j in range(len(horizon)):
        h = horizon[j]
        base = errors[j, 0]
        value = mixed = made[j, 0]
        if base > 0.0:
            best = base
            for k in range(1, c.EXPERTS):
                best = min(best, errors[j, k])
            total = 0.0
            change = 0.0  # summed as distances from the last value, which keeps an offset's digits out
            for k in range(c.EXPERTS):
                weight = np.exp(-c.ETA * (errors[j, k] - best) / base)
                total += weight
                change += weight * (made[j, k] - made[j, 0])
            change /= total
            mixed = value + change
            excess = clip(
                (errors[j, c.MIXED] - errors[j, c.PLAIN]) / errors[j, c.PLAIN] - c.MARGIN_MIXED, -1.0, 1.0
            )
            value += change / (1.0 + np.exp(c.ETA_MIXED * excess))
        width = max(1.25 * band[j, c.Q] * band[j, c.ERROR], floor)
        if band[j, c.COUNT] < 10.0 and j > 0:
            width = max(width, width_before * np.sqrt(h / horizon[j - 1]))
        width_before = width
        widening = 1.0
        if s[c.MISSING] > 0.0:
            far = h + s[c.MISSING]
            wide = width
            for i in range(j + 1, len(horizon)):
                if horizon[i - 1] < far:
                    wide = max(wide, 1.25 * band[i, c.Q] * band[i, c.ERROR])
            if far > h_last:
                wide = wide * np.sqrt(min(far / h_last, 1e6))
            if width > 0.0:
                widening = clip(wide / width, 1.0, 1e6)
            width = wide
        slot = offset + int(s[c.STEP]) % h
        offset += h
        for k in range(c.EXPERTS):
            ring[slot, k] = made[j, k]
        ring[slot, c.MIXED] = mixed
        ring[slot, c.COMBINED] = value
        ring[slot, c.HALF] = width
        ring[slot, c.WIDENING] = widening
        y[j] = value if shown else np.nan
        lower[j] = value - width if shown else np.nan
        upper[j] = value + width if shown else np.nan


@kernel("void(float64[::1], float64[:,::1], int64[::1], int64)")
def skip(s: Floats, ring: Floats, horizon: Ints, gap: int) -> None:
    """Steps that passed unseen: no forecast was made at them, so none of theirs will be judged."""
    offset = 0
    for j in range(len(horizon)):
        h = horizon[j]
        for i in range(1, min(gap, h) + 1):
            ring[offset + int(s[c.STEP] + i) % h, c.COMBINED] = np.nan
        offset += h
    s[c.STEP] += gap
    s[c.MISSING] += gap


@kernel("int64(float64[::1], float64, boolean)")
def pace(s: Floats, now: float, first: bool) -> int:
    """Steps of the tag's own period since its last one: 0 too early; negative: so many, but off the grid."""
    if first or not (abs(now - s[c.TIME]) <= c.HUGE):
        return 1
    steps = (now - s[c.TIME]) / s[c.PERIOD]
    if steps <= -0.5:
        return -1
    whole = int(min(np.floor(steps + 0.5), 1e9))
    return whole if abs(steps - whole) <= 0.2 or whole == 0 else -whole


@kernel(
    "void(float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int64, int64,"
    " float64, boolean, int64, float64[:,::1], float64[::1])"
)
def take(
    s: Floats,
    d: Floats,
    phi: Floats,
    r_packed: Floats,
    r_side: Floats,
    theta: Floats,
    n: int,
    p: int,
    value: float,
    regular: bool,
    longest: int,
    low: Floats,
    z: Floats,
) -> None:
    """A real sample: learns from it where the step before was real too and on the grid, and moves the lags."""
    change = value - s[c.Y]
    if s[c.MISSING] == 0.0 and regular:
        if s[c.SCALE] > c.TINY:
            target = clip(change / s[c.SCALE], -1e6, 1e6)
            size = learn(phi, r_packed, r_side, n, 2 + p, theta[1], target, s[c.SIGMA])
            if s[c.CHANGES] >= 50.0:
                s[c.SIGMA] = max(s[c.SIGMA] + 0.0125 * (min(size, 4.0 * s[c.SIGMA]) - s[c.SIGMA]), 1e-3)
            solve(r_packed, r_side, n, min(c.SHORT, p) + 2, low, z, theta)
        s[c.CHANGES] += 1.0
        s[c.SCALE] += max(1.0 / s[c.CHANGES], 0.002) * (abs(change) - s[c.SCALE])
        if change != 0.0:
            s[c.SMALLEST] = min(s[c.SMALLEST], abs(change))
    elif s[c.MISSING] > longest:  # too long ago to know how it was moving
        d[:] = 0.0
        change = 0.0
    for i in range(p - 1, 0, -1):
        d[i] = d[i - 1]
    d[0] = change
    s[c.SEEN] += 1.0
    s[c.MISSING] = 0.0
    s[c.Y] = value
    rate = max(1.0 / s[c.SEEN], 0.005)
    s[c.MEAN] += rate * (value - s[c.MEAN])
    s[c.SMOOTH_FAST] += c.FAST * (value - s[c.SMOOTH_FAST])
    distance = abs(value - s[c.SMOOTH_SLOW])
    s[c.SMOOTH_SLOW] += c.SLOW * (value - s[c.SMOOTH_SLOW])
    s[c.FAR] = s[c.FAR] + 1.0 if s[c.SEEN] > 50.0 and distance > c.FAR_TIMES * s[c.DEVIATION] else 0.0
    if s[c.SEEN] > 50.0:
        distance = min(distance, c.FAR_TIMES * max(s[c.DEVIATION], s[c.SCALE]))
    s[c.DEVIATION] += rate * (distance - s[c.DEVIATION])
    if s[c.FAR] >= c.FAR_SAMPLES:
        s[c.FAR] = 0.0
        s[c.MEAN] = value
        s[c.SMOOTH_FAST] = value
        s[c.SMOOTH_SLOW] = value
    s[c.LOW] = min(value, s[c.LOW] + c.RANGE_FORGET * (value - s[c.LOW]))
    s[c.HIGH] = max(value, s[c.HIGH] + c.RANGE_FORGET * (value - s[c.HIGH]))


@kernel(
    "void(int64[::1], float64[::1], float64[::1], float64[::1], int64[::1], int64, float64, float64[:,::1],"
    " float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,:,::1], float64[:,:,::1],"
    " float64[:,:,::1], float64[:,:,::1], float64[:,:,::1], int64[:,::1], int64[::1], float64[:,::1],"
    " float64[:,::1], float64[:,::1])"
)
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
    """Moves the models of `rows` by the samples `values` (NaN: missing) taken at `times` (s).

    The last three are written: forecasts and their bounds, (tags, horizons). `x` holds the newest value of each
    exogenous input. `alpha` is the share of samples that may fall outside the interval.
    """
    longest = horizon[len(horizon) - 1]
    widest = regressors.shape[1]
    low = np.empty((widest, widest + 1))  # the last column holds the reciprocals of the diagonal
    z = np.empty(widest)
    path = np.empty(p + longest)
    made = np.empty((len(horizon), c.EXPERTS))
    for at in range(len(rows)):
        row = rows[at]
        s, d, phi = scalars[row], lags[row], regressors[row]
        count = input_count[row]
        n = 2 + p + count * c.INPUT_TERMS
        value = values[at]
        real = abs(value) <= c.HUGE
        first = s[c.SEEN] == 0.0
        if first and not real:
            continue
        steps = pace(s, times[at], first)
        if steps == 0:
            continue
        regular = steps > 0
        gap = abs(steps) - 1
        s[c.TIME] = times[at]
        s[c.INNOVATION] = np.nan
        if first:
            s[c.Y] = s[c.MEAN] = s[c.SMOOTH_FAST] = s[c.SMOOTH_SLOW] = s[c.LOW] = s[c.HIGH] = value
        for _ in range(min(gap, longest)):
            fill(s, d, thetas[row, 1], phi, p, count)
        if gap > 0:
            skip(s, ring[row], horizon, gap)
            regress(phi, s, d, p, inputs[row], count)
        s[c.STEP] += 1.0
        take_inputs(inputs[row], x, input_index[row], count)
        if real:
            s[c.REAL] = value
            if not first:
                if s[c.MISSING] == 0.0 and regular:
                    s[c.INNOVATION] = (
                        value - ring[row, 0, c.COMBINED]
                    )  # the first horizon is 1: a ring of one slot
                judge(s, ring[row], horizon, errors[row], band[row], alpha)
            take(s, d, phi, packed[row], side[row], thetas[row], n, p, value, regular, longest, low, z)
            if first:
                s[c.CHANGES] = 0.0
        else:
            fill(s, d, thetas[row, 1], phi, p, count)
            s[c.MISSING] += 1.0
        regress(phi, s, d, p, inputs[row], count)
        for j in range(len(horizon)):
            made[j, 0] = s[c.REAL]
            made[j, 1] = s[c.SMOOTH_FAST]
            made[j, 2] = s[c.SMOOTH_SLOW]
        iterate(s, d, thetas[row, 0], phi, min(c.SHORT, p), p, 0, horizon, path, made, 3)
        iterate(s, d, thetas[row, 1], phi, p, p, count, horizon, path, made, 4)
        combine(s, ring[row], horizon, errors[row], band[row], made, y[row], lower[row], upper[row])

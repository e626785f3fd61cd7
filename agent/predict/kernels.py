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

Y, REAL, SCALE, MEAN, SIGMA = c.Y, c.REAL, c.SCALE, c.MEAN, c.SIGMA
CHANGES, STEP, SEEN, LOW, HIGH = c.CHANGES, c.STEP, c.SEEN, c.LOW, c.HIGH
SMOOTH_FAST, SMOOTH_SLOW, MISSING, SMALLEST = c.SMOOTH_FAST, c.SMOOTH_SLOW, c.MISSING, c.SMALLEST
TIME, PERIOD, QUANTUM, INNOVATION = c.TIME, c.PERIOD, c.QUANTUM, c.INNOVATION
EXPERTS, MIXED, PLAIN, COMBINED, HALF, WIDENING = c.EXPERTS, c.MIXED, c.PLAIN, c.COMBINED, c.HALF, c.WIDENING
ETA_MIXED, MEMORY_MIXED, MARGIN_MIXED = c.ETA_MIXED, c.MEMORY_MIXED, c.MARGIN_MIXED
Q, ERROR, COUNT = c.Q, c.ERROR, c.COUNT
JUDGED_SHOWN, SUM_ERROR, SUM_LAST = c.JUDGED_SHOWN, c.SUM_ERROR, c.SUM_LAST
SUM_INSIDE, SUM_WIDTH = c.SUM_INSIDE, c.SUM_WIDTH
INPUT_TERMS, X_LAST, X_MEAN, X_SCALE, X_COUNT = c.INPUT_TERMS, c.X_LAST, c.X_MEAN, c.X_SCALE, c.X_COUNT
X_CHANGES, X_STATE = c.X_CHANGES, c.X_STATE
FORGET, PRIOR, HUBER, SHORT, CLIP, LEVEL_CLIP = c.FORGET, c.PRIOR, c.HUBER, c.SHORT, c.CLIP, c.LEVEL_CLIP
FAST, SLOW, ETA, MEMORY, RANGE_FORGET = c.FAST, c.SLOW, c.ETA, c.MEMORY, c.RANGE_FORGET
FIRST_FORECAST, Q_GAIN, ERROR_RATE, TINY, HUGE = (
    c.FIRST_FORECAST,
    c.Q_GAIN,
    c.ERROR_RATE,
    c.TINY,
    c.HUGE,
)


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


@kernel("float64(float64[::1], float64[::1], float64[::1], int64, float64[::1], float64, float64)")
def learn(
    phi: Floats, r_packed: Floats, r_side: Floats, n: int, theta: Floats, target: float, sigma: float
) -> float:
    """One Huber-weighted, forgetting step of the information matrix and its right side; returns |error|."""
    error = target
    for i in range(n):
        error -= theta[i] * phi[i]
    size = abs(error)
    weight = HUBER * sigma / size if size > HUBER * sigma else 1.0
    at = 0
    for i in range(n):
        weighted = weight * phi[i]
        r_side[i] = FORGET * r_side[i] + weighted * target
        for j in range(i + 1):
            r_packed[at + j] = FORGET * r_packed[at + j] + weighted * phi[j]
        r_packed[at + i] += (1.0 - FORGET) * PRIOR
        at += i + 1
    return size


@kernel("void(float64[:,::1], float64[::1], int64[::1], int64)")
def take_inputs(state: Floats, x: Floats, index: Ints, count: int) -> None:
    """Moves the exogenous inputs of one tag by one step; x NaN (or an empty x): the input stays where it is."""
    for k in range(count):
        value = x[index[k]] if len(x) > 0 else np.nan
        if not (abs(value) <= HUGE):
            value = state[k, X_LAST]
        if state[k, X_COUNT] == 0.0:
            state[k, X_LAST] = value
            state[k, X_MEAN] = value
        if abs(value) <= HUGE:
            state[k, X_COUNT] += 1.0
            for i in range(INPUT_TERMS - 2, 0, -1):
                state[k, X_CHANGES + i] = state[k, X_CHANGES + i - 1]
            state[k, X_CHANGES] = value - state[k, X_LAST]
            state[k, X_LAST] = value
            rate = max(1.0 / state[k, X_COUNT], 0.002)
            state[k, X_MEAN] += rate * (value - state[k, X_MEAN])
            peak = max(abs(value - state[k, X_MEAN]), abs(state[k, X_CHANGES]))
            state[k, X_SCALE] = max(peak, state[k, X_SCALE] * (1.0 - RANGE_FORGET))


@kernel("void(float64[::1], float64[::1], float64[::1], int64, float64[:,::1], int64)")
def regress(phi: Floats, s: Floats, d: Floats, p: int, inputs: Floats, count: int) -> None:
    """The regressors of the next step: 1, scaled level, scaled differences, scaled inputs."""
    phi[0] = 1.0
    scale = s[SCALE]
    if scale > TINY:
        phi[1] = clip((s[Y] - s[MEAN]) / scale, -LEVEL_CLIP, LEVEL_CLIP)
        for i in range(p):
            phi[2 + i] = clip(d[i] / scale, -CLIP, CLIP)
    else:
        phi[1 : 2 + p] = 0.0
    for k in range(count):
        at = 2 + p + k * INPUT_TERMS
        if inputs[k, X_SCALE] > TINY:
            phi[at] = (inputs[k, X_LAST] - inputs[k, X_MEAN]) / inputs[k, X_SCALE]
            for i in range(INPUT_TERMS - 1):
                phi[at + 1 + i] = inputs[k, X_CHANGES + i] / inputs[k, X_SCALE]
        else:
            phi[at : at + INPUT_TERMS] = 0.0


@kernel("float64(float64[::1], float64[::1], int64, int64, int64)")
def from_inputs(theta: Floats, phi: Floats, p: int, count: int, ahead: int) -> float:
    """What the inputs, held where they are, add to the scaled difference `ahead` steps (from 0) after the next one."""
    total = 0.0
    for k in range(count):
        at = 2 + p + k * INPUT_TERMS
        total += theta[at] * phi[at]
        for i in range(ahead, INPUT_TERMS - 1):
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
    scale, mean, level = s[SCALE], s[MEAN], s[Y]
    slack = 0.5 * (s[HIGH] - s[LOW])
    low, high = s[LOW] - slack, s[HIGH] + slack
    moves = scale > TINY
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
    level = s[Y]
    scale = s[SCALE]
    if scale > TINY:
        step = theta[0] * scale + theta[1] * (level - s[MEAN])
        for i in range(p):
            step += theta[2 + i] * d[i]
        step += scale * from_inputs(theta, phi, p, count, 0)
        slack = 0.5 * (s[HIGH] - s[LOW])
        level = clip(level + step, s[LOW] - slack, s[HIGH] + slack)
    for i in range(p - 1, 0, -1):
        d[i] = d[i - 1]
    d[0] = level - s[Y]
    s[Y] = level


@kernel("float64(float64[::1])")
def half_quantum(s: Floats) -> float:
    """The least half width: half the signal's quantum, given or learnt."""
    quantum: float = s[QUANTUM]
    if quantum <= 0.0:
        quantum = s[SMALLEST] if s[SMALLEST] <= HUGE else 0.0
    return 0.5 * quantum


@kernel("void(float64[::1], float64[:,::1], int64[::1], float64[:,::1], float64[:,::1], float64)")
def judge(s: Floats, ring: Floats, horizon: Ints, errors: Floats, band: Floats, alpha: float) -> None:
    """Holds the sample s[REAL] against what was forecast for it: experts' errors and interval of each horizon."""
    offset = 0
    floor = half_quantum(s)
    for j in range(len(horizon)):
        h = horizon[j]
        slot = offset + int(s[STEP]) % h
        offset += h
        if ring[slot, COMBINED] != ring[slot, COMBINED]:
            continue
        for k in range(EXPERTS):
            errors[j, k] = MEMORY * errors[j, k] + abs(s[REAL] - ring[slot, k])
        errors[j, MIXED] = MEMORY_MIXED * errors[j, MIXED] + abs(s[REAL] - ring[slot, MIXED])
        errors[j, PLAIN] = MEMORY_MIXED * errors[j, PLAIN] + abs(s[REAL] - ring[slot, 0])
        if s[STEP] - h < 20.0:
            continue
        error = abs(s[REAL] - ring[slot, COMBINED])
        if error > ring[slot, HALF]:
            band[j, Q] = min(band[j, Q] * np.exp(Q_GAIN * (1.0 - alpha)), 1e6)
        elif ring[slot, HALF] > floor:  # at the floor a smaller multiple would change nothing
            band[j, Q] = max(band[j, Q] * np.exp(-Q_GAIN * alpha), 1e-3)
        band[j, COUNT] += 1.0
        if s[STEP] - h >= FIRST_FORECAST - 1.0:
            band[j, JUDGED_SHOWN] += 1.0
            band[j, SUM_ERROR] += error
            band[j, SUM_LAST] += abs(s[REAL] - ring[slot, 0])
            band[j, SUM_INSIDE] += 1.0 if error <= ring[slot, HALF] else 0.0
            band[j, SUM_WIDTH] += 2.0 * ring[slot, HALF]
        error /= ring[slot, WIDENING]
        if band[j, COUNT] > 20.0:
            error = min(error, 5.0 * max(band[j, ERROR], s[SCALE]))
        band[j, ERROR] += max(1.0 / band[j, COUNT], ERROR_RATE) * (error - band[j, ERROR])


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
    shown = s[SEEN] >= FIRST_FORECAST
    offset = 0
    width_before = 0.0
    h_last = horizon[len(horizon) - 1]
    for j in range(len(horizon)):
        h = horizon[j]
        base = errors[j, 0]
        value = mixed = made[j, 0]
        if base > 0.0:
            best = base
            for k in range(1, EXPERTS):
                best = min(best, errors[j, k])
            total = 0.0
            change = 0.0  # summed as distances from the last value, which keeps an offset's digits out
            for k in range(EXPERTS):
                weight = np.exp(-ETA * (errors[j, k] - best) / base)
                total += weight
                change += weight * (made[j, k] - made[j, 0])
            change /= total
            mixed = value + change
            excess = clip((errors[j, MIXED] - errors[j, PLAIN]) / errors[j, PLAIN] - MARGIN_MIXED, -1.0, 1.0)
            value += change / (1.0 + np.exp(ETA_MIXED * excess))
        width = max(1.25 * band[j, Q] * band[j, ERROR], floor)
        if band[j, COUNT] < 10.0 and j > 0:
            width = max(width, width_before * np.sqrt(h / horizon[j - 1]))
        width_before = width
        widening = 1.0
        if s[MISSING] > 0.0:
            far = h + s[MISSING]
            wide = width
            for i in range(j + 1, len(horizon)):
                if horizon[i - 1] < far:
                    wide = max(wide, 1.25 * band[i, Q] * band[i, ERROR])
            if far > h_last:
                wide = wide * np.sqrt(min(far / h_last, 1e6))
            if width > 0.0:
                widening = clip(wide / width, 1.0, 1e6)
            width = wide
        slot = offset + int(s[STEP]) % h
        offset += h
        for k in range(EXPERTS):
            ring[slot, k] = made[j, k]
        ring[slot, MIXED] = mixed
        ring[slot, COMBINED] = value
        ring[slot, HALF] = width
        ring[slot, WIDENING] = widening
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
            ring[offset + int(s[STEP] + i) % h, COMBINED] = np.nan
        offset += h
    s[STEP] += gap
    s[MISSING] += gap


@kernel("int64(float64[::1], float64, boolean)")
def pace(s: Floats, now: float, first: bool) -> int:
    """Steps of the tag's own period since its last one: 0 too early; negative: so many, but off the grid."""
    if first or not (abs(now - s[TIME]) <= HUGE):
        return 1
    steps = (now - s[TIME]) / s[PERIOD]
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
    change = value - s[Y]
    if s[MISSING] == 0.0 and regular:
        if s[SCALE] > TINY:
            target = clip(change / s[SCALE], -1e6, 1e6)
            size = learn(phi, r_packed, r_side, n, theta[1], target, s[SIGMA])
            if s[CHANGES] >= 50.0:
                s[SIGMA] = max(s[SIGMA] + 0.0125 * (min(size, 4.0 * s[SIGMA]) - s[SIGMA]), 1e-3)
            solve(r_packed, r_side, n, SHORT + 2, low, z, theta)
        s[CHANGES] += 1.0
        s[SCALE] += max(1.0 / s[CHANGES], 0.002) * (abs(change) - s[SCALE])
        if change != 0.0:
            s[SMALLEST] = min(s[SMALLEST], abs(change))
    elif s[MISSING] > longest:  # too long ago to know how it was moving
        d[:] = 0.0
        change = 0.0
    for i in range(p - 1, 0, -1):
        d[i] = d[i - 1]
    d[0] = change
    s[SEEN] += 1.0
    s[MISSING] = 0.0
    s[Y] = value
    s[MEAN] += max(1.0 / s[SEEN], 0.005) * (value - s[MEAN])
    s[SMOOTH_FAST] += FAST * (value - s[SMOOTH_FAST])
    s[SMOOTH_SLOW] += SLOW * (value - s[SMOOTH_SLOW])
    s[LOW] = min(value, s[LOW] + RANGE_FORGET * (value - s[LOW]))
    s[HIGH] = max(value, s[HIGH] + RANGE_FORGET * (value - s[HIGH]))


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
    made = np.empty((len(horizon), EXPERTS))
    for at in range(len(rows)):
        row = rows[at]
        s, d, phi = scalars[row], lags[row], regressors[row]
        count = input_count[row]
        n = 2 + p + count * INPUT_TERMS
        value = values[at]
        real = abs(value) <= HUGE
        first = s[SEEN] == 0.0
        if first and not real:
            continue
        steps = pace(s, times[at], first)
        if steps == 0:
            continue
        regular = steps > 0
        gap = abs(steps) - 1
        s[TIME] = times[at]
        s[INNOVATION] = np.nan
        if first:
            s[Y] = s[MEAN] = s[SMOOTH_FAST] = s[SMOOTH_SLOW] = s[LOW] = s[HIGH] = value
        for _ in range(min(gap, longest)):
            fill(s, d, thetas[row, 1], phi, p, count)
        if gap > 0:
            skip(s, ring[row], horizon, gap)
            regress(phi, s, d, p, inputs[row], count)
        s[STEP] += 1.0
        take_inputs(inputs[row], x, input_index[row], count)
        if real:
            s[REAL] = value
            if not first:
                s[INNOVATION] = (
                    value - ring[row, 0, COMBINED]
                )  # the first horizon is 1: its ring has one slot
                judge(s, ring[row], horizon, errors[row], band[row], alpha)
            take(s, d, phi, packed[row], side[row], thetas[row], n, p, value, regular, longest, low, z)
            if first:
                s[CHANGES] = 0.0
        else:
            fill(s, d, thetas[row, 1], phi, p, count)
            s[MISSING] += 1.0
        regress(phi, s, d, p, inputs[row], count)
        for j in range(len(horizon)):
            made[j, 0] = s[REAL]
            made[j, 1] = s[SMOOTH_FAST]
            made[j, 2] = s[SMOOTH_SLOW]
        iterate(s, d, thetas[row, 0], phi, min(SHORT, p), p, 0, horizon, path, made, 3)
        iterate(s, d, thetas[row, 1], phi, p, p, count, horizon, path, made, 4)
        combine(s, ring[row], horizon, errors[row], band[row], made, y[row], lower[row], upper[row])

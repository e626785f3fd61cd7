"""Health and rules of the tags of one scan, compiled: one call, sample by sample. Equations: `agent.predict.health`.

Arrays with one row per tag: `health` (columns.HEALTH), `settings` (columns.SETTINGS), `watch` (columns.WATCH),
`marks` (columns.MARKS; the caller clears those that it has read), `window` (tags, samples, 3; no samples where nothing
is learnt any more). All are C-contiguous float64, marks uint8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.kernelcache import kernel
from agent.predict import columns as c

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@kernel("void(float64[::1], float64, float64, boolean)")
def move(h: Floats, value: float, innovation: float, seasons: bool) -> None:
    """Both parts of one tag's health, one sample on."""
    h[c.SAMPLES] += 1.0
    size = abs(innovation)
    if np.isfinite(size):
        spread = h[c.SPREAD]
        z = c.PART_CLIP if size > 0.0 else 0.0
        if spread > 0.0:
            z = min(size / (1.25 * spread), c.PART_CLIP)
        if h[c.SAMPLES] > 30.0:
            size = min(size, 4.0 * max(spread, c.TINY))
        # A spread frozen with the reference would call every later change of noise a fault for ever; it goes on slowly.
        h[c.SPREAD] = spread + max(1.0 / h[c.SAMPLES], c.SPREAD_RATE) * (size - spread)
        h[c.FAST_PART] += c.RATE * (z - h[c.FAST_PART])
    h[c.LEVEL] += c.RATE * (value - h[c.LEVEL])
    still = value == h[c.LAST]
    h[c.STILL] = h[c.STILL] + 1.0 if still else 0.0
    h[c.LAST] = value
    if h[c.LEARNT] == 0.0:
        h[c.MOVES] += 0.0 if still else 1.0
        h[c.LONGEST_STILL] = max(h[c.LONGEST_STILL], h[c.STILL])
    elif seasons and h[c.LEARNT] == 1.0:
        spread = h[c.REF_SPREAD]
        off = min(max(value - h[c.REF_LEVEL], -c.PART_CLIP * spread), c.PART_CLIP * spread)
        h[c.REF_LEVEL] += c.SEASON_RATE * off
        h[c.REF_SPREAD] = max(spread + c.SEASON_RATE * (abs(off) - spread), c.TINY)


@kernel("void(float64[::1], float64[::1])")
def score(h: Floats, w: Floats) -> None:
    """z of one commissioned tag against its reference, and its logit."""
    slow = abs(h[c.LEVEL] - h[c.REF_LEVEL]) / (1.25 * h[c.REF_SPREAD])
    worst = max(h[c.FAST_PART] / h[c.REF_FAST], slow / h[c.REF_SLOW])
    w[c.Z] = np.log(c.FLOOR + min(worst, 1e12))
    w[c.LOGIT] = min(max(h[c.GAIN] * w[c.Z] + h[c.BIAS], -c.LOGIT_CLIP), c.LOGIT_CLIP)


@kernel("boolean(float64[::1], uint8[::1], int64, boolean, float64, float64)")
def rule(w: Floats, mark: Bytes, which: int, met: bool, t: float, delay: float) -> bool:
    """One rule of one tag: since when it is met, and whether its event begins or ends."""
    if not met:
        w[c.SINCE + which] = np.nan
        if w[c.RAISED + which] == 0.0:
            return False
        w[c.RAISED + which] = 0.0
        mark[which] = c.ENDS
        return True
    if not w[c.SINCE + which] <= t:
        w[c.SINCE + which] = t
    if w[c.RAISED + which] != 0.0 or t - w[c.SINCE + which] < delay:
        return False
    w[c.RAISED + which] = 1.0
    mark[which] = c.BEGINS
    return True


@kernel("boolean(float64[::1], float64[::1], float64[::1], uint8[::1], float64, float64)")
def weigh(h: Floats, setting: Floats, w: Floats, mark: Bytes, value: float, t: float) -> bool:
    """Score and rules of one tag after its sample; True where an event of a rule begins or ends."""
    learnt = h[c.LEARNT] == 1.0
    low, high = value <= setting[c.RANGE_LOW], value >= setting[c.RANGE_HIGH]
    if learnt:
        score(h, w)
    else:
        h[c.AT_LOW] += 1.0 if low else 0.0
        h[c.AT_HIGH] += 1.0 if high else 0.0
    usual = c.AT_END_USUAL * max(h[c.SAMPLES], 1.0)
    longest = max(c.STUCK_TIMES * h[c.LONGEST_STILL], c.STUCK_LEAST)
    current = setting[c.CURRENT] != 0.0
    failure = current and (value <= c.NE43_LOW or value >= c.NE43_HIGH)
    limit = current and not failure and (value < c.NE43_LEAST or value > c.NE43_MOST)
    turned = rule(w, mark, c.STUCK, learnt and h[c.STILL] > longest, t, 0.0)
    turned |= rule(w, mark, c.LOW_END, learnt and low and h[c.AT_LOW] <= usual, t, c.DELAY)
    turned |= rule(w, mark, c.HIGH_END, learnt and high and h[c.AT_HIGH] <= usual, t, c.DELAY)
    turned |= rule(w, mark, c.CURRENT_FAILURE, failure, t, c.DELAY)
    turned |= rule(w, mark, c.CURRENT_LIMIT, limit, t, c.DELAY)
    return turned


@kernel(
    "int64(int64[::1], float64[::1], float64[::1], float64[:,::1], float64[:,::1], float64[:,::1], uint8[:,::1])"
)
def judge(
    rows: Ints, values: Floats, times: Floats, health: Floats, settings: Floats, watch: Floats, marks: Bytes
) -> int:
    """Scores and rules of `rows`, whose samples `take` took but did not judge: their commissioning was complete."""
    found = 0
    for at in range(len(rows)):
        row = rows[at]
        if weigh(health[row], settings[row], watch[row], marks[row], values[at], times[at]):
            found = c.TURNED
    return found


@kernel(
    "int64(int64[::1], float64[::1], float64[::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1],"
    " float64[:,:,::1], uint8[:,::1], int64)"
)
def take(
    rows: Ints,
    values: Floats,
    times: Floats,
    scalars: Floats,
    health: Floats,
    settings: Floats,
    watch: Floats,
    window: Floats,
    marks: Bytes,
    most: int,
) -> int:
    """Takes the samples `values` (NaN: missing) of `rows` at `times` (s), which the models in `scalars` took before.

    Marks rules that begin or end, and up to `most` tags whose commissioning is complete: these are not judged yet.
    Returns columns.OPEN, COMPLETE and TURNED, added.
    """
    found = complete = 0
    longest = window.shape[1]
    for at in range(len(rows)):
        row = rows[at]
        setting, w, value = settings[row], watch[row], values[at]
        if setting[c.DEVICE] < 0.0:
            continue
        if not abs(value) <= c.HUGE:
            w[c.LOGIT] = np.nan
            continue
        h = health[row]
        if w[c.UNSEEN] != 0.0:
            w[c.UNSEEN] = 0.0
            if h[c.LEARNT] != 1.0:
                h[:] = 0.0
                h[c.LEVEL] = h[c.LAST] = value
        move(h, value, scalars[row, c.INNOVATION], setting[c.SEASONS] != 0.0)
        if h[c.LEARNT] == 0.0 and longest > 0:
            found |= c.OPEN
            if int(h[c.SAMPLES]) % int(setting[c.EVERY]) == 0:
                place = int(w[c.STORED]) % longest
                window[row, place, 0] = h[c.LEVEL]
                window[row, place, 1] = value
                window[row, place, 2] = h[c.FAST_PART]
                w[c.STORED] += 1.0
            ready = h[c.SAMPLES] >= setting[c.WARMUP] and h[c.MOVES] >= c.MOVES_WANTED
            if ready and complete < most:
                complete += 1
                found |= c.COMPLETE
                marks[row, c.READY] = 1
                continue
        if weigh(h, setting, w, marks[row], value, times[at]):
            found |= c.TURNED
    return found


@kernel("int64(int64[::1], float64[:,::1], float64[::1])")
def worst(rows: Ints, watch: Floats, out: Floats) -> int:
    """Largest logit and largest z of the `rows` that have a score, into `out`; returns how many have."""
    known = 0
    out[0] = out[1] = -np.inf
    for at in range(len(rows)):
        w = watch[rows[at]]
        if np.isfinite(w[c.LOGIT]):
            known += 1
            out[0] = max(out[0], w[c.LOGIT])
            out[1] = max(out[1], w[c.Z])
    return known

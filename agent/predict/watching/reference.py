"""Health and rules in plain NumPy, all tags of a scan at once: the tests' oracle, and what runs without numba.

The same arguments and results as the kernels beside it (the logarithm to rounding). A row must not stand twice in one
call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.predict import columns as c

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


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
    """See `kernels.take`."""
    watched = settings[rows, c.DEVICE] >= 0.0
    real = watched & (np.abs(values) <= c.HUGE)
    watch[rows[watched & ~real], c.LOGIT] = np.nan
    rows, values, times = rows[real], values[real], times[real]
    _begin(rows, values, health, watch)
    health[rows] = _moved(health[rows], values, scalars[rows, c.INNOVATION], settings[rows, c.SEASONS])
    learning = health[rows, c.LEARNT] == 0.0
    found = 0
    if window.shape[1] > 0 and learning.any():
        found = c.OPEN
        _learn(rows[learning], values[learning], health, settings, watch, window)
        ready = learning & (health[rows, c.SAMPLES] >= settings[rows, c.WARMUP])
        ready &= health[rows, c.MOVES] >= c.MOVES_WANTED
        ready &= np.cumsum(ready) <= most
        if ready.any():
            found |= c.COMPLETE
            marks[rows[ready], c.READY] = 1
            rows, values, times = rows[~ready], values[~ready], times[~ready]
    return found | judge(rows, values, times, health, settings, watch, marks)


def judge(
    rows: Ints, values: Floats, times: Floats, health: Floats, settings: Floats, watch: Floats, marks: Bytes
) -> int:
    """See `kernels.judge`."""
    h = health[rows]
    learnt = h[:, c.LEARNT] == 1.0
    chosen = rows[learnt]
    watch[chosen, c.Z] = anomaly(h[learnt, c.FAST_PART], h[learnt, c.LEVEL], h[learnt])
    logit = h[learnt, c.GAIN] * watch[chosen, c.Z] + h[learnt, c.BIAS]
    watch[chosen, c.LOGIT] = np.clip(logit, -c.LOGIT_CLIP, c.LOGIT_CLIP)
    at_low, at_high = values <= settings[rows, c.RANGE_LOW], values >= settings[rows, c.RANGE_HIGH]
    health[rows, c.AT_LOW] += at_low & ~learnt
    health[rows, c.AT_HIGH] += at_high & ~learnt
    met = _met(h, learnt, at_low, at_high, values, settings[rows, c.CURRENT] != 0.0)
    t = times[:, np.newaxis]
    since = np.where(met, np.fmin(watch[rows, c.SINCE : c.RAISED], t), np.nan)
    watch[rows, c.SINCE : c.RAISED] = since
    raised = watch[rows, c.RAISED :] != 0.0
    begins = met & ~raised & (t - since >= [0.0, c.DELAY, c.DELAY, c.DELAY, c.DELAY])
    ends = ~met & raised
    if not (begins.any() or ends.any()):
        return 0
    watch[rows, c.RAISED :] = (raised | begins) & ~ends
    turned = (begins * c.BEGINS + ends * c.ENDS).astype(np.uint8)
    marks[rows, : c.RULES] = np.where(turned, turned, marks[rows, : c.RULES])
    return c.TURNED


def worst(rows: Ints, watch: Floats, out: Floats) -> int:
    """See `kernels.worst`."""
    known = rows[np.isfinite(watch[rows, c.LOGIT])]
    out[0] = np.max(watch[known, c.LOGIT], initial=-np.inf)
    out[1] = np.max(watch[known, c.Z], initial=-np.inf)
    return len(known)


def anomaly(fast: Floats, level: Floats, reference: Floats) -> Floats:
    """z of the two parts against frozen references (rows of health columns), shape as `fast`."""
    with np.errstate(over="ignore"):
        slow = np.abs(level - reference[..., c.REF_LEVEL]) / (1.25 * reference[..., c.REF_SPREAD])
        largest = np.maximum(fast / reference[..., c.REF_FAST], slow / reference[..., c.REF_SLOW])
        return np.asarray(np.log(c.FLOOR + np.minimum(largest, 1e12)), dtype=np.float64)


def _begin(rows: Ints, values: Floats, health: Floats, watch: Floats) -> None:
    """The first sample of each tag in this process: goes on where it was learnt, else starts its commissioning."""
    new = watch[rows, c.UNSEEN] != 0.0
    watch[rows[new], c.UNSEEN] = 0.0
    new &= health[rows, c.LEARNT] != 1.0
    health[rows[new]] = 0.0
    health[rows[new], c.LEVEL] = health[rows[new], c.LAST] = values[new]


def _moved(h: Floats, value: Floats, innovation: Floats, seasons: Floats) -> Floats:
    """Both parts of each tag, one sample on."""
    h[:, c.SAMPLES] += 1.0
    size = np.abs(innovation)
    known = np.isfinite(size)
    spread = h[:, c.SPREAD].copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = np.where(
            spread > 0.0,
            np.minimum(size / (1.25 * spread), c.PART_CLIP),
            np.where(size > 0.0, c.PART_CLIP, 0.0),
        )
        early = h[:, c.SAMPLES] <= 30.0
        clipped = np.where(early, size, np.minimum(size, 4.0 * np.maximum(spread, c.TINY)))
        # A spread frozen with the reference would call every later change of noise a fault for ever; it goes on slowly.
        moved = spread + np.maximum(1.0 / h[:, c.SAMPLES], c.SPREAD_RATE) * (clipped - spread)
    h[:, c.SPREAD] = np.where(known, moved, spread)
    h[:, c.FAST_PART] += np.where(known, c.RATE * (z - h[:, c.FAST_PART]), 0.0)
    h[:, c.LEVEL] += c.RATE * (value - h[:, c.LEVEL])
    still = value == h[:, c.LAST]
    h[:, c.STILL] = np.where(still, h[:, c.STILL] + 1.0, 0.0)
    h[:, c.LAST] = value
    learning = h[:, c.LEARNT] == 0.0
    h[:, c.MOVES] += learning & ~still
    longest = h[:, c.LONGEST_STILL]
    h[:, c.LONGEST_STILL] = np.where(learning, np.maximum(longest, h[:, c.STILL]), longest)
    _follow(h, (seasons != 0.0) & (h[:, c.LEARNT] == 1.0), value)
    return h


def _follow(h: Floats, chosen: Bools, value: Floats) -> None:
    """Lets the reference of the chosen rows follow their values, outliers clipped."""
    spread = h[chosen, c.REF_SPREAD]
    off = np.clip(value[chosen] - h[chosen, c.REF_LEVEL], -c.PART_CLIP * spread, c.PART_CLIP * spread)
    h[chosen, c.REF_LEVEL] += c.SEASON_RATE * off
    h[chosen, c.REF_SPREAD] = np.maximum(spread + c.SEASON_RATE * (np.abs(off) - spread), c.TINY)


def _learn(
    rows: Ints, values: Floats, health: Floats, settings: Floats, watch: Floats, window: Floats
) -> None:
    """Keeps level, value and fast part of tags whose sample is due in their windows."""
    due = health[rows, c.SAMPLES] % settings[rows, c.EVERY] == 0.0
    chosen = rows[due]
    place = watch[chosen, c.STORED].astype(np.int64) % window.shape[1]
    window[chosen, place, 0] = health[chosen, c.LEVEL]
    window[chosen, place, 1] = values[due]
    window[chosen, place, 2] = health[chosen, c.FAST_PART]
    watch[chosen, c.STORED] += 1.0


def _met(h: Floats, learnt: Bools, at_low: Bools, at_high: Bools, value: Floats, current: Bools) -> Bools:
    """Which rules each tag meets, shape (tags, RULES)."""
    usual = c.AT_END_USUAL * np.maximum(h[:, c.SAMPLES], 1.0)
    longest = np.maximum(c.STUCK_TIMES * h[:, c.LONGEST_STILL], c.STUCK_LEAST)
    failure = current & ((value <= c.NE43_LOW) | (value >= c.NE43_HIGH))
    return np.stack(
        [
            learnt & (h[:, c.STILL] > longest),
            learnt & at_low & (h[:, c.AT_LOW] <= usual),
            learnt & at_high & (h[:, c.AT_HIGH] <= usual),
            failure,
            current & ~failure & ((value < c.NE43_LEAST) | (value > c.NE43_MOST)),
        ],
        axis=1,
    )

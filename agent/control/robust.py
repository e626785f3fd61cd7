"""Maximum sensitivity of a sampled loop, and the PID that rejects loads best without exceeding one.

Ms is the largest of |1 / (1 + C P)| over the frequencies: 1 / Ms is how near the loop comes to instability. Process and
controller are taken exactly as they run: held outputs, a delay between two samples, the PID as in `kernels.pid`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.config.types import ModelConfig
from agent.control.gains import FILTER, Gains, reduced
from agent.control.process import held, split_delay
from agent.control.responses import best_of

Complex = NDArray[np.complex128]
Floats = NDArray[np.float64]

MOST = 1.5
"""The usual bound: the loop stays stable when the gain trebles or the phase is 38 degrees off."""
RESONANCE = 1.5
"""Bound on the largest of |C P / (1 + C P)|: without it a loop with an integrator would swing long."""
FREQUENCIES = 400
TIMES, DERIVATIVES = 28, 7
SWINGING = 6.0
"""Of ti: the longest td for a process that oscillates, whose poles zeros of the PID take away; others have a half."""


def frequencies(model: ModelConfig, period: float) -> Floats:
    """(FREQUENCIES,) radians per second, from well below the process's corner up to half the sampling rate."""
    lag, delay = reduced(model, period)
    slowest = max(delay, 0.0) + (model.t1 + model.t2 if math.isfinite(lag) else 4 * delay)
    high = math.pi / period
    return np.geomspace(min(0.005 / max(slowest, period), high / 100), high, FREQUENCIES)


def process_response(model: ModelConfig, period: float, w: Floats) -> Complex:
    """(len(w),) response of the sampled process from held output to PV."""
    z = np.exp(1j * w * period)
    whole, rest = split_delay(model.delay, period)
    early, late = held(model, rest), held(model, period - rest)
    first, second = (np.array([[move.p, move.b], [move.c, move.q]]) for move in (early, late))
    through = second @ first
    entry_old = second @ np.array([early.e, early.r])
    entry_new = np.array([late.e, late.r])
    put = [entry_old[i] / z + entry_new[i] for i in (0, 1)]
    turning = (z - through[0, 0]) * (z - through[1, 1]) - through[0, 1] * through[1, 0]
    outer = (through[1, 0] * put[0] + (z - through[0, 0]) * put[1]) / turning
    response: Complex = model.k * outer * z**-whole
    return response


def controller_response(ti: float, td: float, period: float, w: Floats, n: float = FILTER) -> Complex:
    """(len(w),) response of the PID of gain 1 from error to output, as it is stepped."""
    back: Complex = np.exp(-1j * w * period)
    response: Complex = np.ones_like(back)
    if ti > 0.0:
        response = response + period / ti * back / (1 - back)
    if td > 0.0:
        filtered = td / n
        response = response + td * (1 - back) / (filtered + period - filtered * back)
    return response


def sensitivity(model: ModelConfig, gains: Gains, period: float, n: float = FILTER) -> float:
    """Ms of the loop; infinite where it is not stable or the gains drive the wrong way."""
    if gains.kp * model.k <= 0.0:
        return math.inf
    w = frequencies(model, period)
    opened = (
        gains.kp * controller_response(gains.ti, gains.td, period, w, n) * process_response(model, period, w)
    )
    if not _stable(opened):
        return math.inf
    return 1.0 / float(np.abs(1.0 + opened).min())


def _stable(opened: Complex) -> bool:
    """Nyquist, for loops that are stable but for integrators: 1 + L turns by less than its start lets it."""
    turned = np.unwrap(np.angle(1.0 + opened))
    # from -90 or -180 degrees (one or two integrators) to 0: it comes back up; each encirclement takes 360 away
    return bool(turned[-1] - turned[0] > -0.5 * math.pi)


def most_sensitive(model: ModelConfig, period: float, *, most: float = MOST) -> Gains | None:
    """The PID with the least error after a load and a step of the setpoint (`best_of`) whose Ms is at most `most`.

    None where there is none. For each ti and td the bound is a quadratic in kp at each frequency, so no gain is tried
    (after Astrom, Panagopoulos & Hagglund, Automatica 34, 1998).
    """
    w = frequencies(model, period)
    process = process_response(model, period, w)
    lag, delay = reduced(model, period)
    scale = delay + (min(lag, 20 * delay) if math.isfinite(lag) else 2 * delay)
    if model.damping < 1.0:
        scale = delay + model.t1
    rates = _rates(model, delay)
    sign = math.copysign(1.0, model.k)
    found = []
    for ti in np.geomspace(max(0.15 * scale, period), 12 * scale, TIMES):
        for td in rates[rates <= (ti / 2 if model.damping >= 1.0 else SWINGING * ti)]:
            shape = sign * controller_response(ti, td, period, w) * process
            size = _largest(shape, most, RESONANCE)
            if size is not None and _stable(size * shape):
                found.append((sign * size, ti, td))
    if not found:
        return None
    kp, ti, td = np.array(found).T
    which, weight = best_of(model, kp, ti, td, period=period, scale=scale)
    return Gains(f"PID Ms {most:g}", float(kp[which]), float(ti[which]), float(td[which]), weight)


def _rates(model: ModelConfig, delay: float) -> Floats:
    """(n,) derivative times to try, seconds, 0 first. `delay`: as `reduced` has it."""
    if model.damping < 1.0:
        return np.linspace(0.0, 1.2, 2 * DERIVATIVES - 1) * model.t1 / (2 * model.damping)
    longest = delay + (model.t2 if model.integrating else min(model.t1, model.t2))
    return np.linspace(0.0, 0.6, DERIVATIVES) * longest


def _largest(shape: Complex, most: float, resonance: float) -> float | None:
    """The top of the lowest range of gains within both bounds at all frequencies; None where there is none.

    |1 + k h|^2 >= 1 / most^2 and |k h|^2 <= resonance^2 |1 + k h|^2 are a k^2 + 2 b k + c >= 0 each.
    """
    square, real = np.abs(shape) ** 2, shape.real
    bounds = ((1.0, 1.0, 1 - 1 / most**2), (1 - 1 / resonance**2, 1.0, 1.0))
    lows, highs = [], []
    for a, b, c in bounds:
        inside = (b * real) ** 2 - a * square * c
        crossing = (inside > 0.0) & (real < 0.0)
        root, centre, size = np.sqrt(inside[crossing]), -b * real[crossing], a * square[crossing]
        lows.append((centre - root) / size)
        highs.append((centre + root) / size)
    low, high = np.concatenate(lows), np.concatenate(highs)
    if not len(low):
        return None
    order = np.argsort(low)
    low, high = low[order], np.maximum.accumulate(high[order])
    if shape.real[0] > -abs(shape.imag[0]):
        return float(low[0])
    # two integrators: the lowest gains are ruled out, and the range is above them
    gaps = np.flatnonzero(low[1:] > high[:-1] * (1 + 1e-9))
    return float(low[gaps[0] + 1]) if len(gaps) else None

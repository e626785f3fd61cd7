"""Maximum sensitivity of a sampled loop, and the PID that rejects loads best without exceeding one.

Ms is the largest of |1 / (1 + C P)| over the frequencies: 1 / Ms is how near the loop comes to instability. Process and
controller are taken exactly as they run: held outputs, a delay between two samples, the PID as in `kernels.pid`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.config.types import ModelConfig
from agent.control.gains import Gains, reduced
from agent.control.process import held, split_delay

Complex = NDArray[np.complex128]
Floats = NDArray[np.float64]

MOST = 1.5
"""The usual bound: the loop stays stable when the gain trebles or the phase is 38 degrees off."""
RESONANCE, RESONANCE_INTEGRATING = 1.1, 1.3
"""Bound on the largest of |C P / (1 + C P)|, for without it slow loops overshoot by a quarter and integrators swing."""
FREQUENCIES = 400
N = 8.0
TIMES, DERIVATIVES = 28, 7


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


def controller_response(ti: float, td: float, period: float, w: Floats, n: float = N) -> Complex:
    """(len(w),) response of the PID of gain 1 from error to output, as it is stepped."""
    back: Complex = np.exp(-1j * w * period)
    response: Complex = np.ones_like(back)
    if ti > 0.0:
        response = response + period / ti * back / (1 - back)
    if td > 0.0:
        filtered = td / n
        response = response + td * (1 - back) / (filtered + period - filtered * back)
    return response


def sensitivity(model: ModelConfig, gains: Gains, period: float, n: float = N) -> float:
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
    """The PID of greatest integral gain kp/ti whose Ms is at most `most`: the least integrated error after a load.

    None where there is none. For each ti and td the bound is a quadratic in kp at each frequency, so no gain is tried
    (after Astrom, Panagopoulos & Hagglund, Automatica 34, 1998).
    """
    resonance = RESONANCE_INTEGRATING if model.integrating else RESONANCE
    w = frequencies(model, period)
    process = process_response(model, period, w)
    lag, delay = reduced(model, period)
    scale = delay + (min(lag, 20 * delay) if math.isfinite(lag) else 2 * delay)
    times = np.geomspace(max(0.15 * scale, period), 12 * scale, TIMES)
    longest = delay + (model.t2 if model.integrating else min(model.t1, model.t2))
    rates = np.linspace(0.0, 0.6, DERIVATIVES) * longest
    best: Gains | None = None
    sign = math.copysign(1.0, model.k)
    for ti in times:
        for td in rates[rates <= ti / 2]:
            shape = sign * controller_response(ti, td, period, w) * process
            size = _largest(shape, most, resonance)
            if size is None:
                continue
            if best is None or size / ti > abs(best.kp) / best.ti:
                found = Gains(f"PID Ms {most:g}", sign * size, float(ti), float(td), 0.7)
                if _stable(found.kp * sign * shape):
                    best = found
    return best


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

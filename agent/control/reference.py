"""The PID step in plain Python: the oracle of the kernel's tests, and what runs where numba cannot be loaded."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def pid(
    state: NDArray[np.float64],
    par: NDArray[np.float64],
    setpoint: float,
    pv: float,
    feed_forward: float,
    dt: float,
    elapsed: float,
) -> float:
    """As `agent.control.kernels.pid`."""
    integral, derivative, last_weighted, last, _ = state.tolist()
    gain, ti, td, b, weight, n, low, high, rate = par.tolist()
    numbers = (setpoint, pv, feed_forward, dt, elapsed)
    if not all(map(math.isfinite, numbers)) or dt <= 0.0 or elapsed < 0.0:
        return float(last)
    weighted = weight * setpoint - pv
    if td > 0.0:
        change = gain * td * (weighted - last_weighted)
        derivative = ((td / n) * derivative + change) / (td / n + dt)
    else:
        derivative = 0.0
    wanted = gain * (b * setpoint - pv) + integral + derivative + feed_forward
    reach = rate * elapsed if rate < math.inf else math.inf
    output = min(max(min(max(wanted, low), high), last - reach), last + reach)
    output = min(max(output, low), high)
    if ti > 0.0:
        tracking = math.sqrt(ti * td) if td > 0.0 else ti
        integral += gain * dt / ti * (setpoint - pv) + min(1.0, dt / tracking) * (output - wanted)
    if not all(map(math.isfinite, (wanted, integral, derivative))):
        return float(last)
    state[:] = integral, derivative, weighted, output, wanted
    return float(output)

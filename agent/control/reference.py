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
) -> float:
    """As `agent.control.kernels.pid`."""
    integral, derivative, last_weighted, last = state.tolist()
    gain, ti, td, b, weight, n, low, high, rate = par.tolist()
    if dt <= 0.0 or not all(math.isfinite(number) for number in (setpoint, pv, feed_forward, dt)):
        return float(last)
    weighted = weight * setpoint - pv
    derivative = (
        ((td / n) * derivative + gain * td * (weighted - last_weighted)) / (td / n + dt) if td > 0.0 else 0.0
    )
    wanted = gain * (b * setpoint - pv) + integral + derivative + feed_forward
    reachable_low, reachable_high = max(low, last - rate * dt), min(high, last + rate * dt)
    output = min(max(min(max(wanted, low), high), reachable_low), reachable_high)
    output = min(max(output, low), high)
    if ti > 0.0:
        tracking = math.sqrt(ti * td) if td > 0.0 else ti
        integral += gain * dt / ti * (setpoint - pv) + min(1.0, dt / tracking) * (output - wanted)
    state[:] = integral, derivative, weighted, output
    return float(output)

"""The compiled PID step."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.control import columns as c
from agent.kernelcache import kernel


@kernel("float64(float64[::1], float64[::1], float64, float64, float64, float64, float64)")
def pid(
    state: NDArray[np.float64],
    par: NDArray[np.float64],
    setpoint: float,
    pv: float,
    feed_forward: float,
    dt: float,
    elapsed: float,
) -> float:
    """One step of an ISA PID with two degrees of freedom; returns the output and moves `state` (columns.STATE,).

    v = K (b r - y) + I + D + ff, D the derivative of K Td (c r - y) filtered with Td/N; u = v within limits and rate;
    I += K dt/Ti (r - y) + dt/Tt (u - v), Tt = sqrt(Ti Td) or Ti (back-calculation; Astrom & Hagglund, Advanced PID
    Control, 2006, ch. 3). `dt`: seconds between the samples; `elapsed`: seconds for which the rate may move the output.
    Numbers that are not finite, or that overflow, leave the state alone and repeat the last output.
    """
    last = float(state[c.LAST_OUTPUT])
    if not (math.isfinite(setpoint) and math.isfinite(pv) and math.isfinite(feed_forward)):
        return last
    if not (math.isfinite(dt) and math.isfinite(elapsed) and dt > 0.0 and elapsed >= 0.0):
        return last
    gain, ti, td = par[c.GAIN], par[c.TI], par[c.TD]
    weighted = par[c.C] * setpoint - pv
    derivative = 0.0
    if td > 0.0:
        filtered = td / par[c.N]
        change = gain * td * (weighted - state[c.LAST_WEIGHTED])
        derivative = (filtered * state[c.DERIVATIVE] + change) / (filtered + dt)
    integral = float(state[c.INTEGRAL])
    wanted = gain * (par[c.B] * setpoint - pv) + integral + derivative + feed_forward
    output = min(max(wanted, par[c.LOW]), par[c.HIGH])
    if math.isfinite(par[c.RATE]):
        step = par[c.RATE] * elapsed
        output = min(max(output, last - step), last + step)
        output = min(max(output, par[c.LOW]), par[c.HIGH])
    if ti > 0.0:
        tracking = math.sqrt(ti * td) if td > 0.0 else ti
        integral += gain * dt / ti * (setpoint - pv) + min(1.0, dt / tracking) * (output - wanted)
    if not (math.isfinite(wanted) and math.isfinite(integral) and math.isfinite(derivative)):
        return last
    state[c.INTEGRAL] = integral
    state[c.DERIVATIVE] = derivative
    state[c.LAST_WEIGHTED] = weighted
    state[c.LAST_OUTPUT] = output
    state[c.WANTED] = wanted
    return float(output)

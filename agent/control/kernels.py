"""The compiled PID step."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.control import columns as c
from agent.kernelcache import kernel


@kernel("float64(float64[::1], float64[::1], float64, float64, float64, float64)")
def pid(
    state: NDArray[np.float64],
    par: NDArray[np.float64],
    setpoint: float,
    pv: float,
    feed_forward: float,
    dt: float,
) -> float:
    """One step of an ISA PID with two degrees of freedom; returns the output and moves `state` (columns.STATE,).

    v = K (b r - y) + I + D + ff, D the derivative of K Td (c r - y) filtered with Td/N; u = v within limits and rate;
    I += K dt/Ti (r - y) + dt/Tt (u - v), Tt = sqrt(Ti Td) or Ti (back-calculation; Astrom & Hagglund, Advanced PID
    Control, 2006, ch. 3). A number that is not finite leaves the state alone and repeats the last output.
    """
    last = float(state[c.LAST_OUTPUT])
    if not (math.isfinite(setpoint) and math.isfinite(pv) and math.isfinite(feed_forward) and dt > 0.0):
        return last
    gain, ti, td = par[c.GAIN], par[c.TI], par[c.TD]
    weighted = par[c.C] * setpoint - pv
    if td > 0.0:
        filtered = td / par[c.N]
        change = gain * td * (weighted - state[c.LAST_WEIGHTED])
        state[c.DERIVATIVE] = (filtered * state[c.DERIVATIVE] + change) / (filtered + dt)
    else:
        state[c.DERIVATIVE] = 0.0
    wanted = gain * (par[c.B] * setpoint - pv) + state[c.INTEGRAL] + state[c.DERIVATIVE] + feed_forward
    step = par[c.RATE] * dt
    output = min(max(wanted, par[c.LOW]), par[c.HIGH])
    output = min(max(output, last - step), last + step)
    output = min(max(output, par[c.LOW]), par[c.HIGH])
    if ti > 0.0:
        tracking = math.sqrt(ti * td) if td > 0.0 else ti
        state[c.INTEGRAL] += gain * dt / ti * (setpoint - pv) + min(1.0, dt / tracking) * (output - wanted)
    state[c.LAST_WEIGHTED] = weighted
    state[c.LAST_OUTPUT] = output
    return float(output)

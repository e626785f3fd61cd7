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
    I += K dt/Ti (r - y) + dt/Tt (u - v), Tt = b Ti (back-calculation; Astrom & Hagglund, Advanced PID Control, 2006,
    ch. 3): v then goes on as if the setpoint were the one that u can follow (Hanus' conditioning), so that u leaves its
    limit when the setpoint comes down to y, neither later nor with a jump beyond. `dt`: seconds between the samples;
    `elapsed`: seconds for which the rate may move the output.
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
        tracking = max(par[c.B], c.LEAST_TRACKING) * ti
        integral += gain * dt / ti * (setpoint - pv) + min(1.0, dt / tracking) * (output - wanted)
    if not (math.isfinite(wanted) and math.isfinite(integral) and math.isfinite(derivative)):
        return last
    state[c.INTEGRAL] = integral
    state[c.DERIVATIVE] = derivative
    state[c.LAST_WEIGHTED] = weighted
    state[c.LAST_OUTPUT] = output
    state[c.WANTED] = wanted
    return float(output)


@kernel(
    "float64(float64[::1], float64[::1], float64[::1], float64[:, ::1],"
    " float64, float64, float64, float64, float64)"
)
def predictive(
    state: NDArray[np.float64],
    par: NDArray[np.float64],
    response: NDArray[np.float64],
    weight: NDArray[np.float64],
    setpoint: float,
    pv: float,
    feed_forward: float,
    dt: float,
    elapsed: float,
) -> float:
    """One step of generalised predictive control (Clarke et al. 1987) on a fixed model; returns the output.

    `state`: (MEMORY + DEAD + 4,), `par`: (DESIGN,), of `columns`; `response`: (n,) the PV after a unit step of the
    output, n the horizon in intervals; `weight`: (MOVES, MOVES) sum of products of `response` from DEAD on, the penalty
    of a move added on the diagonal. The model runs on by the intervals that `dt` seconds are; then the first of MOVES
    moves that follow a reference trajectory best, within limits and rate, by cyclic coordinate descent, becomes the
    goal. The output goes there as fast as the rate lets it in `elapsed` seconds. Numbers that are not finite, or that
    overflow, leave the state alone and repeat the last output.
    """
    last = float(state[c.SHOWN])
    if not (math.isfinite(setpoint) and math.isfinite(pv) and math.isfinite(feed_forward)):
        return last
    if not (math.isfinite(dt) and math.isfinite(elapsed) and dt > 0.0 and elapsed >= 0.0):
        return last
    dead, horizon = int(par[c.DEAD]), len(response)
    size = dead + 4
    clock = state[c.CLOCK] + min(dt / par[c.INTERVAL], float(c.MOST_MISSED))
    passed = math.floor(clock + 0.5)
    clock -= passed
    base = state[c.BASE] + feed_forward
    low, high = par[c.LOWEST] - base, par[c.HIGHEST] - base
    pace = par[c.PACE] * par[c.INTERVAL]
    now, before, load, gap = state[c.FILTERED], state[c.BEFORE], state[c.LOAD], state[c.GAP]
    goal = min(max(state[c.GOAL], low), high)
    wished, surprise = goal + state[c.LACK], state[c.SURPRISE]
    alone, earlier = state[c.ALONE], state[c.EARLIER]
    moves = np.empty(size)
    for i in range(size):
        moves[i] = state[c.MEMORY + max(i - max(passed - 1, 0), 0)]
    if passed > 0:
        foretold = 0.0
        for k in range(passed):  # the newest move was held since
            moved = 0.0
            for i in range(3):
                moved += par[c.B1 + i] * state[c.MEMORY + max(dead + i - k, 0)]
            foretold = par[c.A1] * now + par[c.A2] * before + moved + load
            before, now = now, foretold
            earlier, alone = alone, par[c.A1] * alone + par[c.A2] * earlier + moved
        surprise = pv - foretold
        now = foretold + par[c.TRUST] * surprise
        load += par[c.DRIFT] * surprise
        ahead, behind = now, before
        wanted = setpoint + gap
        gap *= par[c.APPROACH] ** passed
        aim = now
        force = np.zeros(c.MOVES)
        for k in range(1, horizon + 1):
            free = par[c.A1] * ahead + par[c.A2] * behind + load
            for i in range(3):
                free += par[c.B1 + i] * moves[max(dead + i - k, 0)]
            ahead, behind = free, ahead
            if k > dead:
                aim = wanted + (aim - wanted) * par[c.APPROACH]
                for j in range(min(c.MOVES, k)):
                    force[j] += response[k - 1 - j] * (aim - free)
        plan = np.zeros(c.MOVES)
        for _ in range(c.SWEEPS):
            reached = moves[0]
            for i in range(c.MOVES):
                change = force[i]
                for j in range(c.MOVES):
                    if j != i:
                        change -= weight[i, j] * plan[j]
                change /= weight[i, i]
                if i == 0:
                    wished = moves[0] + change
                change = min(max(change, -pace), pace)
                change = min(max(reached + change, low), high) - reached
                plan[i] = change
                reached += change
        goal = moves[0] + plan[0]
    output = goal + base
    if math.isfinite(par[c.PACE]):
        reach = par[c.PACE] * elapsed
        output = min(max(output, last - reach), last + reach)
    output = min(max(output, par[c.LOWEST]), par[c.HIGHEST])
    if not (math.isfinite(output) and math.isfinite(now) and math.isfinite(load)):
        return last
    if not (math.isfinite(wished) and math.isfinite(alone)):
        return last
    for i in range(size - 1, 0, -1):
        state[c.MEMORY + i] = moves[i - 1] if passed > 0 else moves[i]
    state[c.MEMORY] = output - base
    state[c.FILTERED], state[c.BEFORE], state[c.LOAD], state[c.GAP] = now, before, load, gap
    state[c.CLOCK], state[c.GOAL], state[c.SURPRISE], state[c.PASSED] = clock, goal, surprise, float(passed)
    state[c.SHOWN], state[c.WISHED], state[c.LACK] = output, wished + base, wished - goal
    state[c.ALONE], state[c.EARLIER] = alone, earlier
    return float(output)

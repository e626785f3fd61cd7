"""The controllers' steps in plain Python: the oracles of the kernels' tests, and what runs without numba."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.control import columns as c


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
        tracking = max(b, c.LEAST_TRACKING) * ti
        integral += gain * dt / ti * (setpoint - pv) + min(1.0, dt / tracking) * (output - wanted)
    if not all(map(math.isfinite, (wanted, integral, derivative))):
        return float(last)
    state[:] = integral, derivative, weighted, output, wanted
    return float(output)


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
    """As `agent.control.kernels.predictive`."""
    shown, _, now, before, load, gap, clock, base, goal, surprise, _, *alone, lack = state[
        : c.MEMORY
    ].tolist()
    a1, a2, b1, b2, b3, dead, trust, drift, approach, lowest, highest, rate, interval = par.tolist()
    numbers = (setpoint, pv, feed_forward, dt, elapsed)
    if not all(map(math.isfinite, numbers)) or dt <= 0.0 or elapsed < 0.0:
        return float(shown)
    clock += min(dt / interval, float(c.MOST_MISSED))
    passed = math.floor(clock + 0.5)
    base += feed_forward
    low, high = lowest - base, highest - base
    goal = min(max(goal, low), high)
    wished = goal + lack
    moves = state[c.MEMORY :].copy()
    if passed > 0:
        held = np.concatenate([np.full(passed - 1, moves[0]), moves])
        model = (a1, a2, np.array([b1, b2, b3]), load)
        path = _run(model, now, before, held, int(dead), passed)
        apart = _run((a1, a2, model[2], 0.0), alone[0], alone[1], held, int(dead), passed)
        alone = [apart[-1], alone[0] if passed == 1 else apart[-2]]
        moves = held[: len(moves)]
        before, surprise = (now if passed == 1 else path[-2]), pv - path[-1]
        now, load = path[-1] + trust * surprise, load + drift * surprise
        ahead = np.concatenate([np.full(len(response), moves[0]), moves])
        free = _run((a1, a2, model[2], load), now, before, ahead, int(dead), len(response))
        wanted = setpoint + gap
        aim = wanted + (now - wanted) * approach ** np.arange(1, len(response) - int(dead) + 1)
        miss = np.concatenate([np.zeros(int(dead)), aim - free[int(dead) :]])
        pull = np.array([response[: len(miss) - j] @ miss[j:] for j in range(c.MOVES)])
        plan, wished = _descend(weight, pull, moves[0], (low, high), rate * interval)
        goal = moves[0] + plan
        gap *= approach**passed
        moves = np.concatenate([moves[:1], moves[:-1]])
    output = goal + base
    if math.isfinite(rate):
        output = min(max(output, shown - rate * elapsed), shown + rate * elapsed)
    output = min(max(output, lowest), highest)
    if not all(map(math.isfinite, (output, now, load, wished, alone[0]))):
        return float(shown)
    moves[0] = output - base
    state[: c.MEMORY] = (
        *(output, wished + base, now, before, load, gap),
        *(clock - passed, state[c.BASE], goal, surprise, passed),
        *(*alone, wished - goal),
    )
    state[c.MEMORY :] = moves
    return float(output)


def _run(
    model: tuple[float, float, NDArray[np.float64], float],
    now: float,
    before: float,
    moves: NDArray[np.float64],
    dead: int,
    steps: int,
) -> NDArray[np.float64]:
    """(steps,) the PV as the model runs on; `moves`: what acts, the newest first, the last interval's at 0."""
    a1, a2, b, load = model
    path = np.empty(steps)
    for k in range(steps):
        start = steps - 1 - k + dead
        before, now = now, a1 * now + a2 * before + float(b @ moves[start : start + 3]) + load
        path[k] = now
    return path


def _descend(
    weight: NDArray[np.float64],
    pull: NDArray[np.float64],
    start: float,
    box: tuple[float, float],
    pace: float,
) -> tuple[float, float]:
    """(first move, first output without limits) after SWEEPS of cyclic coordinate descent."""
    plan = np.zeros(c.MOVES)
    others = weight - np.diag(np.diag(weight))
    free = 0.0
    for _ in range(c.SWEEPS):
        for i in range(c.MOVES):
            change = (pull[i] - others[i] @ plan) / weight[i, i]
            free = start + change if i == 0 else free
            reached = start + plan[:i].sum()
            plan[i] = min(max(reached + min(max(change, -pace), pace), box[0]), box[1]) - reached
    return float(plan[0]), free

"""What a loop would do: the loop itself, controller, limits and all, run against the model of its process. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, LoopConfig, ModelConfig
from agent.control.gains import reduced
from agent.control.loop import START_SCANS, Loop
from agent.control.process import Process, resting_output
from agent.control.shape import within
from agent.control.signals import Inputs, Sample

Floats = NDArray[np.float64]

LONGEST = 86_400.0
"""Seconds that may be asked for."""
MOST_STEPS = 100_000
FEWEST_STEPS = 20
POINTS = 300
"""Of each series in an answer."""
BAND, LOAD_BAND = 0.02, 0.1
"""Settled: within this share of the step; after a load, of the largest deviation."""
LAGS = 12.0
"""Delays and lags that are looked ahead where nothing else is said."""
FINE = 20.0
"""Steps in the process's delay and lags, below which a longer step would show another loop."""
PAUSE_EVERY = 50
"""Steps."""
DIGITS = 6


@dataclass(frozen=True, slots=True)
class State:
    """Where a loop stands: PV, output and setpoint, each in its tag's unit. The process counts as at rest there.

    reason: why the loop is not as wanted there, as its view says.
    """

    pv: float
    out: float
    setpoint: float
    mode: str = "auto"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the loop has to do with. period: seconds between steps. quantum: step of the output register, 0 for none.

    min_interval: seconds between two writes.
    """

    period: float
    quantum: float = 0.0
    min_interval: float = 0.0


@dataclass(frozen=True, slots=True)
class Response:
    """Figures of a step. settling: seconds until the PV stays within 2 % of the step; None where it does not.

    overshoot: % of the step, None without a step. iae: |goal - PV| times seconds.
    """

    settling: float | None
    overshoot: float | None
    iae: float


@dataclass(frozen=True, slots=True)
class Disturbed:
    """After the load at half time: largest deviation from the goal, seconds until it stays within a tenth of that."""

    peak: float
    settling: float | None
    iae: float


@dataclass(frozen=True, slots=True)
class Foretold:
    """t, setpoint, pv, out: (n,) each, one entry per step, t in seconds from now.

    move: largest move of the output between two steps. limited: share of the steps in which limits or rate kept the
    output from what the controller wanted. notes: what one must know beside, a sentence each.
    """

    start: State
    goal: float
    load: float
    t: Floats
    setpoint: Floats
    pv: Floats
    out: Floats
    step: Response
    disturbed: Disturbed | None
    move: float
    limited: float
    controller: str
    grade: str
    notes: tuple[str, ...]


def hardware_of(config: Config, loop: LoopConfig) -> Hardware:
    """What the configuration says of the loop's PV and output."""
    out = config.tag(loop.out)
    exact = out.type.startswith("float") or out.scale_from is not None
    return Hardware(
        period=max(loop.every, config.tag(loop.pv).every),
        quantum=0.0 if exact else float(abs(out.scale)),
        min_interval=0.0 if out.write is None else out.write.min_interval,
    )


def model_of(loop: LoopConfig) -> ModelConfig:
    """The loop's model. Raises ValueError, in words for the user, where it has none."""
    if loop.model is None:
        raise ValueError(f"loop {loop.name} has no model: run `edgetwin tune` on it first")
    return loop.model


def at_rest(loop: LoopConfig, setpoint: float) -> State:
    """The PV at the setpoint, the output where the model says that it stays there, within the limits.

    Raises ValueError where the loop has no model, or one of gain 0.
    """
    out = within(resting_output(model_of(loop), setpoint), loop.limits)
    return State(setpoint, out, setpoint)


def time_to_see(loop: LoopConfig, hardware: Hardware, change: float) -> float:
    """Seconds in which a change of the setpoint should be over, by the model's lags and the ramp."""
    model = model_of(loop)
    lag, delay = reduced(model, hardware.period)
    slow = 8.0 * delay if math.isinf(lag) else lag + delay
    ramp = abs(change) / loop.ramp if loop.ramp else 0.0
    return min(max(LAGS * slow + ramp, FEWEST_STEPS * hardware.period), LONGEST)


def foretell(
    loop: LoopConfig,
    start: State,
    hardware: Hardware,
    *,
    setpoint: float | None = None,
    load: float = 0.0,
    seconds: float | None = None,
    pause: Callable[[], None] | None = None,
) -> Foretold:
    """The loop in auto from `start` on, its setpoint going to `setpoint` at once (its ramp is kept).

    load: added to the output at the process's input from half time on. pause: called every PAUSE_EVERY steps; what it
    raises ends the run. Raises ValueError, in words for the user, for what cannot be asked.
    """
    model = model_of(loop)
    goal = start.setpoint if setpoint is None else setpoint
    goal = _allowed(loop, goal)
    if not math.isfinite(load):
        raise ValueError("the load must be a number")
    length = seconds
    if length is None:
        halves = 1.0 if load == 0.0 else 2.0
        length = min(halves * time_to_see(loop, hardware, goal - start.pv), LONGEST)
    period = _step_length(model, hardware.period, length)
    running = _engaged(loop, start, hardware, period)
    predictive = loop.controller.type == "predictive" and running.reason is None
    running.setpoint.target = goal
    count = math.floor(length / period + 1e-9) + 1
    at_load = count if load == 0.0 else count // 2
    columns, limited = _run(running, start, hardware, period, count=count, load=(at_load, load), pause=pause)
    t = period * np.arange(count, dtype=np.float64)
    wanted, pv, out = columns
    return Foretold(
        start=start,
        goal=goal,
        load=load,
        t=t,
        setpoint=wanted,
        pv=pv,
        out=out,
        step=response(t[:at_load], pv[:at_load], start.pv, goal),
        disturbed=None if load == 0.0 else _disturbed(t[at_load:], pv[at_load:], goal),
        move=float(np.abs(np.diff(out, prepend=start.out)).max()),
        limited=limited,
        controller="predictive" if predictive else "pid",
        grade=model.grade,
        notes=_notes(running, start, model, (hardware.period, period)),
    )


def response(t: Floats, pv: Floats, begin: float, goal: float, *, noise: float = 0.0) -> Response:
    """Figures of a PV, (n,), that starts at `begin` and shall reach `goal`; t in seconds from 0, not decreasing.

    noise: standard deviation of the PV; three of it count as settled where that is more than 2 % of the step.
    """
    error = goal - pv
    iae = float(np.abs(error[:-1]) @ np.diff(t))
    size = goal - begin
    if abs(size) <= 1e-9 * max(1.0, abs(goal)):
        return Response(None, None, iae)
    beyond = float((-math.copysign(1.0, size) * error).max())
    return Response(
        _settled(t, error, max(BAND * abs(size), 3.0 * noise)), max(100.0 * beyond / abs(size), 0.0), iae
    )


def thinned(count: int, most: int = POINTS) -> NDArray[np.intp]:
    """Which of `count` entries stand in an answer: evenly spread, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


def body(found: Foretold) -> dict[str, Any]:
    """The answer as JSON: `settling_s`, `overshoot` (%), `iae`, series `t`, `setpoint`, `pv`, `out`, and more."""
    kept = thinned(len(found.t))
    series = {"t": found.t, "setpoint": found.setpoint, "pv": found.pv, "out": found.out}
    return {
        "settling_s": tidy(found.step.settling),
        "overshoot": tidy(found.step.overshoot),
        "iae": tidy(found.step.iae),
        "move": tidy(found.move),
        "limited": round(found.limited, 4),
        "controller": found.controller,
        "grade": found.grade,
        "notes": list(found.notes),
        "from": dataclasses.asdict(found.start),
        "goal": found.goal,
        "load": None if found.disturbed is None else _load_body(found.load, found.disturbed),
        **{name: [tidy(value) for value in column[kept].tolist()] for name, column in series.items()},
    }


def _load_body(load: float, found: Disturbed) -> dict[str, Any]:
    return {
        "size": load,
        "peak": tidy(found.peak),
        "settling_s": tidy(found.settling),
        "iae": tidy(found.iae),
    }


def tidy(value: float | None) -> float | None:
    """A number as it stands in an answer."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


def _allowed(loop: LoopConfig, goal: float) -> float:
    """The setpoint as the loop would take it; ValueError where it would refuse it."""
    if not math.isfinite(goal):
        raise ValueError("the setpoint must be a number")
    limits = loop.setpoint_limits
    if limits is not None and within(goal, limits) != goal and not isinstance(loop.setpoint, tuple):
        raise ValueError(f"{goal:g} is outside setpoint_limits, {limits[0]:g} to {limits[1]:g}")
    return within(goal, limits)


def _step_length(model: ModelConfig, period: float, seconds: float) -> float:
    """The loop's own step, or a multiple where there would be too many; ValueError where that is too coarse."""
    if not 0.0 < seconds <= LONGEST:
        raise ValueError(f"`for` must be above 0 and at most 24h, not {seconds:g} s")
    if seconds < period:
        raise ValueError(f"`for` must be at least one step of the loop, {period:g} s")
    times = max(1, math.ceil(seconds / period / MOST_STEPS - 1e-9))
    coarsest = max((model.delay + model.t1 + model.t2) / FINE, period)
    if times * period > coarsest:
        longest = max(math.floor(coarsest / period), 1) * period * MOST_STEPS
        raise ValueError(f"`for` may be {longest:g} s at most, for the loop steps every {period:g} s")
    return times * period


def _engaged(loop: LoopConfig, start: State, hardware: Hardware, period: float) -> Loop:
    """A loop in auto that has just taken over at `start`, without a bump. Raises ValueError where it would not."""
    plain = dataclasses.replace(
        loop,
        mode="auto",
        every=period,
        setpoint=start.setpoint,
        # held as it is, it is a part of the output at which the loop took over
        feed_forward=None,
        heartbeat=None,
        interlock=(),
        # a loop that runs is at its setpoint; one that takes over ramps up to it from the PV
        ramp=None if start.mode == "auto" else loop.ramp,
    )
    near = hardware.quantum / 2.0

    def same(written: float, shown: float) -> bool:
        return abs(written - shown) <= near + 1e-9 * max(1.0, abs(written))

    running = Loop(plain, pv_period=period, quantum=hardware.quantum, same=same)
    for k in range(START_SCANS):
        now = (k - START_SCANS) * period
        running.on_sample(now, Inputs(Sample(start.pv, True, now), Sample(start.out, True, now)))
    if not running.engaged:
        raise ValueError(f"loop {loop.name} would not start: {running.reason}")
    running.config = dataclasses.replace(plain, ramp=loop.ramp)
    return running


def _run(
    running: Loop,
    start: State,
    hardware: Hardware,
    period: float,
    *,
    count: int,
    load: tuple[int, float],
    pause: Callable[[], None] | None,
) -> tuple[Floats, float]:
    """((3, count) setpoint, PV and output; share of the steps that were limited). load: from which step on, size."""
    assert running.config.model is not None
    register = within(start.out, running.config.limits)
    process = Process(running.config.model, period, pv=start.pv, out=start.out)
    columns = np.empty((3, count))
    limited, next_write = 0, -math.inf
    for k in range(count):
        now = k * period
        step = running.on_sample(now, Inputs(Sample(process.pv, True, now), Sample(register, True, now)))
        if step.write is not None and (step.safety or now >= next_write):
            register = _on_register(step.write, hardware.quantum)
            next_write = now + hardware.min_interval
            running.on_write_begin(step.write)
            running.on_write_done(
                now, value=step.write, ok=True, readback=register, error=None, safety=step.safety
            )
        limited += running.limited
        columns[:, k] = running.setpoint.value, process.pv, register
        process.step(register, load[1] if k >= load[0] else 0.0)
        if pause is not None and k % PAUSE_EVERY == 0:
            pause()
    return columns, limited / count


def _on_register(value: float, quantum: float) -> float:
    return round(value / quantum) * quantum if quantum > 0.0 else value


def _settled(t: Floats, error: Floats, band: float) -> float | None:
    """Seconds from the first entry on until the error stays within the band; None where it does not."""
    outside = np.flatnonzero(np.abs(error) > band)
    if not len(outside):
        return 0.0
    last = int(outside[-1])
    return None if last == len(t) - 1 else float(t[last + 1] - t[0])


def _disturbed(t: Floats, pv: Floats, goal: float) -> Disturbed:
    error = goal - pv
    peak = float(np.abs(error).max())
    return Disturbed(peak, _settled(t, error, LOAD_BAND * peak), float(np.abs(error[:-1]) @ np.diff(t)))


def _notes(running: Loop, start: State, model: ModelConfig, steps: tuple[float, float]) -> tuple[str, ...]:
    notes = []
    if model.grade == "poor":
        notes.append("the model is graded poor: take this as a guess")
    if start.mode != "auto":
        notes.append(f"the loop is in {start.mode}: this is what it would do in auto")
    if running.failed:
        notes.append(f"the loop would fail: {running.reason}")
    elif running.reason:
        notes.append(running.reason)
    if start.reason and start.reason != running.reason:
        notes.append(f"it starts as if all were well, but now: {start.reason}")
    if steps[1] > steps[0]:
        notes.append(f"simulated in steps of {steps[1]:g} s; the loop steps every {steps[0]:g} s")
    return tuple(notes)

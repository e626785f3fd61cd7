"""One control loop: its modes and what it does when anything fails. Pure: time and samples are handed in.

Modes: off; shadow (computes, writes nothing); manual (holds the output, which others may write); auto; and fail, into
which auto and manual go by themselves. Whatever is in doubt ends in fail, never in a guess.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.config.types import LoopConfig
from agent.control.pid import Pid
from agent.twin.records import Event, LoopView

START_SCANS = 3
"""Good scans before a loop takes over."""
MISMATCHES = 3
"""Scans in which the output reads back different before the loop gives way to whoever writes it."""
STALE_PERIODS = 5.0
EARLY = 0.75
"""Of the period: a sample that comes sooner after the last step belongs to the same step of the grid."""
HEARTBEAT_SHARE = 3.0
HEARTBEAT_VALUES = 32_768
"""Counts 0 … 32,767: fits signed and unsigned registers."""
STARTING = f"waiting for {START_SCANS} good scans"


@dataclass(frozen=True, slots=True)
class Sample:
    """A value with its time (monotonic). `good` False: the number means nothing."""

    value: float = math.nan
    good: bool = False
    t: float = -math.inf


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a loop looks at. `setpoint` None: the setpoint is no tag. `ahead`: forecasts of the PV, for `trip`."""

    pv: Sample
    out: Sample
    setpoint: Sample | None = None
    interlocks: tuple[Sample, ...] = ()
    feed_forward: Sample | None = None
    ahead: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done. `safety`: the one write to a fail or stop value, which no interval may hold up."""

    write: float | None = None
    safety: bool = False
    heartbeat: int | None = None
    events: tuple[Event, ...] = ()


@dataclass
class Loop:
    """State of one loop. `pv_period` and `quantum` (the output register's step) come from the tags."""

    config: LoopConfig
    pv_period: float
    quantum: float = 0.0
    mode: str = "off"
    failed: bool = False
    reason: str | None = None
    engaged: bool = False
    limited: bool = False
    target: float = math.nan
    sp: float = math.nan
    pv: Sample = field(default_factory=Sample)
    out: float = math.nan
    written: float = math.nan
    steps: int = 0
    _pid: Pid = field(init=False)
    _good: int = 0
    _bad: int = 0
    _sp_bad: int = 0
    _mismatch: int = 0
    _by_hand: bool = False
    _confirmed: float = math.inf
    _fail_write: float | None = None
    _last_step: float = -math.inf
    _last_pv_t: float = -math.inf
    _last_good_t: float = -math.inf
    _ff: float = 0.0
    _ff_t: float = -math.inf
    _beat: int = 0
    _next_beat: float = -math.inf

    def __post_init__(self) -> None:
        self._pid = Pid(self.config)
        self.mode = self.config.mode
        if not isinstance(self.config.setpoint, tuple):
            self.target = float(self.config.setpoint)
        self.reason = STARTING if self.mode == "auto" else None

    # -- samples and time ---------------------------------------------------------------------------------------

    def on_sample(self, now: float, inputs: Inputs) -> Step:
        """The PV's sample has come: one step, on the loop's own grid."""
        self.pv = inputs.pv
        if self._last_good_t == -math.inf:
            self._last_good_t = now  # its age counts from the first scan on
        if self.mode == "off" or now - self._last_step < EARLY * self.config.every:
            return Step()
        dt = inputs.pv.t - self._last_pv_t if math.isfinite(self._last_pv_t) else self.config.every
        self._last_step = now
        self._count(now, inputs)
        self._move_setpoint(inputs, dt)
        self._filter_feed_forward(inputs, dt)
        self._last_pv_t = inputs.pv.t
        self.steps += 1
        return self._act(now, inputs, dt)

    def on_tick(self, now: float, inputs: Inputs) -> Step:
        """Time has passed: the heartbeat, and what must not wait for a sample that may never come."""
        step = Step()
        if self.mode == "auto" and self.engaged and self._stale(now):
            step = self._fail(now, f"PV is {now - self._last_good_t:.1f} s old")
        elif self.failed and self._fail_write is not None:
            step = Step(write=self._fail_write, safety=True)
        return Step(step.write, step.safety, self._heartbeat(now), step.events)

    def _count(self, now: float, inputs: Inputs) -> None:
        if inputs.pv.good:
            self._good, self._bad, self._last_good_t = self._good + 1, 0, inputs.pv.t
        else:
            self._good, self._bad = 0, self._bad + 1
        if inputs.setpoint is not None:
            self._sp_bad = 0 if inputs.setpoint.good else self._sp_bad + 1
        out = inputs.out
        if out.good and out.t > self._confirmed and math.isfinite(self.written):
            away = abs(out.value - self.written) > self.quantum / 2 + 1e-9 * max(1.0, abs(self.written))
            self._mismatch = self._mismatch + 1 if away else 0

    def _move_setpoint(self, inputs: Inputs, dt: float) -> None:
        if inputs.setpoint is not None and inputs.setpoint.good:
            self.target = inputs.setpoint.value
        low, high = self.config.setpoint_limits or (-math.inf, math.inf)
        target = min(max(self.target, low), high)
        if self.config.ramp is None or math.isnan(self.sp) or not self.engaged:
            self.sp = target
        else:
            step = self.config.ramp * max(dt, 0.0)
            self.sp = min(max(target, self.sp - step), self.sp + step)

    def _filter_feed_forward(self, inputs: Inputs, dt: float) -> None:
        """First-order lag; a bad sample holds the last value."""
        config = self.config.feed_forward
        if config is None or inputs.feed_forward is None or not inputs.feed_forward.good:
            return
        goal = config.gain * inputs.feed_forward.value
        lag = config.lag
        self._ff = (
            goal
            if lag <= 0.0 or self.steps == 0
            else self._ff + (goal - self._ff) * min(1.0, dt / (lag + dt))
        )

    # -- the decision -------------------------------------------------------------------------------------------

    def _act(self, now: float, inputs: Inputs, dt: float) -> Step:
        problem = self._problem(now, inputs)
        if self.failed:
            return self._while_failed(now, inputs, problem)
        if self.mode == "manual":
            self.out = inputs.out.value if inputs.out.good else self.out
            return self._fail(now, problem) if problem and not problem.startswith("PV") else Step()
        if not self.engaged:
            return self._start(now, inputs, problem)
        if problem and self.mode == "auto":
            return self._fail(now, problem)
        if problem or not inputs.pv.good:
            self.reason = problem or "PV not good"
            return Step()  # shadow with a problem, or a bad scan or two: nothing moves
        self.reason = None
        return self._control(inputs, dt)

    def _problem(self, now: float, inputs: Inputs) -> str | None:
        """Why the loop must not act; those of the PV begin with PV."""
        config = self.config
        if any(not one.good or one.value == 0.0 for one in inputs.interlocks):
            return "interlock"
        if self._mismatch >= MISMATCHES:
            return "the output reads back different: somebody else writes it; set auto again by hand"
        if self._bad >= config.fail.after:
            return "PV not good"
        if self._stale(now):
            return f"PV is {now - self._last_good_t:.1f} s old"
        if inputs.setpoint is not None and self._sp_bad >= config.fail.after:
            return "setpoint not good"
        if config.trip is not None and inputs.pv.good:
            low, high = config.trip
            if not low <= inputs.pv.value <= high:
                return f"PV trip: {inputs.pv.value:g} is outside {low:g} to {high:g}"
            for foretold in inputs.ahead:
                if math.isfinite(foretold) and not low <= foretold <= high:
                    return f"PV trip: {foretold:g} is foretold, outside {low:g} to {high:g}"
        return None

    def _stale(self, now: float) -> bool:
        limit = STALE_PERIODS * self.pv_period
        model = self.config.model
        if model is not None:
            limit = max(limit, (model.delay + model.t1 + model.t2) / 2)
        return now - self._last_good_t > limit

    def _start(self, now: float, inputs: Inputs, problem: str | None) -> Step:
        """Takes over from the output that the device has now, once everything was good for three scans."""
        if problem or self._good < START_SCANS or not inputs.out.good or math.isnan(self.target):
            self.reason = problem or (
                STARTING if self._good < START_SCANS else "the output's value is not known"
            )
            if not problem and math.isnan(self.target) and self._good >= START_SCANS and inputs.out.good:
                self.reason = "the setpoint is not known"
            return Step()
        low, high = self.config.limits
        self.engaged = True
        self.reason = None
        self.out = self.written = min(max(inputs.out.value, low), high)
        self._confirmed = math.inf
        self._mismatch = 0
        if self.config.ramp is not None:
            self.sp = inputs.pv.value
        self._pid.take_over(self.out, self.sp, inputs.pv.value, self._ff)
        if self.out != inputs.out.value and self.mode == "auto":
            return Step(write=self.out)  # it stood outside the loop's limits
        return Step()

    def _control(self, inputs: Inputs, dt: float) -> Step:
        out = inputs.out
        if self.mode == "auto" and self._mismatch and out.good:
            low, high = self.config.limits
            self._pid.pushed_to(min(max(out.value, low), high))
        before = self._pid.output
        wanted = self._pid.step(self.sp, inputs.pv.value, self._ff, dt)
        low, high = self.config.limits
        rate = math.inf if self.config.rate is None else self.config.rate * self.config.every
        self.limited = wanted in (low, high) or abs(wanted - before) >= 0.999 * rate
        self.out = wanted
        if self.mode == "shadow" or abs(wanted - self.written) <= max(self.config.deadband, self.quantum / 2):
            return Step()
        self.written = wanted
        self._confirmed = math.inf
        return Step(write=wanted)

    # -- fail ---------------------------------------------------------------------------------------------------

    def _fail(self, now: float, reason: str) -> Step:
        self.failed, self.engaged, self.reason = True, False, reason
        self._by_hand = self._mismatch >= MISMATCHES or self.config.fail.resume is None
        self._good = 0
        self.limited = False
        to = self.config.fail.to
        self._fail_write = self._within(to) if isinstance(to, int | float) else None
        if self._fail_write is not None:
            self.out = self.written = self._fail_write
            self._confirmed = math.inf
        what = {"hold": "the output is held", "release": "the output is left to the PLC"}.get(
            str(to), f"the output goes to {to}"
        )
        event = self._event("loop_fail", "alarm", "raised", f"{reason}; {what}", now)
        return Step(write=self._fail_write, safety=self._fail_write is not None, events=(event,))

    def _while_failed(self, now: float, inputs: Inputs, problem: str | None) -> Step:
        """Back through the same door as at the start, after enough good scans; a fault that stays keeps it here."""
        if problem:
            self._good = 0
            if not self._by_hand:
                self.reason = problem
            return Step()
        resume = self.config.fail.resume
        if self._by_hand or resume is None or self._good < max(resume, 1) or not inputs.out.good:
            return Step()
        return self._leave_fail(now)

    def _leave_fail(self, now: float) -> Step:
        self.failed, self._by_hand, self._fail_write, self._mismatch = False, False, None, 0
        self.reason = STARTING
        self._good = max(self._good, START_SCANS)
        event = self._event("loop_fail", "alarm", "cleared", "good again", now)
        return Step(events=(event,))

    def fault(self, now: float, reason: str) -> Step:
        """Something outside the loop's own sight is wrong: to the fail value."""
        return self._fail(now, reason) if self.mode == "auto" and not self.failed else Step()

    # -- requests -----------------------------------------------------------------------------------------------

    def set_mode(self, now: float, mode: str) -> tuple[str | None, Step]:
        """(why not, what to do). auto starts through the door of a start: without a bump, from the output as it is."""
        if mode not in ("off", "shadow", "manual", "auto"):
            return f"there is no mode {mode!r}: off, shadow, manual or auto", Step()
        if mode == self.mode and not self.failed:
            return None, Step()
        events = [self._event("loop_mode", "info", "raised", f"{self.mode} -> {mode}", now)]
        if self.failed:
            self._good = 0
            events += self._leave_fail(now).events
            self._good = 0
        self.mode = mode
        self.engaged, self.limited = False, False
        self._mismatch = 0
        self.reason = STARTING if mode == "auto" else None
        if mode == "off":
            self.out = math.nan
        return None, Step(events=tuple(events))

    def set_setpoint(self, value: float) -> str | None:
        """Why not; None when it is taken."""
        if isinstance(self.config.setpoint, tuple):
            return f"the setpoint is the tag {'/'.join(self.config.setpoint)}"
        if not math.isfinite(value):
            return "the setpoint must be a number"
        low, high = self.config.setpoint_limits or (-math.inf, math.inf)
        if not low <= value <= high:
            return f"{value:g} is outside setpoint_limits, {low:g} to {high:g}"
        self.target = value
        return None

    def restarted(self, now: float) -> Step:
        """The device was reset: what it holds now is not what was written. Through the door of a start again."""
        if self.mode != "auto" or not self.engaged:
            return Step()
        self.engaged, self._good, self._mismatch = False, 0, 0
        self.reason = "the device was restarted: " + STARTING
        return Step(events=(self._event("loop_restart", "warning", "raised", self.reason, now),))

    def on_write_done(self, now: float, ok: bool, value: float, safety: bool) -> None:
        """A write was confirmed or not; only what reads back after it counts as different."""
        if ok:
            self._confirmed = now
            if safety:
                self._fail_write = None
        elif not safety and value == self.written:
            self.written = math.nan  # it never got there: the next step writes again

    def stop(self, now: float) -> Step:
        """The daemon ends: to `on_stop`. The heartbeat ends with the process."""
        to = self.config.fail.on_stop
        active = self.mode == "auto" and (self.engaged or self.failed)
        self.mode, self.engaged = "off", False
        if not active or not isinstance(to, int | float):
            return Step()
        return Step(write=self._within(to), safety=True)

    # -- the rest -----------------------------------------------------------------------------------------------

    @property
    def holds_output(self) -> bool:
        """True while nobody else may write the output or the heartbeat."""
        return self.mode == "auto"

    def view(self) -> LoopView:
        return LoopView(
            mode="fail" if self.failed else self.mode,
            sp=None
            if math.isnan(self.target if math.isnan(self.sp) else self.sp)
            else self._shown_setpoint(),
            pv=self.pv.value if self.pv.good else None,
            out=None if math.isnan(self.out) else self.out,
            limited=self.limited,
            reason=self.reason,
        )

    def _shown_setpoint(self) -> float:
        return self.target if math.isnan(self.sp) else self.sp

    def save(self) -> dict[str, Any]:
        """A setpoint that was set from outside outlives a restart; the mode is the configuration's."""
        return {"config": self._digest(), "setpoint": None if math.isnan(self.target) else self.target}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes what `save` gave, where the loop's configuration is still the same."""
        setpoint = saved.get("setpoint")
        if saved.get("config") == self._digest() and isinstance(setpoint, int | float):
            self.set_setpoint(float(setpoint))

    def _digest(self) -> str:
        return hashlib.sha256(repr(self.config).encode()).hexdigest()[:16]

    def _within(self, value: float) -> float:
        low, high = self.config.limits
        return min(max(float(value), low), high)

    def _heartbeat(self, now: float) -> int | None:
        config = self.config.heartbeat
        released = self.failed and self.config.fail.to == "release"
        if config is None or self.mode not in ("auto", "manual") or released or now < self._next_beat:
            return None
        self._beat = (self._beat + 1) % HEARTBEAT_VALUES
        self._next_beat = now + config.timeout / HEARTBEAT_SHARE
        return self._beat

    def _event(self, name: str, severity: Any, state: Any, text: str, now: float) -> Event:
        device, tag = self.config.out
        return Event(
            device,
            f"{name}_{self.config.name}" if severity == "alarm" else name,
            severity,
            state,
            f"loop {self.config.name}: {text}",
            now,
            tag=tag,
            alarm=severity == "alarm",
        )

"""One control loop: its modes and what it does when anything fails. Pure: time and samples are handed in.

Modes: off; shadow (computes, writes nothing); manual (a person's: others may write the output, the loop shows it);
auto; and fail, into which auto goes by itself, and manual for its interlock alone. Whatever is in doubt ends in fail,
never in a guess.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from agent.config.types import LoopConfig
from agent.control.output import MISMATCHES, Output
from agent.control.predictive import controller_for, retuned
from agent.control.shape import FeedForward, Setpoint, within
from agent.control.signals import Inputs, Sample, Step
from agent.control.timing import Grid, Heart
from agent.twin.records import Event, LoopView

START_SCANS = 3
"""Good scans before a loop takes over."""
START_PATIENCE = 10.0
"""Seconds for which a loop in auto may be kept from taking over before that is a failure like any other."""
STALE_PERIODS = 5.0
WRITE_RETRY = 1.0
"""Seconds between attempts at a fail value that could not be written."""
STARTING = f"waiting for {START_SCANS} good scans"
GAVE_WAY = "the output reads back different: somebody else writes it"
MODES = ("off", "shadow", "manual", "auto")


class Loop:
    """State of one loop.

    `pv_period`: seconds between samples of the PV. `quantum`: the output register's step, 0 for floats. `same`: whether
    a value read back is the one that was written. `beats`: lowest and highest count of the heartbeat register.
    """

    def __init__(
        self,
        config: LoopConfig,
        *,
        pv_period: float,
        quantum: float = 0.0,
        same: Callable[[float, float], bool] = math.isclose,
        beats: tuple[int, int] = (0, 32_767),
    ) -> None:
        self.config = config
        self.mode: str = config.mode
        self.failed = False
        self.engaged = False
        self.reason: str | None = STARTING if config.mode == "auto" else None
        self.limited = False
        self.setpoint = Setpoint()
        if not isinstance(config.setpoint, tuple):
            self.setpoint.target = float(config.setpoint)
        self.pv = Sample()
        self.out = math.nan
        self.steps = 0
        self._pv_period = pv_period
        self._quantum = quantum
        self._output = Output(same)
        self._grid = Grid(config.every, pv_period)
        self._heart = None if config.heartbeat is None else Heart(config.heartbeat.timeout, *beats)
        self._period = max(config.every, pv_period)
        self._controller = controller_for(config, self._period)
        self._feed_forward = FeedForward()
        self._gave_way = False
        self._by_hand: str | None = None
        self._fail_write: float | None = None
        self._fail_sent = False
        self._retry_at = -math.inf
        self._notes: list[Event] = []
        self._last_step = -math.inf
        self._controlled = -math.inf
        self._waiting_since = math.nan
        self._forget_samples()

    def _forget_samples(self) -> None:
        self._good = self._bad = self._setpoint_bad = 0
        self._last_good = -math.inf

    # -- samples and time ---------------------------------------------------------------------------------------

    def on_sample(self, now: float, inputs: Inputs) -> Step:
        """The PV's sample has come: a step, when the loop's own grid has one due."""
        self.pv = inputs.pv
        self._output.look_back(inputs.out)
        if self.mode == "off" or not self._grid.step_now(now):
            return Step()
        elapsed = now - self._last_step if math.isfinite(self._last_step) else self._period
        self._last_step = now
        self.steps += 1
        self._count(now, inputs)
        self.setpoint.move(self.config, inputs.setpoint, elapsed, ramping=self.engaged)
        if self._feed_forward.move(self.config, inputs.feed_forward, elapsed) and self.engaged:
            self._controller.absorb(self._feed_forward.value)
        return self._act(now, inputs, elapsed)

    def on_tick(self, now: float) -> Step:
        """Time has passed: the heartbeat, and what must not wait for a sample that may never come."""
        step = Step()
        if now - self.pv.t > self._patience_for_pv:
            self.pv = Sample(t=self.pv.t)
        if self.failed:
            step = self._repeat_fail_write(now)
        elif self.engaged and self._stale(now):
            problem = self._age(now)
            if self.mode == "auto":
                step = self._fail(now, problem)
            else:
                self.reason = problem
        elif self.mode == "auto" and not self.engaged:
            step = self._lose_patience(now)
        events = (*self._notes, *step.events)
        self._notes.clear()
        return dataclasses.replace(step, heartbeat=self._heartbeat(now), events=events)

    def _count(self, now: float, inputs: Inputs) -> None:
        if self._last_good == -math.inf:
            self._last_good = now  # its age counts from the first scan on
        if inputs.pv.good:
            self._good, self._bad, self._last_good = self._good + 1, 0, inputs.pv.t
        else:
            self._good, self._bad = 0, self._bad + 1
        if inputs.setpoint is not None:
            self._setpoint_bad = 0 if inputs.setpoint.good else self._setpoint_bad + 1

    # -- the decision -------------------------------------------------------------------------------------------

    def _act(self, now: float, inputs: Inputs, elapsed: float) -> Step:
        problem = self._problem(now, inputs)
        if self.failed:
            return self._while_failed(now, inputs, problem)
        if self.mode == "manual":
            return self._in_manual(now, inputs)
        if not self.engaged:
            return self._start(now, inputs, problem)
        if problem and self.mode == "auto":
            return self._fail(now, problem)
        if problem or not inputs.pv.good:
            self.reason = problem or "PV not good"
            return Step()  # shadow with a problem, or a bad scan or two: nothing moves
        step = self._control(inputs, elapsed)
        self.reason = self._output.error or self._controller.reason
        return step

    def _problem(self, now: float, inputs: Inputs) -> str | None:
        """Why the loop must not act."""
        after = self.config.fail.after
        if open_ := self._interlock(inputs):
            return open_
        if self._output.mismatches >= MISMATCHES and self.mode == "auto":
            return GAVE_WAY
        if tripped := self._trip(inputs):
            return tripped
        if self._bad >= after:
            return "PV not good"
        if self._stale(now):
            return self._age(now)
        if inputs.setpoint is not None and self._setpoint_bad >= after:
            return "setpoint not good"
        return None

    def _interlock(self, inputs: Inputs) -> str | None:
        for key, sample in zip(self.config.interlock, inputs.interlocks):
            if not sample.good or sample.value == 0.0:
                return f"interlock {'/'.join(key)} is {'false' if sample.good else 'not good'}"
        return None

    def _trip(self, inputs: Inputs) -> str | None:
        if self.config.trip is None:
            return None
        low, high = self.config.trip
        beyond = f"outside {low:g} to {high:g}"
        pv = inputs.pv.value
        if math.isfinite(pv) and not low <= pv <= high:
            return f"PV trip: {pv:g} is {beyond}"
        if inputs.pv.good:
            for foretold in inputs.ahead:
                if math.isfinite(foretold) and not low <= foretold <= high:
                    return f"PV trip: {foretold:g} is foretold, {beyond}"
        return None

    @property
    def _patience_for_pv(self) -> float:
        """Seconds after which the last good PV is too old to act on."""
        model = self.config.model
        slow = 0.0 if model is None else (model.delay + model.t1 + model.t2) / 2
        return max(STALE_PERIODS * self._pv_period, slow)

    def _stale(self, now: float) -> bool:
        return math.isfinite(self._last_good) and now - self._last_good > self._patience_for_pv

    def _age(self, now: float) -> str:
        return f"PV is {now - self._last_good:.1f} s old"

    def _in_manual(self, now: float, inputs: Inputs) -> Step:
        """The output is a person's; the interlock alone still acts."""
        self.out = inputs.out.value if inputs.out.good else math.nan
        open_ = self._interlock(inputs)
        return self._fail(now, open_) if open_ else Step()

    def _start(self, now: float, inputs: Inputs, problem: str | None) -> Step:
        """Takes over from the output that the device has now, once everything was good for three scans."""
        out = inputs.out
        self.out = out.value if out.good else math.nan
        self.reason = problem
        if not problem:
            if self._good < START_SCANS:
                self.reason = STARTING
            elif not self._output.fresh(out):
                self.reason = "the output's value is not known"
            elif math.isnan(self.setpoint.target):
                self.reason = "the setpoint is not known"
        if self.reason is not None:
            return self._lose_patience(now)
        config = self.config
        self.engaged = True
        self.out = within(out.value, config.limits)
        self._output.take_over(now, self.out)
        self._waiting_since = math.nan
        self._controlled = inputs.pv.t
        if config.ramp is not None:
            self.setpoint.value = within(inputs.pv.value, config.setpoint_limits)
        self._controller.take_over(self.out, self.setpoint.value, inputs.pv.value, self._feed_forward.value)
        self.limited = self.out != out.value
        self.reason = self._controller.reason
        self._tell_of_controller(self.reason, now)
        if self.limited and self.mode == "auto":
            return Step(write=self.out)  # it stood outside the loop's limits, which hold always
        return Step()

    def _lose_patience(self, now: float) -> Step:
        """A loop that cannot take over is no loop: after a while that is a failure."""
        if self.mode != "auto":
            return Step()
        if math.isnan(self._waiting_since):
            self._waiting_since = now
        patience = max(START_PATIENCE, STALE_PERIODS * self._period)
        if now - self._waiting_since <= patience:
            return Step()
        why = "no sample of the PV" if self.reason == STARTING else self.reason
        return self._fail(now, f"cannot take over: {why}")

    def _control(self, inputs: Inputs, elapsed: float) -> Step:
        config = self.config
        pushed = self._output.pushed()
        missed = self._output.missed()
        if self.mode == "auto" and pushed is not None:
            self._controller.pushed_to(within(pushed, config.limits))
        elif self.mode == "auto" and missed is not None:
            self._controller.stayed_at(within(missed, config.limits))
        dt = inputs.pv.t - self._controlled
        self._controlled = inputs.pv.t
        self.out = self._controller.step(
            self.setpoint.value, inputs.pv.value, self._feed_forward.value, dt, elapsed
        )
        self.limited = self._controller.limited
        if self.mode == "auto":
            self._tell_of_controller(self._controller.fall_back(), inputs.pv.t)
        change = abs(self.out - self._output.written)
        settled = pushed is None and change <= max(config.deadband, self._quantum / 2)
        if self.mode == "shadow" or settled:
            return Step()
        return Step(write=self.out)

    # -- fail ---------------------------------------------------------------------------------------------------

    def fault(self, now: float, reason: str) -> Step:
        """Something outside the loop's own sight is wrong: a running loop goes to its fail value."""
        running = self.mode == "auto" and self.engaged and not self.failed
        return self._fail(now, reason) if running else Step()

    def _fail(self, now: float, reason: str) -> Step:
        self.failed, self.engaged, self.limited, self.reason = True, False, False, reason
        self._gave_way = reason == GAVE_WAY
        self._by_hand = reason if self.config.fail.resume is None else None
        self._good = 0
        to = self.config.fail.to
        what = {"hold": "the output is held", "release": "the output is left to the PLC"}.get(
            str(to), f"the output goes to {to}"
        )
        event = self._event("loop_fail", "alarm", "raised", f"{reason}; {what}", now)
        if isinstance(to, str):
            return Step(events=(event,))
        self._fail_write = self.out = within(float(to), self.config.limits)
        self._fail_sent = True
        return Step(write=self._fail_write, safety=True, events=(event,))

    def _repeat_fail_write(self, now: float) -> Step:
        if self._fail_write is None or self._fail_sent or now < self._retry_at:
            return Step()
        self._fail_sent = True
        return Step(write=self._fail_write, safety=True)

    def _while_failed(self, now: float, inputs: Inputs, problem: str | None) -> Step:
        """Back through the same door as at the start, after enough good scans; a fault that stays keeps it here."""
        if inputs.out.good:
            self.out = inputs.out.value
        if self._gave_way and not self._output.is_ours(inputs.out):
            problem = GAVE_WAY
        elif problem == GAVE_WAY:
            problem = None
        if problem:
            self._good, self.reason = 0, problem
            return Step()
        resume = self.config.fail.resume
        if resume is None or self._good < max(resume, 1) or not self._output.fresh(inputs.out):
            return Step()
        if self._fail_write is not None:
            self.reason = f"the fail value {self._fail_write:g} could not be written"
            return Step()
        event = self._leave_fail(now)
        self._good = max(self._good, START_SCANS)
        return Step(events=(event,))

    def _leave_fail(self, now: float) -> Event:
        self.failed = self._gave_way = self._fail_sent = False
        self._fail_write, self._by_hand, self._output.mismatches = None, None, 0
        self._waiting_since = math.nan
        self.reason = STARTING if self.mode == "auto" else None
        return self._event("loop_fail", "alarm", "cleared", "good again", now)

    # -- requests -----------------------------------------------------------------------------------------------

    def set_mode(self, now: float, mode: str) -> tuple[str | None, Step]:
        """(why not, what to do). auto starts through the door of a start: without a bump, from the output as it is."""
        if mode not in MODES:
            return f"there is no mode {mode!r}: {', '.join(MODES[:-1])} or {MODES[-1]}", Step()
        if mode == self.mode and not self.failed:
            return None, Step()
        events = [self._event("loop_mode", "info", "raised", f"{self.mode} -> {mode}", now)]
        if self.failed:
            events.append(self._leave_fail(now))
            self._forget_samples()
        if self.mode == "off":
            self._forget_samples()
        self.mode = mode
        self.engaged = self.limited = False
        self._controller.trust_again()
        self._output.forget(now)
        self._waiting_since = math.nan
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
        limits = self.config.setpoint_limits
        if within(value, limits) != value:
            assert limits is not None
            return f"{value:g} is outside setpoint_limits, {limits[0]:g} to {limits[1]:g}"
        self.setpoint.target = value
        return None

    def set_parameters(self, config: LoopConfig) -> str | None:
        """Takes another configuration of the same loop without a bump; the reason where only a new start can do it."""
        for key in ("name", "pv", "out", "every", "mode", "heartbeat", "interlock"):
            if getattr(config, key) != getattr(self.config, key):
                return f"{key} changed"
        if isinstance(config.setpoint, tuple) or isinstance(self.config.setpoint, tuple):
            if config.setpoint != self.config.setpoint:
                return "setpoint changed"
        elif config.setpoint != self.config.setpoint:
            self.setpoint.target = config.setpoint
        before = self.config
        self.config = config
        self.__dict__.pop("_digest", None)
        self._controller = retuned(self._controller, config, self._period)
        if config.feed_forward != before.feed_forward:
            self._controller.absorb(-self._feed_forward.value)
            self._feed_forward = FeedForward()
        if self.engaged:
            self._tell_of_controller(self._controller.reason, self.pv.t)
        return None

    def restarted(self, now: float) -> Step:
        """The device was reset: what it holds now is not what was written. Through the door of a start again."""
        if self.mode != "auto" or not self.engaged:
            return Step()
        self.engaged, self._good = False, 0
        self._output.forget(now)
        self.reason = "the device was restarted: " + STARTING
        return Step(events=(self._event("loop_restart", "warning", "raised", self.reason, now),))

    def on_write_begin(self, value: float) -> None:
        """A write that was decided on goes out now, perhaps later than it was decided."""
        self._output.ask(value)

    def on_write_done(
        self, now: float, *, value: float, ok: bool, readback: float | None, error: str | None, safety: bool
    ) -> None:
        """A write was answered. `readback` None and not `ok`: nothing says that the value arrived."""
        reached = ok or readback is not None
        if safety and self.failed:
            self._fail_sent, self._retry_at = False, now + WRITE_RETRY
            if reached:
                self._fail_write = None
        if value != self._output.written:
            return  # a newer one is on its way
        change = self._output.answered(now, ok=ok, readback=readback, error=error, safety=safety)
        if change:
            text = self._output.error or "the output can be written again"
            self._notes.append(self._event("loop_write", "alarm", change, text, now))

    def stop(self, now: float) -> Step:
        """The daemon ends: to `on_stop`. The heartbeat ends with the process."""
        to = self.config.fail.on_stop
        active = self.mode == "auto" and (self.engaged or self.failed)
        self.mode, self.engaged, self.failed, self._fail_write = "off", False, False, None
        if not active or isinstance(to, str):
            return Step()
        return Step(write=within(float(to), self.config.limits), safety=True)

    # -- the rest -----------------------------------------------------------------------------------------------

    @property
    def holds_output(self) -> bool:
        """True while nobody else may write the output or the heartbeat."""
        return self.mode == "auto" or self.failed

    @property
    def may_write(self) -> bool:
        """True while an output that still waits to be written is to be written at all."""
        return self.mode == "auto" and self.engaged

    def output_now(self, out: Sample) -> float:
        """What the device holds, where `out` is its newest reading."""
        return self._output.now(out)

    def view(self) -> LoopView:
        shown = self.setpoint.shown
        return LoopView(
            mode="fail" if self.failed else self.mode,
            sp=None if math.isnan(shown) else shown,
            pv=self.pv.value if self.pv.good else None,
            out=None if math.isnan(self.out) else self.out,
            limited=self.limited,
            reason=self.reason,
        )

    def save(self) -> dict[str, Any]:
        """A setpoint from outside, and a fail that waits for a hand, outlive a restart; the mode is configured."""
        target = None if isinstance(self.config.setpoint, tuple) else self.setpoint.target
        return {"config": self._digest, "setpoint": target, "by_hand": self._by_hand}

    def restore(self, saved: Mapping[str, Any], now: float) -> None:
        """Takes what `save` gave, where the loop's configuration is still the same. Before the first sample."""
        if saved.get("config") != self._digest:
            return
        setpoint, reason = saved.get("setpoint"), saved.get("by_hand")
        if isinstance(setpoint, int | float):
            self.set_setpoint(float(setpoint))
        if isinstance(reason, str) and self.mode == "auto" and self.config.fail.resume is None:
            self.failed, self.reason, self._by_hand = True, reason, reason
            text = f"{reason}; still in fail after a restart, until it is put into a mode by hand"
            self._notes.append(self._event("loop_fail", "alarm", "raised", text, now))

    @functools.cached_property
    def _digest(self) -> str:
        """Of the configuration; the order of a set differs from process to process, so it is sorted."""
        plain = dataclasses.replace(self.config, remote=frozenset())
        return hashlib.sha256(f"{plain!r} {sorted(self.config.remote)}".encode()).hexdigest()[:16]

    @property
    def next_beat(self) -> float:
        """When the heartbeat is due; infinite while there is none."""
        return self._heart.due if self._heart is not None and self._beats else math.inf

    @property
    def _beats(self) -> bool:
        released = self.failed and self.config.fail.to == "release"
        return self.mode in ("auto", "manual") and not released

    def _heartbeat(self, now: float) -> int | None:
        return self._heart.beat(now) if self._heart is not None and self._beats else None

    def _tell_of_controller(self, why: str | None, now: float) -> None:
        """Why another controller than the one that was asked for runs from now on; None: it does not."""
        if why is not None:
            self._notes.append(self._event("loop_controller", "warning", "raised", why, now))

    def _event(self, name: str, severity: Any, state: Any, text: str, now: float) -> Event:
        device, tag = self.config.out
        alarm = severity == "alarm"
        name = f"{name}_{self.config.name}" if alarm else name  # alarms of one device are kept by name
        text = f"loop {self.config.name}: {text}"
        return Event(device, name, severity, state, text, now, tag=tag, alarm=alarm)

"""Runs the loops: brings them their samples when a scan ends, and carries out what they decide."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, LoopConfig
from agent.control.loop import Inputs, Loop, Sample, Step
from agent.runtime.clock import Clock
from agent.twin.quality import Quality
from agent.twin.records import Event, Key, LoopView, Outcome
from agent.twin.table import Twin

TICKS_PER_BEAT = 4
SHORTEST_TICK, LONGEST_TICK = 0.02, 0.5
WRITE_PATIENCE = 2.0
LATENESS_KEPT = 512


class Write(Protocol):
    """The writer: `agent.runtime.writer.Writer.write`."""

    def __call__(
        self, key: Key, value: float, *, source: str, deadline: float, safety: bool = False
    ) -> Awaitable[Outcome]: ...


Ahead = Callable[[Key], tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None]
"""Forecast of a tag: (y, lo, hi) over the horizons, or None."""


@dataclass
class _Runner:
    """One loop and its writes: at most one under way; a newer output takes the place of one that waits."""

    loop: Loop
    writing: asyncio.Task[None] | None = None
    waiting: tuple[float, bool] | None = None
    beating: asyncio.Task[None] | None = None
    last: float | None = None
    late: list[float] = field(default_factory=list)
    overruns: int = 0


class Loops:
    """All loops of a configuration. Everything runs in the main loop's thread."""

    def __init__(
        self,
        config: Config,
        *,
        twin: Twin,
        write: Write,
        forecast: Ahead,
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._twin = twin
        self._write = write
        self._forecast = forecast
        self._clock = clock
        self._on_event = on_event
        self._runners = {name: _Runner(self._make(loop)) for name, loop in config.loops.items()}
        self._of_device: dict[str, list[_Runner]] = {}
        self._held: dict[Key, _Runner] = {}
        for runner in self._runners.values():
            loop = runner.loop.config
            self._of_device.setdefault(loop.pv[0], []).append(runner)
            self._held[loop.out] = runner
            if loop.heartbeat is not None:
                self._held[loop.heartbeat.tag] = runner
        beats = [loop.heartbeat.timeout / 3 for loop in config.loops.values() if loop.heartbeat is not None]
        steps = [loop.every for loop in config.loops.values()]
        fastest = min([*beats, *steps], default=LONGEST_TICK) / TICKS_PER_BEAT
        self._tick_every = min(max(fastest, SHORTEST_TICK), LONGEST_TICK)

    def _make(self, loop: LoopConfig) -> Loop:
        out = self._config.tag(loop.out)
        quantum = 0.0 if out.type.startswith("float") else float(abs(out.scale))
        return Loop(loop, self._config.tag(loop.pv).every, quantum)

    # -- called by the pipeline and the service -----------------------------------------------------------------

    def on_scan(self, device: str) -> None:
        """A scan of this device has ended: loops whose PV came with it take a step."""
        for runner in self._of_device.get(device, ()):
            loop = runner.loop
            inputs = self._inputs(loop.config)
            if inputs.pv.t == loop.pv.t:
                continue  # another scan of the same device
            now = self._clock.mono()
            before = loop.steps
            step = loop.on_sample(now, inputs)
            if loop.steps != before:
                self._note_lateness(runner, now)
            self._carry_out(runner, step)

    async def run(self) -> None:
        """Ticks for ever: heartbeats, and loops whose PV does not come."""
        while True:
            self.tick()
            await asyncio.sleep(self._tick_every)

    def tick(self) -> None:
        now = self._clock.mono()
        for runner in self._runners.values():
            self._carry_out(runner, runner.loop.on_tick(now, self._inputs(runner.loop.config)))

    def fault(self) -> None:
        """A fault of the program: every running loop goes to its fail value first."""
        now = self._clock.mono()
        for runner in self._runners.values():
            self._carry_out(runner, runner.loop.fault(now, "a fault of the agent"))

    def restarted(self, device: str) -> None:
        """A device was reset: loops that read or write it start anew."""
        now = self._clock.mono()
        for runner in self._runners.values():
            if device in (runner.loop.config.pv[0], runner.loop.config.out[0]):
                self._carry_out(runner, runner.loop.restarted(now))

    async def stop(self) -> None:
        """Every loop to its `on_stop` value; returns when the writes are through or have failed."""
        now = self._clock.mono()
        for runner in self._runners.values():
            runner.waiting = None
            self._carry_out(runner, runner.loop.stop(now))
        while tasks := [runner.writing for runner in self._runners.values() if runner.writing is not None]:
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- requests -----------------------------------------------------------------------------------------------

    def holder_of(self, key: Key) -> str | None:
        """The loop that alone may write this tag now; None when others may."""
        runner = self._held.get(key)
        return runner.loop.config.name if runner is not None and runner.loop.holds_output else None

    def ask(self, name: str, *, mode: str | None, setpoint: float | None, remote: bool) -> Outcome:
        """Changes mode or setpoint. `remote`: from the cloud, where only what `remote:` lists is allowed."""
        runner = self._runners[name]
        allowed = runner.loop.config.remote
        for what, given in (("mode", mode), ("setpoint", setpoint)):
            if given is not None and remote and what not in allowed:
                return Outcome(
                    False, error=f"loop {name} does not allow its {what} to be set from afar (`remote`)"
                )
        if (
            mode == "auto"
            and runner.loop.config.mode != "auto"
            and (why := self._auto_refused(runner.loop.config))
        ):
            return Outcome(False, error=why)
        if setpoint is not None and (why := runner.loop.set_setpoint(setpoint)):
            return Outcome(False, error=why)
        if mode is not None:
            why, step = runner.loop.set_mode(self._clock.mono(), mode)
            if why:
                return Outcome(False, error=why)
            self._carry_out(runner, step)
        return Outcome(True, applied=setpoint if setpoint is not None else mode)

    def _auto_refused(self, loop: LoopConfig) -> str | None:
        """The rule that `check` holds for `mode: auto` holds for a request too."""
        if loop.heartbeat is None and self._config.devices[loop.out[0]].on_loss == "unknown":
            return f"loop {loop.name} may not run in auto: it has no heartbeat and on_loss of {loop.out[0]} is unknown"
        return None

    # -- what others see ----------------------------------------------------------------------------------------

    def views(self) -> dict[str, LoopView]:
        return {name: runner.loop.view() for name, runner in self._runners.items()}

    def status(self) -> dict[str, Any]:
        """The `loops` of `status --json`."""
        return {
            name: {
                "mode": view.mode,
                "sp": view.sp,
                "pv": view.pv,
                "out": view.out,
                "limited": view.limited,
                "reason": view.reason,
                "steps": self._runners[name].loop.steps,
                "overruns": self._runners[name].overruns,
                "late_ms": _percentiles(self._runners[name].late),
            }
            for name, view in self.views().items()
        }

    def save(self) -> dict[str, Any]:
        return {name: runner.loop.save() for name, runner in self._runners.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        for name, one in saved.items():
            if name in self._runners and isinstance(one, dict):
                self._runners[name].loop.restore(one)

    # -- inside -------------------------------------------------------------------------------------------------

    def _sample(self, key: Key) -> Sample:
        one = self._twin.sample(key)
        return Sample(one.value, one.quality is Quality.GOOD and math.isfinite(one.value), one.t)

    def _inputs(self, loop: LoopConfig) -> Inputs:
        ahead: tuple[float, ...] = ()
        if loop.trip is not None and (found := self._forecast(loop.pv)) is not None:
            ahead = tuple(found[0].tolist())
        return Inputs(
            pv=self._sample(loop.pv),
            out=self._sample(loop.out),
            setpoint=self._sample(loop.setpoint) if isinstance(loop.setpoint, tuple) else None,
            interlocks=tuple(self._sample(key) for key in loop.interlock),
            feed_forward=None if loop.feed_forward is None else self._sample(loop.feed_forward.tag),
            ahead=ahead,
        )

    def _carry_out(self, runner: _Runner, step: Step) -> None:
        for event in step.events:
            self._on_event(event)
        loop = runner.loop
        if step.write is not None:
            runner.waiting = (step.write, step.safety)
            if runner.writing is None:
                runner.writing = asyncio.ensure_future(self._write_out(runner))
        if step.heartbeat is not None and runner.beating is None and loop.config.heartbeat is not None:
            runner.beating = asyncio.ensure_future(
                self._beat(runner, loop.config.heartbeat.tag, step.heartbeat)
            )

    async def _write_out(self, runner: _Runner) -> None:
        try:
            while runner.waiting is not None:
                (value, safety), runner.waiting = runner.waiting, None
                deadline = self._clock.mono() + WRITE_PATIENCE
                outcome = await self._write(
                    runner.loop.config.out, value, source="loop", deadline=deadline, safety=safety
                )
                # a value that reads back different is a matter of the scans to come, not of the line
                reached = outcome.ok or outcome.readback is not None
                runner.loop.on_write_done(self._clock.mono(), reached, value, safety)
        finally:
            runner.writing = None

    async def _beat(self, runner: _Runner, key: Key, count: int) -> None:
        try:
            deadline = self._clock.mono() + WRITE_PATIENCE
            await self._write(key, count, source="loop", deadline=deadline, safety=True)
        finally:
            runner.beating = None

    def _note_lateness(self, runner: _Runner, now: float) -> None:
        every = runner.loop.config.every
        if runner.last is not None:
            late = now - runner.last - every
            runner.overruns += late >= every
            runner.late.append(abs(late))
            del runner.late[:-LATENESS_KEPT]
        runner.last = now


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    """p50, p99 and max in ms."""
    if not seconds:
        return {"p50": None, "p99": None, "max": None}
    ordered = sorted(seconds)
    picks = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
        for name, share in picks.items()
    }

"""Runs the loops: brings them their samples when a scan ends, and carries out what they decide."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, LoopConfig, Tag
from agent.control.loop import MODES, Loop
from agent.control.signals import Inputs, Sample, Step
from agent.modbus.codec import power_of, readback_matches
from agent.modbus.meter import spread
from agent.runtime.clock import Clock
from agent.runtime.comparing import Comparisons
from agent.runtime.experiments import Experiments
from agent.runtime.foretelling import Foretelling
from agent.runtime.writer import HEARTBEAT
from agent.twin.outward import loop_body
from agent.twin.quality import Quality
from agent.twin.records import Event, Key, LoopView, Outcome
from agent.twin.table import Twin

log = logging.getLogger("edgetwin")

TICKS_PER_STEP = 4
SHORTEST_TICK, LONGEST_TICK = 0.02, 0.5
SOON = 0.001
"""Seconds; the loops never wake up sooner than this."""
WRITE_PATIENCE = 2.0
STOP_PATIENCE = 2.0
KEPT = 512
"""Newest step times and latenesses that the percentiles of `status` are taken from."""
HIGHEST_BEAT = 32_767
"""Fits signed and unsigned registers."""


class Write(Protocol):
    """The writer: `agent.runtime.writer.Writer.write`."""

    def __call__(
        self,
        key: Key,
        value: float,
        *,
        source: str,
        deadline: float,
        safety: bool = False,
    ) -> Awaitable[Outcome]: ...


Ahead = Callable[[Key], tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None]
"""Forecast of a tag: (y, lo, hi) over the horizons, or None."""


@dataclass
class _Runner:
    """One loop and its writes: at most one under way; a newer output takes the place of one that waits.

    A write to a fail or stop value does not wait for the one under way: the line keeps them in order.
    """

    loop: Loop
    min_interval: float
    same: Callable[[float, float], bool]
    writing: bool = False
    writes: set[asyncio.Task[None]] = field(default_factory=set)
    beats: set[asyncio.Task[None]] = field(default_factory=set)
    waiting: float | None = None
    next_write: float = -math.inf
    last_step: float | None = None
    late: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    took: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
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
        on_change: Callable[[dict[str, Any]], None] = lambda kept: None,
    ) -> None:
        """on_change: told at a tick what `save` gives now, when it is something else than before."""
        self._config = config
        self._twin = twin
        self._write = write
        self._forecast = forecast
        self._clock = clock
        self._on_event, self._on_change = on_event, on_change
        self._runners = {name: self._make(loop) for name, loop in config.loops.items()}
        self.ticked = clock.mono()
        """Monotonic time of the last tick."""
        self.experiments = Experiments(write=write, clock=clock, on_event=on_event, set_mode=self._set_mode)
        self.foretelling = Foretelling(clock)
        self._comparisons = Comparisons(self.foretelling, clock, on_event)
        self._index()
        self._kept = self.save()

    def _index(self) -> None:
        self._of_device: dict[str, list[_Runner]] = {}
        self._held: dict[Key, _Runner] = {}
        for runner in self._runners.values():
            loop = runner.loop.config
            self._of_device.setdefault(loop.pv[0], []).append(runner)
            self._held[loop.out] = runner
            if loop.heartbeat is not None:
                self._held[loop.heartbeat.tag] = runner
        self._tick_every = _tick_every(self._config.loops.values())

    def _make(self, loop: LoopConfig) -> _Runner:
        out = self._config.tag(loop.out)
        exact = out.type.startswith("float") or out.scale_from is not None
        beats = (0, HIGHEST_BEAT) if loop.heartbeat is None else _beats(self._config.tag(loop.heartbeat.tag))

        def same(written: float, shown: float) -> bool:
            power = None
            if out.scale_from is not None:
                power = power_of(self._twin.sample((loop.out[0], out.scale_from)).plain)
            return readback_matches(out, written, shown, power)

        made = Loop(
            loop,
            pv_period=self._config.tag(loop.pv).every,
            quantum=0.0 if exact else float(abs(out.scale)),
            same=same,
            beats=beats,
        )
        return _Runner(made, 0.0 if out.write is None else out.write.min_interval, same)

    # -- called by the pipeline and the service -----------------------------------------------------------------

    def on_scan(self, device: str) -> None:
        """A scan of this device has ended: loops whose PV came with it take a step."""
        for runner in self._of_device.get(device, ()):
            loop = runner.loop
            inputs = self._inputs(loop.config)
            if inputs.pv.t == loop.pv.t or not math.isfinite(inputs.pv.t):
                continue  # another scan of the same device, or no answer yet
            now = self._clock.mono()
            before = loop.steps
            step = loop.on_sample(now, inputs)
            if loop.steps != before:
                runner.waiting = step.write
                runner.took.append(self._clock.mono() - now)
                _note_lateness(runner, now)
                self._comparisons.on_sample(self._config, loop, inputs)
            self._carry_out(runner, step, now)
            self.experiments.on_sample(loop.config.name, inputs)

    async def run(self) -> None:
        """Ticks for ever: heartbeats, writes whose time has come, and loops whose PV does not come."""
        while True:
            self.tick()
            next_beat = min((runner.loop.next_beat for runner in self._runners.values()), default=math.inf)
            await asyncio.sleep(min(self._tick_every, max(next_beat - self._clock.mono(), SOON)))

    def tick(self) -> None:
        now = self.ticked = self._clock.mono()
        for runner in self._runners.values():
            self._carry_out(runner, runner.loop.on_tick(now), now)
        self.experiments.on_tick()
        self._comparisons.on_tick()
        if (kept := self.save()) != self._kept:
            self._kept = kept
            self._on_change(kept)

    def fault(self) -> None:
        """A fault of the program: every running loop goes to its fail value first."""
        now = self._clock.mono()
        for name, runner in self._runners.items():
            self._carry_out(runner, runner.loop.fault(now, "a fault of the agent"), now)
            self.experiments.abort(name, "a fault of the agent")

    def restarted(self, device: str) -> None:
        """A device was reset: loops that read or write it start anew."""
        now = self._clock.mono()
        for name, runner in self._runners.items():
            if device in (runner.loop.config.pv[0], runner.loop.config.out[0]):
                self._carry_out(runner, runner.loop.restarted(now), now)
                self.experiments.abort(name, f"{device} was restarted")

    async def stop(self) -> None:
        """Every loop to its `on_stop` value; returns when the writes are through, have failed, or took 2 s."""
        self.foretelling.close()
        await self.experiments.abort_all(self._runners, "the agent stops")
        await self._stop(self._runners.values())

    async def _stop(self, runners: Collection[_Runner]) -> None:
        now = self._clock.mono()
        for runner in runners:
            self._carry_out(runner, runner.loop.stop(now), now)
        writes = {task for runner in runners for task in runner.writes}
        if writes and (await asyncio.wait(writes, timeout=STOP_PATIENCE))[1]:
            log.warning("not every loop reached its stop value within %.0f s", STOP_PATIENCE)

    # -- requests -----------------------------------------------------------------------------------------------

    def holder_of(self, key: Key) -> str | None:
        """The loop that alone may write this tag now; None when others may."""
        runner = self._held.get(key)
        holds = runner is not None and runner.loop.holds_output
        return runner.loop.config.name if runner and holds else self.experiments.holder_of(key)

    def ask(self, name: str, *, mode: str | None, setpoint: float | None, remote: bool) -> Outcome:
        """Changes mode or setpoint, both or none. `remote`: from the cloud, which may do only what `remote:` lists."""
        loop = self._runners[name].loop
        why = self._refused(loop, mode, setpoint, remote)
        if why is None and setpoint is not None:
            why = loop.set_setpoint(setpoint)
        if why is not None:
            return Outcome(False, error=why)
        if mode is not None:
            self.experiments.abort(name, f"the loop was put into {mode}")
            self._set_mode(loop, mode)
        return Outcome(True, applied=setpoint if setpoint is not None else mode)

    def _set_mode(self, loop: Loop, mode: str) -> None:
        now = self._clock.mono()
        _, step = loop.set_mode(now, mode)
        self._carry_out(self._runners[loop.config.name], step, now)

    def experiment(self, name: str, asked: Mapping[str, Any]) -> Outcome:
        """What `tune` asks: do "look", "begin" (kind, move, seconds), "poll" (first) or "stop"."""
        runner = self._runners[name]
        config, inputs = runner.loop.config, self._inputs(runner.loop.config)
        match asked["do"]:
            case "look":
                return Outcome(True, result=_outlook(runner.loop, inputs, self._config))
            case "begin":
                return self.experiments.begin(
                    runner.loop,
                    inputs,
                    asked,
                    period=self._config.tag(config.pv).every,
                    min_interval=runner.min_interval,
                    same=runner.same,
                )
            case "stop":
                self.experiments.close(name, "stopped")
        self.experiments.hear(name)
        report = self.experiments.report(name, asked.get("first", 0))
        return Outcome(report is not None, error=None if report else "there is no test", result=report)

    async def whatif(self, name: str, asked: Mapping[str, float | None], *, deadline: float) -> Outcome:
        """What the loop would do: `Foretelling.answer`."""
        loop = self._runners[name].loop
        inputs = self._inputs(loop.config)
        return await self.foretelling.answer(self._config, loop, inputs, asked, deadline=deadline)

    def _refused(self, loop: Loop, mode: str | None, setpoint: float | None, remote: bool) -> str | None:
        """Why a request is refused before anything of it is done."""
        config = loop.config
        if mode is None and setpoint is None:
            return f"loop {config.name}: give a mode, a setpoint or both"
        for what, given in (("mode", mode), ("setpoint", setpoint)):
            if given is not None and remote and what not in config.remote:
                return f"loop {config.name} does not allow its {what} to be set from afar (`remote`)"
        if mode is not None and mode not in MODES:
            return f"there is no mode {mode!r}: one of {', '.join(MODES)}"
        unknown = self._config.devices[config.out[0]].on_loss == "unknown"
        if mode == "auto" and config.mode != "auto" and config.heartbeat is None and unknown:
            device = config.out[0]
            return f"loop {config.name} may not run in auto: no heartbeat, and on_loss of {device} is unknown"
        return None

    # -- another configuration ----------------------------------------------------------------------------------

    async def end_for(self, config: Config) -> set[str]:
        """Ends the loops that go with another configuration, or cannot go on in it: to their stop value, then out.

        Loops that can go on take their new parameters here, without a bump. Returns the names of those that ended.
        """
        await self.experiments.abort_all(self._runners, "the configuration changes")
        ended = {
            name: runner
            for name, runner in self._runners.items()
            if not _goes_on(runner, self._config, config)
        }
        await self._stop(ended.values())
        for name in ended:
            del self._runners[name]
        self._index()
        return set(ended)

    def change(self, config: Config, twin: Twin) -> None:
        """Another configuration, after `end_for`: loops that are new in it start."""
        self._config, self._twin = config, twin
        known = self._runners
        self._runners = {name: known.get(name) or self._make(loop) for name, loop in config.loops.items()}
        self._comparisons.keep(config.loops)
        self._index()

    # -- what others see ----------------------------------------------------------------------------------------

    def views(self) -> dict[str, LoopView]:
        return {name: runner.loop.view() for name, runner in self._runners.items()}

    def status(self) -> dict[str, Any]:
        """The `loops` of `status --json`."""
        return {
            name: {**_status(runner), "compared": self._comparisons.last(name)}
            for name, runner in self._runners.items()
        }

    def save(self) -> dict[str, Any]:
        return {name: runner.loop.save() for name, runner in self._runners.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        for name, one in saved.items():
            if name in self._runners and isinstance(one, dict):
                self._runners[name].loop.restore(one, self._clock.mono())
        self._kept = self.save()

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

    def _carry_out(self, runner: _Runner, step: Step, now: float) -> None:
        for event in step.events:
            self._on_event(event)
        if step.write is not None and step.safety:
            runner.waiting = None
            runner.loop.on_write_begin(step.write)
            _keep(runner.writes, self._write_out(runner, step.write, safety=True))
        elif not runner.loop.may_write:
            runner.waiting = None  # hold means: nothing more
        if runner.waiting is not None and not runner.writing and now >= runner.next_write:
            value, runner.waiting = runner.waiting, None
            runner.next_write = now + runner.min_interval
            runner.writing = True
            runner.loop.on_write_begin(value)
            _keep(runner.writes, self._write_out(runner, value, safety=False))
        heartbeat = runner.loop.config.heartbeat
        if step.heartbeat is not None and heartbeat is not None:
            _keep(runner.beats, self._beat(heartbeat.tag, step.heartbeat))

    async def _write_out(self, runner: _Runner, value: float, *, safety: bool) -> None:
        loop = runner.loop
        deadline = self._clock.mono() + WRITE_PATIENCE
        try:
            outcome = await self._write(
                loop.config.out, value, source="loop", deadline=deadline, safety=safety
            )
        except Exception:
            log.exception(
                "writing the output of loop %s failed; this is a fault of the program", loop.config.name
            )
            outcome = Outcome(False, error="a fault of the program")
        finally:
            if not safety:
                runner.writing = False
        shown = outcome.readback
        readback = float(shown) if isinstance(shown, int | float) else None
        loop.on_write_done(
            self._clock.mono(),
            value=value,
            ok=outcome.ok,
            readback=readback,
            error=outcome.error,
            safety=safety,
        )

    async def _beat(self, key: Key, count: int) -> None:
        """Not read back: a PLC may well answer a heartbeat by resetting it."""
        deadline = self._clock.mono() + WRITE_PATIENCE
        try:
            await self._write(key, count, source=HEARTBEAT, deadline=deadline, safety=True)
        except Exception:
            log.exception("writing the heartbeat %s failed; this is a fault of the program", "/".join(key))


def _goes_on(runner: _Runner, before: Config, after: Config) -> bool:
    """Whether a loop can live on with another configuration; its new parameters are taken where it can."""
    loop = runner.loop.config
    wanted = after.loops.get(loop.name)
    if wanted is None:
        return False
    keys = {loop.pv, loop.out, *loop.interlock}
    keys |= {loop.heartbeat.tag} if loop.heartbeat else set()
    keys |= {loop.setpoint} if isinstance(loop.setpoint, tuple) else set()
    keys |= {loop.feed_forward.tag} if loop.feed_forward else set()
    for device, tag in keys:
        found = after.devices.get(device)
        if found is None or tag not in found.tags or found.tags[tag] != before.devices[device].tags[tag]:
            return False
        same = dataclasses.replace(found, tags={}) == dataclasses.replace(before.devices[device], tags={})
        if not same:
            return False
    return runner.loop.set_parameters(wanted) is None


def _keep(tasks: set[asyncio.Task[None]], job: Coroutine[Any, Any, None]) -> None:
    """Starts a task and holds on to it until it is done."""
    task = asyncio.get_running_loop().create_task(job)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _tick_every(loops: Iterable[LoopConfig]) -> float:
    """Seconds between ticks: some in each step of the fastest loop."""
    fastest = min((loop.every for loop in loops), default=math.inf) / TICKS_PER_STEP
    return min(max(fastest, SHORTEST_TICK), LONGEST_TICK)


def _beats(tag: Tag) -> tuple[int, int]:
    """Lowest and highest count that the heartbeat's register takes."""
    low, high = 0, min(HIGHEST_BEAT, math.floor(HIGHEST_BEAT * abs(tag.scale) + tag.offset))
    if tag.write is not None and tag.write.range is not None:
        low, high = max(low, math.ceil(tag.write.range[0])), min(high, math.floor(tag.write.range[1]))
    return low, max(low, high)


def _note_lateness(runner: _Runner, now: float) -> None:
    every = runner.loop.config.every
    if runner.last_step is not None:
        late = now - runner.last_step - every
        runner.overruns += late >= every
        runner.late.append(max(late, 0.0))
    runner.last_step = now


def _outlook(loop: Loop, inputs: Inputs, config: Config) -> dict[str, Any]:
    """What an operator should know before a test of the loop."""
    return {
        **loop_body(loop.view()),
        "now": inputs.out.value if inputs.out.good else None,
        "every": config.tag(loop.config.pv).every,
        "on_loss": config.devices[loop.config.out[0]].on_loss,
    }


def _status(runner: _Runner) -> dict[str, Any]:
    return {
        **loop_body(runner.loop.view()),
        "steps": runner.loop.steps,
        "overruns": runner.overruns,
        "late_ms": spread(runner.late),
        "step_ms": spread(runner.took),
    }

"""The plant side of the agent: lines, twin, forecasts, health and loops, and another configuration taking their place.

What a new configuration leaves as it was goes on: its connections, grids, values, models, loops and counters.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from agent.config.types import Config, Device
from agent.modbus.line import Line, ScanDone
from agent.modbus.plan import NOTHING_LEARNT, Learnt, Request, plan_device
from agent.predict.health import Health
from agent.predict.predictor import for_config
from agent.runtime import state
from agent.runtime.clock import Clock
from agent.runtime.loops import Loops
from agent.runtime.pipeline import Later, Pipeline
from agent.runtime.writer import Writer
from agent.statefile import read_or_set_aside, write_atomic
from agent.twin.history import History
from agent.twin.layout import build_layout
from agent.twin.records import Event, Key, Outcome, Row, Snapshot
from agent.twin.table import Twin

log = logging.getLogger("edgetwin")

SCANS_WITHIN = 30.0
"""Seconds within which a scan of each device must have ended, or three of its shortest periods where that is longer."""
TICKS_WITHIN = 10.0
"""The same for the loops' ticks."""

State = tuple[bytes | None, bytes | None, dict[str, Any]]
"""Models, commissionings that are not finished, and counters as they are written to disk."""


class Plant:
    """Everything between the wire and the cloud's queue. `sink` gets each row of readings and must not block.

    on_scan: told the device whose scan is over, once its rows went to `sink`.
    later: runs a job in the main loop after so many seconds: see Pipeline.

    Only for the main loop's thread, but for `write_state`.
    """

    def __init__(
        self,
        config: Config,
        *,
        state_dir: Path,
        clock: Clock,
        sink: Callable[[Row], None],
        on_event: Callable[[Event], None],
        on_scan: Callable[[str], None] = lambda device: None,
        later: Later | None = None,
    ) -> None:
        self.config = config
        self._tell_scan = on_scan
        self._later = later
        self._ended = dict.fromkeys(config.devices, clock.mono())  # device -> when a scan of it ended last
        self._state_dir = state_dir
        self._saving = threading.Lock()
        self._clock = clock
        self._sink = sink
        self._on_event = on_event
        self.learnt = state.load_learnt(config, state.load_json(state_dir, state.LEARNT))
        self._lay_out(state.load_json(state_dir, state.COUNTERS))
        self._build_predictor()
        if self.predictor is not None:
            read_or_set_aside(state_dir / state.MODELS, self.predictor.restore)
        if self.health is not None:
            read_or_set_aside(state_dir / state.COMMISSIONING, self.health.restore)
        self.lines = [self._line(devices) for devices in by_url(config).values()]
        self.writer = Writer(config, self.twin, self.line_of, clock, on_event)
        self.loops = Loops(
            config,
            twin=self.twin,
            write=self.writer.write,
            forecast=self._ahead,
            clock=clock,
            on_event=on_event,
            on_change=self._on_loops,
        )
        self.loops.restore(state.load_json(state_dir, state.LOOPS))
        self._kept_loops = self.loops.save()
        self.pipeline = self._make_pipeline()

    @property
    def line_of(self) -> dict[str, Line]:
        """Device -> its line."""
        return {device: line for line in self.lines for device in line.devices}

    def _lay_out(self, counters: dict[str, Any]) -> None:
        self.layout = build_layout(self.config)
        self.twin = Twin(self.layout)
        self.history = History(len(self.layout.keys))
        self.counters = state.make_counters(self.config, counters)

    def _build_predictor(self) -> None:
        self.predictor = for_config(self.config)
        keys = () if self.predictor is None else self.predictor.keys
        self.slots: dict[Key, int] = {key: slot for slot, key in enumerate(keys)}
        self._forecast_rows = np.array([self.layout.row[key] for key in keys], dtype=np.int64)
        self.health = None if self.predictor is None else Health(self.config, keys, self.predictor)

    def _plan(self, device: Device) -> tuple[Request, ...]:
        return plan_device(device, self.learnt.get(device.name, NOTHING_LEARNT), cautious=True)

    def _line(self, devices: tuple[Device, ...]) -> Line:
        return Line(
            devices[0].url,
            devices,
            {device.name: self._plan(device) for device in devices},
            clock=self._clock,
            on_reply=lambda request, reply: self.pipeline.on_reply(request, reply),
            on_scan=self._on_scan,
            on_event=self._on_event,
            rng=random.Random(),
            learnt=self.learnt,
            on_learnt=self._on_learnt,
            on_placed=lambda device: self.pipeline.placed(device),
        )

    def _make_pipeline(self) -> Pipeline:
        pipeline = Pipeline(
            self.config,
            self.twin,
            predictor=self.predictor,
            slots=self.slots,
            health=self.health,
            loops=self.loops,
            history=self.history,
            counters=self.counters,
            sink=self._sink,
            on_event=self._on_event,
            later=self._later,
        )
        for device in self._placed().values():
            pipeline.placed(device)
        return pipeline

    def _placed(self) -> dict[str, Device]:
        """The devices with their tags where they are now."""
        return {name: one.device for line in self.lines for name, one in line.placements.items()}

    # -- what the rooms call ------------------------------------------------------------------------------------

    def _on_scan(self, done: ScanDone) -> None:
        self._ended[done.device] = done.finished
        self.pipeline.on_scan(done)
        self._tell_scan(done.device)

    def _on_learnt(self, device: str, learnt: Learnt) -> None:
        """Kept at once, by a thread: it happens seldom, and took the device's time to find out."""
        self.learnt[device] = learnt
        content = state.dump_learnt(self._placed(), self.learnt)
        asyncio.get_running_loop().run_in_executor(None, self._save_json, state.LEARNT, content)

    def _on_loops(self, kept: dict[str, Any]) -> None:
        """Kept at once, by a thread: what a person set must outlive a kill."""
        self._kept_loops = kept
        asyncio.get_running_loop().run_in_executor(None, self._save_loops)

    def _save_loops(self) -> None:
        """The newest, whichever thread comes last: two could end in another order than they began."""
        with self._saving:
            self._save_json(state.LOOPS, self._kept_loops)

    def _ahead(self, key: Key) -> Any:
        slot = self.slots.get(key)
        return None if slot is None or self.predictor is None else self.predictor.ahead(slot)

    def relearn(self, device: str) -> Outcome:
        """Begins the commissioning of a device's health anew, and writes that down at once, in a thread."""
        events = None if self.health is None else self.health.relearn(device, self._clock.mono())
        if self.health is None or events is None:
            return Outcome(False, error=f"device {device!r} has no health score: nothing of it is forecast")
        log.info("the health reference of %s is set anew", device)
        for event in events:
            self._on_event(event)
        asyncio.get_running_loop().run_in_executor(None, self.write_state, *self.state())
        tags = list(self.health.views()[device].tags)
        result = {"device": device, "tags": tags, "warmup": self.health.warmup(device)}
        return Outcome(True, applied=True, result=result)

    # -- what is shown ------------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> Snapshot:
        """A frozen copy of all of it for other threads."""
        self.pipeline.take_gathered()
        states: dict[str, str] = {}
        for line in self.lines:
            states |= line.device_states()
        return self.twin.snapshot(
            now,
            states=states,
            health={} if self.health is None else self.health.views(),
            loops=self.loops.views(),
            loops_of=loops_of(self.config),
            forecasts=None if self.predictor is None else self.predictor.forecasts(self._forecast_rows),
        )

    def status(self) -> dict[str, Any]:
        """The parts of `edgetwin status --json` that tell of the plant."""
        scans: dict[str, Any] = {}
        for line in self.lines:
            scans |= line.scans()
        return {
            "lines": {line.url.text: line.status() for line in self.lines},
            "scans": scans,
            "loops": self.loops.status(),
            "counts": {
                "values_read": self.pipeline.values_read,
                "values_bad": self.pipeline.values_bad,
                "forecasts": 0 if self.predictor is None else self.predictor.made,
            },
            "forecasts": {} if self.predictor is None else self.predictor.scores(),
        }

    def hung(self, now: float) -> str | None:
        """What does not turn any more, in words; None while everything does.

        A scan whose requests all failed has ended; one that never ends is a fault of the program.
        """
        for device in self.config.devices.values():
            fastest = min((tag.every for tag in device.tags.values()), default=math.inf)
            since = now - self._ended[device.name]
            if since > max(SCANS_WITHIN, 3 * fastest):
                return f"no scan of {device.name} has ended for {since:.0f} s"
        since = now - self.loops.ticked
        if self.config.loops and since > TICKS_WITHIN:
            return f"the loops have not turned for {since:.0f} s"
        return None

    # -- what outlives the process ------------------------------------------------------------------------------

    def state(self) -> State:
        """What `write_state` takes; quick."""
        models = None if self.predictor is None else self.predictor.save()
        commissioning = None if self.health is None else self.health.save()
        self._kept_loops = self.loops.save()
        return models, commissioning, state.dump_counters(self.counters)

    def write_state(
        self,
        models: bytes | None,
        commissioning: bytes | None,
        counters: dict[str, Any],
    ) -> None:
        """Writes what `state` gave, and the loops; a full or broken disk is told, not fatal. Runs in a thread."""
        try:
            for name, content in ((state.MODELS, models), (state.COMMISSIONING, commissioning)):
                if content is not None:
                    write_atomic(self._state_dir / name, content)
        except OSError as error:
            log.error("the models cannot be written to %s: %s", self._state_dir, error.strerror or error)
        self._save_loops()
        self._save_json(state.COUNTERS, counters)

    def _save_json(self, name: str, content: dict[str, Any]) -> None:
        try:
            state.save_json(self._state_dir, name, content)
        except OSError as error:
            log.error("%s cannot be written to %s: %s", name, self._state_dir, error.strerror or error)

    # -- another configuration ----------------------------------------------------------------------------------

    async def change(self, config: Config, start: Callable[[Line], None]) -> set[str]:
        """Takes another configuration while it runs; `start` is called with each line that is new.

        Returns the names of the loops that ended.

        Loops that go, or cannot go on, reach their stop value first. Lines whose devices changed stand still between
        two requests, or are closed where the connection itself is another. The rest is one step of the main loop: no
        reading falls between the old and the new.
        """
        ended = await self.loops.end_for(config)
        wanted = by_url(config)
        gone = [line for line in self.lines if not line.takes(wanted.get(line.url.text, ()))]
        held = [
            line
            for line in self.lines
            if line not in gone and tuple(line.devices.values()) != wanted[line.url.text]
        ]
        await asyncio.gather(*(line.close() for line in gone), *(line.pause.hold() for line in held))
        try:
            new = self._switch(config, wanted, gone, held)
        finally:
            for line in held:
                line.pause.release()
        for line in new:
            start(line)
        return ended

    def _switch(
        self,
        config: Config,
        wanted: Mapping[str, tuple[Device, ...]],
        gone: Sequence[Line],
        held: Sequence[Line],
    ) -> list[Line]:
        """From one configuration to the next at once; returns the lines that are new and do not run yet."""
        before, self.config = self.config, config
        changed = {name for name, device in config.devices.items() if before.devices.get(name) != device}
        self._ended |= dict.fromkeys(changed, self._clock.mono())
        if (before.devices, before.predict, before.health) != (config.devices, config.predict, config.health):
            self._change_tables(before)
        kept = {line.url.text: line for line in self.lines if line not in gone}
        new = [self._line(devices) for url, devices in wanted.items() if url not in kept]
        made = {line.url.text: line for line in new} | kept
        self.lines = [made[url] for url in wanted]
        for line in held:
            devices = wanted[line.url.text]
            line.change(devices, changed, {one.name: self._plan(one) for one in devices}, self.learnt)
        self.writer.change(config, self.twin, self.line_of)
        self.loops.change(config, self.twin)
        pipeline = self._make_pipeline()
        pipeline.values_read, pipeline.values_bad = self.pipeline.values_read, self.pipeline.values_bad
        self.pipeline = pipeline
        return new

    def _change_tables(self, before: Config) -> None:
        """Tables and models for the new configuration; what both have goes on with its values."""
        self.pipeline.settle()
        twin, history, predictor, health = self.twin, self.history, self.predictor, self.health
        self.learnt = state.load_learnt(self.config, state.dump_learnt(before.devices, self.learnt))
        self._lay_out(state.dump_counters(self.counters))
        rows = self.twin.go_on(twin)
        self.history.go_on(history, rows)
        self._build_predictor()
        if self.predictor is not None and predictor is not None:
            self.predictor.go_on(predictor)
            if self.health is not None and health is not None:
                same = self.config.devices.keys() - changed_devices(before, self.config)
                self.health.go_on(health, same if before.health == self.config.health else ())


def changed_devices(before: Config, after: Config) -> set[str]:
    """Names of the devices of `before` that are gone in `after`, or are another thing there."""
    return {name for name, device in before.devices.items() if after.devices.get(name) != device}


def by_url(config: Config) -> dict[str, tuple[Device, ...]]:
    """URL -> its devices, both in the order of the file."""
    found: dict[str, list[Device]] = {}
    for device in config.devices.values():
        found.setdefault(device.url.text, []).append(device)
    return {url: tuple(devices) for url, devices in found.items()}


@functools.lru_cache(maxsize=1)
def _loops_of(pairs: tuple[tuple[str, str], ...]) -> MappingProxyType[str, tuple[str, ...]]:
    by_device: dict[str, tuple[str, ...]] = {}
    for device, loop in pairs:
        by_device[device] = (*by_device.get(device, ()), loop)
    return MappingProxyType(by_device)


def loops_of(config: Config) -> MappingProxyType[str, tuple[str, ...]]:
    """Device -> names of the loops that write it."""
    return _loops_of(tuple((loop.out[0], loop.name) for loop in config.loops.values()))

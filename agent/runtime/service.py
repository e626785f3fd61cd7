"""The agent: builds every room from the configuration, lets them run, and ends them in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from agent import RELEASED_MS, __version__, kernelcache
from agent.cloud.worker import Cloud, Superseded
from agent.config.paths import socket_path
from agent.config.secrets import reveal
from agent.config.types import Config
from agent.modbus.line import Line, ScanDone
from agent.modbus.plan import NOTHING_LEARNT, Learnt, Request, plan_device
from agent.page.front import Front
from agent.predict.health import Health
from agent.predict.predictor import for_config
from agent.runtime import notify, state
from agent.runtime.clock import Anchor, Clock, SystemClock
from agent.runtime.doors import Doors
from agent.runtime.loops import Loops
from agent.runtime.pipeline import Pipeline
from agent.runtime.socket import ControlSocket, SocketTaken
from agent.runtime.supervise import Supervisor, TooManyFaults
from agent.runtime.writer import Writer
from agent.statefile import read_or_set_aside, write_atomic
from agent.twin.history import History
from agent.twin.layout import build_layout
from agent.twin.records import Ask, Event, Key, Outcome, Snapshot
from agent.twin.table import Twin

log = logging.getLogger("edgetwin")

SNAPSHOT_EVERY = 1.0
SAVE_EVERY = 86_400.0
STOP_LOOPS, STOP_CLOUD = 3.0, 8.0
FIRST_TRY = 3.0
SCANS_WITHIN = 30.0
"""Seconds within which some scan must have ended, or three of the shortest periods where those are longer."""
EVENTS_KEPT = 200


class Service:
    """One run of the agent with one configuration, from start to end."""

    def __init__(self, config: Config, *, state_dir: Path, clock: Clock | None = None) -> None:
        self.config = config
        self.state_dir = state_dir
        self.clock = clock or SystemClock()
        self.boot = secrets.token_hex(4)
        self.anchor = Anchor(self.clock)
        self.since = self.anchor.ms(self.clock.mono())
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.snapshot: Snapshot | None = None
        self.config_errors: list[str] = []
        self._last_scan = self.clock.mono()
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._build()

    def _build(self) -> None:
        config = self.config
        self.layout = build_layout(config)
        self.twin = Twin(self.layout)
        self.history = History(len(self.layout.keys))
        self.counters = state.make_counters(config, state.load_json(self.state_dir, state.COUNTERS))
        self.learnt = state.load_learnt(config, state.load_json(self.state_dir, state.LEARNT))
        self._build_predictor()
        self.lines = self._build_lines()
        self.line_of = {device: line for line in self.lines for device in line.devices}
        self.writer = Writer(config, self.twin, self.line_of, self.clock, self.on_event)
        self.loops = Loops(
            config,
            twin=self.twin,
            write=self.writer.write,
            forecast=self._ahead,
            clock=self.clock,
            on_event=self.on_event,
        )
        self.loops.restore(state.load_json(self.state_dir, state.LOOPS))
        self.doors = Doors(
            config,
            self.writer,
            self.loops,
            self.clock,
            self.status,
            self.anchor.ms,
            on_local_change=lambda name: self.cloud.put(Superseded(name)),
        )
        self.cloud = Cloud(
            config,
            state_dir=self.state_dir,
            layout=self.layout,
            boot=self.boot,
            clock=self.clock,
            ask=self.ask,
            on_event=self._event_from_outside,
        )
        self.pipeline = Pipeline(
            config,
            self.twin,
            predictor=self.predictor,
            slots=self.slots,
            health=self.health,
            loops=self.loops,
            history=self.history,
            counters=self.counters,
            sink=self.cloud.put,
            on_event=self.on_event,
        )
        self._build_front()

    def _build_front(self) -> None:
        config = self.config
        self.socket = ControlSocket(
            socket_path(config, self.state_dir), config_path=config.path, ask=self.ask, clock=self.clock
        )
        page_token = None if config.page is None or config.page.token is None else reveal(config.page.token)
        self.front = Front(
            page=config.page,
            token=page_token,
            serve_socket=self.socket.serve,
            snapshot=lambda: self.snapshot,
            status=self._status_from_outside,
            events=lambda: tuple(self.events),
            history=self.history.read,
            ask=self.ask,
            anchor_ms=self.anchor.ms,
            clock=self.clock,
            loops=config.loops,
        )

    def _build_predictor(self) -> None:
        self.predictor = for_config(self.config)
        keys = () if self.predictor is None else self.predictor.keys
        self.slots: dict[Key, int] = {key: slot for slot, key in enumerate(keys)}
        self.health: Health | None = None
        if self.predictor is None:
            return
        self._forecast_rows = np.array([self.layout.row[key] for key in keys], dtype=np.int64)
        self.health = Health(self.config, keys, self.predictor)
        read_or_set_aside(self.state_dir / state.MODELS, self.predictor.restore)

    def _build_lines(self) -> list[Line]:
        by_url: dict[str, list[str]] = {}
        for device in self.config.devices.values():
            by_url.setdefault(device.url.text, []).append(device.name)
        lines = []
        for names in by_url.values():
            devices = [self.config.devices[name] for name in names]
            plans: dict[str, tuple[Request, ...]] = {
                device.name: plan_device(device, self.learnt.get(device.name, NOTHING_LEARNT), cautious=True)
                for device in devices
            }
            lines.append(
                Line(
                    devices[0].url,
                    devices,
                    plans,
                    clock=self.clock,
                    on_reply=lambda request, reply: self.pipeline.on_reply(request, reply),
                    on_scan=self._on_scan,
                    on_event=self.on_event,
                    rng=random.Random(),
                    learnt=self.learnt,
                    on_learnt=self._on_learnt,
                )
            )
        return lines

    # -- what the rooms call ------------------------------------------------------------------------------------

    def _on_scan(self, done: ScanDone) -> None:
        self._last_scan = done.finished
        self.pipeline.on_scan(done)

    def _on_learnt(self, device: str, learnt: Learnt) -> None:
        """Kept at once, by a thread: it happens seldom, and took the device's time to find out."""
        self.learnt[device] = learnt
        content = state.dump_learnt(self.config, self.learnt)
        asyncio.get_running_loop().run_in_executor(None, self._guarded_save, state.LEARNT, content)

    def _guarded_save(self, name: str, content: dict[str, Any]) -> None:
        try:
            state.save_json(self.state_dir, name, content)
        except OSError as error:
            log.error("%s cannot be written to %s: %s", name, self.state_dir, error.strerror or error)

    def on_event(self, event: Event) -> None:
        """Takes an event of the main loop: kept for the page, told to the cloud, logged."""
        self.events.append(event)
        level = {"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.ERROR}[event.severity]
        mark = "" if event.state == "raised" else "cleared: "
        log.log(level if event.state == "raised" else logging.INFO, "%s%s", mark, event.text)
        self.cloud.put(event)

    def _event_from_outside(self, event: Event) -> None:
        """An event of the cloud thread, which publishes it by itself: kept for the page."""
        self.events.append(event)

    def _ahead(self, key: Key) -> Any:
        slot = self.slots.get(key)
        return None if slot is None or self.predictor is None else self.predictor.ahead(slot)

    def ask(self, ask: Ask) -> concurrent.futures.Future[Outcome]:
        """Hands a request from another thread to the main loop."""
        return self._call(self.doors.handle(ask))

    def _call(self, job: Coroutine[Any, Any, Outcome]) -> concurrent.futures.Future[Outcome]:
        if self._asyncio is None or self._asyncio.is_closed():
            job.close()
            refused: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
            refused.set_result(Outcome(False, error="the agent is stopping"))
            return refused
        return asyncio.run_coroutine_threadsafe(job, self._asyncio)

    def _status_from_outside(self) -> dict[str, Any]:
        async def here() -> Outcome:
            return Outcome(True, result=self.status())

        try:
            outcome = self._call(here()).result(timeout=2.0)
        except concurrent.futures.TimeoutError:
            return {"v": 1, "healthy": False, "problems": ["the main loop does not answer"]}
        return outcome.result or {"v": 1, "healthy": False, "problems": [outcome.error]}

    # -- status -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The body of `edgetwin status --json`."""
        lines = {line.url.text: line.status() for line in self.lines}
        scans: dict[str, Any] = {}
        for line in self.lines:
            scans |= line.scans()
        cloud = self.cloud.status()
        return {
            "v": 1,
            "version": __version__,
            "gateway": self.config.gateway,
            "boot": self.boot,
            "stream": self.cloud.stream,
            "since": self.since,
            "healthy": self.healthy(),
            "problems": self._problems(lines, cloud),
            "clock": "ok" if self.clock.wall() * 1000 >= RELEASED_MS else "unsynced",
            "kernels": kernelcache.backend(),
            "config": {"path": self.config.path, "errors": self.config_errors},
            "lines": lines,
            "scans": scans,
            "loops": self.loops.status(),
            "outbox": cloud["outbox"],
            "uplink": cloud["uplink"],
            "counts": self._counts(),
            "forecasts": {} if self.predictor is None else self.predictor.scores(),
        }

    def _counts(self) -> dict[str, int]:
        return {
            "values_read": self.pipeline.values_read,
            "values_bad": self.pipeline.values_bad,
            "forecasts": 0 if self.predictor is None else self.predictor.made,
        }

    def _problems(self, lines: dict[str, Any], cloud: dict[str, Any]) -> list[str]:
        problems = [f"configuration not taken: {error}" for error in self.config_errors]
        problems += kernelcache.problems()
        for url, line in lines.items():
            if line["state"] == "down":
                problems.append(f"{url}: no connection")
                continue
            problems += [
                f"{name}: {one['state']}" for name, one in line["devices"].items() if one["state"] != "ok"
            ]
        if cloud["uplink"]["state"] != "online":
            problems.append(f"broker: {cloud['uplink']['error'] or cloud['uplink']['state']}")
        problems += [
            f"loop {name}: {view.reason}" for name, view in self.loops.views().items() if view.mode == "fail"
        ]
        return problems

    def healthy(self) -> bool:
        """True while scans finish and the cloud thread lives; dead PLCs and brokers are problems, not ill health."""
        now = self.clock.mono()
        fastest = min((tag.every for tag in self.layout.tags), default=math.inf)
        return self.cloud.alive(now) and now - self._last_scan < max(SCANS_WITHIN, 3 * fastest)

    # -- life ---------------------------------------------------------------------------------------------------

    def retune(self, config: Config) -> bool:
        """Takes a configuration that differs in parameters of loops alone, without a bump.

        False, with nothing lost, where anything else differs: then the service has to start anew.
        """
        same = dataclasses.replace(config, loops=self.config.loops) == self.config
        if not same or config.loops.keys() != self.config.loops.keys() or self.loops.retune(config.loops):
            return False
        self.config = self.doors.config = config
        return True

    async def run(self, stop: asyncio.Event) -> int:
        """Runs until `stop` is set; returns the exit status (1 when the program's own faults came too fast)."""
        self._asyncio = asyncio.get_running_loop()
        self.front.start()
        if isinstance(self.front.socket_error, SocketTaken):  # already logged
            self.front.stop()
            self.cloud.stop(0.0)
            return 1
        self.cloud.start()
        supervisor = Supervisor(self.clock, self.loops.fault)
        jobs: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            **{line.url.text: line.run for line in self.lines},
            "loops": self.loops.run,
            "snapshots": self._snapshots,
            "saving": self._save_daily,
        }
        if notify.watchdog_interval() is not None:
            jobs["watchdog"] = self._watchdog
        tasks = [asyncio.create_task(supervisor.keep(name, job), name=name) for name, job in jobs.items()]
        stopping = asyncio.create_task(stop.wait())
        await self._tell_ready()
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            faults = [task.exception() for task in tasks if task.done() and not task.cancelled()]
            return 1 if any(isinstance(fault, TooManyFaults) for fault in faults) else 0
        finally:
            stopping.cancel()
            await self._end(tasks)

    async def _tell_ready(self) -> None:
        """READY once each line has been tried: an answer or a fault, not success."""
        deadline = self.clock.mono() + FIRST_TRY
        while self.clock.mono() < deadline and not all(line.tried for line in self.lines):
            await asyncio.sleep(0.02)
        notify.ready(f"{len(self.layout.keys)} tags on {len(self.lines)} lines")
        log.info(
            "running: gateway %s, %d devices, %d tags, %d loops",
            self.config.gateway,
            len(self.config.devices),
            len(self.layout.keys),
            len(self.config.loops),
        )

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Loops to their stop value, lines closed, states saved, `offline` published, outbox closed: in this order."""
        notify.stopping()
        try:
            await asyncio.wait_for(self.loops.stop(), STOP_LOOPS)
        except TimeoutError:
            log.warning("not every loop reached its stop value within %.0f s", STOP_LOOPS)
        for line in self.lines:
            await line.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._take_snapshot()
        in_thread = asyncio.get_running_loop().run_in_executor
        await in_thread(None, self._write_state, *self._state())
        await in_thread(None, functools.partial(self.cloud.stop, STOP_CLOUD))
        await in_thread(None, self.front.stop)
        self.socket.remove()
        log.info("stopped")

    def _take_snapshot(self) -> None:
        now = self.clock.mono()
        states: dict[str, str] = {}
        for line in self.lines:
            states |= line.device_states()
        self.snapshot = self.twin.snapshot(
            now,
            states=states,
            health={} if self.health is None else self.health.views(),
            loops=self.loops.views(),
            loops_of=self._loops_of,
            forecasts=None if self.predictor is None else self.predictor.forecasts(self._forecast_rows),
        )
        self.cloud.put(self.snapshot)

    @functools.cached_property
    def _loops_of(self) -> MappingProxyType[str, tuple[str, ...]]:
        by_device: dict[str, tuple[str, ...]] = {}
        for loop in self.config.loops.values():
            by_device[loop.out[0]] = (*by_device.get(loop.out[0], ()), loop.name)
        return MappingProxyType(by_device)

    async def _snapshots(self) -> None:
        every = min(SNAPSHOT_EVERY, self.config.mqtt.twin_every, self.config.mqtt.forecast_every)
        due = self.clock.mono()
        while True:
            now = self.clock.mono()
            moved = self.anchor.refresh()
            if moved:
                log.warning("the clock was set: %+.1f s", moved)
            self.twin.expire(now)
            self._take_snapshot()
            due += every
            if due < now:
                due = now + every
            await asyncio.sleep(due - self.clock.mono())

    async def _watchdog(self) -> None:
        interval = notify.watchdog_interval() or 1.0
        while True:
            if self.healthy():
                notify.watchdog()
            await asyncio.sleep(interval / 3)

    async def _save_daily(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY)
            await asyncio.get_running_loop().run_in_executor(None, self._write_state, *self._state())

    def _state(self) -> tuple[bytes | None, dict[str, Any], dict[str, Any]]:
        models = None if self.predictor is None else self.predictor.save()
        return models, self.loops.save(), state.dump_counters(self.counters)

    def _write_state(self, models: bytes | None, loops: dict[str, Any], counters: dict[str, Any]) -> None:
        """Writes what `_state` gave; a full or broken disk is told, not fatal. Runs in a thread of its own."""
        try:
            if models is not None:
                write_atomic(self.state_dir / state.MODELS, models)
        except OSError as error:
            log.error("the models cannot be written to %s: %s", self.state_dir, error.strerror or error)
        self._guarded_save(state.LOOPS, loops)
        self._guarded_save(state.COUNTERS, counters)

"""The agent: builds every room from the configuration, lets them run, and ends them in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import re
import secrets
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from agent import RELEASED_MS, __version__, kernelcache
from agent.cloud.batch import Rhythm
from agent.cloud.store import Store
from agent.cloud.worker import Cloud, Reconfigured, Superseded
from agent.config.paths import socket_path
from agent.config.secrets import reveal
from agent.config.types import Config, Secret
from agent.modbus.line import Line
from agent.page.front import Front
from agent.runtime import notify
from agent.runtime.calm import Calm
from agent.runtime.clock import Anchor, Clock, SystemClock
from agent.runtime.doors import Doors
from agent.runtime.plant import Plant, changed_devices
from agent.runtime.socket import ControlSocket, SocketTaken
from agent.runtime.supervise import Supervisor, TooManyFaults
from agent.twin.records import Ask, Ended, Event, Outcome, Row, Snapshot

log = logging.getLogger("edgetwin")

SNAPSHOT_EVERY = 1.0
SAVE_EVERY = 86_400.0
STOP_LOOPS, STOP_CLOUD = 3.0, 8.0
REPLACE_CLOUD = 0.25
"""Of `outbox.batch`: how long a link that another one replaces waits for acknowledgements. Rows wait in memory so long,
and a kill may cost one `outbox.batch`, half of which passes before what is not acknowledged goes to disk."""
LINGER = 0.05
"""Seconds that a batch may wait for those of other devices: each time that the cloud thread is woken costs as much."""
FIRST_TRY = 3.0
EVENTS_KEPT = 200
CLOUD_PARTS = ("gateway", "mqtt", "commands")
"""What of a configuration takes another link to the broker; the rest it takes while it runs."""
LOOP_ALARM = re.compile(r"loop_[a-z]+_(.+)")


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
        self._alarms: dict[tuple[str | None, str], Event] = {}
        self._cloud_alarms: dict[str, str] = {}
        self._held: list[Row | Ended | Snapshot | Event | Superseded | Reconfigured] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._rhythm = Rhythm()
        self._calm = Calm()
        self._scanned: list[str] = []
        self._failed = 0
        self._changing = asyncio.Lock()
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._build()

    def _build(self) -> None:
        self.plant = Plant(
            self.config,
            state_dir=self.state_dir,
            clock=self.clock,
            sink=self._to_cloud,
            on_event=self.on_event,
            on_scan=self._on_scan,
            later=self._later,
        )
        self.cloud = self._make_cloud()
        self.doors = Doors(
            self.config,
            self.plant.writer,
            self.plant.loops,
            self.clock,
            self.status,
            self.anchor.ms,
            on_local_change=lambda name: self._to_cloud(Superseded(name)),
            relearn=lambda device: self.plant.relearn(device),
        )
        self._make_front()

    def _make_cloud(self, left: Store | None = None) -> Cloud:
        return Cloud(
            self.config,
            state_dir=self.state_dir,
            layout=self.plant.layout,
            boot=self.boot,
            clock=self.clock,
            ask=self.ask,
            on_event=self._event_from_outside,
            left=left,
        )

    def _to_cloud(self, item: Row | Ended | Snapshot | Event | Superseded | Reconfigured) -> None:
        if self._held is None:
            self.cloud.put(item)
        else:
            self._held.append(item)

    def _make_front(self) -> None:
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
            history=lambda row: self.plant.history.read(row),
            ask=self.ask,
            anchor_ms=self.anchor.ms,
            clock=self.clock,
            loops=lambda: self.config.loops,
        )

    # -- what the rooms call ------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Takes an event of the main loop: kept for the page, told to the cloud, logged."""
        self.events.append(event)
        level = {"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.ERROR}[event.severity]
        text = event.text if event.state == "raised" else f"cleared: {event.text}"
        if self._calm.admits((event.device, event.name, event.tag), text, self.clock.mono()):
            log.log(level if event.state == "raised" else logging.INFO, "%s", text)
        if event.alarm:
            self._alarms.pop((event.device, event.name), None)
            if event.state == "raised":
                self._alarms[(event.device, event.name)] = event
        self._to_cloud(event)

    def _event_from_outside(self, event: Event) -> None:
        """An event of the cloud thread, which publishes it by itself: kept for the page and, an alarm, the status."""
        self.events.append(event)
        if event.alarm:
            others = {name: text for name, text in self._cloud_alarms.items() if name != event.name}
            raised = {event.name: event.text} if event.state == "raised" else {}
            self._cloud_alarms = others | raised  # another one, for the main loop reads it meanwhile

    def _on_scan(self, device: str) -> None:
        """Where the scan ends a batch: tells the cloud, together with the scans that end within `LINGER`."""
        if self._rhythm.ends(device, self.clock.mono(), self.config.mqtt.batch):
            self._scanned.append(device)
            if len(self._scanned) == 1:
                self._later(LINGER, self._tell_ended)

    def _tell_ended(self) -> None:
        ended, self._scanned = tuple(self._scanned), []
        self._to_cloud(Ended(ended))

    def ask(self, ask: Ask) -> concurrent.futures.Future[Outcome]:
        """Hands a request from another thread to the main loop."""
        return self._call(self.doors.handle(ask))

    def _later(self, seconds: float, job: Callable[[], None]) -> None:
        """Runs a job in the main loop after so many seconds; at once while there is none."""
        if self._asyncio is None:
            job()
        else:
            self._asyncio.call_later(seconds, job)

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
        plant = self.plant.status()
        cloud = self.cloud.status()
        return {
            "v": 1,
            "version": __version__,
            "gateway": self.config.gateway,
            "boot": self.boot,
            "stream": self.cloud.stream,
            "since": self.since,
            "healthy": self.healthy(),
            "problems": self._problems(plant["lines"], cloud),
            "clock": "ok" if self.clock.wall() * 1000 >= RELEASED_MS else "unsynced",
            "kernels": kernelcache.backend(),
            "config": {"path": self.config.path, "errors": self.config_errors},
            **plant,
            "outbox": cloud["outbox"],
            "uplink": cloud["uplink"],
        }

    def _problems(self, lines: dict[str, Any], cloud: dict[str, Any]) -> list[str]:
        problems = [f"configuration not taken: {error}" for error in self.config_errors]
        hung = self._hung()
        problems += [] if hung is None else [hung]
        problems += kernelcache.problems()
        problems += [] if self.front.page_error is None else [self.front.page_error]
        for url, line in lines.items():
            if line["state"] == "down":
                problems.append(f"{url}: no connection")
                continue
            problems += [
                f"{name}: {one.get('problem', one['state'])}"
                for name, one in line["devices"].items()
                if one["state"] != "ok"
            ]
        uplink = cloud["uplink"]
        if uplink["state"] != "online" or uplink["error"]:
            problems.append(f"broker: {uplink['error'] or uplink['state']}")
        problems += list(self._cloud_alarms.values())
        problems += [
            f"loop {name}: {view.reason}"
            for name, view in self.plant.loops.views().items()
            if view.mode == "fail"
        ]
        return problems

    def healthy(self) -> bool:
        """True while scans end, loops tick and the cloud thread lives; a dead PLC or broker is another problem."""
        return self._hung() is None

    def _hung(self) -> str | None:
        """What does not turn any more, in words: then the watchdog is not fed."""
        now = self.clock.mono()
        if self._held is None and not self.cloud.alive(now):
            return "the cloud thread does not turn any more"
        return self.plant.hung(now)

    # -- life ---------------------------------------------------------------------------------------------------

    async def change(self, config: Config) -> list[str]:
        """Takes another configuration while it runs, and touches only what differs; returns what that was, in words.

        Raises SecretProblem, with nothing changed, where a secret of the new one cannot be read.
        """
        for secret in secrets_of(config):
            reveal(secret)
        async with self._changing:
            return await self._change(config)

    async def _change(self, config: Config) -> list[str]:
        before = self.config
        touched = changes(before, config)
        gone = changed_devices(before, config)
        self.config = self.doors.config = config
        self._clear_alarms(before, devices=gone)
        ended = await self.plant.change(config, self._start_line)
        self._clear_alarms(before, loops=ended)
        if any(getattr(before, part) != getattr(config, part) for part in CLOUD_PARTS):
            await self._replace_cloud(min(before.mqtt.outbox.batch, config.mqtt.outbox.batch))
        else:
            self._to_cloud(Reconfigured(config, self.plant.layout))
        if before.page != config.page:
            await self._replace_front()
        self._take_snapshot()
        return touched

    def _clear_alarms(
        self, before: Config, *, devices: Collection[str] = (), loops: Collection[str] = ()
    ) -> None:
        """What was raised by something that is no more, or starts anew; it is raised again where it still holds."""
        for (device, _), event in list(self._alarms.items()):
            of_loop = LOOP_ALARM.fullmatch(event.name)
            over = of_loop[1] in loops if of_loop and of_loop[1] in before.loops else device in devices
            if over:
                text = f"{event.text}: no more, the configuration changed"
                self.on_event(dataclasses.replace(event, state="cleared", text=text, t=self.clock.mono()))

    async def _replace_cloud(self, span: float) -> None:
        """Another link: the old one says goodbye and leaves its outbox; what comes meanwhile waits.

        `span`: `outbox.batch`, s.
        """
        in_thread = asyncio.get_running_loop().run_in_executor
        self._held = []
        old = self.cloud
        await in_thread(None, functools.partial(old.stop, min(STOP_CLOUD, REPLACE_CLOUD * span), leave=True))
        self._cloud_alarms = {}  # the new one tells what still holds
        self.cloud = await in_thread(None, self._make_cloud, old.left)
        self.cloud.go_on(old)
        self.cloud.start()
        held, self._held = self._held, None
        for item in held:
            self.cloud.put(item)

    async def _replace_front(self) -> None:
        in_thread = asyncio.get_running_loop().run_in_executor
        await in_thread(None, self.front.stop)
        self._make_front()
        await in_thread(None, self.front.start)

    async def run(self, stop: asyncio.Event) -> int:
        """Runs until `stop` is set; returns the exit status (1 when the program's own faults came too fast)."""
        self._asyncio = asyncio.get_running_loop()
        self.front.start()
        if isinstance(self.front.socket_error, SocketTaken):  # already logged
            self.front.stop()
            self.cloud.stop(0.0)
            return 1
        self.cloud.start()
        self._stop = stop
        self._supervisor = Supervisor(self.clock, self.plant.loops.fault)
        for line in self.plant.lines:
            self._start_line(line)
        self._start("loops", self.plant.loops.run)
        self._start("snapshots", self._snapshots)
        self._start("saving", self._save_daily)
        if notify.watchdog_interval() is not None:
            self._start("watchdog", self._watchdog)
        await self._tell_ready()
        try:
            await stop.wait()
            return self._failed
        finally:
            with contextlib.suppress(TimeoutError):  # a change under way has to come to its end first
                await asyncio.wait_for(self._changing.acquire(), STOP_CLOUD)
            await self._end()

    def give_up(self) -> None:
        """Ends the run with status 1, for systemd to start it anew: after a fault that left it half changed."""
        self._failed = 1
        self._stop.set()

    def _start_line(self, line: Line) -> None:
        self._start(line.url.text, line.run)

    def _start(self, name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(self._supervisor.keep(name, job), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A line that was closed ends; a task that failed too often ends everything."""
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), TooManyFaults):
            self.give_up()

    async def _tell_ready(self) -> None:
        """READY once each line has been tried: an answer or a fault, not success."""
        deadline = self.clock.mono() + FIRST_TRY
        while self.clock.mono() < deadline and not all(line.tried for line in self.plant.lines):
            await asyncio.sleep(0.02)
        notify.ready(f"{len(self.plant.layout.keys)} tags on {len(self.plant.lines)} lines")
        log.info(
            "running: gateway %s, %d devices, %d tags, %d loops",
            self.config.gateway,
            len(self.config.devices),
            len(self.plant.layout.keys),
            len(self.config.loops),
        )

    async def _end(self) -> None:
        """Loops to their stop value, lines closed, states saved, `offline` published, outbox closed: in this order."""
        notify.stopping()
        try:
            await asyncio.wait_for(self.plant.loops.stop(), STOP_LOOPS)
        except TimeoutError:
            log.warning("not every loop reached its stop value within %.0f s", STOP_LOOPS)
        for line in self.plant.lines:
            await line.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._take_snapshot()
        in_thread = asyncio.get_running_loop().run_in_executor
        await in_thread(None, self.plant.write_state, *self.plant.state())
        await in_thread(None, functools.partial(self.cloud.stop, STOP_CLOUD))
        await in_thread(None, self.front.stop)
        self.socket.remove()
        log.info("stopped")

    def _take_snapshot(self) -> None:
        self.snapshot = self.plant.snapshot(self.clock.mono())
        self._to_cloud(self.snapshot)

    async def _snapshots(self) -> None:
        due = self.clock.mono()
        while True:
            every = min(SNAPSHOT_EVERY, self.config.mqtt.twin_every, self.config.mqtt.forecast_every)
            now = self.clock.mono()
            moved = self.anchor.refresh()
            if moved:
                log.warning("the clock was set: %+.1f s", moved)
            for line in self._calm.due(now):
                log.warning("%s", line)
            self.plant.twin.expire(now)
            self._take_snapshot()
            due += every
            if due < now:
                due = now + every
            await asyncio.sleep(due - self.clock.mono())

    async def _watchdog(self) -> None:
        interval = notify.watchdog_interval() or 1.0
        told = None
        while True:
            hung = self._hung()
            if hung is None:
                notify.watchdog()
            elif hung != told:
                log.error("%s; this is a fault of the program; the watchdog will end it", hung)
            told = hung
            await asyncio.sleep(interval / 3)

    async def _save_daily(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY)
            await asyncio.get_running_loop().run_in_executor(
                None, self.plant.write_state, *self.plant.state()
            )


def secrets_of(config: Config) -> list[Secret]:
    """Every secret that a configuration names."""
    found = [config.mqtt.password, config.commands.hmac, None if config.page is None else config.page.token]
    return [secret for secret in found if secret is not None]


def changes(before: Config, after: Config) -> list[str]:
    """What differs between two configurations, in words for the log."""
    words = []
    for kind, old, new in (("device", before.devices, after.devices), ("loop", before.loops, after.loops)):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        words += [f"{kind} {name}" for name in names]
    parts = ("gateway", "mqtt", "commands", "page", "predict", "health", "log_level", "state_dir")
    return words + [part for part in parts if getattr(before, part) != getattr(after, part)]

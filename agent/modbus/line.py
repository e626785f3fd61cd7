"""The owner of one line or host: one task that sends one request at a time.

Order of work: writes and reads that somebody waits for, due scans, then what fits into the time left: slow units,
silent units, requests that failed and are worth another try, learning what a device refuses.

Because one request follows another and each reply is handed on before the next request leaves, a value that was read
before a write can never arrive after it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from agent.config.types import Device, Url
from agent.modbus.caller import Caller
from agent.modbus.chains import Chains
from agent.modbus.encode import WireWrite
from agent.modbus.faults import ABSENT, BUSY, REFUSED, DeviceFault, LinkFault, exception_words
from agent.modbus.framers import Answer
from agent.modbus.guests import Guests, Heard
from agent.modbus.jobs import Job, Jobs
from agent.modbus.keeper import Connection, Keeper
from agent.modbus.lessons import Lessons
from agent.modbus.link import Link, link_settings
from agent.modbus.meter import Meter
from agent.modbus.pause import Pause
from agent.modbus.plan import Learnt, Request
from agent.modbus.replies import Reply as Reply
from agent.modbus.replies import ScanDone as ScanDone
from agent.modbus.replies import failed, reply_of
from agent.modbus.report import Report
from agent.modbus.schedule import BUSY_RETRY, Run, Schedule, Unit
from agent.modbus.sunspec import Placement
from agent.modbus.teller import Teller
from agent.runtime.clock import Clock
from agent.twin.quality import Quality
from agent.twin.records import Event

REST_AHEAD = 0.05
"""With close_after_poll the connection stays up when it is needed again sooner than this, in seconds."""

MOVED = "the addresses of {} are others now, as its SunSpec chain says: ask again"


class Line:
    """All devices of one URL. `run` is its life; the callbacks are called in its task and must not block.

    `learnt` is what earlier runs found out about devices; `on_learnt(device, learnt)` is called when more is known;
    `on_placed(device)` when tags have the addresses that the device's own chain gives, before any reply by them.
    """

    def __init__(
        self,
        url: Url,
        devices: Sequence[Device],
        plans: Mapping[str, tuple[Request, ...]],
        *,
        clock: Clock,
        on_reply: Callable[[Request, Reply], None],
        on_scan: Callable[[ScanDone], None],
        on_event: Callable[[Event], None],
        rng: random.Random,
        learnt: Mapping[str, Learnt] | None = None,
        on_learnt: Callable[[str, Learnt], None] | None = None,
        on_placed: Callable[[Device], None] | None = None,
        link: Connection | None = None,
    ) -> None:
        self.url = url
        self.devices: Mapping[str, Device] = {device.name: device for device in devices}
        self.tried = False
        self._clock = clock
        self._on_reply = on_reply
        self._on_scan = on_scan
        self._teller = Teller(tuple(self.devices), clock=clock, on_event=on_event)
        self._schedule = Schedule(devices, plans, rng=rng)
        self._lessons = Lessons(
            devices, self._schedule, self._teller, learnt=learnt or {}, on_learnt=on_learnt
        )
        self._chains = Chains(devices, self._schedule, self._lessons, self._teller)
        self.placements: Mapping[str, Placement] = self._chains.placements
        self._on_placed = on_placed
        self._meter = Meter()
        self._wake = asyncio.Event()
        self._jobs = Jobs(added=self._wake.set)
        self.pause = Pause(self._wake.set)
        self._closing = False
        self._rests = any(device.limits.close_after_poll for device in devices)
        connection = link or Link(
            url,
            clock=clock,
            on_lost=self.lost,
            on_late=self.late,
            **link_settings(devices),
        )
        self._keeper = Keeper(
            connection, clock=clock, rng=rng, changed=self._wake.set, back=lambda: self._caller.back()
        )
        self._caller = Caller(
            self._schedule,
            self._keeper,
            self._meter,
            self._teller,
            self._lessons,
            clock=clock,
            numbered=url.scheme in ("tcp", "tls"),
            on_missed=lambda unit: self._chains.missed(unit, clock.mono()),
            on_gone=lambda: self._chains.gone(clock.mono()),
        )
        self._report = Report(self._meter, self._keeper, self._schedule, self._lessons, self._chains)
        parts = (self._schedule, self._keeper, self._meter)
        self._guests = Guests(url, *parts, clock=clock, added=self._wake.set)

    # -- what others ask ----------------------------------------------------------------------------------------

    async def write(self, device: str, wire: WireWrite, *, deadline: float) -> Reply:
        """Writes before anything else on the line. Two writes are two frames, in the order in which they came.

        Raises LinkFault (no connection, or no right answer; past `deadline`, monotonic, it is not sent any more) or
        DeviceFault. What it returns is the device's confirmation; whether the value took is for a read to show.
        """
        answer = await self._jobs.done(device, deadline, wire=wire)
        if answer.exception is not None:
            raise DeviceFault(answer.exception)
        return Reply(answer.t, answer.rtt, answer.payload, Quality.GOOD)

    async def read(self, requests: Sequence[Request], *, deadline: float) -> list[tuple[Request, Reply]]:
        """Reads on demand, with the priority of a write. A failure is a Reply with a quality; nothing is raised."""
        replies: list[tuple[Request, Reply]] = []
        for request in requests:
            lacking = self._chains.barred(request)
            if lacking is not None:
                replies.append((request, failed(self._clock.mono(), Quality.ILLEGAL, lacking)))
                continue
            try:
                answer = await self._jobs.done(request.device, deadline, request=request)
                replies.append((request, reply_of(answer)))
            except LinkFault as fault:
                replies.append((request, failed(self._clock.mono(), fault.quality, fault.words)))
        return replies

    async def placed(self, device: str, *, deadline: float) -> Placement:
        """Where the device's tags are; its own chain is walked where it is not known. Raises LinkFault."""
        if self._chains.wanted(device, self._clock.mono()):
            await self._jobs.done(device, deadline)
        return self.placements[device]

    async def guest(
        self, number: int, function: int, body: bytes, *, timeout: float, deadline: float
    ) -> Heard:
        """One request to any unit in the line's spare time, of which nothing is concluded. Raises nothing."""
        if self._closing or self._keeper.hopeless:
            words = "the line was closed" if self._closing else self._keeper.words
            return Heard(None, LinkFault(words), unreachable=True)
        return await self._guests.heard(number, function, body, timeout=timeout, deadline=deadline)

    def status(self) -> dict[str, Any]:
        """This line's part of `edgetwin status --json`."""
        return self._report.status(self._clock.mono())

    def scans(self) -> dict[str, Any]:
        """What `status --json` says of this line's scans."""
        return self._report.scans()

    def device_states(self) -> dict[str, str]:
        """Device -> ok, slow, silent, link or degraded (some of its addresses are refused)."""
        return self._report.device_states()

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Polls until it is cancelled or closed. May be called again after it failed."""
        try:
            await self._first_attempt()
            self._schedule.start(self._clock.mono())
            self.pause.turning = True
            while not self._closing:
                if self.pause.wanted:
                    await self.pause.stand()
                else:
                    await self._step()
        finally:
            self.pause.over()
            await self._keeper.close()
            self._fail_jobs("the line was closed")

    async def close(self) -> None:
        """Ends the connection and the run; whoever waits is told."""
        self._closing = True
        self._wake.set()
        await self._keeper.close()
        self._fail_jobs("the line was closed")

    def takes(self, devices: Sequence[Device]) -> bool:
        """Whether other devices can share the connection that there is; False for none at all."""
        return bool(devices) and link_settings(devices) == link_settings(tuple(self.devices.values()))

    def change(
        self,
        devices: Sequence[Device],
        changed: Collection[str],
        plans: Mapping[str, tuple[Request, ...]],
        learnt: Mapping[str, Learnt],
    ) -> None:
        """Takes other devices while it is held; those in `changed` begin anew, the others go on as they were."""
        for name in self.devices.keys() & changed | self.devices.keys() - {device.name for device in devices}:
            self._jobs.moved(name, f"the configuration of {name} has changed: ask again")
        self.devices = {device.name: device for device in devices}
        self._rests = any(device.limits.close_after_poll for device in devices)
        self._schedule.change(devices, changed, plans, self._clock.mono())
        self._teller.change(tuple(self.devices), changed)
        self._lessons.change(devices, changed, learnt)
        self._chains.change(devices, changed)

    async def _first_attempt(self) -> None:
        keeper = self._keeper
        keeper.keep()
        while keeper.attempts and not (keeper.usable or keeper.failures or self._closing):
            await self._sleep_until(keeper.wake_at)
        self._tell_link()
        if keeper.failures or not self._schedule.scans:
            self.tried = True

    async def _step(self) -> None:
        """One request, or a sleep until there is something to do."""
        now = self._clock.mono()
        for run in self._schedule.overtaken(now):
            unit = self._schedule.units[run.scan.device]
            self._fail(run, Quality.TIMEOUT, self._schedule.slow_words(unit, now))
        for run in self._schedule.due(now):
            barred = self._barred(run)
            if barred is not None:
                self._fail(run, *barred)
            else:
                self._skip_refused(run)
        usable = self._keeper.usable
        if not usable and (not self._keeper.resting or self._schedule.active or self._jobs or self._guests):
            self._keeper.keep()
        if not usable or self._teller.down:
            self._tell_link()
        job = self._next_job(now) if self._jobs or not usable else None
        if job is not None:
            await self._do(job)
        elif usable and (turn := self._schedule.pick(now)) is not None:
            await self._advance(turn, self._schedule.units[turn.scan.device].patience)
        elif not (usable and await self._spare(now)):
            await self._idle()

    def _tell_link(self) -> None:
        """What cannot be sent fails at once, and whoever should know of it is told."""
        down = self._keeper.hopeless
        if down:
            self._teller.link_down(self._keeper.words)
            for run in list(self._schedule.active):
                self._fail(run, Quality.LINK, self._keeper.words)
        elif self._keeper.failures == 0 and self._keeper.usable:
            self._teller.link_up(f"{self.url.text}: connected")

    async def _spare(self, now: float) -> bool:
        """What fits into the time that no due scan wants; False when the line has nothing to do."""
        schedule = self._schedule
        slow = schedule.pick_slow(now)
        if slow is not None:
            await self._advance(slow[0], slow[1])
            return True
        silent = schedule.pick_silent(now)
        if silent is not None:
            unit, request, limit = silent
            await self._reread(unit, self._lessons.life_sign(unit, request), limit)
            return True
        owed = schedule.pick_owed(now)
        if owed is not None:
            request, limit = owed
            del schedule.owed[request]
            if self._lessons.barred(request) is None:
                await self._reread(schedule.units[request.device], request, limit)
            return True
        return await self._guests.serve(now) or await self._study(now)

    async def _idle(self) -> None:
        now = self._clock.mono()
        wake = min(self._schedule.next_due(), self._schedule.next_spare(now), self._keeper.wake_at)
        wake = min(
            wake, self._jobs.first_deadline, self._lessons.wanted_after(now), self._guests.wake_at(now)
        )
        waiting = self._schedule.active or self._jobs or self._guests
        if self._rests and not waiting and wake - now > REST_AHEAD:
            self._keeper.rest()
            wake = min(self._schedule.next_due(), self._schedule.next_spare(now))
        await self._sleep_until(wake)

    async def _sleep_until(self, when: float) -> None:
        """Sleeps until `when` (monotonic; inf: for ever) or until something changes."""
        handle = None
        if when != float("inf"):
            delay = max(0.0, when - self._clock.mono())
            handle = asyncio.get_running_loop().call_later(delay, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            self._wake.clear()
            if handle is not None:
                handle.cancel()

    # -- scans --------------------------------------------------------------------------------------------------

    def _barred(self, run: Run) -> tuple[Quality, str] | None:
        """Why a due scan fails without touching the wire, or None."""
        if self._keeper.hopeless:
            return Quality.LINK, self._keeper.words
        unit = self._schedule.units[run.scan.device]
        if unit.demoted:
            return Quality.TIMEOUT, f"{unit.name} does not answer"
        return None

    async def _advance(self, run: Run, timeout: float) -> None:
        """The next request of a pass."""
        now = self._clock.mono()
        if run.started is None:
            run.started = now
            run.scan.late.append(max(0.0, now - run.due))
        request = run.pending[0]
        unit = self._schedule.units[request.device]
        try:
            if self._chains.wanted(unit.name, now):
                await self._walk(unit, timeout)
                run.touched = self._clock.mono()
                return
            answer = await self._caller.read(unit, request, timeout)
        except LinkFault as fault:  # a lost connection ends all passes, a silent unit its own
            for active in list(self._schedule.active):
                if fault.quality is Quality.LINK or active.scan.device == unit.name:
                    self._fail(active, fault.quality, fault.words)
            return
        run.touched = answer.t
        run.pending.popleft()
        self._take(request, reply_of(answer), run)
        if unit.demoted:
            self._fail(run, Quality.TIMEOUT, f"{unit.name} does not answer")
        elif not run.pending:
            self._finish(run)

    def _take(self, request: Request, reply: Reply, run: Run) -> None:
        self.tried = True
        if reply.payload is not None:
            run.ok += 1
            self._schedule.owed.pop(request, None)
        else:
            run.failed += 1
            if reply.exception in BUSY:
                self._schedule.owed[request] = self._clock.mono() + BUSY_RETRY
            elif reply.exception in REFUSED:
                self._lessons.of[request.device].refused(request, self._clock.mono())
        self._on_reply(request, reply)

    def _fail(self, run: Run, quality: Quality, words: str) -> None:
        """Ends a pass: each of its requests that was not answered is told as failed."""
        now = self._clock.mono()
        self.tried = True
        while run.pending:
            request = run.pending.popleft()
            run.failed += 1
            self._schedule.owed[request] = now
            self._on_reply(request, failed(now, quality, words))
        self._finish(run)

    def _finish(self, run: Run) -> None:
        self._schedule.finish(run)
        now = self._clock.mono()
        started = now if run.started is None else run.started
        scan = run.scan
        self._on_scan(ScanDone(scan.device, scan.every, run.k, run.due, started, now, run.ok, run.failed))

    async def _reread(self, unit: Unit, request: Request, limit: float) -> None:
        """A request off the grid, in spare time: proof of life, or what failed at its turn."""
        now = self._clock.mono()
        try:
            if self._chains.wanted(unit.name, now):
                self._schedule.owed[request] = now
                await self._walk(unit, limit)
                return
            if self._chains.barred(request):
                return
            answer = await self._caller.read(unit, request, limit)
        except LinkFault:
            return
        self._schedule.owed.pop(request, None)
        reply = reply_of(answer)
        if reply.payload is not None:
            self._on_reply(request, reply)
        elif reply.exception in BUSY:
            self._schedule.owed[request] = self._clock.mono() + BUSY_RETRY

    # -- learning -----------------------------------------------------------------------------------------------

    def _skip_refused(self, run: Run) -> None:
        """Tags that the device is known to refuse, or whose model its chain lacks, are told so at their turn without
        asking again."""
        now = self._clock.mono()
        if self._chains.wanted(run.scan.device, now):
            return
        for request in list(run.pending):
            lacking = self._chains.barred(request)
            barred = self._lessons.barred(request) or (lacking and (Quality.ILLEGAL, lacking))
            if not barred:
                continue
            run.pending.remove(request)
            run.failed += 1
            self._on_reply(request, failed(now, *barred))
        if not run.pending:
            self._finish(run)

    async def _study(self, now: float) -> bool:
        """One read that shows what a device does not bear, in spare time. False when there is nothing to find out."""
        lesson = self._lessons.next(now)
        if lesson is None:
            return False
        unit, request = lesson.unit, lesson.request
        try:
            trial = lesson.kind == "trial"
            answer = await self._caller.read(unit, request, lesson.limit, trial=trial)
        except LinkFault:
            self._lessons.failed(lesson, self._clock.mono())
            return True
        reply = reply_of(answer)
        if reply.payload is not None and request.tags:
            self._on_reply(request, reply)
        self._lessons.told(lesson, reply, self._clock.mono())
        return True

    # -- one request --------------------------------------------------------------------------------------------

    async def _walk(self, unit: Unit, timeout: float) -> None:
        """One read of the device's own chain; at its end its tags are where it says. Raises LinkFault."""
        name = unit.name
        answer = await self._caller.ask(unit, unit.unit, 3, self._chains.next(name), timeout)
        now = self._clock.mono()
        if answer.exception in BUSY or answer.exception in ABSENT:
            unit.ready_at = max(unit.ready_at, now + BUSY_RETRY)
            raise LinkFault(exception_words(answer.exception or 0), Quality.TIMEOUT)
        end = self._chains.told(name, answer, now)
        if end is not None and end.changed:
            self._jobs.moved(name, MOVED.format(name))
            self._schedule.owe_all(now, name)
            if self._on_placed is not None:
                self._on_placed(self.placements[name].device)
        for run in () if end is None else end.runs:
            self._skip_refused(run)

    def lost(self, words: str) -> None:
        """The other side ended the connection."""
        self._caller.lost(words)

    def late(self, number: int, seconds: float) -> None:
        """A reply came after its request was given up."""
        self._meter.error("late")
        if not self._guests.late(number, self._clock.mono()):
            self._caller.late(number, seconds)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _next_job(self, now: float) -> Job | None:
        """The first job that may be done now."""
        if self._keeper.hopeless:
            self._jobs.fail(self._keeper.words)
            self._guests.fail(self._keeper.words)
        usable = self._keeper.usable
        return self._jobs.take(now, lambda device: usable and self._schedule.may_ask(device, now))

    def _fail_jobs(self, words: str) -> None:
        self._jobs.fail(words, close=self._closing)
        self._guests.fail(words)

    async def _do(self, job: Job) -> None:
        unit = self._schedule.units[job.device]
        timeout = unit.patience
        if unit.demoted or unit.state != "ok":
            timeout = min(timeout, self._schedule.slack(unit.name, self._clock.mono()))
        before = self.placements[unit.name]
        try:
            while self._chains.wanted(unit.name, self._clock.mono()):
                await self._walk(unit, timeout)
            if job.request is None and job.wire is None:
                job.done(Answer(None, None, self._clock.mono(), 0.0))
            elif self.placements[unit.name] is not before:
                job.fail(LinkFault(MOVED.format(unit.name)))
            elif job.request is not None:
                job.done(await self._caller.read(unit, job.request, timeout))
            elif job.wire is not None:
                job.done(await self._caller.write(unit, job.wire, timeout))
        except LinkFault as fault:
            job.fail(fault)
        except asyncio.CancelledError:
            job.fail(LinkFault("the line was closed"))
            raise

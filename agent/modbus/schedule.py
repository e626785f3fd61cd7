"""Who is next on a line: pure bookkeeping of grids, overruns, silent and slow units. No I/O; the time is handed in.

A scan is due at first + k * every, for ever without drift. What comes too late by a period or more is skipped and
counted, never made up for in a burst. A unit that misses one request is out of the schedule at once and is tried in
the time that the others leave, so that its silence costs them nothing.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agent.config.types import Device
from agent.modbus.plan import Request

SPREAD = 1.0
"""Seconds over which the first scans of a line are spread; later than that nobody wants to wait for a first value."""
MARGIN = 0.003
"""Seconds that spare-time work ends before the next due request."""
SHORTEST_TRY = 0.02
FIRST_TRY = 0.1
"""Seconds from a first miss to the next try."""
EARLY_TRIES = 1.0
"""Seconds between tries of a unit that is silent for less than EARLY."""
EARLY = 30.0
SILENT_AFTER = 2
"""Misses in a row that make a unit silent in public; the first one may be a lost frame."""
QUICK_AGAIN = 10
"""Replies in time, in a row, that make a slow unit an ordinary one again."""
PATIENCE = 1.5
"""A slow unit gets this much more time than its slowest reply took."""
LONGEST_PATIENCE = 10.0
BUSY_RETRY = 0.1
OWED_AHEAD = 0.5
"""A failed request is read again off the grid only when its next turn is further away than this, in seconds."""
KEPT = 512

State = Literal["ok", "slow", "silent"]


@dataclass(slots=True)
class Unit:
    """What is known of one device's will to answer. Times are monotonic seconds."""

    name: str
    unit: int
    timeout: float
    retry_first: float = 30.0
    retry_max: float = 300.0
    pause: float = 0.0
    state: State = "ok"
    patience: float = 0.0  # the timeout in force
    slowest: float = 0.0  # seconds of the slowest reply since it became slow
    misses: int = 0
    since: float = 0.0  # of the first miss
    next_try: float = 0.0
    step: float = 0.0
    ready_at: float = 0.0
    quick: int = 0

    def __post_init__(self) -> None:
        self.patience = self.timeout

    @property
    def demoted(self) -> bool:
        """True while its due scans do not touch the wire: it missed its last request."""
        return self.misses > 0

    def answered(self, now: float, rtt: float) -> None:
        """Any reply, an exception too."""
        self.misses = 0
        self.step = 0.0
        self.ready_at = now + self.pause
        if self.state == "silent":
            self.state = "slow" if self.patience > self.timeout else "ok"
        if self.state != "slow":
            return
        self.slowest = max(self.slowest, rtt)
        self.patience = min(max(self.patience, PATIENCE * rtt), LONGEST_PATIENCE)
        self.quick = self.quick + 1 if rtt <= self.timeout else 0
        if self.quick >= QUICK_AGAIN:
            self.state = "ok"
            self.patience = self.timeout
            self.slowest = 0.0

    def missed(self, started: float, now: float) -> None:
        """No right reply to a request sent at `started`, or a gateway said that the unit does not answer."""
        self.misses += 1
        self.quick = 0
        self.ready_at = now + self.pause
        if self.misses == 1:
            self.since = started
            self.next_try = now + min(self.timeout / 2, FIRST_TRY)  # a slow unit may answer still
            return
        if self.misses >= SILENT_AFTER:
            self.state = "silent"
        if now - self.since < EARLY:
            self.next_try = max(now, started + EARLY_TRIES)
            return
        self.step = min(2 * self.step, self.retry_max) if self.step else self.retry_first
        self.next_try = now + self.step

    def late(self, now: float, seconds: float) -> None:
        """A reply came `seconds` after its request, which had been given up: the unit lives and is slow."""
        self.misses = 0
        self.step = 0.0
        self.quick = 0
        self.state = "slow"
        self.next_try = now
        self.slowest = max(self.slowest, seconds)
        self.patience = min(max(self.patience, PATIENCE * seconds), LONGEST_PATIENCE)

    def again(self, now: float) -> None:
        """The line is back: a demoted unit is tried at once."""
        if self.demoted:
            self.next_try = now


@dataclass(slots=True)
class Scan:
    """The requests of one device that share a period, and their grid."""

    device: str
    every: float
    requests: list[Request]
    phase: float
    first: float = 0.0
    k: int = 0
    done: int = 0
    overruns: int = 0
    late: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    @property
    def due(self) -> float:
        return self.first + self.k * self.every

    def take(self, now: float) -> tuple[int, float]:
        """(k, due) of the newest grid point not after `now`; those before it are counted as overruns."""
        newest = int((now - self.first) / self.every) + 1
        while self.first + newest * self.every > now:  # the quotient may be rounded either way
            newest -= 1
        newest = max(newest, self.k)
        self.overruns += newest - self.k
        self.k = newest + 1
        return newest, self.first + newest * self.every


@dataclass(slots=True)
class Run:
    """One pass of a scan under way."""

    scan: Scan
    k: int
    due: float
    pending: deque[Request]
    started: float | None = None
    touched: float = 0.0  # when it last got on
    ok: int = 0
    failed: int = 0

    @property
    def deadline(self) -> float:
        return self.due + self.scan.every


class Schedule:
    """All scans and units of one line. The grids begin with `start`."""

    def __init__(
        self,
        devices: Sequence[Device],
        plans: Mapping[str, Iterable[Request]],
        *,
        rng: random.Random,
    ) -> None:
        self.units = {device.name: _unit(device) for device in devices}
        self.scans: list[Scan] = []
        self._offset = rng.random()
        self._began: float | None = None
        for position, device in enumerate(devices):
            phase = (position + self._offset) / len(devices)
            self.scans += _scans(device.name, plans.get(device.name, ()), phase)
        self.active: list[Run] = []
        self.owed: dict[Request, float] = {}  # -> not before
        self._heap: list[tuple[float, int]] = []

    # -- the grid -----------------------------------------------------------------------------------------------

    def due(self, now: float) -> list[Run]:
        """Starts every scan that is due. A scan whose last pass is still under way is skipped and counted."""
        started = []
        while self._heap and self._heap[0][0] <= now:
            _, index = heapq.heappop(self._heap)
            scan = self.scans[index]
            k, due = scan.take(now)
            heapq.heappush(self._heap, (scan.due, index))
            behind = next((run for run in self.active if run.scan is scan), None)
            if behind is not None:
                scan.overruns += 1
                continue
            run = Run(scan, k, due, deque(scan.requests), touched=now)
            self.active.append(run)
            started.append(run)
        return started

    def next_due(self, besides: str | None = None) -> float:
        """When the wire is wanted next by a scan of a unit that answers in time, `besides` left out; inf: never."""
        if besides is None:
            return self._heap[0][0] if self._heap else float("inf")
        return min(
            (scan.due for scan in self.scans if scan.device != besides and self._ordinary(scan.device)),
            default=float("inf"),
        )

    def _ordinary(self, device: str) -> bool:
        unit = self.units[device]
        return not unit.demoted and unit.state == "ok"

    # -- who is next --------------------------------------------------------------------------------------------

    def pick(self, now: float) -> Run | None:
        """The pass of an ordinary unit whose end is due first, among those whose pause is over."""
        first = None
        for run in self.active:
            unit = self.units[run.scan.device]
            ready = unit.state == "ok" and not unit.misses and unit.ready_at <= now
            if ready and (first is None or run.deadline < first.deadline):
                first = run
        return first

    def slack(self, device: str, now: float) -> float:
        """Seconds that spare-time work for `device` may take without being in another unit's way."""
        if any(run.scan.device != device and self._ordinary(run.scan.device) for run in self.active):
            return 0.0
        return self.next_due(besides=device) - now - MARGIN

    def may_ask(self, device: str, now: float) -> bool:
        """A silent or slow unit must not hold up the others, not even for a write."""
        unit = self.units[device]
        if unit.ready_at > now:
            return False
        if not unit.demoted and unit.state == "ok":
            return True
        return self.slack(unit.name, now) >= max(SHORTEST_TRY, min(unit.slowest, unit.patience))

    def pick_slow(self, now: float) -> tuple[Run, float] | None:
        """(pass of a slow unit, its time limit) that fits into the line's spare time now."""
        for run in sorted(self.active, key=lambda run: run.due):
            unit = self.units[run.scan.device]
            if unit.state != "slow" or unit.demoted or unit.ready_at > now:
                continue
            slack = self.slack(unit.name, now)
            if slack >= min(unit.slowest, unit.patience):
                return run, min(unit.patience, slack)
        return None

    def pick_silent(self, now: float) -> tuple[Unit, Request, float] | None:
        """(demoted unit, its shortest request, time limit) to be tried in the line's spare time now."""
        demoted = [unit for unit in self.units.values() if unit.misses]
        for unit in sorted(demoted, key=lambda unit: unit.next_try):
            if unit.next_try > now or unit.ready_at > now:
                continue
            request = self.shortest(unit.name)
            slack = self.slack(unit.name, now)
            if request is not None and slack >= min(unit.patience, max(SHORTEST_TRY, unit.slowest)):
                return unit, request, min(unit.patience, slack)
        return None

    def slow_words(self, unit: Unit, now: float) -> str:
        """Why the pass of a slow unit does not get on."""
        slack = max(0.0, self.slack(unit.name, now))
        return f"{unit.name} takes {unit.slowest * 1000:.0f} ms; the line has {slack * 1000:.0f} ms for it"

    def shortest(self, device: str) -> Request | None:
        """The shortest request of a device; one that is never sent (a count of 0) only where there is no other."""
        return min(self.requests_of(device), key=lambda one: (not one.count, one.count), default=None)

    def pick_owed(self, now: float) -> tuple[Request, float] | None:
        """(request that failed and is worth reading again before its next turn, time limit)."""
        for request, not_before in list(self.owed.items()):
            unit = self.units[request.device]
            scan = self.scan_of(request)
            if scan is None or (scan.due - now < OWED_AHEAD and not_before <= now):
                del self.owed[request]
                continue
            if unit.demoted or not_before > now or unit.ready_at > now:
                continue
            slack = self.slack(unit.name, now)
            if slack >= max(SHORTEST_TRY, unit.slowest):
                return request, min(unit.patience, slack)
        return None

    def requests_of(self, device: str) -> list[Request]:
        """All requests by which a device is read."""
        return [request for scan in self.scans if scan.device == device for request in scan.requests]

    def owe_all(self, now: float, device: str | None = None) -> None:
        """After an outage everything is worth reading again, also what was not due meanwhile."""
        for scan in self.scans:
            if device in (None, scan.device) and scan.every > OWED_AHEAD:
                self.owed |= dict.fromkeys(scan.requests, now)

    def scan_of(self, request: Request) -> Scan | None:
        """The scan that holds a request; None after it was learnt to be read otherwise."""
        return next(
            (
                scan
                for scan in self.scans
                if scan.device == request.device and scan.every == request.every and request in scan.requests
            ),
            None,
        )

    def next_spare(self, now: float) -> float:
        """When spare-time work comes up next; what came up already waits for the next due request to pass."""
        times = [max(unit.next_try, unit.ready_at) for unit in self.units.values() if unit.misses]
        times += [max(at, self.units[request.device].ready_at) for request, at in self.owed.items()]
        times += [self.units[run.scan.device].ready_at for run in self.active]
        return min((at for at in times if at > now), default=float("inf"))

    def overtaken(self, now: float) -> list[Run]:
        """Passes of slow units that did not get on for a whole period."""
        return [
            run
            for run in self.active
            if now - run.touched >= run.scan.every and self.units[run.scan.device].state != "ok"
        ]

    def replace(self, device: str, requests: Iterable[Request]) -> None:
        """A device is read by other requests from its next turn on; its periods stay."""
        by_period: dict[float, list[Request]] = {}
        for request in requests:
            by_period.setdefault(request.every, []).append(request)
        for scan in self.scans:
            if scan.device == device:
                scan.requests = by_period.get(scan.every, [])

    def start(self, now: float) -> None:
        """Begins every grid anew, and with it all that is under way."""
        self._began = now
        for scan in self.scans:
            scan.first = now + scan.phase
            scan.k = 0
        self.active.clear()
        self.owed.clear()
        self._heap_up()

    def _heap_up(self) -> None:
        self._heap = [(scan.due, index) for index, scan in enumerate(self.scans)]
        heapq.heapify(self._heap)

    def change(
        self,
        devices: Sequence[Device],
        changed: Collection[str],
        plans: Mapping[str, Iterable[Request]],
        now: float,
    ) -> None:
        """Other devices: those in `changed` are read by their `plans`, the others stay on their grids.

        A period that a changed device had before keeps its grid; what of it was under way is dropped.
        """
        self.units = {
            device.name: _unit(device) if device.name in changed else self.units[device.name]
            for device in devices
        }
        before, self.scans = self.scans, []
        for position, device in enumerate(devices):
            mine = [scan for scan in before if scan.device == device.name]
            if device.name not in changed:
                self.scans += mine
                continue
            for scan in _scans(
                device.name, plans.get(device.name, ()), (position + self._offset) / len(devices)
            ):
                old = next((one for one in mine if one.every == scan.every), None)
                if old is not None:
                    old.requests, scan = scan.requests, old
                elif self._began is not None:
                    scan.first = now + scan.phase
                self.scans.append(scan)
        stays = {device.name for device in devices}.difference(changed)
        self.active = [run for run in self.active if run.scan.device in stays]
        self.owed = {request: at for request, at in self.owed.items() if request.device in stays}
        if self._began is not None:
            self._heap_up()

    def finish(self, run: Run) -> None:
        """Takes a pass off the list."""
        self.active.remove(run)
        run.scan.done += 1


def _unit(device: Device) -> Unit:
    retry = device.retry
    return Unit(device.name, device.unit, device.timeout, retry.first, retry.max, device.limits.pause)


def _scans(device: str, requests: Iterable[Request], phase: float) -> list[Scan]:
    """One scan for each period; `phase` is a share of the period, or of SPREAD."""
    by_period: dict[float, list[Request]] = {}
    for request in requests:
        by_period.setdefault(request.every, []).append(request)
    return [Scan(device, every, mine, phase * min(every, SPREAD)) for every, mine in by_period.items()]

"""Requests of `edgetwin scan` and `probe` on a line that the agent holds: sent in the time that its scans leave.

They go to units that nobody configured, mostly, and tell nothing about those that are: no state, no retry and no
connection changes because of a guest's silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from agent.config.types import Url
from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer, ask
from agent.modbus.keeper import Keeper
from agent.modbus.meter import Meter
from agent.modbus.schedule import SHORTEST_TRY, Schedule
from agent.runtime.clock import Clock
from agent.twin.quality import Quality

LONGER_WITHIN = 1.0
"""Seconds after the first try of a guest in which more time is looked for, where its limit was not the full one."""
MORE = 1.5
"""A second try is worth it with this much more time than the first."""
LONGEST_REPLY = 256
OWES = {"rtu": 1.0, "rtu+tcp": 2.0}
"""How long after a silence its unit is left alone, in times of its limit: a reply that names no request is not to be
taken for the next one, and the link should not have to make sure of it (link.Link._resynchronise)."""
LATE_WITHIN = 10.0
NOBODY = ""
"""No device has this name: the time that is left by all of them."""


@dataclass(slots=True, eq=False)
class Guest:
    """One request. `timeout` is what the asker grants the unit, in seconds; `deadline` and `give_up` are monotonic."""

    number: int
    function: int
    body: bytes
    timeout: float
    deadline: float
    future: asyncio.Future[Heard]
    limit: float = 0.0  # seconds that it had in vain
    give_up: float = float("inf")


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a guest's request: an answer, or a fault after `limit` seconds.

    late: an answer to one before it came after its time; unreachable: it was not sent, for want of a connection.
    """

    answer: Answer | None
    fault: LinkFault | None = None
    limit: float = 0.0
    late: bool = False
    unreachable: bool = False


class Guests:
    """The queue of one line; times are monotonic seconds. `added()` is called when one comes in."""

    def __init__(
        self,
        url: Url,
        schedule: Schedule,
        keeper: Keeper,
        meter: Meter,
        *,
        clock: Clock,
        added: Callable[[], None],
    ) -> None:
        self._url = url
        self._schedule = schedule
        self._keeper = keeper
        self._meter = meter
        self._clock = clock
        self._added = added
        self._waiting: list[Guest] = []
        self._silent: dict[
            int, tuple[float, float]
        ] = {}  # unit -> (when it was given up, when to ask it again)
        self._late: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wake_at(self, now: float) -> float:
        """When there is something to do for a guest beside what the schedule says; inf: never."""
        times = [min(guest.deadline, guest.give_up) for guest in self._waiting]
        times += [max(self._ready(guest.number), now) for guest in self._waiting]
        return min((at for at in times if at > now), default=float("inf"))

    async def heard(
        self, number: int, function: int, body: bytes, *, timeout: float, deadline: float
    ) -> Heard:
        """Queues a request and waits for what comes of it. Raises nothing; cancelled, it is not sent any more."""
        future: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        guest = Guest(number, function, body, timeout, deadline, future)
        self._waiting.append(guest)
        self._added()
        try:
            return await future
        finally:
            if guest in self._waiting:
                self._waiting.remove(guest)

    async def serve(self, now: float) -> bool:
        """Sends one request in spare time. False when there is none to send now."""
        due = self._next(now)
        if due is None:
            return False
        guest, limit, within = due
        try:
            answer = await self._keeper.link.transact(
                guest.number, guest.function, guest.body, timeout=limit, within=within
            )
        except LinkFault as fault:
            ended = self._clock.mono()
            self._meter.used(now, ended)
            self._failed(guest, fault, limit, ended)
        else:
            self._meter.used(now, answer.t)
            self._keeper.good()
            self._answered(guest, answer)
        return True

    def _next(self, now: float) -> tuple[Guest, float, float] | None:
        """(guest, seconds for its unit, seconds in all) that fit into the line's spare time now."""
        if not self._waiting:
            return None
        slack = self._schedule.slack(NOBODY, now)
        for guest in list(self._waiting):
            if now >= min(guest.deadline, guest.give_up):
                self._waiting.remove(guest)
                words = (
                    f"no answer within {1000 * guest.limit:.0f} ms"
                    if guest.limit
                    else "the agent's own reads leave this line no time"
                )
                self._end(guest, Heard(None, LinkFault(words, Quality.TIMEOUT), guest.limit))
            elif self._ready(guest.number) <= now and slack >= self._needed(guest):
                self._waiting.remove(guest)
                return guest, min(guest.timeout, slack), slack
        return None

    def _ready(self, number: int) -> float:
        units = [unit.ready_at for unit in self._schedule.units.values() if unit.unit == number]
        return max([*units, self._silent.get(number, (0.0, 0.0))[1]])

    def _needed(self, guest: Guest) -> float:
        least = max(min(guest.timeout, SHORTEST_TRY), min(guest.timeout, MORE * guest.limit))
        if self._url.scheme != "rtu":
            return least
        wanted = ask(guest.number, guest.function, guest.body)
        size = 6 + len(wanted.pdu) + (LONGEST_REPLY if wanted.size is None else wanted.size)
        return least + size * (2 if self._url.local_echo else 1) * self._url.character

    def _answered(self, guest: Guest, answer: Answer) -> None:
        """A right reply came, an exception too; configured units are left alone for their pause after it."""
        self._silent.pop(guest.number, None)
        for unit in self._schedule.units.values():
            if unit.unit == guest.number:
                unit.ready_at = answer.t + unit.pause
        self._end(guest, Heard(answer, limit=guest.timeout))

    def _failed(self, guest: Guest, fault: LinkFault, limit: float, now: float) -> None:
        """No right reply came within `limit`; where that was less than it should have been, it is tried again."""
        if fault.quality is not Quality.TIMEOUT:
            self._end(guest, Heard(None, fault, limit))
            return
        self._silent[guest.number] = (now, now + limit * OWES.get(self._url.scheme, 0.0))
        if limit >= guest.timeout or guest.future.done():
            self._end(guest, Heard(None, fault, limit))
            return
        guest.limit = max(guest.limit, limit)
        guest.give_up = min(guest.give_up, now + LONGER_WITHIN)
        self._waiting.insert(0, guest)

    def late(self, number: int, now: float) -> bool:
        """A reply came too late. True when it was a guest's: nobody else should make anything of it."""
        given_up, _ = self._silent.pop(number, (float("-inf"), 0.0))
        if now - given_up > LATE_WITHIN:
            return False
        self._late.add(number)
        return True

    def fail(self, words: str) -> None:
        """There is no connection."""
        while self._waiting:
            self._end(self._waiting.pop(0), Heard(None, LinkFault(words), unreachable=True))

    def _end(self, guest: Guest, heard: Heard) -> None:
        if guest.future.done():
            return
        late = guest.number in self._late
        self._late.discard(guest.number)
        guest.future.set_result(Heard(heard.answer, heard.fault, heard.limit, late, heard.unreachable))

"""Commissioning: which units answer on a line or host, and who they say they are. Reads only, and takes its time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.config.printable import printable
from agent.config.types import Url
from agent.modbus.faults import ABSENT, LinkFault, exception_words
from agent.modbus.framers import Answer
from agent.modbus.link import Link
from agent.runtime.clock import Clock
from agent.twin.quality import Quality

READ_HOLDING, SERVER_ID, IDENTIFY = 3, 17, 43
DEVICE_IDENTIFICATION = 14
BASIC = 1
OBJECTS = ("vendor", "product", "revision", "url", "product_name", "model", "application")
"""Names of the objects of read device identification, from 0 (application protocol V1.1b3, 6.21)."""
MOST_PARTS = 8
"""Replies that one identification may take; a device that never comes to an end is left."""
CONNECT_TIMEOUT = 3.0
CONNECT_TRIES = 3
CONNECT_WAIT = 0.3
LATE_WAIT = 0.2
"""Seconds in which the answer of a slow unit may still come, after its last request."""


class Unreachable(Exception):
    """There is no connection, and trying again did not help; str() says why in plain words."""


class Avoided(Exception):
    """The configuration says not to touch these addresses; str() says which."""


class Asks(Protocol):
    """Who asks units: `Asker`, or the agent that holds the line. `late` holds those that answered after their time."""

    late: set[int]

    async def ask(self, unit: int, function: int, body: bytes) -> Answer:
        """The answer to one request. Raises LinkFault, Unreachable or Avoided."""

    def close(self) -> None:
        """Ends it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A unit that answers.

    answer: what it said to a read of one register; rtt: seconds, None where it came after the timeout;
    identity: what function 43/14 gave, by the names of OBJECTS; server_id: what function 17 gave, as text.
    """

    unit: int
    answer: str
    rtt: float | None
    identity: Mapping[str, str] = field(default_factory=dict)
    server_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Its part of `scan --json`."""
        rtt = None if self.rtt is None else round(1000 * self.rtt, 1)
        return {
            "unit": self.unit,
            "answer": self.answer,
            "rtt_ms": rtt,
            "identity": dict(self.identity),
            "server_id": self.server_id,
        }


class Asker:
    """One connection that is asked one request at a time, with `pause` seconds between reply and next request.

    `late` holds the units whose answer came after the timeout.
    """

    def __init__(self, url: Url, *, clock: Clock, timeout: float = 0.5, pause: float = 0.02) -> None:
        self.late: set[int] = set()
        self._timeout = timeout
        self._pause = pause
        self._clock = clock
        self._next = 0.0
        self._link = Link(
            url, clock=clock, on_lost=lambda words: None, on_late=lambda unit, rtt: self.late.add(unit)
        )

    async def ask(self, unit: int, function: int, body: bytes) -> Answer:
        """The answer to one request, an exception of the device too.

        Raises LinkFault when none came or the connection was lost over it, Unreachable when there is none.
        """
        await asyncio.sleep(max(0.0, self._next - self._clock.mono()))
        await self._connect()
        try:
            return await self._link.transact(
                unit, function, body, timeout=self._timeout, within=self._timeout + CONNECT_TIMEOUT
            )
        finally:
            self._next = self._clock.mono() + self._pause

    async def _connect(self) -> None:
        for left in range(CONNECT_TRIES - 1, -1, -1):
            try:
                await self._link.connect(CONNECT_TIMEOUT)
                return
            except LinkFault as fault:
                if not left:
                    raise Unreachable(fault.words) from None
            await asyncio.sleep(CONNECT_WAIT)

    def close(self) -> None:
        """Ends the connection."""
        self._link.close()


async def scan(asker: Asks, units: Iterable[int], found: Callable[[Found], None]) -> None:
    """Asks each unit in turn and hands on those that answer. Raises Unreachable.

    A read of one register comes first: every device answers it, if only with an exception, while many keep silent
    at functions that they do not know; so a unit that is not there costs two time limits and not three. A second
    request, for its identity, gives a unit whose first reply was lost another chance.
    """
    for unit in units:
        asker.late.discard(unit)
        first = await _try(asker, unit, READ_HOLDING, struct.pack(">HH", 0, 1))
        identity, heard = await _identity(asker, unit)
        if first is None and heard is None:
            await asyncio.sleep(LATE_WAIT if unit in asker.late else 0.0)
            if unit in asker.late:
                found(Found(unit, "answers, but later than the time limit", None))
            continue
        answer = first if first is not None else heard
        assert answer is not None
        if answer.exception in ABSENT:
            continue  # a gateway speaks for a unit that is not there
        words = "data" if answer.exception is None else exception_words(answer.exception)
        found(Found(unit, words, answer.rtt, identity, await _server_id(asker, unit)))


async def _try(asker: Asks, unit: int, function: int, body: bytes) -> Answer | None:
    """An answer, or None for silence or a connection that was ended over the request."""
    try:
        return await asker.ask(unit, function, body)
    except (LinkFault, Avoided):
        return None


async def _identity(asker: Asks, unit: int) -> tuple[dict[str, str], Answer | None]:
    """What function 43/14 says, and the answer to its first request."""
    objects: dict[str, str] = {}
    first: Answer | None = None
    start = 0
    for _ in range(MOST_PARTS):
        answer = await _try(asker, unit, IDENTIFY, bytes((DEVICE_IDENTIFICATION, BASIC, start)))
        first = first or answer
        if answer is None or answer.payload is None:
            break
        part, following = identification(answer.payload)
        objects |= part
        if following is None or following <= start:
            break
        start = following
    return objects, first


async def _server_id(asker: Asks, unit: int) -> str | None:
    answer = await _try(asker, unit, SERVER_ID, b"")
    return None if answer is None or answer.payload is None else server_id(answer.payload)


def identification(payload: bytes) -> tuple[dict[str, str], int | None]:
    """Objects by name in a reply of function 43/14 (from its MEI type on), and where to go on, None at its end.

    What is cut short is left out: makers do not always keep to the lengths that they give.
    """
    if len(payload) < 6 or payload[0] != DEVICE_IDENTIFICATION:
        return {}, None
    more, following, count = payload[3:6]
    objects: dict[str, str] = {}
    at = 6
    for _ in range(count):
        if at + 2 > len(payload) or at + 2 + payload[at + 1] > len(payload):
            break
        number, size = payload[at], payload[at + 1]
        text = text_of(payload[at + 2 : at + 2 + size])
        if text:
            objects[OBJECTS[number] if number < len(OBJECTS) else f"object_{number}"] = text
        at += 2 + size
    return objects, following if more == 0xFF else None


def server_id(payload: bytes) -> str | None:
    """What function 17 gives (from its byte count on), as text where it is some, else as hex.

    What stands where is the maker's own business (application protocol V1.1b3, 6.13).
    """
    data = payload[1 : 1 + payload[0]] if payload else b""
    if not data:
        return None
    letters = bytes(byte for byte in data if 0x20 <= byte < 0x7F)
    return text_of(letters) if len(letters) >= max(3, len(data) // 2) else data.hex(" ")


def text_of(data: bytes) -> str:
    """Bytes as text without what surrounds it, as a terminal may show it."""
    return printable(data.decode("utf-8", "backslashreplace").strip("\0 \t\r\n"))


def ignores_units(found: list[Found], asked: int) -> bool:
    """True when all of several units answered alike: a host that does not look at the unit, mostly."""
    alike = {(one.answer, tuple(sorted(one.identity.items())), one.server_id) for one in found}
    return asked > 2 and len(found) == asked and len(alike) == 1


def silent(fault: LinkFault) -> bool:
    """True when nothing right came in time; False when the connection was lost."""
    return fault.quality is Quality.TIMEOUT

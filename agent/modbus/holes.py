"""Are values behind a bridged hole what they are without it? Some devices leave an undefined register out of their
reply, and all that stands behind it is shifted.

Pure: it says what to read next, in spare time, and is told what came. For each hole that a planned request bridges the
request as a whole and the part behind the hole are read in turn (whole, part, part, whole). Only words that were the
same in all wholes and in all parts count, so a value that moves, or toggles with each read, proves nothing. One
agreement is enough for trust; to be learnt as illegal a hole must differ in three turns out of three, never agreeing.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agent.config.types import Device, Table
from agent.modbus.plan import REGISTER_TABLES, Request, Span

Verdict = Literal["agree", "differ", "unclear"]
Words = tuple[int, ...]
READS = 4
TURNS = 3
FIRST_WAIT, LONGEST_WAIT = 60.0, 3600.0
"""Seconds before a hole that nothing could be said of is looked at again (values at rest are all 0, for example)."""
SAYS_NOTHING = (0, 0xFFFF)
"""Words that are the same at many addresses: that they agree is no proof."""


@dataclass(slots=True)
class Hole:
    """One bridged hole: a request from the hole before it to the one after, and its part behind the hole. `start` of
    the part in words."""

    whole: Request
    span: Span
    part: Request
    wholes: list[Words] = field(default_factory=list)
    parts: list[Words] = field(default_factory=list)
    differed: int = 0
    wait: float = FIRST_WAIT
    not_before: float = 0.0

    @property
    def start(self) -> int:
        return self.part.address - self.whole.address

    def next(self) -> Request:
        """What to read next of whole, part, part, whole."""
        return self.part if self._turn in (1, 2) else self.whole

    @property
    def _turn(self) -> int:
        return (len(self.wholes) + len(self.parts)) % READS

    def took(self, words: Words) -> Verdict | None:
        """Takes what `next` asked for; a verdict at the end of each turn of four reads.

        The third turn in which the part differs is judged by all that was read: what stood still for two reads may
        have moved since.
        """
        (self.parts if self._turn in (1, 2) else self.wholes).append(words)
        if self._turn:
            return None
        verdict = judge(self, self.wholes[-2:], self.parts[-2:])
        self.differed += verdict == "differ"
        return judge(self, self.wholes, self.parts) if self.differed == TURNS else verdict

    @property
    def turns(self) -> int:
        return len(self.parts) // 2

    def forget(self) -> None:
        """Begins anew."""
        self.wholes, self.parts, self.differed = [], [], 0


def bridged(request: Request, device: Device) -> list[Hole]:
    """The holes in a request for registers, by address: what no tag of the device covers, between its own tags."""
    if request.table not in REGISTER_TABLES:
        return []
    known = {
        address
        for tag in device.tags.values()
        if tag.table == request.table and not tag.alone
        for address in range(tag.address, tag.address + tag.count)
    }
    bare = dataclasses.replace(request, tags=(), wanted=0)
    parts: list[Span] = []
    for address in range(request.address, request.address + request.count):
        if address not in known:
            continue
        if parts and parts[-1][1] == address:
            parts[-1] = (parts[-1][0], address + 1)
        else:
            parts.append((address, address + 1))
    return [
        Hole(
            dataclasses.replace(bare, address=start, count=after - start),
            (end, first),
            dataclasses.replace(bare, address=first, count=after - first),
        )
        for (start, end), (first, after) in itertools.pairwise(parts)
    ]


def judge(hole: Hole, wholes: Sequence[Words], parts: Sequence[Words]) -> Verdict:
    """Compares the words of wholes with those of parts behind the hole, as far as either stood still."""
    start, length = hole.start, hole.span[1] - hole.span[0]
    part = parts[0]
    whole = wholes[0][start : start + len(part)]
    stable = [at for at in range(len(part)) if _still(wholes, start + at) and _still(parts, at)]
    same = [at for at in stable if whole[at] == part[at]]
    telling = any(part[at] not in SAYS_NOTHING for at in same)
    if len(same) == len(stable):
        return "agree" if telling else "unclear"
    if _shifted(whole, part, stable, length):
        return "differ"
    steady = any(_still(wholes, at) for at in range(start - length))
    return "differ" if steady and not telling else "unclear"


def _still(replies: Sequence[Words], at: int) -> bool:
    return all(words[at] == replies[0][at] for words in replies)


def _shifted(whole: Sequence[int], part: Sequence[int], stable: Sequence[int], most: int) -> bool:
    """True when what was read across the hole is the part moved by up to `most` words."""
    for shift in (*range(1, most + 1), *range(-most, 0)):
        pairs = [(whole[at], part[at + shift]) for at in stable if 0 <= at + shift < len(part)]
        if all(one == other for one, other in pairs) and any(one not in SAYS_NOTHING for one, _ in pairs):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Proof:
    """A hole that may be bridged from now on (`trusted`), or never."""

    table: Table
    span: Span
    trusted: bool


class Holes:
    """The holes of one device that are not proven yet. Times are monotonic seconds."""

    def __init__(
        self, device: Device, trusted: Iterable[tuple[Table, Span]], requests: Iterable[Request]
    ) -> None:
        self._device = device
        self._trusted = set(trusted)
        self._open: list[Hole] = []
        self._asked: Hole | None = None
        self.plan(requests)

    def plan(self, requests: Iterable[Request]) -> None:
        """The device would be read by these requests if every hole in them were proven."""
        self._asked = None
        self._open = [
            hole
            for request in requests
            for hole in bridged(request, self._device)
            if (request.table, hole.span) not in self._trusted
        ]

    def wanted_at(self) -> float:
        """When `next` has something; inf: never."""
        return min(hole.not_before for hole in self._open) if self._open else float("inf")

    def next(self, now: float) -> Request | None:
        """What to read next in spare time, or None."""
        self._asked = next((hole for hole in self._open if hole.not_before <= now), None)
        return None if self._asked is None else self._asked.next()

    def refused(self, now: float) -> Proof | None:
        """The device refused what `next` asked for: across the hole it cannot be read."""
        hole = self._asked
        if hole is None or hole.next() != hole.whole:
            return self.told(None, now)
        self._asked = None
        self._open.remove(hole)
        return Proof(hole.whole.table, hole.span, trusted=False)

    def told(self, payload: bytes | None, now: float) -> Proof | None:
        """What `next` asked for was read, or could not be (None). Returns what is proven by it."""
        hole, self._asked = self._asked, None
        if hole is None:
            return None
        if payload is None:
            self._later(hole, now)
            return None
        verdict = hole.took(struct.unpack(f">{len(payload) // 2}H", payload))
        if verdict is None:
            return None
        if verdict == "agree" or (verdict == "differ" and hole.differed == TURNS):
            self._open.remove(hole)
            proof = Proof(hole.whole.table, hole.span, verdict == "agree")
            if proof.trusted:
                self._trusted.add((proof.table, proof.span))
            return proof
        if hole.turns >= TURNS:
            self._later(hole, now)
        return None

    def _later(self, hole: Hole, now: float) -> None:
        hole.forget()
        hole.not_before = now + hole.wait
        hole.wait = min(2 * hole.wait, LONGEST_WAIT)

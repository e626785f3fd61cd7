"""What a device refuses, found out by halving the refused request: illegal addresses, holes, the longest request.

Pure: it says what to read next and is told what came of it. All that can be read is read meanwhile and afterwards.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field

from agent.config.types import Device, Table
from agent.modbus.plan import (
    NOTHING_LEARNT,
    REGISTER_TABLES,
    Learnt,
    Request,
    Span,
    plan_device,
    request_for,
    split,
)

FIRST_RETRY, LONGEST_RETRY = 10.0, 3600.0
"""Seconds between tries of a refused tag: soon at first (a starting device may still give it), then rarely."""
WHOLLY_REFUSED = 30.0
"""Seconds before a device that refuses everything is studied again: it may only be starting."""


@dataclass(slots=True)
class Study:
    """One refused request under examination."""

    root: Request
    queue: deque[Request]
    halves: dict[Request, tuple[Request, ...]] = field(default_factory=dict)
    good: list[Request] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)  # of one tag each
    silent: set[Request] = field(default_factory=set)  # those that were not refused but not answered
    wary: bool = False  # the device keeps silent at some: a silence is to be made sure of
    search: tuple[Request, int, int] | None = (
        None  # (a refused request, a length that was read, one that was refused)
    )

    def answered(self, request: Request) -> None:
        """`request` was read."""
        if self.search is not None:
            self.search = (self.search[0], request.count, self.search[2])
            return
        self.good.append(request)
        for node, parts in self.halves.items():
            # both halves can be read and touch each other, but not the whole: it is too long
            if (
                node.table in REGISTER_TABLES
                and request in parts
                and self._all_good(parts)
                and not _hole(parts)
            ):
                self.search = (node, max(part.count for part in parts), node.count)
                self.queue.clear()  # what else there is shows when shorter requests are planned
                return

    def was_refused(self, request: Request, device: Device, *, silent: bool = False) -> None:
        """`request` was refused (or not answered): it is halved, or is one tag and has to be given up."""
        if silent:
            self.silent.add(request)
        if self.search is not None:
            self.search = (self.search[0], self.search[1], request.count)
            return
        parts = split(request, device)
        if len(parts) == 1:
            self.refused.append(request)
        else:
            self.halves[request] = parts
            self.queue.extendleft(reversed(parts))

    def next(self) -> Request | None:
        """What to read next; None when all is known."""
        if self.queue:
            return self.queue[0]
        if self.search is not None:
            node, good, refused = self.search
            if refused - good > 1:
                return dataclasses.replace(node, count=(good + refused) // 2, tags=(), wanted=0)
        return None

    def _all_good(self, parts: tuple[Request, ...]) -> bool:
        return all(part in self.good for part in parts)

    def illegal(self) -> list[tuple[Span, bool]]:
        """Spans that no request may touch: refused tags, and holes between what can be read; True: it keeps silent."""
        spans = [
            ((request.address, request.address + request.count), request in self.silent)
            for request in self.refused
        ]
        for node, parts in self.halves.items():
            hole = _hole(parts)
            if hole is not None and self._all_good(parts):
                spans.append((hole, node in self.silent))
        return spans


def _hole(parts: tuple[Request, ...]) -> tuple[int, int] | None:
    first, second = sorted(parts, key=lambda part: part.address)
    start = first.address + first.count
    return (start, second.address) if start < second.address else None


class Learner:
    """What is known of one device, and what is being found out. Times are monotonic seconds."""

    def __init__(self, device: Device, learnt: Learnt = NOTHING_LEARNT) -> None:
        self.device = device
        self.learnt = learnt
        self._study: Study | None = None
        self._retry_at = 0.0
        self._retry_wait = FIRST_RETRY
        self._not_before = 0.0

    def refused(self, request: Request, now: float, *, silent: bool = False) -> None:
        """A planned request was refused with exception 1, 2 or 3, or (`silent`) is for certain not answered."""
        if self._study is not None or now < self._not_before or self.is_refused(request):
            return
        parts = split(request, self.device)
        self._study = Study(request, deque(parts), wary=silent, silent={request} if silent else set())
        if len(parts) > 1:
            self._study.halves[request] = parts

    @property
    def studying(self) -> bool:
        """True while a request is under examination."""
        return self._study is not None

    @property
    def wary(self) -> bool:
        """True when a silence at what `next` gives is to be made sure of by signs of life."""
        if self._study is not None:
            return self._study.wary
        tag = self.device.tags[min(self.learnt.refused)] if self.learnt.refused else None
        return tag is not None and (tag.table, (tag.address, tag.address + tag.count)) in self.learnt.silent

    def beware(self) -> None:
        """A request of the study was not answered."""
        if self._study is not None:
            self._study.wary = True

    def drop(self) -> None:
        """Ends the study without a result: the device is not what it was."""
        self._study = None

    def is_refused(self, request: Request) -> bool:
        """True for the request of a tag that the device is known to refuse: it is tried seldom, not at its turn."""
        return bool(request.tags) and self.learnt.refused.issuperset(request.tags)

    def wanted_at(self) -> float:
        """When `next` has something: now (-inf) during a study, at the next retry of refused tags, or never (inf)."""
        if self._study is not None:
            return float("-inf")
        return self._retry_at if self.learnt.refused else float("inf")

    def next(self, now: float) -> Request | None:
        """What to read next in spare time, or None."""
        if self._study is not None:
            return self._study.next()
        if self.learnt.refused and now >= self._retry_at:
            return request_for(self.device, (min(self.learnt.refused),))
        return None

    def told(self, request: Request, ok: bool, now: float, *, silent: bool = False) -> bool:
        """`request`, which `next` gave, was answered or refused (`silent`: for certain not answered).

        True when `learnt` has changed.
        """
        if self._study is None:
            return self._told_retry(request, ok, now)
        study = self._study
        if study.queue and study.queue[0] == request:
            study.queue.popleft()
        if ok:
            study.answered(request)
        else:
            study.was_refused(request, self.device, silent=silent)
        if study.next() is not None:
            return False
        self._study = None
        return self._conclude(study, now)

    def _told_retry(self, request: Request, ok: bool, now: float) -> bool:
        if not ok:
            self._retry_at = now + self._retry_wait
            self._retry_wait = min(2 * self._retry_wait, LONGEST_RETRY)
            return False
        span = (request.address, request.address + request.count)
        self.learnt = dataclasses.replace(
            self.learnt,
            refused=self.learnt.refused.difference(request.tags),
            illegal=tuple(one for one in self.learnt.illegal if one != (request.table, span)),
            silent=tuple(one for one in self.learnt.silent if one != (request.table, span)),
        )
        self._retry_at = now
        return True

    def _conclude(self, study: Study, now: float) -> bool:
        refused = self.learnt.refused.union(*(request.tags for request in study.refused))
        if refused == set(self.device.tags):
            self._not_before = now + WHOLLY_REFUSED
            return False
        found = study.illegal()
        table = study.root.table
        illegal = {*self.learnt.illegal, *((table, span) for span, _ in found)}
        silent = {*self.learnt.silent, *((table, span) for span, one in found if one)}
        longest = self.learnt.longest
        if study.search is not None:
            widest = max(
                (tag.count for name, tag in self.device.tags.items() if name not in refused), default=1
            )
            longest = max(min(longest or study.search[1], study.search[1]), widest)
        learnt = dataclasses.replace(
            self.learnt,
            illegal=tuple(sorted(illegal)),
            refused=frozenset(refused),
            longest=longest,
            silent=tuple(sorted(silent)),
        )
        if learnt == self.learnt:
            self._not_before = now + WHOLLY_REFUSED
            return False
        if study.refused:
            self._retry_wait = FIRST_RETRY
            self._retry_at = now + FIRST_RETRY
        self.learnt = learnt
        return True

    def avoid(self, table: Table, span: Span, *, silent: bool = False) -> None:
        """Nothing (`silent`), or what is wrong, comes across a hole: no request may bridge it any more."""
        illegal = tuple(sorted({*self.learnt.illegal, (table, span)}))
        kept = {*self.learnt.silent, (table, span)} if silent else self.learnt.silent
        self.learnt = dataclasses.replace(self.learnt, illegal=illegal, silent=tuple(sorted(kept)))

    def trust(self, table: Table, span: Span) -> None:
        """What stands behind a hole comes as it is when it is read across it: requests may bridge it."""
        trusted = tuple(sorted({*self.learnt.trusted, (table, span)}))
        self.learnt = dataclasses.replace(self.learnt, trusted=trusted)

    def plan(self) -> tuple[Request, ...]:
        """The requests that read the device as it is known by now: a hole is bridged once it is proven."""
        return plan_device(self.device, self.learnt, cautious=True)

    def goal(self) -> tuple[Request, ...]:
        """The requests that would read it if every hole in them were proven."""
        return plan_device(self.device, self.learnt)

    def how(self, table: Table, span: Span) -> str:
        """How the device takes a read of an illegal span, in words."""
        return "keeps silent at" if (table, span) in self.learnt.silent else "refuses"

    def as_yaml(self) -> list[str]:
        """What was learnt as lines for the device's block of the configuration, tags that it refuses as comments."""
        lines = []
        if self.learnt.longest:
            lines.append(f"limits: {{registers: {self.learnt.longest}}}")
        refused = {
            (tag.table, (tag.address, tag.address + tag.count)): name
            for name, tag in self.device.tags.items()
            if name in self.learnt.refused
        }
        holes = [
            f"{table} {first}-{after - 1}"
            for table, (first, after) in self.learnt.illegal
            if (table, (first, after)) not in refused
        ]
        if holes:
            lines.append(f"avoid: [{', '.join(holes)}]")
        lines += [
            f"# {name}: the device {self.how(table, span)} {table} {span[0]}"
            for (table, span), name in refused.items()
        ]
        return lines

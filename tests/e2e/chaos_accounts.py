"""What must hold after random faults, whatever they were: books, values, the bounds of each kill, writes."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.cloud.journal import Entry
from tests.books import Audit, SubscriberBooks
from tests.e2e.chaos import BATCHES, EVERY, LIMITS, SPAN, TIMEOUT, WIDTH
from tests.e2e.vessel import PER_DEVICE, PER_EPOCH, VALVE, Served, constant

SLACK = 1.0
"""Seconds that a busy machine may take to do what is due."""
PER_START = 3
"""Replies that are no reading when a device begins or changes: it is asked whether holes between tags shift values."""
LONGEST = 2 * SPAN + max(BATCHES) + SLACK
"""Seconds before a kill that it may cost: of what was closed, and of what was not."""
NEAR_BAD = TIMEOUT + 2 * EVERY + SLACK


@dataclass
class Watchful(SubscriberBooks):
    """Books that also look at each value. `rows`: count -> (device, level); `bad`: device -> wall times, s, of rows
    that were not good; `wrong`: what cannot have been on the wire."""

    rows: dict[int, tuple[str, int]] = field(default_factory=dict)
    bad: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    values_seen: int = 0

    def feed(self, topic: str, body: dict[str, Any]) -> None:
        super().feed(topic, body)
        kind, *rest = topic.split("/")[3:]
        if kind in ("data", "backfill"):
            for group in body["groups"]:
                self._rows(rest[0], group)
        elif kind == "twin":
            for tag, one in body["reported"].items():
                self._value(rest[0], tag, one["v"], one["q"] == "good", topic)

    def _rows(self, device: str, group: dict[str, Any]) -> None:
        columns = group["c"]
        marked = {tag: {index for index, _ in marks} for tag, marks in group["q"].items()}
        for i, t in enumerate(group["t"]):
            good = all(i not in marks for marks in marked.values())
            for tag, column in columns.items():
                self._value(device, tag, column[i], i not in marked.get(tag, ()), f"data at {t}")
            if not good:
                self.bad.setdefault(device, []).append(t / 1000)
            elif "served" in columns:
                served, level, epoch = (columns[tag][i] for tag in ("served", "level", "epoch"))
                self.rows[served] = (device, level)
                if (served // PER_DEVICE, served % PER_DEVICE // PER_EPOCH) != (int(device[3:]), epoch):
                    self.wrong.append(f"{device} served {served} in epoch {epoch}")

    def _value(self, device: str, tag: str, value: Any, good: bool, where: str) -> None:
        self.values_seen += 1
        if good != (value is not None):
            self.wrong.append(f"{device}/{tag} is {value} and {'' if good else 'not '}good: {where}")
        elif good and tag[0] == "r" and value != constant(int(device[3:]), int(tag[1:])):
            self.wrong.append(f"{device}/{tag} is {value}: {where}")


@dataclass(frozen=True)
class Kill:
    """kill -9 of the agent: monotonic time, s; and what was closed since the start before."""

    at: float
    closed: Sequence[Entry]


@dataclass(frozen=True)
class Cost:
    """What a kill cost one device, and what it may: rows that were closed, and rows that were read and never closed.

    `times`: of all those, s before the kill.
    """

    device: str
    closed: int
    closed_bound: float
    open: int
    open_bound: float
    times: tuple[float, ...]

    @property
    def fault(self) -> bool:
        return self.closed > self.closed_bound or self.open > self.open_bound


def wrong_levels(books: Watchful, served: Mapping[str, Served]) -> list[str]:
    """Rows whose count was never sent, or with another level than was sent with it."""
    found = []
    for count, (device, level) in books.rows.items():
        sent = served[device].replies.get(count)
        if sent is None or sent[1] != level:
            found.append(f"{device} counted {count} with level {level}; sent was {sent}")
    return found


def wrong_writes(served: Mapping[str, Served]) -> list[str]:
    """Writes to the valve outside the loop's limits, or to any device or register that no loop writes."""
    return [
        f"{device} register {address} was written {value}"
        for device, one in served.items()
        for _, address, value in one.writes
        if device != "plc1"
        or (address == VALVE and not LIMITS[0] <= value <= LIMITS[1])
        or address not in (VALVE, VALVE + 1)
    ]


def unread(
    books: Watchful, device: str, served: Served, faults: Sequence[tuple[float, float]]
) -> list[float]:
    """Monotonic times of replies that are nowhere here, and that no fault of the PLC and no bad row explains."""
    to_wall = time.time() - time.monotonic()
    bad = sorted(books.bad.get(device, ()))
    here = {count for count, (name, _) in books.rows.items() if name == device}
    found = []
    for count, (at, _) in served.replies.items():
        if count in here or any(begin - SLACK <= at <= end + NEAR_BAD for begin, end in faults):
            continue
        place = bisect.bisect(bad, at + to_wall - NEAR_BAD)
        if place == len(bad) or bad[place] > at + to_wall + NEAR_BAD:
            found.append(at)
    return found


def costs(kills: Sequence[Kill], audit: Audit, lost: Mapping[str, Sequence[float]]) -> list[list[Cost]]:
    """Per kill its cost for each device. `lost`: what `unread` gave for each."""
    rows_of_span = SPAN / EVERY
    times = [kill.at for kill in kills]
    excused = set(audit.excused)
    found = []
    for number, kill in enumerate(kills):
        rows = Counter[str]()
        for device, stream, seq, readings in kill.closed:
            if (device, stream, seq) in excused:
                rows[device] += readings // WIDTH[device]
        since = max(kill.at - LONGEST, times[number - 1] if number else 0.0)
        gone = {
            name: tuple(round(kill.at - at, 1) for at in ats if since < at <= kill.at)
            for name, ats in lost.items()
        }
        found.append(
            [
                Cost(
                    device,
                    closed=rows[device],
                    closed_bound=rows_of_span + (max(BATCHES) + SLACK) / EVERY,
                    open=len(gone[device]) - rows[device],
                    # the open batch, as long as that while nobody listens, and what had just come
                    open_bound=(max(SPAN, *BATCHES) + SLACK) / EVERY + 1,
                    times=gone[device],
                )
                for device in lost
            ]
        )
    return found


def astray(kills: Sequence[Kill], lost: Sequence[float]) -> list[float]:
    """Times of `unread` replies that no kill explains."""
    return [at for at in lost if not any(0 <= kill.at - at < LONGEST for kill in kills)]

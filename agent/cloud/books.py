"""A central system's books: which batches it has of every gateway, which it lacks, which came twice or out of order.

Pure. (gateway, device, stream, seq) is unique for ever, `seq` has no holes, and a `gap` names what will never come; so
whoever keeps these books knows of every reading whether it has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """One (gateway, device, stream). Numbers are kept as disjoint ranges, so years of them take a few bytes.

    `parts`: of batches that were split and are not whole yet, readings by part under (seq, number of parts).
    """

    first: int | None = None
    last_live: int = 0
    have: list[list[int]] = field(default_factory=list)
    excused: list[list[int]] = field(default_factory=list)
    parts: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    doubled: int = 0
    out_of_order: int = 0
    batches: int = 0
    readings: int = 0

    def take(self, body: Mapping[str, Any], live: bool) -> bool:
        """Books one body of data or backfill; False when it was there already."""
        seq, readings = int(body["seq"]), count(body)
        if inside(self.have, seq):
            self.doubled += 1
            return False
        if "part" in body:
            # sent again over another connection, a batch may be cut in another way: only parts of one cut make it whole
            part, of = body["part"]
            seen = self.parts.setdefault((seq, of), {})
            if part in seen:
                self.doubled += 1
                return False
            seen[part] = readings
            if len(seen) < of:
                return True
            readings = sum(seen.values())
        if self.parts:
            self.parts = {key: seen for key, seen in self.parts.items() if key[0] != seq}
        if live:
            self.out_of_order += seq < self.last_live
            self.last_live = max(self.last_live, seq)
        if self.first is None or seq < self.first:
            self.first = seq
        add(self.have, seq, seq)
        self.batches += 1
        self.readings += readings
        return True

    def excuse(self, first: int, last: int) -> None:
        """Books a gap: what is not there of first..last will not come."""
        add(self.excused, first, last)

    def holes(self) -> list[tuple[int, int]]:
        """Ranges between the first and the last number that are neither here nor named by a gap."""
        if not self.have:
            return []
        covered = merged([*self.have, *self.excused])
        start, end = self.have[0][0], self.have[-1][1]
        holes = []
        reach = start
        for first, last in covered:
            if first > reach and reach <= end:
                holes.append((reach, min(first - 1, end)))
            reach = max(reach, last + 1)
        return holes


@dataclass
class Books:
    """All ledgers of all gateways. `feed` takes what a subscriber of <root>/v1/# receives."""

    ledgers: dict[tuple[str, str, str], Ledger] = field(default_factory=dict)
    messages: int = 0

    def feed(self, kind: str, gateway: str, device: str, body: Mapping[str, Any]) -> bool:
        """Books one body; returns False for a doubled batch, True for everything else."""
        self.messages += 1
        if kind not in ("data", "backfill", "gap"):
            return True
        ledger = self.ledgers.setdefault((gateway, device, body["stream"]), Ledger())
        if kind == "gap":
            ledger.excuse(int(body["from"]), int(body["to"]))
            return True
        return ledger.take(body, kind == "data")

    def of(self, gateway: str | None = None) -> Iterator[Ledger]:
        """The ledgers of one gateway, or all."""
        return (ledger for (name, _, _), ledger in self.ledgers.items() if gateway in (None, name))

    def lost(self, gateway: str | None = None) -> int:
        """Batches that are missing and that no gap names; those still to come as backfill count until they are here."""
        return sum(last - first + 1 for ledger in self.of(gateway) for first, last in ledger.holes())

    def doubled(self, gateway: str | None = None) -> int:
        return sum(ledger.doubled for ledger in self.of(gateway))

    def out_of_order(self, gateway: str | None = None) -> int:
        return sum(ledger.out_of_order for ledger in self.of(gateway))

    def readings(self, gateway: str | None = None) -> int:
        return sum(ledger.readings for ledger in self.of(gateway))


def count(body: Mapping[str, Any]) -> int:
    """Readings of a body of data or backfill."""
    return sum(len(column) for group in body["groups"] for column in group["c"].values())


def inside(ranges: list[list[int]], number: int) -> bool:
    """Whether a number lies in sorted disjoint ranges; the newest are looked at first."""
    for first, last in reversed(ranges):
        if number > last:
            return False
        if number >= first:
            return True
    return False


def add(ranges: list[list[int]], first: int, last: int) -> None:
    """Adds first..last to sorted disjoint ranges, in place."""
    if ranges and first == ranges[-1][1] + 1:
        ranges[-1][1] = max(last, ranges[-1][1])
        return
    ranges[:] = merged([*ranges, [first, last]])


def merged(ranges: list[list[int]]) -> list[list[int]]:
    """The same numbers as sorted disjoint ranges."""
    result: list[list[int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1][1] = max(result[-1][1], last)
        else:
            result.append([first, last])
    return result

"""Readings gathered into batches: one open batch per device, closed by a scan's end, its age or its size. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from agent.twin.records import Row

LARGEST = 50_000
"""Readings after which a batch closes early: some 400 kB of JSON."""
EARLY = 0.1
"""Share of its span by which a batch may close early, along with another one: sending both at once is cheaper."""

AHEAD = 0.05
"""Seconds, a twentieth of the span at most, by which a batch closes before its span is over: where scans come in the
rhythm of the batches, each then belongs to one of them, and not by chance to this or the next."""
LATE = 0.2
"""Seconds, a fifth of the span at most, by which a batch that the end of a scan should close may outlive its span."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A closed batch under its number. `body` is JSON, uncompressed; `ms` the UTC time of its first reading.

    `synced` False: made before the clock was set; its times can be put right within the same boot.
    """

    device: str
    seq: int
    ms: int
    readings: int
    body: bytes
    boot: str
    synced: bool = True


@dataclass
class Batcher:
    """Rows of each device until their batch closes. Times are monotonic seconds."""

    _rows: dict[str, list[Row]] = field(default_factory=dict)
    _opened: dict[str, float] = field(default_factory=dict)
    _readings: dict[str, int] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)
    _paced: set[str] = field(default_factory=set)

    def add(self, row: Row, now: float) -> None:
        """Puts a row into its device's open batch."""
        if row.device not in self._rows:
            self._rows[row.device] = []
            self._opened[row.device] = now
            self._readings[row.device] = 0
        self._rows[row.device].append(row)
        self._readings[row.device] += len(row.tags)

    def end(self, devices: Collection[str]) -> None:
        """Has the open batches of these devices closed whatever their age: their scans are whole, see `Rhythm`."""
        self._paced.update(devices)
        self._whole.update(device for device in devices if device in self._rows)

    def take_due(self, now: float, span: float) -> Iterator[tuple[str, list[Row]]]:
        """Closes and yields the batches whose `span` (s) is over, that were ended, or that are full: (device, rows in
        order of arrival).

        Along with one that is due come those that will be soon.
        """
        share = 1.0
        if any(now - opened >= self._age(device, span) for device, opened in self._opened.items()):
            share -= EARLY
        due = [
            device
            for device, opened in self._opened.items()
            if now - opened >= share * self._age(device, span)
            or device in self._whole
            or self._readings[device] >= LARGEST
        ]
        for device in due:
            yield device, self._take(device)

    def take_all(self) -> Iterator[tuple[str, list[Row]]]:
        """Closes everything: at the end."""
        for device in list(self._rows):
            yield device, self._take(device)

    def next_due(self, span: float) -> float | None:
        """When the oldest open batch closes by its age; None when none is open."""
        ages = (opened + self._age(device, span) for device, opened in self._opened.items())
        return min(ages, default=None)

    def _age(self, device: str, span: float) -> float:
        return span + min(LATE, span / 5) if device in self._paced else lasts(span)

    def _take(self, device: str) -> list[Row]:
        del self._opened[device], self._readings[device]
        self._whole.discard(device)
        return self._rows.pop(device)


@dataclass
class Rhythm:
    """Which scan of a device ends its batch, so that what was just read leaves at once: one in each span.

    By age alone a batch would close a span after its first reading, and a scan as long as the span would leave as late
    as the next one comes. Spans follow each other without a gap; after a pause the next scan ends one.
    """

    _next: dict[str, float] = field(default_factory=dict)

    def ends(self, device: str, now: float, span: float) -> bool:
        """Whether the scan that is over at `now` (monotonic, s) ends a batch, where batches cover `span` seconds."""
        begins = self._next.get(device, now)
        if now < begins - (span - lasts(span)):
            return False
        self._next[device] = (begins if now - begins < span else now) + span
        return True


def lasts(span: float) -> float:
    """Seconds from the first reading of a batch to its end, where batches cover `span` seconds."""
    return span - min(AHEAD, span / 20)

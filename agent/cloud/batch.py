"""Readings gathered into batches: one open batch per device, closed by its age or its size. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.twin.records import Row

LARGEST = 50_000
"""Readings after which a batch closes early: some 400 kB of JSON."""
EARLY = 0.1
"""Share of its span by which a batch may close early, along with another one: sending both at once is cheaper."""

AHEAD = 0.05
"""Seconds, a twentieth of the span at most, by which a batch closes before its span is over: where scans come in the
rhythm of the batches, each then belongs to one of them, and not by chance to this or the next."""


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

    def add(self, row: Row, now: float) -> None:
        """Puts a row into its device's open batch."""
        if row.device not in self._rows:
            self._rows[row.device] = []
            self._opened[row.device] = now
            self._readings[row.device] = 0
        self._rows[row.device].append(row)
        self._readings[row.device] += len(row.tags)

    def take_due(self, now: float, span: float) -> Iterator[tuple[str, list[Row]]]:
        """Closes and yields the batches whose `span` (s) is over or that are full: (device, rows in order of arrival).

        Along with one that is due come those that will be soon.
        """
        span = lasts(span)
        if any(now - opened >= span for opened in self._opened.values()):
            span *= 1.0 - EARLY
        due = [
            device
            for device, opened in self._opened.items()
            if now - opened >= span or self._readings[device] >= LARGEST
        ]
        for device in due:
            yield device, self._take(device)

    def take_all(self) -> Iterator[tuple[str, list[Row]]]:
        """Closes everything: at the end."""
        for device in list(self._rows):
            yield device, self._take(device)

    def next_due(self, span: float) -> float | None:
        """When the oldest open batch closes; None when none is open."""
        return min(self._opened.values()) + lasts(span) if self._opened else None

    def _take(self, device: str) -> list[Row]:
        del self._opened[device], self._readings[device]
        return self._rows.pop(device)


def lasts(span: float) -> float:
    """Seconds from the first reading of a batch to its end, where batches cover `span` seconds."""
    return span - min(AHEAD, span / 20)

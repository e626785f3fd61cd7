"""The twin: one row per tag in NumPy columns, written by the main loop alone, read by others as snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from agent.twin.quality import LAST_WITH_VALUE, Quality
from agent.twin.records import Forecasts, HealthView, Key, Layout, LoopView, Plain, Snapshot

STALE_PERIODS = 3.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One value as the table holds it. `value` is NaN where there is none; `t` monotonic, NaN before a reply."""

    value: float
    plain: Plain
    quality: Quality
    t: float


class Twin:
    """Columns by row of the layout. Before the first reply every tag has quality `link`.

    `value` is NaN and `plain` None unless the quality is good or uncertain: never the last value dressed as new.
    """

    def __init__(self, layout: Layout) -> None:
        count = len(layout.keys)
        self.layout = layout
        self.value: NDArray[np.float64] = np.full(count, np.nan)
        self.quality: NDArray[np.uint8] = np.full(count, Quality.LINK, dtype=np.uint8)
        self.stamps: NDArray[np.float64] = np.full(count, np.nan)
        self.plain: list[Plain] = [None] * count
        self.total: dict[int, int | float] = {}
        self._limit: NDArray[np.float64] = np.array(
            [STALE_PERIODS * tag.every for tag in layout.tags], dtype=np.float64
        )

    def apply(
        self,
        rows: NDArray[np.int64],
        value: NDArray[np.float64],
        quality: NDArray[np.uint8],
        plain: Sequence[Plain],
        t: float,
    ) -> None:
        """Takes one decoded reply: arrays of shape (n,) for `rows`, and the time of the reply."""
        self.value[rows] = value
        self.quality[rows] = quality
        self.stamps[rows] = t
        for row, one in zip(rows.tolist(), plain):
            self.plain[row] = one

    def fail(self, rows: NDArray[np.int64], quality: Quality, t: float) -> None:
        """Takes one failed request: its tags have no value, and why."""
        self.value[rows] = np.nan
        self.quality[rows] = quality
        self.stamps[rows] = t
        for row in rows.tolist():
            self.plain[row] = None

    def expire(self, now: float) -> NDArray[np.int64]:
        """Marks what has had no reply for 3 periods as stale; returns the rows that became so."""
        with np.errstate(invalid="ignore"):
            old = (self.quality <= LAST_WITH_VALUE) & (now - self.stamps > self._limit)
        rows: NDArray[np.int64] = np.flatnonzero(old)
        for row in rows.tolist():
            self.value[row] = np.nan
            self.quality[row] = Quality.STALE
            self.plain[row] = None
        return rows

    def go_on(self, before: Twin) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Takes the values of the tags that are the same in a table before this one; returns (rows, rows there)."""
        pairs = [
            (row, before.layout.row[key])
            for row, (key, tag) in enumerate(zip(self.layout.keys, self.layout.tags))
            if key in before.layout.row and before.layout.tags[before.layout.row[key]] == tag
        ]
        rows = np.array([row for row, _ in pairs], dtype=np.int64)
        there = np.array([row for _, row in pairs], dtype=np.int64)
        self.value[rows] = before.value[there]
        self.quality[rows] = before.quality[there]
        self.stamps[rows] = before.stamps[there]
        for row, old in pairs:
            self.plain[row] = before.plain[old]
            if old in before.total:
                self.total[row] = before.total[old]
        return rows, there

    def sample(self, key: Key) -> Sample:
        """The present value of one tag. Raises KeyError for a tag that is not in the layout."""
        row = self.layout.row[key]
        return Sample(
            float(self.value[row]), self.plain[row], Quality(int(self.quality[row])), float(self.stamps[row])
        )

    def snapshot(
        self,
        now: float,
        *,
        states: Mapping[str, str],
        health: Mapping[str, HealthView],
        loops: Mapping[str, LoopView],
        loops_of: Mapping[str, tuple[str, ...]],
        forecasts: Forecasts | None,
    ) -> Snapshot:
        """A frozen copy of all of it. Costs some microseconds per thousand tags."""
        return Snapshot(
            layout=self.layout,
            t=now,
            plain=self.plain.copy(),
            value=self.value.copy(),
            quality=self.quality.copy(),
            stamps=self.stamps.copy(),
            total=MappingProxyType(self.total.copy()),
            states=MappingProxyType(dict(states)),
            health=MappingProxyType(dict(health)),
            loops=MappingProxyType(dict(loops)),
            loops_of=loops_of,
            forecasts=forecasts,
        )

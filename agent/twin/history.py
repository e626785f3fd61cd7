"""The last hour of each tag in 360 buckets of ten seconds (min, max, last), for the page. Time is handed in."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

BUCKET = 10.0
BUCKETS = 360
MOST_TAGS = 2000
"""Tags kept from the start; of those beyond them only what somebody looked at."""
ON_DEMAND = 64

Point = tuple[float, float, float, float]
"""(monotonic time of the bucket's start, min, max, last)."""


class History:
    """One ring for all tags. `add` is called by the main loop, `read` by the page's thread; a lock keeps them apart.

    The lock is held for some microseconds by either, so neither is held up. Columns have shape (360, places); all of
    their memory is taken at once, so that a process that has run for an hour is no larger than a fresh one.
    """

    def __init__(self, tags: int) -> None:
        self._kept = min(tags, MOST_TAGS)
        places = self._kept + min(tags - self._kept, ON_DEMAND)
        self._place = np.full(tags, -1, dtype=np.int64)
        self._place[: self._kept] = np.arange(self._kept)
        self._asked: dict[int, None] = {}  # rows beyond the kept ones, the longest unasked first
        self._free = list(range(self._kept, places))
        self._number = np.full(BUCKETS, -1, dtype=np.int64)
        self._low = np.full((BUCKETS, places), np.nan)
        self._high = np.full((BUCKETS, places), np.nan)
        self._last = np.full((BUCKETS, places), np.nan)
        self._lock = threading.Lock()

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float64], t: float) -> None:
        """Takes the values (NaN: none) of some rows at time t. Shapes: rows (n,), values (n,)."""
        number = int(t // BUCKET)
        at = number % BUCKETS
        with self._lock:
            places = self._place[rows]
            if self._place.size > self._kept:
                known = places >= 0
                places, values = places[known], values[known]
            if self._number[at] != number:
                self._number[at] = number
                self._low[at] = self._high[at] = self._last[at] = np.nan
            low, high, last = self._low[at], self._high[at], self._last[at]
            low[places] = np.fmin(low[places], values)
            high[places] = np.fmax(high[places], values)
            last[places] = np.where(np.isnan(values), last[places], values)

    def go_on(self, before: History, rows: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        """Takes the hour of some rows from a history before this one: (rows here, rows there), shape (n,) each."""
        here, there = self._place[rows[0]], before._place[rows[1]]
        both = (here >= 0) & (there >= 0)
        with before._lock:
            self._number[:] = before._number
            for mine, old in (
                (self._low, before._low),
                (self._high, before._high),
                (self._last, before._last),
            ):
                mine[:, here[both]] = old[:, there[both]]

    def read(self, row: int) -> list[Point]:
        """The buckets of one row, oldest first; those without a value are left out.

        A row beyond the kept ones is recorded from the first time that it is asked for; of those, the 64 asked last.
        """
        if not 0 <= row < self._place.size:
            return []
        with self._lock:
            place = self._place_of(row)
            numbers = self._number.copy()
            low, high, last = (column[:, place].copy() for column in (self._low, self._high, self._last))
        newest = int(numbers.max())
        filled = (numbers >= 0) & (numbers > newest - BUCKETS) & ~np.isnan(low)
        at = np.flatnonzero(filled)
        at = at[np.argsort(numbers[at])]
        columns = (numbers[at] * BUCKET, low[at], high[at], last[at])
        return list(zip(*(column.tolist() for column in columns)))

    def _place_of(self, row: int) -> int:
        place = int(self._place[row])
        if row < self._kept:
            return place
        self._asked.pop(row, None)
        self._asked[row] = None
        if place < 0:
            place = self._free.pop() if self._free else self._take_from(next(iter(self._asked)))
            self._low[:, place] = self._high[:, place] = self._last[:, place] = np.nan
            self._place[row] = place
        return place

    def _take_from(self, row: int) -> int:
        del self._asked[row]
        place = int(self._place[row])
        self._place[row] = -1
        return place

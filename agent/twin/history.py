"""The last hour of each tag in 360 buckets of ten seconds (min, max, last), for the page. Time is handed in."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

BUCKET = 10.0
BUCKETS = 360
MOST_TAGS = 2000
"""Rows kept; a tag beyond them has no history."""

Point = tuple[float, float, float, float]
"""(monotonic time of the bucket's start, min, max, last)."""


class History:
    """One ring for all tags. `add` is called by the main loop, `read` by the page's thread; a lock keeps them apart.

    The lock is held for some microseconds by either, so neither is held up.
    """

    def __init__(self, tags: int) -> None:
        self._rows = min(tags, MOST_TAGS)
        self._number = np.full(BUCKETS, -1, dtype=np.int64)
        self._low = np.full((BUCKETS, self._rows), np.nan)
        self._high = np.full((BUCKETS, self._rows), np.nan)
        self._last = np.full((BUCKETS, self._rows), np.nan)
        self._lock = threading.Lock()

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float64], t: float) -> None:
        """Takes the values (NaN: none) of some rows at time t."""
        if self._rows == 0:
            return
        if rows.size and rows[-1] >= self._rows:
            kept = rows < self._rows
            rows, values = rows[kept], values[kept]
        number = int(t // BUCKET)
        place = number % BUCKETS
        with self._lock:
            if self._number[place] != number:
                self._number[place] = number
                self._low[place] = self._high[place] = self._last[place] = np.nan
            self._low[place, rows] = np.fmin(self._low[place, rows], values)
            self._high[place, rows] = np.fmax(self._high[place, rows], values)
            self._last[place, rows] = values

    def read(self, row: int) -> list[Point]:
        """The buckets of one row, oldest first; those without a value are left out."""
        if not 0 <= row < self._rows:
            return []
        with self._lock:
            numbers = self._number.copy()
            columns = [column[:, row].copy() for column in (self._low, self._high, self._last)]
        newest = int(numbers.max())
        points = []
        for place in np.argsort(numbers).tolist():
            number = int(numbers[place])
            if number < 0 or number <= newest - BUCKETS or np.isnan(columns[0][place]):
                continue
            low, high, last = (float(column[place]) for column in columns)
            points.append((number * BUCKET, low, high, high if np.isnan(last) else last))
        return points

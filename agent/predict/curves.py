"""What a replay draws: each tag's values with their forecasts, and its health, in memory that does not grow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.plot import Band, Line, Panel, Rule
from agent.predict.replay import Replay, Sample

Floats = NDArray[np.float64]

MOST = 2048
"""Buckets of rows; when all are in use, each two become one that holds twice as many rows."""
TAGS = 20
"""Tags that are drawn; a picture of more is not looked at."""
NEWEST = 120
"""Rows shown again at the end, large enough to see single forecasts and the fan beyond the last row."""
ALARMS = 50
BREAK = 2.5
"""Periods without a value at which a curve is broken."""
VALUE, LOW, HIGH, HEALTH = range(4)
NUMBERS = 4


class Curves:
    """Collects the rows of one replay; `add` is its `take`, `panels` the picture.

    names: the columns of the file; units: of each, "" where not known.
    """

    def __init__(self, names: Sequence[str], units: Sequence[str]) -> None:
        self.names, self.units = list(names)[:TAGS], list(units)[:TAGS]
        shape = (MOST, len(self.names), NUMBERS)
        self._t = np.empty((MOST, 2))  # first and last of each bucket
        self._least, self._most = np.full(shape, np.nan), np.full(shape, np.nan)
        self._used = 0  # buckets, the open one included
        self._size = 1  # rows per bucket
        self._held = 0  # rows in the open one
        self._newest: deque[tuple[float, Floats]] = deque(maxlen=NEWEST)
        self._clock = False
        self.rows = 0

    def add(self, sample: Sample, one: Replay, foretold: tuple[Floats, Floats, Floats]) -> None:
        """Takes one row, as `Replay.run` hands it out."""
        if not self.rows:
            self._clock = not _is_plain(sample.text)
        count = len(self.names)
        numbers = np.stack(
            [sample.values[:count], foretold[1][:count], foretold[2][:count], one.health.scores()[:count]],
            axis=1,
        )
        self._newest.append((sample.t, numbers))
        self._put(sample.t, numbers)
        self.rows += 1

    def _put(self, t: float, numbers: Floats) -> None:
        if self._used == 0 or self._held == self._size:
            if self._used == MOST:
                self._halve()
            self._used, self._held = self._used + 1, 0
            self._t[self._used - 1, 0] = t
            self._least[self._used - 1] = self._most[self._used - 1] = np.nan
        at = self._used - 1
        self._t[at, 1] = t
        self._least[at] = np.fmin(self._least[at], numbers)
        self._most[at] = np.fmax(self._most[at], numbers)
        self._held += 1

    def _halve(self) -> None:
        half = MOST // 2
        self._t[:half, 0], self._t[:half, 1] = self._t[0::2, 0].copy(), self._t[1::2, 1].copy()
        self._least[:half] = np.fmin(self._least[0::2], self._least[1::2])
        self._most[:half] = np.fmax(self._most[0::2], self._most[1::2])
        self._used, self._size = half, 2 * self._size

    def panels(self, one: Replay) -> list[Panel]:
        """Two or three panels per tag: all rows, the newest with the fan beyond them where they are few, the health."""
        drawn: list[Panel] = []
        for slot, (name, unit) in enumerate(zip(self.names, self.units, strict=True)):
            newest = self._last(one, slot, name, unit)
            if self.rows > NEWEST:
                drawn.append(self._whole(one, slot, name, unit))
            drawn += [newest, self._health(one, slot, name)]
        return drawn

    def _curve(self, slot: int, number: int, period: float) -> tuple[list[float], list[float]]:
        """Least and greatest of each bucket, each at an end of it; NaN where more than a sample or two is missing."""
        known = np.flatnonzero(np.isfinite(self._least[: self._used, slot, number]))
        began, ended = self._t[known, 0], self._t[known, 1]
        low, high = self._least[known, slot, number], self._most[known, slot, number]
        xs: list[float] = []
        ys: list[float] = []
        for i in range(len(known)):
            if i and began[i] - ended[i - 1] > BREAK * period:
                xs.append(float(began[i]))
                ys.append(math.nan)
            if low[i] == high[i]:
                pair = [(began[i], low[i])]
            elif i + 1 < len(known) and low[i + 1] < low[i]:  # in the order in which the curve goes on
                pair = [(began[i], high[i]), (ended[i], low[i])]
            else:
                pair = [(began[i], low[i]), (ended[i], high[i])]
            xs += [float(x) for x, _ in pair]
            ys += [float(y) for _, y in pair]
        return xs, ys

    def _whole(self, one: Replay, slot: int, name: str, unit: str) -> Panel:
        t = self._t[: self._used, 0].tolist()
        low, high = self._least[: self._used, slot, LOW], self._most[: self._used, slot, HIGH]
        band = Band(t, low.tolist(), high.tolist(), "interval one step ahead")
        return Panel(
            [band, Line(*self._curve(slot, VALUE, float(one.periods[slot])), "value")],
            title=name,
            unit=unit,
            clock=self._clock,
        )

    def _last(self, one: Replay, slot: int, name: str, unit: str) -> Panel:
        t = [t for t, _ in self._newest]
        rows = np.array([numbers[slot] for _, numbers in self._newest]).reshape(-1, NUMBERS)
        shapes: list[Line | Band | Rule] = [
            Band(t, rows[:, LOW].tolist(), rows[:, HIGH].tolist(), "interval one step ahead"),
        ]
        known = np.flatnonzero(np.isfinite(rows[:, VALUE]))
        period = float(one.periods[slot])
        shapes.append(Line(*_joined([t[i] for i in known], rows[known, VALUE].tolist(), period), "value"))
        y, low, high = (side.tolist() for side in one.predictor.ahead(slot))
        if known.size and math.isfinite(y[0]):
            began, value = t[known[-1]], float(rows[known[-1], VALUE])
            order = sorted(range(len(y)), key=lambda j: one.predictor.horizon[j])
            steps = [began, *(t[-1] + one.predictor.horizon[j] * period for j in order)]
            shapes += [
                Band(steps, [value, *(low[j] for j in order)], [value, *(high[j] for j in order)], "", 1),
                Line(steps, [value, *(y[j] for j in order)], "forecast", 1, dashed=True),
            ]
        title = f"{name}, the last {len(t)} rows" if self.rows > NEWEST else name
        return Panel(shapes, title=title, unit=unit, clock=self._clock)

    def _health(self, one: Replay, slot: int, name: str) -> Panel:
        device = one.keys[slot][0]
        raised = [e.t for e in one.result.events if e.alarm and e.state == "raised" and e.device == device]
        shapes: list[Line | Band | Rule] = [
            Line(*self._curve(slot, HEALTH, float(one.periods[slot])), "health", 2)
        ]
        shapes += [
            Rule(t, "" if i else f"alarms of {device}", 4, upright=True)
            for i, t in enumerate(raised[:ALARMS])
        ]
        ends = (float(self._t[0, 0]), float(self._t[self._used - 1, 1])) if self._used else None
        return Panel(
            shapes, title=f"{name}: health", x_ends=ends, clock=self._clock, low=0.0, high=1.0, height=70.0
        )


def _joined(xs: list[float], ys: list[float], period: float) -> tuple[list[float], list[float]]:
    """The points with a NaN before each that comes after a break."""
    broken = [i for i in range(1, len(xs)) if xs[i] - xs[i - 1] > BREAK * period]
    for i in reversed(broken):
        xs.insert(i, xs[i])
        ys.insert(i, math.nan)
    return xs, ys


def _is_plain(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

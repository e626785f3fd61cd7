"""Rules of single tags that need no model, told in the words of NAMUR NE 107, apart from the health score.

A stuck sensor is easy to forecast and so looks healthy; these rules see it. Pure: values and times are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config
from agent.predict import columns as c
from agent.twin.records import Event, Key

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

STUCK_TIMES = 5.0
"""A sensor counts as stuck after so many times the longest still run seen while it was commissioned."""
STUCK_LEAST = 30.0
"""But never after fewer samples than this."""
DELAY = 3.0
"""Seconds that a signal must be out of its limits."""
AT_END_USUAL = 0.01
"""Share of commissioning spent at an end of the range above which that end is normal for the tag."""
NE43 = (3.6, 3.8, 20.5, 21.0)
"""mA: failure at and below the first and at and above the last; valid from the second to the third (NAMUR NE 43)."""
FAILURE, SPECIFICATION = "failure", "out of specification"

STUCK, LOW_END, HIGH_END, CURRENT_FAILURE, CURRENT_LIMIT = range(5)
NAMES = ("sensor_stuck", "range_low", "range_high", "loop_current_failure", "loop_current_limit")
WORDS = (FAILURE, SPECIFICATION, SPECIFICATION, FAILURE, SPECIFICATION)


@dataclass
class _Watch:
    """Since when each tag has met a rule, and whether its event is raised. Shapes (rules, tags)."""

    since: Floats
    raised: Bools


class Rules:
    """Stuck sensors, values at the end of their range, 4-20 mA signals outside NE 43's limits."""

    def __init__(self, config: Config, keys: Sequence[Key]) -> None:
        tags = [config.tag(key) for key in keys]
        self._keys = tuple(keys)
        self._units = [f" {tag.unit}" if tag.unit else "" for tag in tags]
        self._low = np.array([tag.range[0] if tag.range else -np.inf for tag in tags])
        self._high = np.array([tag.range[1] if tag.range else np.inf for tag in tags])
        self._current = np.array([tag.loop_current for tag in tags], dtype=bool)
        shape = (len(NAMES), len(tags))
        self._watch = _Watch(np.full(shape, np.nan), np.zeros(shape, dtype=bool))

    def go_on(self, before: Rules, here: Ints, there: Ints) -> None:
        """What is raised stays raised, for the slots `here` that were `there` in rules before these."""
        self._watch.since[:, here] = before._watch.since[:, there]
        self._watch.raised[:, here] = before._watch.raised[:, there]

    def update(self, columns: Floats, slots: Ints, value: Floats, t: float) -> list[Event]:
        """Judges real samples of `slots` (after health took them into `columns`); returns what began or ended."""
        h = columns[slots]
        learnt = h[:, c.LEARNT] == 1.0
        at_low, at_high = value <= self._low[slots], value >= self._high[slots]
        columns[slots, c.AT_LOW] += at_low & ~learnt
        columns[slots, c.AT_HIGH] += at_high & ~learnt
        usual = AT_END_USUAL * np.maximum(h[:, c.SAMPLES], 1.0)
        longest = np.maximum(STUCK_TIMES * h[:, c.LONGEST_STILL], STUCK_LEAST)
        current = self._current[slots]
        failure = current & ((value <= NE43[0]) | (value >= NE43[3]))
        met = np.stack(
            [
                learnt & (h[:, c.STILL] > longest),
                learnt & at_low & (h[:, c.AT_LOW] <= usual),
                learnt & at_high & (h[:, c.AT_HIGH] <= usual),
                failure,
                current & ~failure & ((value < NE43[1]) | (value > NE43[2])),
            ]
        )
        since = np.where(met, np.fmin(self._watch.since[:, slots], t), np.nan)
        self._watch.since[:, slots] = since
        delay = np.array([[0.0], [DELAY], [DELAY], [DELAY], [DELAY]])
        raised = self._watch.raised[:, slots]
        begins = met & ~raised & (t - since >= delay)
        ends = ~met & raised
        if not (begins.any() or ends.any()):
            return []
        self._watch.raised[:, slots] = (raised | begins) & ~ends
        events = [
            self._event(rule, slots[i], value[i], h[i], t, True)
            for rule, i in zip(*np.nonzero(begins), strict=True)
        ]
        events += [
            self._event(rule, slots[i], value[i], h[i], t, False)
            for rule, i in zip(*np.nonzero(ends), strict=True)
        ]
        return events

    def _event(self, rule: int, slot: int, value: float, row: Floats, t: float, begins: bool) -> Event:
        device, tag = self._keys[slot]
        unit = self._units[slot]
        limit: float
        if rule == STUCK:
            limit = max(STUCK_TIMES * float(row[c.LONGEST_STILL]), STUCK_LEAST)
            what = f"has not moved from {value:g}{unit} for more than {limit:.0f} samples"
        elif rule in (LOW_END, HIGH_END):
            limit = float(self._low[slot] if rule == LOW_END else self._high[slot])
            what = f"is at the end of its range: {value:g}{unit}, limit {limit:g}"
        else:
            low = value < 12.0
            failure = rule == CURRENT_FAILURE
            limit = NE43[0 if low else 3] if failure else NE43[1 if low else 2]
            what = f"is {value:g} mA, {'below' if low else 'above'} {limit:g} mA (NAMUR NE 43)"
        name = f"{device}/{tag}"
        text = f"{WORDS[rule]}: {name} {what}" if begins else f"{name} is {value:g}{unit} again"
        return Event(
            device=device,
            name=f"{NAMES[rule]}_{tag}",
            severity="alarm" if WORDS[rule] == FAILURE else "warning",
            state="raised" if begins else "cleared",
            text=text,
            t=t,
            tag=tag,
            value=float(value),
            limit=limit,
            causes=(tag,),
            alarm=True,
        )

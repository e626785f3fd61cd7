"""Rules of single tags that need no model, told in the words of NAMUR NE 107, apart from the health score.

A stuck sensor is easy to forecast and so looks healthy; these rules see it. Pure: values and times are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config
from agent.predict import columns as c
from agent.twin.records import Event, Key

Floats = NDArray[np.float64]

FAILURE, SPECIFICATION = "failure", "out of specification"
NAMES = ("sensor_stuck", "range_low", "range_high", "loop_current_failure", "loop_current_limit")
WORDS = (FAILURE, SPECIFICATION, SPECIFICATION, FAILURE, SPECIFICATION)
"""Both in the order of the rules in `columns`."""


class Rules:
    """Stuck sensors, values at the end of their range, 4-20 mA signals outside NE 43's limits."""

    def __init__(self, config: Config, keys: Sequence[Key]) -> None:
        tags = [config.tag(key) for key in keys]
        self._keys = tuple(keys)
        self._units = [f" {tag.unit}" if tag.unit else "" for tag in tags]
        self.settings = np.array(
            [[*(tag.range or (-np.inf, np.inf)), float(tag.loop_current)] for tag in tags]
        ).reshape(-1, 3)
        """Per tag what stands from columns.RANGE_LOW to CURRENT."""

    def event(self, rule: int, slot: int, value: float, row: Floats, t: float, *, begins: bool) -> Event:
        """What a rule says of a tag at time t (s), its value, and its health columns in `row`."""
        device, tag = self._keys[slot]
        unit = self._units[slot]
        limit: float
        if rule == c.STUCK:
            limit = max(c.STUCK_TIMES * float(row[c.LONGEST_STILL]), c.STUCK_LEAST)
            what = f"has not moved from {value:g}{unit} for more than {limit:.0f} samples"
        elif rule in (c.LOW_END, c.HIGH_END):
            limit = float(self.settings[slot, 0 if rule == c.LOW_END else 1])
            what = f"is at the end of its range: {value:g}{unit}, limit {limit:g}"
        else:
            low = value < 12.0
            failure = rule == c.CURRENT_FAILURE
            outer, inner = (c.NE43_LOW, c.NE43_LEAST) if low else (c.NE43_HIGH, c.NE43_MOST)
            limit = outer if failure else inner
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
            value=value,
            limit=limit,
            causes=(tag,),
            alarm=True,
        )

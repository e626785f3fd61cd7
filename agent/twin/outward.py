"""Values as they leave the gateway, over MQTT and on the page alike. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from agent.twin.quality import WORDS
from agent.twin.records import LoopView, Plain, Snapshot

EXACT = 2**53
"""Whole numbers up to it are exact in the doubles that JSON readers use."""


def plain(value: Plain) -> Plain:
    """A value as JSON may carry it: integers beyond 2^53 as text (readers use doubles), NaN and infinity as null."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -EXACT <= value <= EXACT else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def reported(snapshot: Snapshot, rows: Iterable[int], ms: Callable[[float], int]) -> dict[str, Any]:
    """{tag: {"v", "q", "t"}} of some rows of one device; counters have `total` beside.

    ms: monotonic seconds -> ms UTC; `t` is null before the first reply.
    """
    tags: dict[str, Any] = {}
    for row in rows:
        t = float(snapshot.stamps[row])
        one: dict[str, Any] = {
            "v": plain(snapshot.plain[row]),
            "q": WORDS[snapshot.quality[row]],
            "t": None if math.isnan(t) else ms(t),
        }
        if row in snapshot.total:
            one["total"] = plain(snapshot.total[row])
        tags[snapshot.layout.keys[row][1]] = one
    return tags


def loop_body(view: LoopView) -> dict[str, Any]:
    """A loop's mode, setpoint, process variable and output, and why it is not as wanted."""
    return {
        "mode": view.mode,
        "sp": plain(view.sp),
        "pv": plain(view.pv),
        "out": plain(view.out),
        "limited": view.limited,
        "reason": view.reason,
    }

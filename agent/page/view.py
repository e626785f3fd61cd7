"""What the page and its programs are shown, made from a snapshot."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.runtime.clock import Clock
from agent.twin.history import Point
from agent.twin.quality import WORDS
from agent.twin.records import Ask, Event, Outcome, Plain, Snapshot

PAGE_ROWS = 100
EXACT = 2**53


@dataclass(frozen=True, slots=True)
class Sources:
    """Where everything comes from; each may be called from the front thread at any time."""

    snapshot: Callable[[], Snapshot | None]
    status: Callable[[], dict[str, Any]]
    events: Callable[[], Sequence[Event]]
    history: Callable[[int], Sequence[Point]]
    ms: Callable[[float], int]
    clock: Clock
    ask: Callable[[Ask], concurrent.futures.Future[Outcome]]


def plain(value: Plain) -> Plain:
    """As JSON may carry it: large integers as text, NaN as null."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if -EXACT <= value <= EXACT else str(value)
    return value if math.isfinite(value) else None


def tags(snapshot: Snapshot, *, text: str = "", first: int = 0, count: int | None = None) -> dict[str, Any]:
    """A page of the table of tags: those whose device/tag holds `text`, from the `first` on."""
    layout = snapshot.layout
    wanted = text.casefold()
    rows = [row for row, key in enumerate(layout.keys) if wanted in "/".join(key).casefold()]
    chosen = rows[first : None if count is None else first + count]
    return {"total": len(rows), "first": first, "tags": [_tag(snapshot, row) for row in chosen]}


def _tag(snapshot: Snapshot, row: int) -> dict[str, Any]:
    device, name = snapshot.layout.keys[row]
    tag = snapshot.layout.tags[row]
    t = float(snapshot.stamps[row])
    value = snapshot.plain[row]
    state = tag.states.get(value) if isinstance(value, int) and not isinstance(value, bool) else None
    return {
        "row": row,
        "device": device,
        "tag": name,
        "v": plain(value),
        "state": state,
        "unit": tag.unit,
        "q": WORDS[snapshot.quality[row]],
        "age": None if math.isnan(t) else round(max(0.0, snapshot.t - t), 1),
    }


def twin(snapshot: Snapshot, ms: Callable[[float], int]) -> dict[str, Any]:
    """The body of /api/twin: every device with its values, health and loops."""
    devices = {}
    for device in snapshot.layout.devices:
        values = {}
        for row in snapshot.layout.of_device[device]:
            t = float(snapshot.stamps[row])
            values[snapshot.layout.keys[row][1]] = {
                "v": plain(snapshot.plain[row]),
                "q": WORDS[snapshot.quality[row]],
                "t": None if math.isnan(t) else ms(t),
            }
        devices[device] = {
            "state": snapshot.states.get(device),
            "reported": values,
            "health": health(snapshot).get(device),
            "loops": {name: loops(snapshot)[name] for name in snapshot.loops_of.get(device, ())},
        }
    return {"v": 1, "ts": ms(snapshot.t), "devices": devices}


def health(snapshot: Snapshot) -> dict[str, Any]:
    return {
        device: {"score": view.score, "tags": dict(view.tags), "causes": list(view.causes)}
        for device, view in snapshot.health.items()
    }


def loops(snapshot: Snapshot) -> dict[str, Any]:
    return {
        name: {
            "mode": view.mode,
            "sp": view.sp,
            "pv": view.pv,
            "out": view.out,
            "limited": view.limited,
            "reason": view.reason,
        }
        for name, view in snapshot.loops.items()
    }


def event(one: Event, ms: Callable[[float], int]) -> dict[str, Any]:
    return {
        "t": ms(one.t),
        "device": one.device,
        "name": one.name,
        "severity": one.severity,
        "state": one.state,
        "text": one.text,
    }


def past_and_future(snapshot: Snapshot, sources: Sources, row: int) -> dict[str, Any]:
    """The body of /api/history: an hour of one tag in buckets, and its forecasts with their interval."""
    layout = snapshot.layout
    tag = layout.tags[row]
    ahead: list[list[float]] = []
    forecasts = snapshot.forecasts
    if forecasts is not None:
        for i in (forecasts.rows == row).nonzero()[0].tolist():
            for j, steps in enumerate(forecasts.h):
                numbers = [float(forecasts.y[i, j]), float(forecasts.lo[i, j]), float(forecasts.hi[i, j])]
                if all(math.isfinite(number) for number in numbers):
                    ahead.append([sources.ms(float(forecasts.t[i]) + steps * tag.every), *numbers])
    return {
        "device": layout.keys[row][0],
        "tag": layout.keys[row][1],
        "unit": tag.unit,
        "range": None if tag.range is None else list(tag.range),
        "points": [[sources.ms(t), low, high, last] for t, low, high, last in sources.history(row)],
        "forecast": ahead,
    }


def live(
    snapshot: Snapshot | None, status: Mapping[str, Any], sources: Sources, query: Mapping[str, str]
) -> dict[str, Any]:
    """What the page is sent each second: status, a page of tags, health, loops, events."""
    body: dict[str, Any] = {"now": sources.ms(sources.clock.mono()), "status": dict(status)}
    body["events"] = [event(one, sources.ms) for one in list(sources.events())[-50:]][::-1]
    if snapshot is not None:
        first = int(query.get("first", "0")) if query.get("first", "0").isdecimal() else 0
        body["table"] = tags(snapshot, text=query.get("find", ""), first=first, count=PAGE_ROWS)
        body["health"] = health(snapshot)
        body["loops"] = loops(snapshot)
        body["states"] = dict(snapshot.states)
    return body

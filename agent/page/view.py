"""What the page and its programs are shown, made from a snapshot."""

from __future__ import annotations

import concurrent.futures
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.config.types import LoopConfig
from agent.runtime.clock import Clock
from agent.twin.history import BUCKET, Point
from agent.twin.outward import loop_body, plain, reported
from agent.twin.quality import LAST_WITH_VALUE, WORDS
from agent.twin.records import Ask, Event, Key, Layout, Outcome, Snapshot

PAGE_ROWS = 100
EVENTS_SHOWN = 50
SPARK_BUCKETS = 60
"""Ten minutes."""
SLICE = 200
"""Tags encoded at once: the JSON encoder keeps the interpreter to itself for as long as it works."""


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
    loops: Callable[[], Mapping[str, LoopConfig]] = dict


def twin_json(snapshot: Snapshot, ms: Callable[[float], int]) -> bytes:
    """The body of /api/twin: every device with its values, health and loops."""
    return b"".join(_twin_parts(snapshot, ms))


def _twin_parts(snapshot: Snapshot, ms: Callable[[float], int]) -> Iterator[bytes]:
    all_health, all_loops = health(snapshot), loops(snapshot)
    yield b'{"v":1,"ts":%d,"devices":{' % ms(snapshot.t)
    for index, device in enumerate(snapshot.layout.devices):
        about = {
            "state": snapshot.states.get(device),
            "health": all_health.get(device),
            "loops": {
                name: all_loops[name] for name in snapshot.loops_of.get(device, ()) if name in all_loops
            },
        }
        yield b"," * (index > 0) + _json(device) + b":" + _json(about)[:-1] + b',"reported":{'
        rows = snapshot.layout.of_device[device]
        for first in range(0, len(rows), SLICE):
            yield b"," * (first > 0) + _json(reported(snapshot, rows[first : first + SLICE], ms))[1:-1]
        yield b"}}"
    yield b"}}"


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def health(snapshot: Snapshot) -> dict[str, Any]:
    """Device -> score, the same per tag, causes."""
    return {
        device: {"score": view.score, "tags": dict(view.tags), "causes": list(view.causes)}
        for device, view in snapshot.health.items()
    }


def loops(snapshot: Snapshot) -> dict[str, Any]:
    """Loop -> mode, setpoint, process variable, output, whether it is limited, and why it is in its mode."""
    return {name: loop_body(view) for name, view in snapshot.loops.items()}


def event(one: Event, ms: Callable[[float], int]) -> dict[str, Any]:
    """One line of the list of events."""
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
        "every": tag.every,
        "bucket_ms": round(BUCKET * 1000),
        "now": sources.ms(sources.clock.mono()),
        "points": [
            [sources.ms(t), *numbers]
            for t, *numbers in sources.history(row)
            if all(math.isfinite(number) for number in numbers)
        ],
        "forecast": ahead,
    }


class Look:
    """What one open page is sent each second: status, one page of the tags, health, loops, events.

    query: `find` (a text in device/tag), `first` (row among those found), `bad` (1: only what is not good).
    """

    def __init__(self, sources: Sources, query: Mapping[str, str]) -> None:
        self._sources = sources
        self._find = query.get("find", "").casefold()
        first = query.get("first", "0")
        self._first = int(first) if first.isascii() and first.isdecimal() and len(first) < 8 else 0
        self._bad = query.get("bad") == "1"
        self._layout: Layout | None = None
        self._found: list[int] = []
        self._sparks_of: tuple[int, tuple[int, ...]] | None = None

    def live(self, status: Mapping[str, Any]) -> dict[str, Any]:
        """The next message."""
        sources, snapshot = self._sources, self._sources.snapshot()
        now = sources.clock.mono()
        body: dict[str, Any] = {"now": sources.ms(now), "status": dict(status)}
        body["events"] = [event(one, sources.ms) for one in list(sources.events())[-EVENTS_SHOWN:]][::-1]
        if snapshot is None:
            return body
        rows = self._rows(snapshot)
        shown = rows[self._first : self._first + PAGE_ROWS]
        body["table"] = {
            "total": len(rows),
            "of": len(snapshot.layout.keys),
            "first": self._first,
            "size": PAGE_ROWS,
            "tags": [_tag(snapshot, row, now) for row in shown],
        }
        body["age"] = round(max(0.0, now - snapshot.t), 1)
        body["bad"] = int(np.count_nonzero(snapshot.quality))
        body["health"] = health(snapshot)
        body["states"] = dict(snapshot.states)
        body["loops"] = {name: self._faceplate(snapshot, name, one) for name, one in loops(snapshot).items()}
        self._add_sparks(body, snapshot, shown, now)
        return body

    def _rows(self, snapshot: Snapshot) -> list[int]:
        layout = snapshot.layout
        if layout is not self._layout:
            self._layout = layout
            self._found = [
                row
                for row, (device, tag) in enumerate(layout.keys)
                if self._find in f"{device}/{tag}".casefold()
            ]
        if not self._bad:
            return self._found
        bad = (snapshot.quality != 0).tolist()
        return [row for row in self._found if bad[row]]

    def _faceplate(self, snapshot: Snapshot, name: str, view: dict[str, Any]) -> dict[str, Any]:
        config = self._sources.loops().get(name)
        if config is None:
            return view
        more = {
            "pv_tag": "/".join(config.pv),
            "out_tag": "/".join(config.out),
            "unit": _unit(snapshot, config.pv),
            "out_unit": _unit(snapshot, config.out),
            "limits": list(config.limits),
            "span": _span(snapshot, config),
            "controller": config.controller.type,
            "every": config.every,
        }
        return {**view, **more}

    def _add_sparks(self, body: dict[str, Any], snapshot: Snapshot, shown: Sequence[int], now: float) -> None:
        """Small trends, sent only when another bucket began or other rows are shown."""
        keys = [key for config in self._sources.loops().values() for key in (config.pv, config.out)]
        of_loops = [snapshot.layout.row[key] for key in keys if key in snapshot.layout.row]
        wanted = tuple(dict.fromkeys([*shown, *of_loops]))
        mark = (int(now // BUCKET), wanted)
        if mark != self._sparks_of:
            self._sparks_of = mark
            body["sparks"] = {
                "/".join(snapshot.layout.keys[row]): spark(self._sources.history(row), now) for row in wanted
            }


def spark(points: Sequence[Point], now: float) -> list[int | None]:
    """The last ten minutes as numbers 0..100 between their lowest and highest value; None where there is a hole."""
    first = int(now // BUCKET) - SPARK_BUCKETS + 1
    recent = [(int(t // BUCKET) - first, last) for t, _, _, last in points[-SPARK_BUCKETS:]]
    recent = [(place, last) for place, last in recent if 0 <= place < SPARK_BUCKETS and math.isfinite(last)]
    line: list[int | None] = [None] * SPARK_BUCKETS
    if not recent:
        return []
    low, high = min(last for _, last in recent), max(last for _, last in recent)
    size = max(abs(low), abs(high)) or 1.0  # scaled before subtracting, which could overflow
    span = high / size - low / size
    for place, last in recent:
        line[place] = round(100 * ((last / size - low / size) / span)) if span else 50
    return line


def _tag(snapshot: Snapshot, row: int, now: float) -> dict[str, Any]:
    device, name = snapshot.layout.keys[row]
    tag = snapshot.layout.tags[row]
    t = float(snapshot.stamps[row])
    value = snapshot.plain[row]
    state = tag.states.get(value) if isinstance(value, int) and not isinstance(value, bool) else None
    return {
        "device": device,
        "tag": name,
        "v": plain(value),
        "state": state,
        "unit": tag.unit,
        "q": WORDS[snapshot.quality[row]],
        "ok": bool(snapshot.quality[row] <= LAST_WITH_VALUE),
        "age": None if math.isnan(t) else round(max(0.0, now - t), 1),
        "numeric": tag.numeric or tag.boolean or bool(tag.states),
    }


def _unit(snapshot: Snapshot, key: Key) -> str | None:
    row = snapshot.layout.row.get(key)
    return None if row is None else snapshot.layout.tags[row].unit


def _span(snapshot: Snapshot, config: LoopConfig) -> list[float] | None:
    """What the bar of setpoint and process variable spans: the setpoint's limits, the trip, or the tag's range."""
    row = snapshot.layout.row.get(config.pv)
    of_tag = None if row is None else snapshot.layout.tags[row].range
    span = config.setpoint_limits or config.trip or of_tag
    return None if span is None else list(span)

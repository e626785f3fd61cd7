"""Every MQTT body, made from records. Pure: times come in as a function from monotonic seconds to ms UTC."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agent.config.types import Config, Tag
from agent.twin.outward import EXACT, loop_body, reported
from agent.twin.outward import plain as plain
from agent.twin.quality import WORDS, Quality
from agent.twin.records import Event, Forecasts, Row, Snapshot

VERSION = 1
COMPRESSED_FROM = 512
"""Bytes: smaller bodies gain nothing."""
ZLIB_MARK = 0x78
DIGITS = 9
"""Significant digits of forecasts and coefficients."""

FLAT_KEYS = frozenset({"v", "boot", "ts", "mono", "seq"})

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every body bears: the boot id and the time. `mono` is given while the wall clock is not set."""

    boot: str
    ms: Callable[[float], int]
    synced: bool = True

    def head(self, t: float) -> Body:
        head: Body = {"v": VERSION, "boot": self.boot, "ts": self.ms(t)}
        if not self.synced:
            head["mono"] = round(t, 3)
        return head


def encode(body: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8. Integers beyond 2^53 must be text already (`plain` sees to it); NaN is refused.

    Half of a surrogate pair, as in the name of a file that is no UTF-8, becomes a question mark.
    """
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def compressed(data: bytes) -> bytes:
    """zlib where it pays; a reader tells by the first byte."""
    return zlib.compress(data, 6) if len(data) > COMPRESSED_FROM else data


def decode(data: bytes) -> Body:
    """A body as it was before `encode`. Raises ValueError for what is no JSON object."""
    if data[:1] == bytes([ZLIB_MARK]):
        try:
            data = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError(f"damaged zlib data: {error}") from None
    body = json.loads(data)
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body


def rounded(value: float) -> float | None:
    """A computed number to DIGITS significant digits; None where there is none."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


# -- state, meta ------------------------------------------------------------------------------------------------


def state_body(
    stamp: Stamp,
    t: float,
    *,
    status: Literal["online", "offline"],
    since: int,
    version: str,
    backlog: Mapping[str, Any],
) -> Body:
    """`state`, retained, and the last will. `since` in ms UTC; backlog has batches, bytes, oldest (ms or null)."""
    return stamp.head(t) | {
        "status": status,
        "since": since,
        "version": version,
        "clock": "ok" if stamp.synced else "unsynced",
        "backlog": dict(backlog),
    }


def meta_of(config: Config, device: str, horizon: Sequence[int]) -> Body:
    """What does not change while the agent runs: a device's tags, loops and horizons, and the hash that names it."""
    content: Body = {
        "tags": {tag.name: _tag_meta(tag) for tag in config.devices[device].tags.values()},
        "loops": [loop.name for loop in config.loops.values() if loop.out[0] == device],
        "horizon": list(horizon),
    }
    digest = hashlib.sha256(encode(content)).hexdigest()[:8]
    return {"meta": digest, **content}


def _tag_meta(tag: Tag) -> Body:
    writable = None if tag.write is None else {"range": _pair(tag.write.range)}
    return {
        "type": tag.type,
        "unit": tag.unit,
        "range": _pair(tag.range),
        "states": {str(number): name for number, name in tag.states.items()} or None,
        "every": tag.every,
        "write": writable,
        "exact": tag.exact,
    }


def _pair(pair: tuple[float, float] | None) -> list[float] | None:
    return None if pair is None else list(pair)


# -- twin, forecast ---------------------------------------------------------------------------------------------


def twin_body(stamp: Stamp, snapshot: Snapshot, device: str, *, stream: str, seq: int, meta: str) -> Body:
    """`twin`, retained. `seq` is the last batch of `data` that it holds."""
    health = snapshot.health.get(device)
    return stamp.head(snapshot.t) | {
        "stream": stream,
        "seq": seq,
        "meta": meta,
        "state": snapshot.states.get(device, "link"),
        "reported": reported(snapshot, snapshot.layout.of_device[device], stamp.ms),
        "health": {
            "score": None if health is None or health.score is None else rounded(health.score),
            "tags": {} if health is None else {tag: _score(score) for tag, score in health.tags.items()},
            "causes": [] if health is None else list(health.causes),
        },
        "loops": {
            name: loop_body(snapshot.loops[name])
            for name in snapshot.loops_of.get(device, ())
            if name in snapshot.loops
        },
    }


def _score(score: float | None) -> float | None:
    return None if score is None else rounded(score)


def forecast_body(stamp: Stamp, snapshot: Snapshot, device: str) -> Body | None:
    """`forecast`, retained; None for a device without forecasts.

    Each tag's `t` is the time of the sample that its forecast was made at; the body's is the newest of them.
    """
    forecasts = snapshot.forecasts
    if forecasts is None:
        return None
    rows = snapshot.layout.of_device[device]
    known = ~(np.isnan(forecasts.y[:, 0]) | np.isnan(forecasts.t))
    mine = (forecasts.rows >= rows.start) & (forecasts.rows < rows.stop) & known
    tags: Body = {}
    newest = -math.inf
    for i in np.flatnonzero(mine).tolist():
        t = float(forecasts.t[i])
        tags[snapshot.layout.keys[int(forecasts.rows[i])][1]] = _forecast(forecasts, i) | {"t": stamp.ms(t)}
        newest = max(newest, t)
    return stamp.head(snapshot.t) | {"t": stamp.ms(newest), "tags": tags} if tags else None


def _forecast(forecasts: Forecasts, i: int) -> Body:
    return {
        "h": list(forecasts.h),
        "y": [rounded(number) for number in forecasts.y[i].tolist()],
        "lo": [rounded(number) for number in forecasts.lo[i].tolist()],
        "hi": [rounded(number) for number in forecasts.hi[i].tolist()],
        "a": [rounded(number) for number in forecasts.a[i].tolist()],
        "b": rounded(float(forecasts.b[i])),
    }


# -- data -------------------------------------------------------------------------------------------------------


def groups(rows: Iterable[Row], ms: Callable[[float], int]) -> list[Body]:
    """Rows as columns: one group for each set of tags that share their replies.

    {"t": [ms], "c": {tag: [values]}, "q": {tag: [[index, quality word]]}}; `q` names every value that is not good.
    """
    by_tags: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_tags.setdefault(row.tags, []).append(row)
    return [_group(tags, mine, ms) for tags, mine in by_tags.items()]


def _group(tags: tuple[str, ...], rows: Sequence[Row], ms: Callable[[float], int]) -> Body:
    columns = {tag: list(column) for tag, column in zip(tags, zip(*(row.values for row in rows)))}
    for column in columns.values():
        for i, value in enumerate(column):
            if type(value) is int and not -EXACT <= value <= EXACT:
                column[i] = str(value)
    quality: dict[str, list[list[Any]]] = {}
    for index, row in enumerate(rows):
        if row.quality is not None:
            for tag, code in zip(tags, row.quality):
                if code != Quality.GOOD:
                    quality.setdefault(tag, []).append([index, WORDS[code]])
    return {"t": [ms(row.t) for row in rows], "c": columns, "q": quality}


def data_body(stamp: Stamp, rows: Sequence[Row], *, t: float, stream: str, seq: int, meta: str) -> Body:
    """`data` and `backfill`: one batch of one device. While the clock is not set each group has `mono` beside `t`."""
    bodies = groups(rows, stamp.ms)
    if not stamp.synced:
        for body, mono in zip(bodies, groups(rows, lambda t: round(t * 1000))):
            body["mono"] = [one / 1000 for one in mono["t"]]
    return stamp.head(t) | {"stream": stream, "seq": seq, "meta": meta, "groups": bodies}


def flat_body(stamp: Stamp, rows: Sequence[Row], *, t: float, seq: int) -> Body:
    """`flat`: the newest value of each tag of a batch in one object, for Telegraf, Grafana and Node-RED.

    A tag that has the name of one of the body's own keys (`v`, `ts` …) stands there with a `_` behind it.
    """
    head = stamp.head(t) | {"seq": seq}
    newest: Body = {}
    for row in rows:
        newest |= zip(row.tags, map(plain, row.values))
    for name in FLAT_KEYS & newest.keys():
        free = name + "_"
        while free in newest:
            free += "_"
        newest[free] = newest.pop(name)
    return head | newest


def gap_body(stamp: Stamp, t: float, *, stream: str, first: int, last: int, reason: str) -> Body:
    """`gap`: of these batches, what the receiver does not have by now will not come."""
    return stamp.head(t) | {"stream": stream, "from": first, "to": last, "reason": reason}


def event_body(stamp: Stamp, event: Event, number: str) -> Body:
    """`event` and `alarm`. `number` makes it unique."""
    return stamp.head(event.t) | {
        "id": number,
        "severity": event.severity,
        "name": event.name,
        "state": event.state,
        "tag": event.tag,
        "value": plain(event.value),
        "limit": plain(event.limit),
        "text": event.text,
        "causes": list(event.causes),
    }


# -- splitting --------------------------------------------------------------------------------------------------


def split(body: Body, limit: int) -> list[bytes]:
    """A body as packets of at most `limit` bytes: itself, or parts by tags with "part": [i, k].

    Raises ValueError when one tag alone is too large.
    """
    whole = encode(body)
    if len(whole) <= limit:
        return [whole]
    names = tag_names(body)
    for count in range(max(2, -(-len(whole) // limit)), len(names) + 1):
        parts: list[bytes] = []
        for i in range(count):
            parts.append(encode(only(body, set(names[i::count])) | {"part": [i + 1, count]}))
            if len(parts[-1]) > limit:
                break
        else:
            return parts
    raise ValueError(f"a body of {len(whole)} bytes cannot be split into packets of {limit}")


def tag_names(body: Mapping[str, Any]) -> list[str]:
    """The tags that a body is made of, in order."""
    if "groups" in body:
        return list(dict.fromkeys(tag for group in body["groups"] for tag in group["c"]))
    return list(body.get("reported") or body.get("tags") or ())


def only(body: Mapping[str, Any], tags: set[str]) -> Body:
    """A body with only these tags."""
    part = dict(body)
    if "groups" in body:
        part["groups"] = [
            dict(
                group,
                c={tag: column for tag, column in group["c"].items() if tag in tags},
                q={tag: marks for tag, marks in group["q"].items() if tag in tags},
            )
            for group in body["groups"]
            if tags & group["c"].keys()
        ]
    for name in ("reported", "tags"):
        if name in body:
            part[name] = {tag: one for tag, one in body[name].items() if tag in tags}
    if "health" in body:
        scores = body["health"]["tags"]
        part["health"] = dict(body["health"], tags={tag: one for tag, one in scores.items() if tag in tags})
    return part


def retimed(body: Mapping[str, Any], ms: Callable[[float], int]) -> Body:
    """A data body made before the clock was set, with its times put right from `mono` (same boot only)."""
    right = {key: value for key, value in body.items() if key != "mono"}
    right["ts"] = ms(body["mono"])
    right["groups"] = [
        {key: value for key, value in group.items() if key != "mono"} | {"t": [ms(t) for t in group["mono"]]}
        for group in body["groups"]
    ]
    return right

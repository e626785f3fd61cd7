"""Bodies: what goes in comes out, each as its schema says."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud import payload
from agent.cloud.payload import Stamp
from agent.cloud.schema import mqtt_schemas
from agent.config.types import Tag
from agent.twin.layout import build_layout
from agent.twin.quality import LAST_WITH_VALUE, WORDS, Quality
from agent.twin.records import Event, Row
from tests.cloud.harness import make_config, make_device, row, snapshot

BOOT = "0badcafe"
START_MS = 1_800_000_000_000


def ms(t: float) -> int:
    return START_MS + round(t * 1000)


STAMP = Stamp(BOOT, ms)
UNSET = Stamp(BOOT, ms, synced=False)
CONFIG = make_config("mqtt://127.0.0.1")
LAYOUT = build_layout(CONFIG)


def check(kind: str, body: Any) -> dict[str, Any]:
    """The body as a receiver reads it, valid by its schema."""
    read = payload.decode(payload.encode(body))
    jsonschema.Draft202012Validator(mqtt_schemas()[kind]).validate(read)
    return read


def data(rows: list[Row], stamp: Stamp = STAMP, t: float = 9.0) -> dict[str, Any]:
    return check("data", payload.data_body(stamp, rows, t=t, stream="12345678", seq=7, meta="abcdef01"))


# -- rows to data and back --------------------------------------------------------------------------------------

SETS = (("a",), ("b", "c"), ("a", "b", "c"))
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)


@st.composite
def rows_of_a_batch(draw: st.DrawFn) -> list[Row]:
    rows = []
    for t in draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=12)):
        tags = draw(st.sampled_from(SETS))
        codes = bytes(draw(st.lists(st.integers(0, len(WORDS) - 1), min_size=len(tags), max_size=len(tags))))
        values = [draw(VALUES) if code <= LAST_WITH_VALUE else None for code in codes]
        rows.append(Row("press1", tags, t / 1000, values, codes if any(codes) else None))
    return rows


def unpacked(body: dict[str, Any]) -> list[tuple[int, str, Any, str]]:
    """What a receiver makes of a data body: (t, tag, value, quality)."""
    readings = []
    for group in body["groups"]:
        for tag, column in group["c"].items():
            assert len(column) == len(group["t"])
            words = dict(group["q"].get(tag, ()))
            readings += [
                (t, tag, value, words.get(i, "good"))
                for i, (t, value) in enumerate(zip(group["t"], column, strict=True))
            ]
    return readings


def as_published(value: Any) -> Any:
    exact = type(value) is int and abs(value) > 2**53
    return str(value) if exact else value


@given(rows_of_a_batch())
def test_nothing_is_lost_between_rows_and_a_receiver(rows: list[Row]) -> None:
    expected = [
        (ms(one.t), tag, as_published(value), WORDS[code])
        for one in rows
        for tag, value, code in zip(one.tags, one.values, one.quality or bytes(len(one.tags)), strict=True)
    ]
    found = unpacked(data(rows))
    key = lambda reading: (reading[0], reading[1], repr(reading[2]), reading[3])  # noqa: E731
    assert sorted(found, key=key) == sorted(expected, key=key)
    assert all((value is None) == (word not in ("good", "uncertain")) for _, _, value, word in found)


def test_tags_that_share_their_replies_share_a_group() -> None:
    body = data([row("press1", 1.0, 1), row("press1", 2.0, 2), Row("press1", ("target",), 2.1, [5.0], None)])
    assert [list(group["c"]) for group in body["groups"]] == [["temperature", "count"], ["target"]]
    assert body["groups"][0]["t"] == [ms(1.0), ms(2.0)]
    assert "mono" not in body and "mono" not in body["groups"][0]


@given(st.integers(-(2**63), 2**64 - 1))
def test_integers_beyond_a_double_are_text_and_no_other(number: int) -> None:
    [[_, _, value, _]] = unpacked(data([Row("press1", ("energy",), 1.0, [number], None)]))
    assert value == (number if -(2**53) <= number <= 2**53 else str(number))
    assert int(value) == number


def test_a_number_without_a_value_is_never_published() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        assert payload.plain(bad) is None and payload.rounded(bad) is None
        with pytest.raises(ValueError):
            payload.encode({"x": bad})


# -- the clock --------------------------------------------------------------------------------------------------


def test_times_made_before_the_clock_was_set_are_put_right() -> None:
    rows = [row("press1", 5.0, 1), row("press1", 6.25, 2)]
    body = data(rows, UNSET)
    assert body["mono"] == 9.0 and body["groups"][0]["mono"] == [5.0, 6.25]
    right = check("data", payload.retimed(body, lambda t: 10 * START_MS + round(1000 * t)))
    assert right["ts"] == 10 * START_MS + 9000
    assert right["groups"][0]["t"] == [10 * START_MS + 5000, 10 * START_MS + 6250]
    assert "mono" not in right and "mono" not in right["groups"][0]
    assert right["groups"][0]["c"] == body["groups"][0]["c"]


# -- the other bodies -------------------------------------------------------------------------------------------


def test_state() -> None:
    backlog = {"batches": 3, "bytes": 900, "oldest": ms(1.0)}
    for stamp, clock in ((STAMP, "ok"), (UNSET, "unsynced")):
        body = check(
            "state",
            payload.state_body(stamp, 2.0, status="online", since=ms(0), version="0.1.0", backlog=backlog),
        )
        assert body["clock"] == clock and ("mono" in body) == (clock == "unsynced")
        assert body["ts"] == ms(2.0) and body["boot"] == BOOT and body["v"] == 1


def test_meta_and_its_hash() -> None:
    body = check("meta", STAMP.head(1.0) | payload.meta_of(CONFIG, "press1", (1, 5)))
    assert body["tags"]["target"] == {
        "type": "int16",
        "unit": None,
        "range": None,
        "states": None,
        "every": 1.0,
        "write": {"range": [0, 300]},
        "exact": False,
    }
    assert body["tags"]["temperature"]["range"] == [-40, 400] and body["tags"]["temperature"]["unit"] == "°C"
    device = make_device("press1")
    energy = Tag("energy", "holding", 8, type="uint64", scale=Decimal(1), states={})
    other = dataclasses.replace(device, tags={**device.tags, "energy": energy})
    changed = payload.meta_of(dataclasses.replace(CONFIG, devices={"press1": other}), "press1", (1, 5))
    assert changed["tags"]["energy"]["exact"] is True
    same = payload.meta_of(make_config("mqtt://elsewhere"), "press1", (1, 5))
    assert same["meta"] == body["meta"] != changed["meta"]


def twin(picture: Any) -> dict[str, Any]:
    return check(
        "twin",
        payload.twin_body(STAMP, picture, "press1", stream="12345678", seq=0, meta="abcdef01"),
    )


def test_twin() -> None:
    body = twin(snapshot(LAYOUT, 3.0))
    assert body["reported"]["temperature"] == {"v": 20.5, "q": "good", "t": ms(3.0)}
    assert body["health"] == {"score": 0.9, "tags": {"temperature": 0.9}, "causes": []}
    assert body["loops"]["oven"]["mode"] == "auto" and body["state"] == "ok" and body["seq"] == 0


def test_a_twin_that_knows_nothing_says_so() -> None:
    picture = snapshot(LAYOUT, 3.0)
    picture.quality[:] = Quality.LINK
    picture.stamps[:] = math.nan
    picture = dataclasses.replace(picture, plain=[None] * len(picture.plain), states={}, health={}, loops={})
    body = twin(picture)
    assert body["reported"]["count"] == {"v": None, "q": "link", "t": None}
    assert body["health"] == {"score": None, "tags": {}, "causes": []}
    assert body["loops"] == {} and body["state"] == "link"


def test_a_total_beyond_a_double_is_text() -> None:
    picture = dataclasses.replace(snapshot(LAYOUT, 3.0), total={LAYOUT.row["press1", "count"]: 2**60})
    assert twin(picture)["reported"]["count"]["total"] == str(2**60)


def test_forecast() -> None:
    picture = snapshot(LAYOUT, 3.0)
    body = payload.forecast_body(STAMP, picture, "press1")
    assert body is not None
    one = check("forecast", body)["tags"]["temperature"]
    assert one["h"] == [1, 5] and one["y"] == [20.5, 20.5] and one["lo"] == [19.5, 19.5] and one["b"] == 0
    assert body["t"] == one["t"] == ms(3.0)
    assert picture.forecasts is not None
    picture.forecasts.y[:] = math.nan
    assert payload.forecast_body(STAMP, picture, "press1") is None
    assert payload.forecast_body(STAMP, snapshot(LAYOUT, 3.0, forecast=False), "press1") is None


def test_gap_and_event() -> None:
    gap = payload.gap_body(STAMP, 1.0, stream="12345678", first=3, last=9, reason="size")
    assert check("gap", gap)["from"] == 3
    event = Event("press1", "health_low", "alarm", "raised", "press1 runs unlike before", 4.0, value=2**60)
    body = check("event", payload.event_body(STAMP, event, f"{BOOT}-1"))
    assert body["value"] == str(2**60) and body["ts"] == ms(4.0) and body["limit"] is None
    check("alarm", payload.event_body(UNSET, event, f"{BOOT}-1"))


def test_flat_holds_the_newest_of_each_tag() -> None:
    rows = [row("press1", 1.0, 1), row("press1", 2.0, 2), Row("press1", ("energy",), 2.0, [2**60], None)]
    body = check("flat", payload.flat_body(STAMP, rows, t=3.0, seq=7))
    assert (body["temperature"], body["count"], body["energy"], body["seq"]) == (20.5, 2, str(2**60), 7)
    gone = payload.flat_body(STAMP, [*rows, row("press1", 2.5, 0, bytes([4, 4]))], t=3.0, seq=8)
    assert gone["temperature"] is None


# -- bytes ------------------------------------------------------------------------------------------------------


def test_compression_is_told_by_the_first_byte_and_used_where_it_pays() -> None:
    small, large = payload.encode({"v": 1}), payload.encode({"text": "°" * 600})
    assert payload.compressed(small) == small
    packed = payload.compressed(large)
    assert packed[0] == 0x78 and len(packed) < 60 and "°".encode() in large
    assert payload.decode(packed) == payload.decode(large) == {"text": "°" * 600}


@pytest.mark.parametrize(
    "wrong", [b"", b"[1]", b"{", b"\xff\xfe", b"\x78\x9c\x00", zlib.compress(b"{}")[:-3]]
)
def test_what_is_no_body_is_refused_as_one(wrong: bytes) -> None:
    with pytest.raises(ValueError):
        payload.decode(wrong)


# -- splitting --------------------------------------------------------------------------------------------------


def wide_rows(tags: int = 40, count: int = 5) -> list[Row]:
    names = tuple(f"tag{i:02}" for i in range(tags))
    return [
        Row("press1", names[: tags // 2], t, [i + t for i in range(tags // 2)], None) for t in range(count)
    ] + [
        Row("press1", names[tags // 2 :], t, [None] * (tags // 2), bytes([3]) * (tags // 2))
        for t in range(count)
    ]


@given(st.integers(400, 6000))
def test_parts_hold_everything_once_and_fit(limit: int) -> None:
    whole = data(wide_rows())
    parts = payload.split(whole, limit)
    assert all(len(part) <= limit for part in parts)
    bodies = [check("data", payload.decode(part)) for part in parts]
    assert sorted(reading for body in bodies for reading in unpacked(body)) == sorted(unpacked(whole))
    assert {body["seq"] for body in bodies} == {7}
    if len(parts) == 1:
        assert "part" not in bodies[0]
    else:
        assert [body["part"] for body in bodies] == [[i + 1, len(parts)] for i in range(len(parts))]


def test_what_fits_is_not_touched() -> None:
    whole = data(wide_rows())
    assert payload.split(whole, len(payload.encode(whole))) == [payload.encode(whole)]


def test_a_tag_too_large_by_itself_is_told() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        payload.split(data(wide_rows()), 100)


@pytest.mark.parametrize("kind", ["twin", "meta", "forecast"])
def test_retained_bodies_are_split_too(kind: str) -> None:
    bodies: dict[str, Any] = {
        "twin": twin(snapshot(LAYOUT, 3.0)),
        "meta": STAMP.head(1.0) | payload.meta_of(CONFIG, "press1", (1, 5)),
        "forecast": payload.forecast_body(STAMP, many_forecasts(), "press1"),
    }
    whole = json.loads(payload.encode(bodies[kind]))
    parts = payload.split(whole, len(payload.encode(whole)) - 1)
    assert len(parts) > 1
    key = "reported" if kind == "twin" else "tags"
    found: dict[str, Any] = {}
    for part in parts:
        found |= check(kind, payload.decode(part))[key]
    assert found == whole[key]


def many_forecasts() -> Any:
    picture = snapshot(LAYOUT, 3.0)
    forecasts = picture.forecasts
    assert forecasts is not None
    twice = {
        name: getattr(forecasts, name).repeat(2, axis=0) for name in ("t", "y", "lo", "hi", "a", "b", "rows")
    }
    twice["rows"] = forecasts.rows.repeat(2)
    twice["rows"][1] = LAYOUT.row["press1", "count"]
    return dataclasses.replace(picture, forecasts=dataclasses.replace(forecasts, **twice))

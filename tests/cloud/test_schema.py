"""The schemas: they are schemas, they cover every topic, and they refuse what is wrong."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest

from agent.cloud.schema import mqtt_schemas

HEAD = {"v": 1, "boot": "0badcafe", "ts": 1_800_000_000_000}
DATA = HEAD | {
    "stream": "12345678",
    "seq": 1,
    "meta": "abcdef01",
    "groups": [{"t": [1, 2], "c": {"a": [1.5, None]}, "q": {"a": [[1, "timeout"]]}}],
}
GOOD: dict[str, dict[str, Any]] = {
    "state": HEAD
    | {
        "status": "online",
        "since": 5,
        "version": "0.1.0",
        "clock": "ok",
        "backlog": {"batches": 0, "bytes": 0, "oldest": None},
    },
    "meta": HEAD
    | {
        "meta": "abcdef01",
        "tags": {
            "a": {
                "type": "uint16",
                "unit": None,
                "range": [0, 1],
                "states": {"0": "ok"},
                "every": 1.0,
                "write": {"range": None},
                "exact": False,
            }
        },
        "loops": ["oven"],
        "horizon": [1, 5],
    },
    "twin": HEAD
    | {
        "stream": "12345678",
        "seq": 0,
        "meta": "abcdef01",
        "state": "ok",
        "reported": {"a": {"v": 1.5, "q": "good", "t": 5}},
        "health": {"score": 1, "tags": {"a": 0.5}, "causes": []},
        "loops": {
            "oven": {"mode": "fail", "sp": 1, "pv": None, "out": None, "limited": False, "reason": None}
        },
    },
    "forecast": HEAD
    | {"t": 5, "tags": {"a": {"h": [1], "y": [1.0], "lo": [0.5], "hi": [1.5], "a": [0.9], "b": 0.1}}},
    "data": DATA,
    "backfill": DATA,
    "flat": HEAD | {"seq": 1, "a": 1.5},
    "gap": HEAD | {"stream": "12345678", "from": 1, "to": 5, "reason": "size"},
    "event": HEAD
    | {
        "id": "0badcafe-1",
        "severity": "alarm",
        "name": "health_low",
        "state": "raised",
        "tag": None,
        "value": None,
        "limit": 0.5,
        "text": "it runs unlike before",
        "causes": ["a"],
    },
    "desired": {"ver": 3, "set": {"press1/target": 185}, "by": "central", "ts": 1, "exp": 2},
    "desired_ack": HEAD | {"ver": 3, "applied": ["x"], "rejected": {"y": "range"}, "superseded": []},
    "cmd": {"id": "a-1", "ts": 1, "exp": 2, "by": "me", "tag": "press1/target", "value": 1},
    "resp": HEAD
    | {"id": "a-1", "ok": True, "applied": 1, "readback": 1, "error": None, "result": {"from": 1}},
}
GOOD["alarm"] = GOOD["event"]

WRONG: list[tuple[str, tuple[Any, ...], Any]] = [
    ("state", ("status",), "up"),
    ("state", ("boot",), "0BADCAFE"),
    ("state", ("v",), 2),
    ("state", ("ts",), 1.5),
    ("state", ("backlog", "bytes"), -1),
    ("meta", ("tags", "a", "every"), 0),
    ("meta", ("tags", "a", "range"), [1]),
    ("meta", ("horizon",), [0]),
    ("twin", ("reported", "a", "q"), "bad"),
    ("twin", ("reported", "a", "q"), "stale"),  # a value with that quality is the last one dressed as new
    ("twin", ("reported", "a", "v"), None),
    ("twin", ("health", "score"), 1.5),
    ("twin", ("loops", "oven", "mode"), "on"),
    ("forecast", ("tags", "a", "h"), [0]),
    ("data", ("stream",), "1234"),
    ("data", ("groups", 0, "t"), [1.5, 2]),
    ("data", ("groups", 0, "q", "a"), [[1, "bad"]]),
    ("data", ("groups", 0, "q", "a"), [[1]]),
    ("data", ("groups", 0, "c", "a"), [{}]),
    ("gap", ("from",), 0),
    ("event", ("severity",), "fatal"),
    ("event", ("state",), "on"),
    ("desired", ("ver",), "3"),
    ("desired", ("set",), []),
    ("cmd", ("id",), "a/b"),
    ("cmd", ("mode",), "on"),
    ("resp", ("ok",), None),
    ("desired_ack", ("rejected",), ["y"]),
]


def validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(mqtt_schemas()[kind])


def test_there_is_one_for_every_body() -> None:
    assert set(mqtt_schemas()) == set(GOOD)


@pytest.mark.parametrize("kind", GOOD)
def test_it_is_a_schema_and_takes_what_is_right(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(mqtt_schemas()[kind])
    validator(kind).validate(GOOD[kind])
    validator(kind).validate(GOOD[kind] | {"later": "a new key"})


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind, body in GOOD.items() for key in body if kind not in ("cmd", "desired")],
)
def test_no_key_may_be_missing(kind: str, key: str) -> None:
    body = {name: value for name, value in GOOD[kind].items() if name != key}
    optional = kind == "flat" and key == "a"
    assert validator(kind).is_valid(body) is optional


@pytest.mark.parametrize(("kind", "place", "value"), WRONG)
def test_what_is_wrong_is_refused(kind: str, place: tuple[Any, ...], value: Any) -> None:
    body = copy.deepcopy(GOOD[kind])
    inner: Any = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert not validator(kind).is_valid(body)


@pytest.mark.parametrize("kind", ["cmd", "desired"])
def test_what_a_command_needs(kind: str) -> None:
    needed = ("id", "ts", "exp") if kind == "cmd" else ("ver", "set")
    for key in GOOD[kind]:
        body = {name: value for name, value in GOOD[kind].items() if name != key}
        assert validator(kind).is_valid(body) is (key not in needed)

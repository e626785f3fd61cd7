"""JSON Schemas of every MQTT body, for central systems and for the tests that hold the agent to them."""

from __future__ import annotations

from typing import Any

from agent.twin.quality import WORDS

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"

VALUE: Schema = {"type": ["number", "boolean", "string", "null"]}
NUMBER: Schema = {"type": "number"}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
TEXT: Schema = {"type": "string"}
MS: Schema = {"type": "integer", "minimum": 0}
COUNT: Schema = {"type": "integer", "minimum": 0}
HEX8: Schema = {"type": "string", "pattern": "^[0-9a-f]{8}$"}
ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
STATES = ("ok", "slow", "degraded", "silent", "link")
QUALITY: Schema = {"enum": list(WORDS)}
SCORE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def or_signed(body: Schema) -> Schema:
    return {"if": {"required": ["sig"]}, "then": SIGNED, "else": body}


def mapping(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these keys; it may have more (a later version may add some)."""
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


HEAD: dict[str, Schema] = {"v": {"const": 1}, "boot": HEX8, "ts": MS}
HEAD_EXTRA: dict[str, Schema] = {
    "mono": NUMBER,
    "part": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
}
STREAM: dict[str, Schema] = {"stream": HEX8, "seq": COUNT}
NUMBERED: dict[str, Schema] = {"stream": HEX8, "seq": {"type": "integer", "minimum": 1}}
SIGNED: Schema = {
    "type": "object",
    "required": ["p", "sig"],
    "properties": {"p": {"type": "string"}, "sig": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}},
}
"""With `commands.hmac`: the body's text, and the HMAC-SHA256 of key over topic, newline, text."""

RANGE: Schema = {"type": ["array", "null"], "items": NUMBER, "minItems": 2, "maxItems": 2}
TAG_META = record(
    {
        "type": TEXT,
        "unit": MAYBE_TEXT,
        "range": RANGE,
        "states": {"type": ["object", "null"], "additionalProperties": TEXT},
        "every": {"type": "number", "exclusiveMinimum": 0},
        "write": {"type": ["object", "null"], "properties": {"range": RANGE}},
        "exact": {"type": "boolean"},
    }
)
REPORTED: Schema = {
    **record(
        {"v": VALUE, "q": QUALITY, "t": {"type": ["integer", "null"]}},
        {"total": {"type": ["number", "string"]}},
    ),
    "if": {"properties": {"q": {"enum": ["good", "uncertain"]}}},
    "then": {"properties": {"v": {"not": {"type": "null"}}}},
    "else": {"properties": {"v": {"type": "null"}}},
}
LOOP = record(
    {
        "mode": {"enum": ["off", "shadow", "manual", "auto", "fail"]},
        "sp": MAYBE_NUMBER,
        "pv": MAYBE_NUMBER,
        "out": MAYBE_NUMBER,
        "limited": {"type": "boolean"},
        "reason": MAYBE_TEXT,
    }
)
GROUP = record(
    {
        "t": array(MS),
        "c": mapping(array(VALUE)),
        "q": mapping(array({"type": "array", "prefixItems": [COUNT, QUALITY], "minItems": 2, "maxItems": 2})),
    },
    {"mono": array(NUMBER)},
)
FORECAST = record(
    {
        "h": array({"type": "integer", "minimum": 1}),
        "y": array(MAYBE_NUMBER),
        "lo": array(MAYBE_NUMBER),
        "hi": array(MAYBE_NUMBER),
        "a": array(MAYBE_NUMBER),
        "b": MAYBE_NUMBER,
    },
    {"t": MS},
)
BACKLOG = record({"batches": COUNT, "bytes": COUNT, "oldest": {"type": ["integer", "null"]}})
EVENT = record(
    HEAD
    | {
        "id": TEXT,
        "severity": {"enum": ["info", "warning", "alarm"]},
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        "state": {"enum": ["raised", "cleared"]},
        "tag": MAYBE_TEXT,
        "value": VALUE,
        "limit": VALUE,
        "text": TEXT,
        "causes": array(TEXT),
    },
    HEAD_EXTRA,
)
DATA = record(HEAD | NUMBERED | {"meta": HEX8, "groups": array(GROUP)}, HEAD_EXTRA)

BODIES: dict[str, Schema] = {
    "state": record(
        HEAD
        | {
            "status": {"enum": ["online", "offline"]},
            "since": MS,
            "version": TEXT,
            "clock": {"enum": ["ok", "unsynced"]},
            "backlog": BACKLOG,
        },
        HEAD_EXTRA,
    ),
    "meta": record(
        HEAD
        | {
            "meta": HEX8,
            "tags": mapping(TAG_META),
            "loops": array(TEXT),
            "horizon": array({"type": "integer", "minimum": 1}),
        },
        HEAD_EXTRA,
    ),
    "twin": record(
        HEAD
        | STREAM
        | {
            "meta": HEX8,
            "state": {"enum": list(STATES)},
            "reported": mapping(REPORTED),
            "health": record({"score": SCORE, "tags": mapping(SCORE), "causes": array(TEXT)}),
            "loops": mapping(LOOP),
        },
        HEAD_EXTRA,
    ),
    "forecast": record(HEAD | {"t": MS, "tags": mapping(FORECAST)}, HEAD_EXTRA),
    "data": DATA,
    "backfill": DATA,
    "flat": record(HEAD | {"seq": COUNT}, HEAD_EXTRA),
    "gap": record(
        HEAD
        | {
            "stream": HEX8,
            "from": {"type": "integer", "minimum": 1},
            "to": {"type": "integer", "minimum": 1},
            "reason": TEXT,
        },
        HEAD_EXTRA,
    ),
    "event": EVENT,
    "alarm": EVENT,
    "desired": or_signed(
        record(
            {"ver": {"type": "integer", "minimum": 0}, "set": mapping(VALUE)},
            {"by": TEXT, "ts": MS, "exp": MS},
        )
    ),
    "desired_ack": record(
        HEAD
        | {
            "ver": {"type": "integer", "minimum": 0},
            "applied": array(TEXT),
            "rejected": mapping(TEXT),
            "superseded": array(TEXT),
        },
        HEAD_EXTRA,
    ),
    "cmd": or_signed(
        record(
            {"id": ID, "ts": MS, "exp": MS},
            {
                "by": TEXT,
                "tag": TEXT,
                "tags": array(TEXT),
                "value": VALUE,
                "loop": TEXT,
                "mode": {"enum": ["off", "shadow", "manual", "auto"]},
                "setpoint": NUMBER,
                "for": {"type": ["number", "string"]},
                "load": NUMBER,
                "device": TEXT,
                "from": COUNT,
                "to": COUNT,
            },
        )
    ),
    "resp": record(
        HEAD
        | {
            "id": ID,
            "ok": {"type": "boolean"},
            "applied": VALUE,
            "readback": VALUE,
            "error": MAYBE_TEXT,
            "result": {},
        },
        HEAD_EXTRA,
    ),
}


def mqtt_schemas() -> dict[str, Schema]:
    """Kind of body (the level after the gateway in its topic; desired_ack for desired/ack) -> its JSON Schema."""
    return {kind: {"$schema": DRAFT, "title": f"Edgetwin {kind}", **body} for kind, body in BODIES.items()}

"""The JSON Schema of the configuration, from the same table that the reader follows.

It describes the file as a YAML parser hands it over (a duration is text, `off` may arrive as false), for editors that
complete and underline while somebody types. What needs more than one value, `edgetwin check` alone knows.
"""

from __future__ import annotations

from typing import Any

from agent.config.fields import ROOT
from agent.config.kinds import (
    AvoidText,
    Bool,
    Choice,
    Duration,
    Either,
    Field,
    Items,
    Kind,
    Names,
    Number,
    Pair,
    Section,
    Size,
    Span,
    Text,
    Whole,
)
from agent.config.scalars import DURATION_UNITS, FALSE, SIZE_UNITS, TRUE

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
_DIGITS = r"\+?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
_SPAN = r"(0x[0-9a-fA-F]+|[0-9]+)(-(0x[0-9a-fA-F]+|[0-9]+))?"
# Raw text that a parser of YAML 1.1 or 1.2 hands over as something else reaches the reader as it was written.
_AS_TEXT = ["string", "number", "boolean"]


def json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of the whole file."""
    body = _schema(ROOT)
    return {"$schema": DIALECT, "title": "Edgetwin configuration", **body}


def _schema(kind: Kind) -> dict[str, Any]:
    if isinstance(kind, Section):
        return _section(kind)
    if isinstance(kind, Names):
        return _names(kind)
    if isinstance(kind, Items):
        item = _schema(kind.of)
        listed: dict[str, Any] = {"type": "array", "items": item}
        if kind.least:
            listed["minItems"] = kind.least
        return {"anyOf": [item, listed]} if kind.one else listed
    if isinstance(kind, Either):
        return {"anyOf": [_schema(kind.scalar), _schema(kind.mapping)]}
    return _scalar(kind)


def _scalar(kind: Kind) -> dict[str, Any]:
    if isinstance(kind, Text):
        form: dict[str, Any] = {"type": _AS_TEXT, "minLength": 1, "description": kind.form}
        if kind.pattern is not None:
            form["pattern"] = f"^({kind.pattern})$"
        return form
    if isinstance(kind, Choice):
        return {"enum": [*kind.words, *_booleans(kind.words)]}
    if isinstance(kind, Bool):
        return {"anyOf": [{"type": "boolean"}, {"enum": sorted(TRUE | FALSE)}]}
    if isinstance(kind, Whole | Number):
        return _number(kind)
    if isinstance(kind, Duration):
        return _measure("|".join(DURATION_UNITS), zero=kind.zero)
    if isinstance(kind, Size):
        return _measure("|".join(SIZE_UNITS), zero=True)
    if isinstance(kind, Span):
        return {"anyOf": [{"type": "string", "pattern": f"^{_SPAN}$"}, {"type": "integer", "minimum": 0}]}
    if isinstance(kind, AvoidText):
        return {"type": "string", "pattern": rf"^\s*(holding|input|coil|discrete)\s+{_SPAN}\s*$"}
    assert isinstance(kind, Pair)
    number = _number(Number())
    return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}


def _booleans(words: tuple[str, ...]) -> list[bool]:
    """What `off` and `on` among the words become in a parser of YAML 1.1."""
    return [value for value, names in ((False, FALSE), (True, TRUE)) if names & set(words)]


def _number(kind: Whole | Number) -> dict[str, Any]:
    bounds: dict[str, Any] = {"type": "integer" if isinstance(kind, Whole) else "number"}
    if kind.least is not None:
        bounds["minimum"] = kind.least
    if kind.most is not None:
        bounds["maximum"] = kind.most
    if isinstance(kind, Number):
        if kind.above is not None:
            bounds["exclusiveMinimum"] = kind.above
        if kind.below is not None:
            bounds["exclusiveMaximum"] = kind.below
    # 1e-3 and 1_000 are text to one version of YAML or the other
    text = {"type": "string", "pattern": r"^[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|" + _DIGITS + ")$"}
    return {"anyOf": [bounds, text]}


def _measure(units: str, *, zero: bool) -> dict[str, Any]:
    text = {"type": "string", "pattern": rf"^\s*{_DIGITS}\s*({units})\s*$"}
    return {"anyOf": [text, {"const": 0}, {"const": "0"}]} if zero else text


def _section(kind: Section) -> dict[str, Any]:
    properties = {}
    for key, field in kind.fields.items():
        properties[key] = _described(field)
    body: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [key for key, field in kind.fields.items() if field.required]
    if required:
        body["required"] = required
        return body
    return body


def _described(field: Field) -> dict[str, Any]:
    body = _schema(field.kind)
    if isinstance(field.kind, Section | Names | Items) and not _needs(field.kind):
        body = {"anyOf": [body, {"type": "null"}]}  # a key whose lines are all comments
    described = {**body, "description": field.doc}
    if field.default is not None:
        described["default"] = _default(field)
    return described


def _needs(kind: Kind) -> bool:
    if isinstance(kind, Section):
        return any(field.required for field in kind.fields.values())
    return isinstance(kind, Items) and kind.least > 0


def _default(field: Field) -> Any:
    """A default as JSON: numbers and truths as such, the rest as the file would write it."""
    text = field.default
    if isinstance(field.kind, Bool) or text in ("true", "false"):
        return text == "true"
    if isinstance(field.kind, Whole | Number):
        return float(text) if any(c in text for c in ".eE") else int(text)
    if isinstance(field.kind, Items):
        return [int(part) for part in text.strip("[]").split(",")]
    return text


def _names(kind: Names) -> dict[str, Any]:
    body: dict[str, Any] = {"type": "object", "additionalProperties": _schema(kind.of)}
    if kind.key == "name":
        body["propertyNames"] = {"pattern": NAME, "maxLength": 64}
    return body

"""What the central side may say, judged before anything is done: envelope, age, repetition, meaning. Pure.

A refusal is a Refused with a word or two that goes into the answer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.cloud.payload import ZLIB_MARK, decode
from agent.config.printable import cut, printable
from agent.config.scalars import Wrong, duration
from agent.config.types import CommandsConfig, Config
from agent.twin.records import Ask, Key, Plain

ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
FARTHEST_EXPIRY = 600_000
"""ms: a command may not be valid for longer than ten minutes."""
OPS = ("write", "read", "loop", "whatif", "resend", "rebirth", "status", "relearn")
LARGEST = 256 * 1024
"""Bytes of a body that is looked at."""
LARGEST_NUMBER = sys.float_info.max
LARGEST_SEQ = 2**63 - 1
"""The database keeps no larger ones."""


LONGEST_TEXT = 400
"""Characters of what is said about a command, in the answer, the event and the log."""


class Refused(Exception):
    """Why a command is not carried out; `id` where the command had a usable one."""

    def __init__(self, reason: str, id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.id = id


@dataclass(frozen=True, slots=True)
class Command:
    """A command that may be carried out."""

    id: str
    op: str
    exp: int
    by: str | None
    body: Mapping[str, Any]


def readable(text: str) -> str:
    """Words that hold what a stranger wrote, fit for a line of the log: printable, on one line, cut where too long."""
    return printable(cut(text, LONGEST_TEXT))


def open_envelope(topic: str, payload: bytes, key: bytes | None) -> dict[str, Any]:
    """The JSON object of a body; with a key only where its signature is right.

    {"p": text, "sig": hex HMAC-SHA256 of key over topic, newline, p}. Raises Refused.
    """
    if len(payload) > LARGEST:
        raise Refused("too large")
    try:
        body = decode(_unpacked(payload))
    except (ValueError, RecursionError):
        raise Refused("no JSON object") from None
    if key is None:
        return body
    text, signature = body.get("p"), body.get("sig")
    if not isinstance(text, str) or not isinstance(signature, str):
        raise Refused("not signed")
    try:
        right = hmac.new(key, f"{topic}\n{text}".encode(), hashlib.sha256).hexdigest()
    except UnicodeEncodeError:  # half a surrogate pair: nobody can have signed it
        raise Refused("wrong signature") from None
    if not hmac.compare_digest(right.encode(), signature.lower().encode("utf-8", "replace")):
        raise Refused("wrong signature")
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("no JSON object") from None
    if not isinstance(inner, dict):
        raise Refused("no JSON object")
    return inner


def _unpacked(payload: bytes) -> bytes:
    """The JSON of a body that may be zlib's, unpacked no further than it is looked at. Raises Refused, ValueError."""
    if payload[:1] != bytes([ZLIB_MARK]):
        return payload
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(payload, LARGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if unpacker.unconsumed_tail:
        raise Refused("too large")
    if not unpacker.eof:
        raise ValueError("cut off")
    return text


def judge(
    op: str, body: Mapping[str, Any], *, retained: bool, config: CommandsConfig, now_ms: int, synced: bool
) -> Command:
    """A command whose id, age and expiry are as they must be. Raises Refused."""
    id_ = body.get("id")
    if not isinstance(id_, str) or not ID.match(id_):
        raise Refused("id must be 1 to 64 letters, digits, _ or -")
    if retained:
        raise Refused("retained", id_)  # it would be carried out again at every connect
    if op not in OPS:
        raise Refused(f"unknown operation {op}", id_)
    if not config.enabled:
        raise Refused("commands are not enabled", id_)
    if not synced:
        raise Refused("clock", id_)
    ts, exp = body.get("ts"), body.get("exp")
    if not _whole(ts) or not _whole(exp):
        raise Refused("ts and exp must be ms UTC", id_)
    assert isinstance(ts, int) and isinstance(exp, int)
    if now_ms > exp:
        raise Refused("expired", id_)
    if exp - now_ms > FARTHEST_EXPIRY:
        raise Refused("exp is more than 10 min ahead", id_)
    if abs(ts - now_ms) > 1000 * config.skew:
        raise Refused("skew", id_)
    by = body.get("by")
    return Command(id_, op, exp, by if isinstance(by, str) else None, body)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def to_ask(command: Command, config: Config, deadline: float) -> Ask:
    """The request that a write, read, loop, whatif, relearn or status command is. Raises Refused."""
    body = command.body
    match command.op:
        case "write":
            return Ask(
                "write",
                "cmd",
                deadline,
                command.by,
                key=tag_key(body.get("tag")),
                value=_value(body.get("value")),
            )
        case "read":
            names = body.get("tags", [])
            if not isinstance(names, list):
                raise Refused("tags must be a list of device/tag")
            return Ask(
                "read", "cmd", deadline, command.by, keys=tuple(_expand(config, name) for name in names)
            )
        case "loop" | "whatif":
            return _loop_ask(command, deadline)
        case "relearn":
            device = body.get("device")
            if not isinstance(device, str):
                raise Refused("device must be the name of a device")
            return Ask("relearn", "cmd", deadline, command.by, extra={"device": device})
    return Ask(command.op, "cmd", deadline, command.by)


def _loop_ask(command: Command, deadline: float) -> Ask:
    body = command.body
    loop, mode, setpoint = body.get("loop"), body.get("mode"), body.get("setpoint")
    if not isinstance(loop, str):
        raise Refused("loop must be the name of a loop")
    if mode is not None and not isinstance(mode, str):
        raise Refused("mode must be off, shadow, manual or auto")
    if setpoint is not None:
        setpoint = number(setpoint)
    if command.op == "loop" and mode is None and setpoint is None:
        raise Refused("give mode or setpoint")
    extra: dict[str, float] = {}
    if command.op == "whatif":
        if body.get("for") is not None:
            extra["for"] = _seconds(body["for"])
        if body.get("load") is not None:
            extra["load"] = number(body["load"], "load")
    return Ask(command.op, "cmd", deadline, command.by, loop=loop, mode=mode, setpoint=setpoint, extra=extra)


def resend_range(body: Mapping[str, Any], config: Config) -> tuple[str, int, int]:
    """Device, first and last number that a `resend` asks for. Raises Refused."""
    device, first, last = body.get("device"), body.get("from"), body.get("to")
    if not isinstance(device, str):
        raise Refused("device must be the name of a device")
    if device not in config.devices:
        raise Refused(f"there is no device {device!r}")
    if not _whole(first) or not _whole(last):
        raise Refused("from and to must be sequence numbers")
    assert isinstance(first, int) and isinstance(last, int)
    if not 1 <= first <= last:
        raise Refused("from and to must be sequence numbers, from 1 on and not the wrong way round")
    return device, min(first, LARGEST_SEQ), min(last, LARGEST_SEQ)


def _seconds(value: object) -> float:
    """A duration as the configuration has them, or seconds. Raises Refused."""
    try:
        return duration(value) if isinstance(value, str) else number(value)
    except (Wrong, Refused):
        raise Refused("for must be a duration, as 10m, or seconds") from None


def number(value: object, what: str = "setpoint") -> float:
    """A finite JSON number. Raises Refused."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER:
        return float(value)  # neither NaN nor an infinity, nor an integer that no float holds
    raise Refused(f"{what} must be a number")


def tag_key(name: object) -> Key:
    """(device, tag) of "device/tag". Raises Refused."""
    if not isinstance(name, str) or name.count("/") != 1:
        raise Refused("tag must be device/tag")
    device, _, tag = name.partition("/")
    return device, tag


def _expand(config: Config, name: object) -> Key:
    key = tag_key(name)
    if key[0] not in config.devices or key[1] not in config.devices[key[0]].tags:
        raise Refused(f"there is no tag {name}")
    return key


def _value(value: object) -> Plain:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    raise Refused("value must be a number, true, false or text")


@dataclass(frozen=True, slots=True)
class Desired:
    """A `desired` body: what shall be, under a version."""

    ver: int
    set: Mapping[str, Any]
    by: str | None
    exp: int | None


def read_desired(body: Mapping[str, Any]) -> Desired:
    """The body taken apart. Raises Refused where it is none."""
    ver, wanted, exp, by = body.get("ver"), body.get("set"), body.get("exp"), body.get("by")
    if not _whole(ver) or not isinstance(wanted, dict):
        raise Refused("desired needs ver (a whole number) and set")
    if exp is not None and not _whole(exp):
        raise Refused("exp must be ms UTC")
    assert isinstance(ver, int)
    return Desired(ver, wanted, by if isinstance(by, str) else None, exp)


def desired_ask(name: str, value: object, by: str | None, deadline: float) -> Ask:
    """The request that one name of `set` is: device/tag, loop/NAME/setpoint or loop/NAME/mode. Raises Refused."""
    parts = name.split("/")
    if parts[0] == "loop" and len(parts) == 3:
        _, loop, what = parts
        if what == "setpoint":
            return Ask("loop", "desired", deadline, by, loop=loop, setpoint=number(value))
        if what == "mode" and isinstance(value, str):
            return Ask("loop", "desired", deadline, by, loop=loop, mode=value)
        raise Refused("only setpoint and mode of a loop can be set")
    return Ask("write", "desired", deadline, by, key=tag_key(name), value=_value(value))

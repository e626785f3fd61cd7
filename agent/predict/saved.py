"""Models as bytes and back: versioned, with a checksum, each tag's rows under what gives them their meaning. Pure."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.predict.state import State

KIND, VERSION = "models", 1
OF_HORIZON = ("ring", "errors", "band")
"""State that depends on the horizons; the rest outlives a change of them."""
_TAIL = struct.Struct("<QI")


class StateDamaged(ValueError):
    """Saved state that cannot be used; the text says why in plain words."""


def seal(kind: str, version: int, payload: bytes) -> bytes:
    """payload in an envelope: a line `edgetwin KIND VERSION`, its length, its CRC-32, then the payload."""
    return f"edgetwin {kind} {version}\n".encode() + _TAIL.pack(len(payload), zlib.crc32(payload)) + payload


def unseal(kind: str, version: int, data: bytes) -> bytes:
    """The payload of an envelope. Raises StateDamaged when it is another kind or version, cut off or altered."""
    head = f"edgetwin {kind} {version}\n".encode()
    if not data.startswith(head):
        found = data[:40].split(b"\n")[0].decode("ascii", "replace") or "nothing"
        raise StateDamaged(f"it begins with '{found}', not with '{head.decode().strip()}'")
    if len(data) < len(head) + _TAIL.size:
        raise StateDamaged("it is cut off")
    length, crc = _TAIL.unpack_from(data, len(head))
    payload = data[len(head) + _TAIL.size :]
    if len(payload) != length:
        raise StateDamaged(f"it holds {len(payload)} bytes where {length} were written")
    if zlib.crc32(payload) != crc:
        raise StateDamaged("its checksum does not match")
    return payload


def dump(state: State, *, order: int, horizon: Sequence[int], tags: Sequence[list[Any]]) -> bytes:
    """The state in an envelope. tags: of each row, what a model must agree with to go on."""
    arrays = {field.name: getattr(state, field.name) for field in fields(State)}
    head = {
        "order": order,
        "horizon": list(horizon),
        "tags": list(tags),
        "arrays": {name: array.shape for name, array in arrays.items()},
    }
    text = json.dumps(head).encode()
    body = b"".join(array.tobytes() for array in arrays.values())
    return seal(KIND, VERSION, struct.pack("<I", len(text)) + text + body)


def load(data: bytes) -> tuple[dict[str, Any], State]:
    """Header and arrays of `dump` (views of its bytes). Raises StateDamaged."""
    payload = unseal(KIND, VERSION, data)
    arrays: dict[str, NDArray[np.float64]] = {}
    try:
        (length,) = struct.unpack_from("<I", payload)
        head = json.loads(payload[4 : 4 + length])
        at = 4 + length
        for field in fields(State):
            shape = tuple(int(size) for size in head["arrays"][field.name])
            count = int(np.prod(shape))
            arrays[field.name] = np.frombuffer(payload, dtype="<f8", count=count, offset=at).reshape(shape)
            at += 8 * count
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise StateDamaged(f"it does not hold models as this version writes them ({error})") from None
    return head, State(**arrays)


def take(
    state: State, other: State, *, mine: Sequence[list[Any]], theirs: Sequence[list[Any]], same_horizon: bool
) -> NDArray[np.int64]:
    """Copies the rows of `other` whose tag stands in both lists; returns which rows of `state` were filled."""
    known = {json.dumps(tag): row for row, tag in enumerate(theirs)}
    names = [json.dumps(tag) for tag in mine]
    slots = np.array([slot for slot, name in enumerate(names) if name in known], dtype=np.int64)
    rows = np.array([known[name] for name in names if name in known], dtype=np.int64)
    for field in fields(State):
        into, source = getattr(state, field.name), getattr(other, field.name)
        if field.name in OF_HORIZON and not same_horizon:
            continue
        # Widths differ when the tag with most inputs came or went; nobody's terms lie beyond the narrower of both.
        common = [min(sizes) for sizes in zip(into.shape[1:], source.shape[1:], strict=True)]
        cut: tuple[Any, ...] = tuple(slice(0, size) for size in common)
        into[(slots, *cut)] = source[(rows, *cut)]
    return slots

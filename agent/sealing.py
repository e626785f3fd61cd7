"""An envelope for saved state: its kind, version, length and checksum. Pure; `agent.statefile` does the files."""

from __future__ import annotations

import struct
import zlib

_TAIL = struct.Struct("<QI")


class StateDamaged(Exception):
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

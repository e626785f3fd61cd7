"""The stream id and the sequence numbers that were given out, in a small file of their own beside the outbox.

A database that is damaged, or that a lying disk rolled back, must never let a number be used twice; so this is kept
apart from it. The file has two slots that are overwritten in place by turns: a torn write leaves the other slot, and
a full disk takes it still.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from agent.statefile import write_atomic

FILE = "numbers"
ALIGN = 4096
"""Slots begin where a disk's blocks begin, so that a torn write touches one of them only."""
HEADER = struct.Struct("<4sQII")  # mark, turn, length of the text, CRC-32 of turn and text
MARK = b"etn1"
MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class Numbers:
    """What must outlive everything else in the state folder.

    `reserved`: device -> last number of its block. `clean`: device -> next number, after a clean end alone.
    `doubt`: since the last start the outbox could not keep everything, so older numbers may be lost too.
    """

    stream: str
    machine: str
    reserved: Mapping[str, int] = field(default_factory=dict)
    clean: Mapping[str, int] | None = None
    doubt: bool = False


def this_machine() -> str:
    """What tells it from one that a state folder was copied to; empty where nothing does."""
    try:
        return MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def to_text(numbers: Numbers) -> str:
    """As JSON."""
    return json.dumps(asdict(numbers), separators=(",", ":"))


def from_text(text: str | bytes) -> Numbers:
    """Raises ValueError for what `to_text` did not make."""
    try:
        found = Numbers(**json.loads(text))
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not isinstance(found.stream, str) or not isinstance(found.reserved, dict):
        raise ValueError("not the numbers of an outbox")
    return found


def load(folder: Path) -> tuple[Numbers, bool] | None:
    """The newest whole slot, and whether the other one is whole too; None where there is no file or no whole slot.

    Where it is not, one newer block may have been given out than is told. Raises OSError when it cannot be read.
    """
    try:
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    slots = _slots(data)
    return (max(slots.values(), key=lambda slot: slot[0])[1], len(slots) == 2) if slots else None


def save(folder: Path, numbers: Numbers) -> None:
    """Durable on return. Raises OSError, and then the file still says what it said."""
    path = folder / FILE
    text = to_text(numbers).encode()
    data = path.read_bytes() if path.exists() else b""
    size = len(data) // 2
    slots = _slots(data)
    if size < HEADER.size + len(text) or size % ALIGN or len(slots) < 2:
        # twice what is needed now: more devices may come
        size = -(-2 * (HEADER.size + len(text)) // ALIGN) * ALIGN
        turn = max((slot[0] for slot in slots.values()), default=0) + 1
        write_atomic(path, _slot(turn, text).ljust(size, b"\0") * 2)
        return
    newest = max(slots, key=lambda place: slots[place][0])
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, _slot(slots[newest][0] + 1, text), (1 - newest) * size)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def go_on_alone(folder: Path, machine: str, block: int) -> tuple[Numbers, dict[str, int]] | None:
    """The next block of each device, where nothing but this file can be written: a full disk takes it in place.

    Returns the numbers and the first one of each device. They are in doubt, so that the next start names what this run
    loses. None where they cannot be read or written, or are another machine's: then a run needs a stream of its own,
    of which nobody will know later what is lacking.
    """
    try:
        known, whole = load(folder) or (None, False)
        if known is None or known.machine != machine:
            return None
        skipped = 0 if whole else block  # the damaged slot may have told of one block more
        first = {device: last + skipped + 1 for device, last in known.reserved.items()}
        ahead = {device: number + block - 1 for device, number in first.items()}
        known = replace(known, reserved=ahead, clean=None, doubt=True)
        save(folder, known)
    except OSError:
        return None
    return known, first


def _slot(turn: int, text: bytes) -> bytes:
    return HEADER.pack(MARK, turn, len(text), _crc(turn, text)) + text


def _crc(turn: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(turn.to_bytes(8, "little")))


def _slots(data: bytes) -> dict[int, tuple[int, Numbers]]:
    """The whole slots of a file: place (0 or 1) -> (turn, numbers)."""
    size = len(data) // 2
    slots = {}
    for place in (0, 1):
        part = data[place * size : (place + 1) * size]
        if len(part) < HEADER.size:
            continue
        mark, turn, length, crc = HEADER.unpack_from(part)
        text = part[HEADER.size : HEADER.size + length]
        if mark == MARK and len(text) == length and _crc(turn, text) == crc:
            try:
                slots[place] = (turn, from_text(text))
            except ValueError:
                continue
    return slots

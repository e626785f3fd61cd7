"""Requests as bytes: what follows the function code, for reads and for the steps of a write."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence

from agent.modbus.encode import WireWrite
from agent.modbus.framers import Answer
from agent.modbus.plan import Request

Step = tuple[int, bytes]
"""(function, body)"""
ILLEGAL_FUNCTION = 1


def read_body(request: Request) -> bytes:
    """Address and count."""
    return struct.pack(">HH", request.address, request.count)


def write_steps(wire: WireWrite) -> Generator[Step, Answer, Answer]:
    """The frames of one write, each yielded in turn; sent in is its answer, returned the one that counts.

    With masks and another function than 22, or when the device does not know 22, the register is read first and
    written back with the bits changed: nothing else may be sent between the two.
    """
    where = struct.pack(">H", wire.address)
    words = struct.pack(f">{len(wire.words)}H", *wire.words)
    if wire.function == 5:
        return (yield 5, where + (b"\xff\x00" if wire.bits[0] else b"\x00\x00"))
    if wire.function == 15:
        return (yield 15, where + struct.pack(">H", len(wire.bits)) + _counted(_packed(wire.bits)))
    if wire.function == 22:
        answer = yield 22, where + struct.pack(">HH", wire.and_mask, wire.or_mask)
        if answer.exception != ILLEGAL_FUNCTION:
            return answer
    if wire.masked:
        answer = yield 3, where + b"\0\1"
        if answer.payload is None:
            return answer
        old = int.from_bytes(answer.payload, "big")
        words = (old & wire.and_mask | wire.or_mask & ~wire.and_mask & 0xFFFF).to_bytes(2, "big")
    if wire.function == 16:
        return (yield 16, where + struct.pack(">H", len(words) // 2) + _counted(words))
    return (yield 6, where + words)


def _packed(bits: Sequence[bool]) -> bytes:
    packed = bytearray((len(bits) + 7) // 8)
    for position, bit in enumerate(bits):
        packed[position // 8] |= bool(bit) << position % 8
    return bytes(packed)


def _counted(data: bytes) -> bytes:
    return bytes((len(data),)) + data

"""Requests as bytes: what follows the function code, for reads and for the steps of a write."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Generator
from dataclasses import dataclass

from agent.modbus.codec import WireWrite
from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.modbus.plan import Request

Step = tuple[int, bytes]
"""(function, body)"""


@dataclass(slots=True, eq=False)
class Job:
    """A write, or a read on demand, that somebody waits for until `deadline` (monotonic seconds)."""

    device: str
    deadline: float
    future: asyncio.Future[Answer]
    request: Request | None = None
    wire: WireWrite | None = None

    def done(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, fault: LinkFault) -> None:
        if not self.future.done():
            self.future.set_exception(fault)


def read_body(request: Request) -> bytes:
    """Address and count."""
    return struct.pack(">HH", request.address, request.count)


def write_steps(wire: WireWrite) -> Generator[Step, Answer, None]:
    """The frames of one write, each yielded in turn; what is sent in is the answer to the one before.

    A function 5, 6, 15, 16 or 22 is one frame. With masks and another function than 22 the register is read first
    and written back with the bits changed.
    """
    where = struct.pack(">H", wire.address)
    words = struct.pack(f">{len(wire.words)}H", *wire.words)
    if wire.function == 5:
        yield 5, where + (b"\xff\x00" if wire.bits[0] else b"\x00\x00")
    elif wire.function == 15:
        packed = bytearray((len(wire.bits) + 7) // 8)
        for position, bit in enumerate(wire.bits):
            packed[position // 8] |= bool(bit) << position % 8
        yield 15, where + struct.pack(">HB", len(wire.bits), len(packed)) + packed
    elif wire.function == 6:
        yield 6, where + words
    elif wire.function == 16:
        yield 16, where + struct.pack(">HB", len(wire.words), len(words)) + words
    else:
        yield 22, where + struct.pack(">HH", wire.and_mask, wire.or_mask)

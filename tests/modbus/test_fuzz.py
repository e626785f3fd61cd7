"""Broken replies in great numbers: none is taken, and each right one after it is."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable

import pytest
from pymodbus.transport import CommParams, CommType

from agent.config.types import Url
from agent.modbus.framers import MbapFramer, RtuFramer, StrictTransactions, ask
from agent.modbus.link import Link
from agent.runtime.clock import SystemClock
from tests.modbus.faultserver import Asked, Conversation, FaultServer, crc
from tests.modbus.virtual import LoopClock, in_virtual_time

UNIT = 17
Frame = Callable[[int, int, bytes], bytes]
"""(transaction id, unit, PDU) -> bytes"""


def mbap(tid: int, unit: int, pdu: bytes) -> bytes:
    return struct.pack(">HHHB", tid, 0, len(pdu) + 1, unit) + pdu


def rtu(tid: int, unit: int, pdu: bytes) -> bytes:
    body = bytes((unit,)) + pdu
    return body + crc(body)


def right_pdu(function: int, count: int, number: int) -> bytes:
    """A reply whose values are the number of its request."""
    if function in (3, 4):
        return bytes((function, 2 * count)) + struct.pack(">H", number & 0xFFFF) * count
    return struct.pack(">BHH", function, number & 0xFFFF, number & 0xFFFF)


def request(rng: random.Random, number: int) -> tuple[int, int, bytes]:
    """(function, count, body) of the next request."""
    function = rng.choice((3, 3, 4, 6, 16))
    count = rng.choice((1, 2, 10, 62, 125))
    if function == 16:
        return 16, number & 0xFFFF, struct.pack(">HHB", number & 0xFFFF, number & 0xFFFF, 2) + b"\0\0"
    return function, count, struct.pack(">HH", number & 0xFFFF, number & 0xFFFF if function == 6 else count)


def broken(rng: random.Random, frame: Frame, tid: int, function: int, count: int, number: int) -> bytes:
    """A reply that is wrong in at least one field that can be checked, with values of another request."""
    lie = right_pdu(function, count, number + rng.randrange(1, 0xFFFF))
    on_tcp = frame is mbap
    kinds = ["unit", "function", "size", "count", "cut"] + (
        ["tid", "tid zero", "protocol"] if on_tcp else ["crc", "crc"]
    )
    if function in (6, 16):
        kinds.append("echo")
    kind = rng.choice(kinds)
    if kind == "tid":
        return frame(tid ^ rng.randrange(1, 0xFFFF), UNIT, lie)
    if kind == "tid zero":
        return frame(0, UNIT, lie)
    if kind == "protocol":
        return struct.pack(">HHHB", tid, rng.randrange(1, 0x10000), len(lie) + 1, UNIT) + lie
    if kind == "unit":
        return frame(tid, UNIT ^ rng.randrange(1, 256), lie)
    if kind == "function":
        return frame(tid, UNIT, bytes((lie[0] ^ rng.choice((1, 2, 4, 8, 16, 32, 64)),)) + lie[1:])
    if kind == "size":
        return frame(tid, UNIT, lie + rng.randbytes(rng.randrange(1, 5)))
    if kind == "count" and function < 5:
        return frame(tid, UNIT, bytes((lie[0], lie[1] ^ rng.randrange(1, 256))) + lie[2:])
    if kind == "crc":
        good = bytearray(frame(tid, UNIT, lie))
        good[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        return bytes(good)
    if kind == "echo":
        return frame(tid, UNIT, lie)
    return frame(tid, UNIT, lie[: rng.randrange(1, len(lie))])  # cut, the frame around it whole


def passes_by_chance(data: bytes, function: int, count: int) -> bool:
    """True when bytes that were meant to be broken hold a whole RTU frame: no check can tell it from a right one.

    A byte too many is the CRC's own first byte one time in 256, and any two bytes are a CRC one time in 65,536.
    """
    if function > 4:
        return False  # the echo of a write is known to the last byte
    mark = bytes((UNIT, function, 2 * count))
    size = 3 + 2 * count
    at = data.find(mark)
    while at >= 0:
        if len(data) >= at + size + 2 and crc(data[at : at + size]) == data[at + size : at + size + 2]:
            return True
        at = data.find(mark, at + 1)
    return False


class Wire(asyncio.Transport):
    """Takes what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent = bytes(data)

    def close(self) -> None: ...

    def abort(self) -> None: ...


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("framer", "frame"), [(MbapFramer, mbap), (RtuFramer, rtu)], ids=["tcp", "rtu"])
def test_no_broken_reply_of_a_hundred_thousand_is_taken(
    framer: type[MbapFramer] | type[RtuFramer], frame: Frame
) -> None:
    async def test(clock: LoopClock) -> None:
        rng = random.Random(4)
        transactions = StrictTransactions(
            CommParams(comm_type=CommType.TCP, host="x", port=1),
            framer(),
            clock=clock,
            on_lost=lambda words: None,
            on_late=lambda unit, seconds: None,
        )
        wire = Wire()
        transactions.connection_made(wire)
        taken = fed = 0
        for number in range(50_000):
            function, count, body = request(rng, number)
            call = asyncio.ensure_future(transactions.transact(ask(UNIT, function, body), 1.0))
            await asyncio.sleep(0)
            tid = int.from_bytes(wire.sent[:2], "big")
            seen = b""
            for _ in range(2):
                reply = broken(rng, frame, tid, function, count, number)
                if frame is rtu and passes_by_chance(seen + reply, function, count):
                    continue
                fed += 1
                seen += reply
                cut = rng.randrange(len(reply) + 1)
                for piece in (reply[:cut], reply[cut:]):
                    if piece:
                        transactions.data_received(piece)
            if call.done() or transactions._waiting is None:
                taken += 1
            transactions.data_received(frame(tid, UNIT, right_pdu(function, count, number)))
            answer = await call
            assert answer.payload == (right_pdu(function, count, number)[2:] if function < 5 else b"")
        assert taken == 0
        assert fed > 99_500

    in_virtual_time(test)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_no_broken_reply_of_two_thousand_is_taken_from_a_socket(scheme: str) -> None:
    async def test() -> None:
        rng = random.Random(5)
        server = await FaultServer(rtu=scheme == "rtu+tcp").start()
        frame = rtu if server.rtu else mbap

        async def twice(here: Conversation, asked: Asked) -> None:
            """Two broken replies, then the right one."""
            wrong = [
                broken(rng, frame, asked.tid, asked.function, asked.count, asked.address) for _ in range(2)
            ]
            if frame is rtu and passes_by_chance(b"".join(wrong), asked.function, asked.count):
                wrong = []
            await here.send(
                b"".join(wrong)
                + frame(asked.tid, asked.unit, right_pdu(asked.function, asked.count, asked.address))
            )

        server.break_next(twice, 1000)
        url = Url(f"{scheme}://x", scheme, "127.0.0.1", server.port)  # type: ignore[arg-type]
        link = Link(url, clock=SystemClock(), on_lost=print, on_late=lambda unit, seconds: None)
        await link.connect(5.0)
        for number in range(1000):
            count = rng.choice((1, 2, 10, 125))
            body = struct.pack(">HH", number, count)
            answer = await link.transact(UNIT, 3, body, timeout=10.0, within=10.0)
            assert answer.payload == right_pdu(3, count, number)[2:]
        assert server.most_live == server.connections == 1
        link.close()
        await server.stop()

    asyncio.run(test())

"""The table of what a device or a line may do: name -> how it answers one request."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Mapping

from tests.modbus.faultserver import Asked, Conversation, Fault, crc, registers

LATE = 0.1
"""Seconds; the tests' timeout is shorter."""


async def silent(here: Conversation, asked: Asked) -> None:
    """No answer at all."""


async def late(here: Conversation, asked: Asked) -> None:
    await asyncio.sleep(LATE)
    await here.send(here.good(asked))


async def late_twice(here: Conversation, asked: Asked) -> None:
    await asyncio.sleep(LATE)
    await here.send(here.good(asked) * 2)


async def late_exception(here: Conversation, asked: Asked) -> None:
    await asyncio.sleep(LATE)
    await here.send(here.frame(asked, bytes((asked.function | 0x80, 4))))


async def wrong_tid(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, lie(asked), tid=asked.tid ^ 0x55))


async def tid_zero(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, lie(asked), tid=0))


async def wrong_unit(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, lie(asked), unit=asked.unit + 1))


async def wrong_unit_then_right(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, lie(asked), unit=asked.unit + 1) + here.good(asked))


async def wrong_function(here: Conversation, asked: Asked) -> None:
    pdu = lie(asked)
    await here.send(here.frame(asked, bytes((pdu[0] ^ 7,)) + pdu[1:]))


async def short(here: Conversation, asked: Asked) -> None:
    """Fewer registers than were asked for, well formed."""
    size = 2 * asked.count - 2
    await here.send(here.frame(asked, bytes((asked.function, size)) + b"\xee" * size))


async def long(here: Conversation, asked: Asked) -> None:
    size = 2 * asked.count + 4
    await here.send(here.frame(asked, bytes((asked.function, size)) + b"\xee" * size))


async def odd(here: Conversation, asked: Asked) -> None:
    size = 2 * asked.count - 1
    await here.send(here.frame(asked, bytes((asked.function, size)) + b"\xee" * size))


async def count_lies(here: Conversation, asked: Asked) -> None:
    """The byte count says what was asked for; there is less behind it."""
    await here.send(here.frame(asked, lie(asked)[:-2]))


async def count_lies_more(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, lie(asked) + b"\xee\xee"))


async def empty(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, b""))


async def garbage_before(here: Conversation, asked: Asked) -> None:
    await here.send(b"\x00\xff\x01\x03\x04" + here.good(asked))


async def zeros_before(here: Conversation, asked: Asked) -> None:
    await here.send(b"\x00\x00\x00\x00" + here.good(asked))


async def http_before(here: Conversation, asked: Asked) -> None:
    await here.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + here.good(asked))


async def garbage_after(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked) + b"\x01\x03\x04\x00")


async def zeros_after(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked) + b"\x00\x00\x00\x00")


async def header_of_nothing(here: Conversation, asked: Asked) -> None:
    """A header that announces 80 bytes which never come, then the right reply."""
    await here.send(struct.pack(">HHHB", 7, 0, 80, 1) + here.good(asked))


async def protocol_id(here: Conversation, asked: Asked) -> None:
    await here.send(struct.pack(">HHHB", asked.tid, 1, 3 + 2 * asked.count, asked.unit) + lie(asked))


async def huge_length(here: Conversation, asked: Asked) -> None:
    await here.send(struct.pack(">HHHB", asked.tid, 0, 60_000, asked.unit) + lie(asked))


async def flood(here: Conversation, asked: Asked) -> None:
    await here.send(bytes(range(256)) * 64)


async def single_bytes(here: Conversation, asked: Asked) -> None:
    for byte in here.good(asked):
        await here.send(bytes((byte,)))
        await asyncio.sleep(0)


async def slow_drip(here: Conversation, asked: Asked) -> None:
    """Slower than the timeout: the tail comes while the next request waits."""
    frame = here.good(asked)
    for at in range(0, len(frame), 3):
        await here.send(frame[at : at + 3])
        await asyncio.sleep(2 * LATE / len(frame) * 3)


async def two_in_one(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, lie(asked), tid=asked.tid - 1) + here.good(asked))


async def twice(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked) * 2)


async def cut_then_again(here: Conversation, asked: Asked) -> None:
    """The device starts over in the middle of its reply."""
    frame = here.good(asked)
    await here.send(frame[:-3] + frame)


async def previous(here: Conversation, asked: Asked) -> None:
    """The reply to the request before this one. RTU has no transaction id: there only another length can be seen."""
    old = here.previous
    if old is not None and not (here.server.rtu and old.count == asked.count):
        await here.send(here.good(old))


async def echo(here: Conversation, asked: Asked) -> None:
    await here.send(asked.raw)


async def fin_before(here: Conversation, asked: Asked) -> None:
    await here.fin()


async def fin_in_the_middle(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked)[:-2])
    await here.fin()


async def fin_after(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked))
    await here.fin()


async def rst_before(here: Conversation, asked: Asked) -> None:
    await here.rst()


async def rst_in_the_middle(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked)[:-2])
    await asyncio.sleep(0.01)
    await here.rst()


async def rst_after(here: Conversation, asked: Asked) -> None:
    await here.send(here.good(asked))
    await asyncio.sleep(0.01)
    await here.rst()


async def bad_crc(here: Conversation, asked: Asked) -> None:
    frame = bytearray(here.frame(asked, lie(asked)))
    frame[-1] ^= 0xFF
    await here.send(bytes(frame))


async def flipped_bit(here: Conversation, asked: Asked) -> None:
    """Noise inside the data; on TCP the kernel would have seen it, so there the frame is right."""
    frame = bytearray(here.good(asked))
    if here.server.rtu:
        frame[4] ^= 0x10
    await here.send(bytes(frame))


async def bad_then_good(here: Conversation, asked: Asked) -> None:
    broken = bytes((asked.unit,)) + lie(asked)
    wrong = bytes(reversed(crc(broken))) if crc(broken)[0] != crc(broken)[1] else b"\0\0"
    start = broken + wrong if here.server.rtu else here.frame(asked, lie(asked), tid=asked.tid ^ 1)
    await here.send(start + here.good(asked))


async def exception_of_another_function(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, bytes((0x83 if asked.function != 3 else 0x84, 2))))


async def exception_without_code(here: Conversation, asked: Asked) -> None:
    await here.send(here.frame(asked, bytes((asked.function | 0x80,))))


def exception(code: int) -> Fault:
    async def refuse(here: Conversation, asked: Asked) -> None:
        await here.send(here.frame(asked, bytes((asked.function | 0x80, code))))

    return refuse


def lie(asked: Asked) -> bytes:
    """A reply of the right shape with wrong values."""
    return dataclasses.replace(asked, pdu=asked.pdu).answer()[:2] + registers(0xEE00, asked.count)


BOTH: Mapping[str, Fault] = {
    one.__name__: one
    for one in (
        silent,
        late,
        late_twice,
        late_exception,
        wrong_unit,
        wrong_unit_then_right,
        wrong_function,
        short,
        long,
        odd,
        count_lies,
        count_lies_more,
        empty,
        garbage_before,
        zeros_before,
        http_before,
        garbage_after,
        zeros_after,
        flood,
        single_bytes,
        slow_drip,
        twice,
        cut_then_again,
        previous,
        echo,
        fin_before,
        fin_in_the_middle,
        fin_after,
        rst_before,
        rst_in_the_middle,
        rst_after,
        flipped_bit,
        bad_then_good,
        exception_of_another_function,
        exception_without_code,
    )
} | {f"exception_{code}": exception(code) for code in range(1, 12)}

ON_TCP: Mapping[str, Fault] = BOTH | {
    one.__name__: one
    for one in (wrong_tid, tid_zero, header_of_nothing, protocol_id, huge_length, two_in_one)
}
ON_RTU: Mapping[str, Fault] = BOTH | {one.__name__: one for one in (bad_crc,)}

COSTS_NOTHING = frozenset(
    {
        "wrong_unit_then_right",
        "garbage_before",
        "zeros_before",
        "http_before",
        "garbage_after",
        "zeros_after",
        "header_of_nothing",
        "single_bytes",
        "two_in_one",
        "twice",
        "cut_then_again",
        "bad_then_good",
        "fin_after",
        "rst_after",
    }
)
"""Faults after which the very request that met them is answered right."""

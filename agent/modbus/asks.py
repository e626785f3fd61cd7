"""One request, and all that can be known beforehand of its right reply. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

READS = frozenset({1, 2, 3, 4})
READ_BITS = frozenset({1, 2})
OPEN_ENDED = frozenset({17, 43})
"""Functions whose reply says itself how long it is."""
LOOPBACK = 8
WRITE_COIL = 5


class Answer(NamedTuple):
    """The right reply to one request: its data bytes, or the exception that the device gave instead."""

    payload: bytes | None
    exception: int | None
    t: float  # monotonic seconds at which its last byte was read
    rtt: float


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One request and all that can be known of its right reply.

    `head` is how the reply's PDU begins, `size` its length (None: it says so itself), `skip` where its data begin.
    Asks are equal when they are the same object, so that what is built for one is found again at little cost.
    """

    unit: int
    pdu: bytes
    head: bytes
    size: int | None
    skip: int

    @property
    def function(self) -> int:
        return self.pdu[0]

    @property
    def is_echoed(self) -> bool:
        """True when the right reply is the request itself."""
        return self.head == self.pdu


@functools.lru_cache(maxsize=4096)
def ask(unit: int, function: int, body: bytes) -> Ask:
    """The request `function` + `body` to `unit`. Raises ValueError for a function whose reply could not be checked.

    Source: Modbus application protocol V1.1b3, section 6.
    """
    pdu = bytes((function,)) + body
    if function in READS:
        count = int.from_bytes(body[2:4], "big")
        size = (count + 7) // 8 if function in READ_BITS else 2 * count
        return Ask(unit, pdu, bytes((function, size)), 2 + size, 2)
    if function in (5, 6, 22, LOOPBACK):
        return Ask(unit, pdu, pdu, len(pdu), len(pdu))
    if function in (15, 16):
        return Ask(unit, pdu, pdu[:5], 5, 5)
    if function in OPEN_ENDED:
        return Ask(unit, pdu, pdu[:1], None, 1)
    raise ValueError(f"function {function} is not known here")


def is_right(ask: Ask, pdu: bytes) -> bool:
    """True when `pdu` answers `ask`, be it with an exception."""
    if len(pdu) == 2 and pdu[0] == ask.function | 0x80:
        return pdu[1] != 0
    if ask.size is not None and len(pdu) != ask.size:
        return False
    # a read that comes back as it was sent is an echo, even where it could pass for three bytes of bits
    return pdu.startswith(ask.head) and not (ask.function in READS and pdu == ask.pdu)


def difference(ask: Ask, pdu: bytes) -> str:
    """What is wrong with `pdu` as an answer to `ask`, in words."""
    if pdu == ask.pdu:
        return "an echo of the request"
    if not pdu or pdu[0] & 0x7F != ask.function:
        return f"function {pdu[0] if pdu else 'none'} instead of {ask.function}"
    if ask.function in READS:
        return f"{len(pdu) - 2} data bytes instead of {(ask.size or 2) - 2}"
    return "another address or value than was written"

"""Every value that some raw words could mean: for commissioning by a bad manual, side by side."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence

from agent.config.types import REGISTERS, Device, Tag, Url
from agent.modbus.codec import Decoder
from agent.modbus.plan import Request
from agent.twin.records import Plain

ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
NOWHERE = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)


def readings(words: Sequence[int]) -> Mapping[str, Mapping[str, Plain]]:
    """type -> order -> value of the first registers of `words`, for each type that fits; None where it means nothing.

    A type of one register has two orders only (its bytes as they are, or swapped); text is tried with both.
    """
    payload = struct.pack(f">{len(words)}H", *words)
    fitting = [name for name, count in REGISTERS.items() if count <= len(words) and name != "bool"]
    found: dict[str, dict[str, Plain]] = {}
    for name in [*fitting, "string"]:
        narrow = name == "string" or REGISTERS[name] == 1
        orders = ("ABCD", "BADC") if narrow else ORDERS
        found[name] = {order: _read(name, order, len(words), payload) for order in orders}
    return found


def _read(name: str, order: str, words: int, payload: bytes) -> Plain:
    tag = Tag(name, "holding", 0, type=name, order=order, length=2 * words if name == "string" else 0)
    device = dataclasses.replace(Device("d", NOWHERE), tags={name: tag})
    request = Request(
        device="d", unit=1, function=3, address=0, count=words, every=1.0, tags=(name,), wanted=tag.count
    )
    return Decoder(request, device).decode(payload, {}).plain[0]

"""The CRC against one bit at a time, and against numbers from the standard."""

from __future__ import annotations

import random

import pytest

from agent.modbus.crc import crc16
from tests.modbus.faultserver import crc


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"", 0xFFFF), (b"123456789", 0x4B37), (b"\x02\x07", 0x1241), (b"\0", 0x40BF), (b"\0\0", 0xB001)],
)
def test_known_ones(data: bytes, value: int) -> None:
    assert crc16(data) == value


def test_of_every_length() -> None:
    rng = random.Random(1)
    for length in range(260):
        data = rng.randbytes(length)
        assert crc16(data).to_bytes(2, "little") == crc(data)
        assert crc16(data + crc(data)) == 0

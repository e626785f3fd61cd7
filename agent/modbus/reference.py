"""Decoding in plain Python: the oracle of the kernel's tests, and what runs where numba cannot be loaded."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.modbus import columns as c

INVALID = 2**64 - 1
"""Raw value of packed decimals with a digit above nine."""


def decode(
    payload: NDArray[np.uint8],
    layout: NDArray[np.int64],
    numbers: NDArray[np.float64],
    missing: NDArray[np.uint64],
    powers: NDArray[np.int64],
    value: NDArray[np.float64],
    raw: NDArray[np.uint64],
    quality: NDArray[np.uint8],
    *_scratch: Any,
) -> None:
    """As `agent.modbus.kernels.decode`."""
    data = payload.tobytes()
    for i, row in enumerate(layout.tolist()):
        if row[c.KIND] == c.TEXT:
            value[i], raw[i], quality[i] = math.nan, 0, c.GOOD
            continue
        pattern = _pattern(data, row)
        gone = pattern in missing[row[c.MISSING_FROM] : row[c.MISSING_TO]].tolist()
        number, integer = _number(pattern, row)
        raw[i] = integer % 2**64
        scaled = None if number is None or gone else _scaled(number, numbers[i].tolist(), int(powers[i]))
        value[i], quality[i] = _judged(scaled, row, numbers[i].tolist())


def _pattern(data: bytes, row: list[int]) -> int:
    start, words = row[c.OFFSET], row[c.WORDS]
    if row[c.KIND] == c.COIL:
        return data[start // 8] >> start % 8 & 1
    parts = [data[start + 2 * word : start + 2 * word + 2] for word in range(words)]
    if row[c.ORDER] & 1:
        parts.reverse()
    if row[c.ORDER] & 2:
        parts = [part[::-1] for part in parts]
    return int.from_bytes(b"".join(parts), "big")


def _number(pattern: int, row: list[int]) -> tuple[float | None, int]:
    """(numeric value, raw integer) of a pattern; the value is None where it means nothing."""
    kind, words = row[c.KIND], row[c.WORDS]
    if row[c.FIELD]:
        pattern = pattern >> row[c.SHIFT] & (1 << row[c.FIELD]) - 1
    if kind == c.SIGNED:
        width = 16 * words
        signed = pattern - (1 << width) if pattern >> (width - 1) else pattern
        return float(signed), signed
    if kind == c.FLOAT32:
        return _shortest(struct.unpack(">f", pattern.to_bytes(4, "big"))[0]), pattern
    if kind == c.FLOAT64:
        return struct.unpack(">d", pattern.to_bytes(8, "big"))[0], pattern
    if kind == c.BCD:
        digits = f"{pattern:0{4 * words}X}"
        if not digits.isdecimal():
            return None, INVALID
        return float(int(digits)), int(digits)
    return float(pattern), pattern


def _shortest(number: float) -> float:
    """The decimal of 6 to 9 digits that rounds to this float32: 100.1, not 100.0999984741211."""
    if not math.isfinite(number) or number == 0.0:
        return number
    exponent = math.floor(math.log10(abs(number)))
    for digits in range(6, 10):
        k = digits - 1 - exponent
        if abs(k) > 22:
            return number
        short = float(
            np.rint(number * 10.0**k) / 10.0**k if k >= 0 else np.rint(number / 10.0**-k) * 10.0**-k
        )
        with np.errstate(over="ignore"):
            if float(np.float32(short)) == number:
                return short
    return number


def _scaled(number: float, numbers: list[float], power: int) -> float | None:
    multiplier, addend, divisor = numbers[c.MULTIPLIER], numbers[c.ADDEND], numbers[c.DIVISOR]
    if power == c.NO_POWER:
        return None
    if power > 0:
        multiplier *= 10.0**power
    elif power < 0:
        addend *= 10.0**-power
        divisor *= 10.0**-power
    return (number * multiplier + addend) / divisor


def _judged(scaled: float | None, row: list[int], numbers: list[float]) -> tuple[float, int]:
    if scaled is None or not math.isfinite(scaled):
        return math.nan, c.MISSING
    quality = c.GOOD if numbers[c.LOWEST] <= scaled <= numbers[c.HIGHEST] else c.UNCERTAIN
    if row[c.LOOP_CURRENT]:
        if scaled <= c.NE43_FAIL_LOW or scaled >= c.NE43_FAIL_HIGH:
            return math.nan, c.MISSING
        if scaled < c.NE43_LOW or scaled > c.NE43_HIGH:
            quality = c.UNCERTAIN
    return scaled, quality

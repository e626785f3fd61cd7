"""Compiled decoding: one call per reply, over all tags of its request."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.kernelcache import kernel
from agent.modbus import columns as c

POWERS = 10.0 ** np.arange(23)  # all exact doubles


INVALID = np.uint64(0xFFFFFFFFFFFFFFFF)
"""Stands for packed decimals with a digit above nine; eight digits never reach it."""


@kernel("uint64(uint8[::1], int64, int64, int64)")
def assemble(payload: NDArray[np.uint8], start: int, words: int, order: int) -> np.uint64:
    """The bit pattern of `words` registers from byte `start`; order bit 0: words reversed, bit 1: bytes swapped."""
    pattern = np.uint64(0)
    for word in range(words):
        place = start + 2 * (words - 1 - word if order & 1 else word)
        high, low = payload[place], payload[place + 1]
        if order & 2:
            high, low = low, high
        pattern = (pattern << np.uint64(16)) | (np.uint64(high) << np.uint64(8)) | np.uint64(low)
    return pattern


@kernel("float64(float64, float32)")
def shortest(number: float, same: np.float32) -> float:
    """The decimal of 6 to 9 digits that rounds to the float32 `same` (= number): 100.1, not 100.0999984741211."""
    if not math.isfinite(number) or number == 0.0:
        return number
    exponent = math.floor(math.log10(abs(number)))
    for digits in range(6, 10):
        k = digits - 1 - exponent
        if k > 22 or k < -22:
            return number
        short = (
            np.rint(number * POWERS[k]) / POWERS[k] if k >= 0 else np.rint(number / POWERS[-k]) * POWERS[-k]
        )
        if np.float32(short) == same:
            return float(short)
    return number


@kernel("uint64(uint64, int64)")
def decimal(pattern: np.uint64, digits: int) -> np.uint64:
    """The number in packed decimals (BCD); INVALID where a digit is none."""
    total, factor = np.uint64(0), np.uint64(1)
    for _ in range(digits):
        digit = pattern & np.uint64(15)
        if digit > np.uint64(9):
            return INVALID
        total += digit * factor
        factor *= np.uint64(10)
        pattern = pattern >> np.uint64(4)
    return total


@kernel("float64(float64, float64[::1], int64)")
def scaled(number: float, numbers: NDArray[np.float64], power: int) -> float:
    """(number * multiplier + addend) / divisor * 10^power; NaN where the power is not known."""
    multiplier, addend, divisor = numbers[c.MULTIPLIER], numbers[c.ADDEND], numbers[c.DIVISOR]
    if power == c.NO_POWER:
        return np.nan
    if power > 0:
        multiplier *= POWERS[power]
    elif power < 0:
        addend *= POWERS[-power]
        divisor *= POWERS[-power]
    return float((number * multiplier + addend) / divisor)


@kernel("int64(float64, float64[::1], boolean)")
def judged(value: float, numbers: NDArray[np.float64], loop_current: bool) -> int:
    """Quality of a scaled value: missing where it is no number, or by NE 43; uncertain outside its range."""
    if not math.isfinite(value):
        return c.MISSING
    if loop_current:
        if value <= c.NE43_FAIL_LOW or value >= c.NE43_FAIL_HIGH:
            return c.MISSING
        if value < c.NE43_LOW or value > c.NE43_HIGH:
            return c.UNCERTAIN
    return c.UNCERTAIN if value < numbers[c.LOWEST] or value > numbers[c.HIGHEST] else c.GOOD


@kernel(
    "void(uint8[::1], int64[:,::1], float64[:,::1], uint64[::1], int64[::1], float64[::1], uint64[::1], uint8[::1],"
    " uint32[::1], float32[::1], uint64[::1], float64[::1])"
)
def decode(
    payload: NDArray[np.uint8],
    layout: NDArray[np.int64],
    numbers: NDArray[np.float64],
    missing: NDArray[np.uint64],
    powers: NDArray[np.int64],
    value: NDArray[np.float64],
    raw: NDArray[np.uint64],
    quality: NDArray[np.uint8],
    bits32: NDArray[np.uint32],
    as32: NDArray[np.float32],
    bits64: NDArray[np.uint64],
    as64: NDArray[np.float64],
) -> None:
    """Decodes payload (bytes) into value, raw and quality, each (n,).

    layout (n, columns.LAYOUT): where each tag is and how it is built; numbers (n, columns.NUMBERS): scale and range;
    missing: raw patterns that mean "not available", a slice of them per tag; powers (n,): of ten, from scale_from.
    bits32/as32 and bits64/as64 are the same memory seen as an integer and as a float.
    """
    for i in range(layout.shape[0]):
        kind = layout[i, c.KIND]
        if kind == c.TEXT:
            value[i] = np.nan
            raw[i] = 0
            quality[i] = c.GOOD
            continue
        pattern = np.uint64(0)
        words = layout[i, c.WORDS]
        start = layout[i, c.OFFSET]
        if kind == c.COIL:
            pattern = np.uint64((payload[start >> 3] >> (start & 7)) & 1)
        else:
            pattern = assemble(payload, start, words, layout[i, c.ORDER])
        raw[i] = pattern
        bad = False
        for k in range(layout[i, c.MISSING_FROM], layout[i, c.MISSING_TO]):
            if missing[k] == pattern:
                bad = True
        if layout[i, c.FIELD] > 0:
            pattern = (pattern >> np.uint64(layout[i, c.SHIFT])) & (
                (np.uint64(1) << np.uint64(layout[i, c.FIELD])) - np.uint64(1)
            )
            raw[i] = pattern
        number = 0.0
        if kind == c.SIGNED:
            width = 16 * words
            if width < 64 and (pattern >> np.uint64(width - 1)) & np.uint64(1):
                pattern = pattern | (~np.uint64(0) << np.uint64(width))
                raw[i] = pattern
            number = float(np.int64(pattern))
        elif kind == c.FLOAT32:
            bits32[0] = np.uint32(pattern)
            number = shortest(float(as32[0]), as32[0])
        elif kind == c.FLOAT64:
            bits64[0] = pattern
            number = as64[0]
        elif kind == c.BCD:
            raw[i] = decimal(pattern, 4 * words)
            bad = bad or raw[i] == INVALID
            number = float(raw[i])
        else:
            number = float(pattern)
        value[i] = scaled(number, numbers[i], powers[i])
        quality[i] = c.MISSING if bad else judged(value[i], numbers[i], layout[i, c.LOOP_CURRENT] != 0)
        if quality[i] == c.MISSING:
            value[i] = np.nan

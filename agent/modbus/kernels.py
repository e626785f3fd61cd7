"""Compiled decoding: one call per reply, over all tags of its request."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.kernelcache import kernel
from agent.modbus import columns as c

POWERS = 10.0 ** np.arange(23)  # all exact doubles


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
            for word in range(words):
                place = start + 2 * (words - 1 - word if layout[i, c.ORDER] & 1 else word)
                high, low = payload[place], payload[place + 1]
                if layout[i, c.ORDER] & 2:
                    high, low = low, high
                pattern = (pattern << np.uint64(16)) | np.uint64(
                    (np.uint64(high) << np.uint64(8)) | np.uint64(low)
                )
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
            number = float(as32[0])
            if math.isfinite(number) and number != 0.0:
                exponent = math.floor(math.log10(abs(number)))
                for digits in range(6, 10):
                    k = digits - 1 - exponent
                    if k > 22 or k < -22:
                        break
                    short = (
                        np.rint(number * POWERS[k]) / POWERS[k]
                        if k >= 0
                        else np.rint(number / POWERS[-k]) * POWERS[-k]
                    )
                    if np.float32(short) == as32[0]:
                        number = short
                        break
        elif kind == c.FLOAT64:
            bits64[0] = pattern
            number = as64[0]
        elif kind == c.BCD:
            total = np.uint64(0)
            factor = np.uint64(1)
            for _ in range(4 * words):
                digit = pattern & np.uint64(15)
                if digit > np.uint64(9):
                    bad = True
                total += digit * factor
                factor *= np.uint64(10)
                pattern = pattern >> np.uint64(4)
            raw[i] = total
            number = float(total)
        else:
            number = float(pattern)
        multiplier, addend, divisor = numbers[i, c.MULTIPLIER], numbers[i, c.ADDEND], numbers[i, c.DIVISOR]
        power = powers[i]
        if power == c.NO_POWER:
            bad = True
        elif power > 0:
            multiplier *= POWERS[power]
        elif power < 0:
            addend *= POWERS[-power]
            divisor *= POWERS[-power]
        number = (number * multiplier + addend) / divisor
        if bad or not math.isfinite(number):
            value[i] = np.nan
            quality[i] = c.MISSING
            continue
        value[i] = number
        quality[i] = c.GOOD
        if number < numbers[i, c.LOWEST] or number > numbers[i, c.HIGHEST]:
            quality[i] = c.UNCERTAIN
        if layout[i, c.LOOP_CURRENT]:
            if number <= c.NE43_FAIL_LOW or number >= c.NE43_FAIL_HIGH:
                value[i] = np.nan
                quality[i] = c.MISSING
            elif number < c.NE43_LOW or number > c.NE43_HIGH:
                quality[i] = c.UNCERTAIN

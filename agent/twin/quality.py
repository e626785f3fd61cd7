"""The quality that every value has, as one byte in the columns and as a word outside."""

from __future__ import annotations

from enum import IntEnum


class Quality(IntEnum):
    """Codes are kept in uint8 columns; the lower-case name is the word that is published."""

    GOOD = 0
    UNCERTAIN = 1  # outside its range
    MISSING = 2  # the device said "not available"
    STALE = 3  # older than 3 periods
    TIMEOUT = 4
    LINK = 5  # no connection
    ILLEGAL = 6  # the device refused the address
    DEVICE = 7  # the device's own failure


WORDS = tuple(quality.name.lower() for quality in Quality)
LAST_WITH_VALUE = Quality.UNCERTAIN
"""Codes up to this one carry a value; above it every published value is null."""

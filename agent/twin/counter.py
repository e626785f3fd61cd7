"""Counters that roll over and reset, and the continuing total that goes on through both."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from agent.config.types import Tag

WIDTHS = {"int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64}
DECIMAL_DIGITS = {"bcd16": 4, "bcd32": 8}


def raw_range(tag: Tag) -> tuple[int, int]:
    """Lowest raw value of an integer tag and the number of raw values it can take."""
    if tag.bits is not None:
        return 0, 1 << (tag.bits[1] - tag.bits[0] + 1)
    if tag.type in DECIMAL_DIGITS:
        return 0, 10 ** DECIMAL_DIGITS[tag.type]
    size: int = 1 << WIDTHS[tag.type]
    return (-(size // 2), size) if tag.type.startswith("int") else (0, size)


@dataclass(slots=True)
class Counter:
    """The total of one `counter: true` tag, in raw steps, exact.

    A fall from the last twentieth of the type's range is a roll-over; any other fall is a reset of the device.
    Both go on adding: after a roll-over the steps past it, after a reset what the device has counted since.
    """

    tag: Tag
    last: int | None = None
    steps: int = 0

    def advance(self, raw: int) -> Literal["rollover", "reset"] | None:
        """Takes the next raw value; says what a fall meant."""
        lowest, size = raw_range(self.tag)
        if self.last is None:
            self.steps = raw
        elif raw >= self.last:
            self.steps += raw - self.last
        elif self.last >= lowest + size - size // 20:
            self.steps += raw - self.last + size
            self.last = raw
            return "rollover"
        else:
            self.steps += max(raw, 0)
            self.last = raw
            return "reset"
        self.last = raw
        return None

    @property
    def total(self) -> int | float:
        """The total in the tag's unit: an int where the scale is a whole number, so that no digit is lost."""
        scaled = self.steps * self.tag.scale + self.tag.offset
        return int(scaled) if _whole(self.tag.scale) and _whole(self.tag.offset) else float(scaled)


def _whole(number: Decimal) -> bool:
    return number == number.to_integral_value()

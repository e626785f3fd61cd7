"""Raw values that a simulated tag may have at a time: they swing, count up or walk through their states. Pure.

All of them are values that the type can hold, within the tag's range and none of those that mean "not available".
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass
from decimal import Decimal

from agent.config.tags import raw_range
from agent.config.types import Device, Tag, Write
from agent.modbus.encode import WireWrite, encode
from agent.twin.records import Plain

SWING_SECONDS = 60.0
TOGGLE_SECONDS = 20.0
COUNTS_PER_SECOND = 3.0
SLOW, FAST = 0.6, 0.05
"""Shares of half the span that the slow swing and the quick ripple take; together less than 1."""
DEFAULT_RAW = (0, 100)
LOOP_CURRENT_MA = (4.0, 20.0)
LARGEST_FLOAT32, LARGEST_FLOAT64 = Decimal("3.4e38"), Decimal("1.7e308")
POWER = -1
"""Of ten, in the registers that `scale_from` names, where they can hold it."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A tag bound to its raw values from `low` to `high`; value = raw * factor + offset. `still` does not move."""

    tag: Tag
    bare: Tag
    low: float
    high: float
    factor: float
    offset: float
    whole: bool
    seed: int
    still: bool

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest value, in the tag's unit."""
        ends = sorted((self.low * self.factor + self.offset, self.high * self.factor + self.offset))
        return ends[0], ends[1]

    def raw_at(self, t: float) -> Plain:
        """The raw value after `t` seconds (of a single bit: true or false; of a string: its text)."""
        tag = self.tag
        if tag.type == "string":
            return f"SIM-{self.seed:03d}"[: tag.length]
        if tag.boolean:
            return not self.still and math.sin((t + self.seed) * 2 * math.pi / SWING_SECONDS) > -0.5
        if tag.states:
            names = [state for state in sorted(tag.states) if self._is_value(state)] or sorted(tag.states)
            return names[0 if self.still else int((t + self.seed) / TOGGLE_SECONDS) % len(names)]
        if tag.counter:
            counted = self.seed + int(t * COUNTS_PER_SECOND)
            return self._allowed(int(self.low) + counted % (int(self.high) - int(self.low) + 1))
        middle, half = self.low / 2 + self.high / 2, self.high / 2 - self.low / 2
        if self.still:
            return self._allowed(middle)
        slow = math.sin(2 * math.pi * (t + self.seed) / SWING_SECONDS)
        return self._allowed(middle + half * (SLOW * slow + FAST * math.sin(11.0 * t + self.seed)))

    def raw_of(self, value: float) -> Plain:
        """The allowed raw value nearest to `value` in the tag's unit."""
        return self._allowed((value - self.offset) / self.factor)

    def _allowed(self, raw: float) -> Plain:
        raw = min(max(raw, self.low), self.high)
        if not self.whole:
            return raw
        steps = min(max(round(raw), int(self.low)), int(self.high))
        for distance in range(len(self.tag.missing) + 1):
            for near in (steps - distance, steps + distance):
                if self.low <= near <= self.high and self._is_value(near):
                    return near
        return steps  # every value of its range means "not available"

    def _is_value(self, raw: int) -> bool:
        """False for a raw value that means "not available"; of a bit field it is the register that is judged."""
        if self.tag.bits is not None:
            return True
        patterns = 1 << 16 * self.tag.count
        pattern = int(str(raw), 16) if self.tag.type.startswith("bcd") else raw % patterns
        return all(pattern != missing % patterns for missing in self.tag.missing)

    def wire(self, device: Device, raw: Plain) -> WireWrite:
        """The frame that would write a raw value. Raises EncodeProblem where no single frame can."""
        return encode(self.bare, device, raw)


def signal(tag: Tag, *, power: int = 0, still: bool = False) -> Signal:
    """Binds a tag. `power` is of ten, from `scale_from`; a writable tag that nobody has written is `still`."""
    factor = tag.scale.scaleb(power)
    low, high = _raw_span(tag, factor)
    return Signal(
        tag=tag,
        bare=dataclasses.replace(
            tag,
            scale=Decimal(1),
            offset=Decimal(0),
            scale_from=None,
            range=None,
            missing=(),
            states={},
            write=Write(),
        ),
        low=low,
        high=high,
        factor=float(factor),
        offset=float(tag.offset),
        whole=raw_range(tag) is not None,
        seed=zlib.crc32(tag.name.encode()) % 1000,
        still=still,
    )


def power_signal(tag: Tag) -> Signal:
    """A register that holds a power of ten: it stays at -1, or the nearest power that it can hold."""
    bound = signal(dataclasses.replace(tag, states={}, counter=False), still=True)
    bounds = raw_range(tag)
    if bounds is None:  # no integer: what it holds is no power in any case
        return bound
    if tag.range is None:
        bound = dataclasses.replace(bound, low=bounds[0], high=bounds[1])
    raw = bound.raw_of(POWER)
    assert isinstance(raw, int)
    return dataclasses.replace(bound, low=raw, high=raw)


def _raw_span(tag: Tag, factor: Decimal) -> tuple[float, float]:
    """Least and greatest raw value: the tag's range as far as its type holds it, else 0 to 100 steps."""
    bounds = raw_range(tag)
    wanted = LOOP_CURRENT_MA if tag.loop_current else tag.range
    if wanted is None and tag.write is not None:
        wanted = tag.write.range
    if wanted is None:
        if tag.counter and bounds is not None:
            return max(bounds[0], 0), bounds[1]
        if bounds is None:
            return DEFAULT_RAW
        return DEFAULT_RAW[0], min(DEFAULT_RAW[1], bounds[1])
    first, last = sorted((Decimal(repr(float(end))) - tag.offset) / factor for end in wanted)
    if bounds is None:
        most = LARGEST_FLOAT32 if tag.type == "float32" else LARGEST_FLOAT64
        return float(max(first, -most)), float(min(last, most))
    low, high = math.ceil(first), math.floor(last)
    if low > high:  # the range lies between two steps
        low = high = round((first + last) / 2)
    return min(max(low, bounds[0]), bounds[1]), min(max(high, bounds[0]), bounds[1])

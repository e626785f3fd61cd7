"""Bytes of a reply -> values, bound when the plan is made: `decode` has no type switch in Python. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Device, Tag
from agent.kernelcache import choose
from agent.modbus import columns as c
from agent.modbus import kernels, reference
from agent.modbus.encode import EncodeProblem as EncodeProblem
from agent.modbus.encode import WireWrite as WireWrite
from agent.modbus.encode import encode as encode
from agent.modbus.encode import readback_matches as readback_matches
from agent.modbus.plan import REGISTER_TABLES, Request
from agent.twin.outward import EXACT
from agent.twin.quality import LAST_WITH_VALUE, Quality
from agent.twin.records import Plain

ORDER_BITS = {"ABCD": 0, "CDAB": 1, "BADC": 2, "DCBA": 3}
"""Bit 0: words reversed; bit 1: bytes swapped in each word."""
KINDS = {
    "bool": c.UNSIGNED,
    "int16": c.SIGNED,
    "int32": c.SIGNED,
    "int64": c.SIGNED,
    "float32": c.FLOAT32,
    "float64": c.FLOAT64,
    "bcd16": c.BCD,
    "bcd32": c.BCD,
    "string": c.TEXT,
}
LARGEST_POWER = 22
"""Powers of ten beyond it are no exact doubles; SunSpec's are from -10 to 10."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The values of one reply, in the order of the request's tags, shapes (n,).

    `value` is NaN and `plain` None where there is none; `raw` is the raw integer (of a bit field: the field's).
    """

    value: NDArray[np.float64]
    raw: NDArray[np.uint64]
    quality: NDArray[np.uint8]
    plain: list[Plain]

    def raw_integer(self, position: int, tag: Tag) -> int:
        """The raw value as a signed or unsigned integer, exact."""
        number = int(self.raw[position])
        return number - 2**64 if tag.type.startswith("int") and number >= 2**63 else number


class Decoder:
    """Decodes the replies to one request. `elsewhere` are the tags whose power of ten stands in another reply."""

    def __init__(self, request: Request, device: Device) -> None:
        self._tags = [device.tags[name] for name in request.tags]
        count = len(self._tags)
        self._registers = request.table in REGISTER_TABLES
        self._layout = np.zeros((count, c.LAYOUT), dtype=np.int64)
        self._numbers = np.zeros((count, c.NUMBERS))
        patterns: list[int] = []
        for i, tag in enumerate(self._tags):
            self._describe(i, tag, request.address, patterns)
        self._missing = np.array(patterns, dtype=np.uint64)
        size = 2 * request.count if self._registers else (request.count + 7) // 8
        self._payload = np.zeros(size, dtype=np.uint8)
        self._powers = np.zeros(count, dtype=np.int64)
        self._bits32, self._bits64 = np.zeros(1, dtype=np.uint32), np.zeros(1, dtype=np.uint64)
        self._as32, self._as64 = self._bits32.view(np.float32), self._bits64.view(np.float64)
        self._whole = [
            i for i, tag in enumerate(self._tags) if _whole(tag) and not tag.boolean and not _exact(tag)
        ]
        self._bool = [i for i, tag in enumerate(self._tags) if tag.boolean]
        self._exact = [i for i, tag in enumerate(self._tags) if _exact(tag)]
        self._text = [i for i, tag in enumerate(self._tags) if tag.type == "string"]
        self._address = request.address
        self._bind_powers(request, device)
        self._decode = choose(kernels.decode, reference.decode)

    def _describe(self, i: int, tag: Tag, first: int, patterns: list[int]) -> None:
        row = self._layout[i]
        start = tag.address - first
        row[c.KIND] = KINDS.get(tag.type, c.UNSIGNED) if self._registers else c.COIL
        row[c.OFFSET] = 2 * start if self._registers else start
        row[c.WORDS] = tag.count if tag.type != "string" else 0
        row[c.ORDER] = ORDER_BITS[tag.order]
        if tag.bit is not None:
            row[c.KIND], row[c.SHIFT], row[c.FIELD] = c.UNSIGNED, tag.bit, 1
        elif tag.bits is not None:
            row[c.KIND], row[c.SHIFT], row[c.FIELD] = c.UNSIGNED, tag.bits[0], tag.bits[1] - tag.bits[0] + 1
        row[c.LOOP_CURRENT] = tag.loop_current
        row[c.MISSING_FROM] = len(patterns)
        patterns += [raw % (1 << 16 * max(tag.count, 1)) for raw in tag.missing]
        row[c.MISSING_TO] = len(patterns)
        multiplier, addend, divisor = decimal_scale(tag)
        low, high = tag.range or (-np.inf, np.inf)
        self._numbers[i] = float(multiplier), float(addend), float(divisor), low, high

    def _bind_powers(self, request: Request, device: Device) -> None:
        """Finds the registers of powers of ten inside this reply; the others are asked for at each call."""
        inside: list[tuple[int, Tag]] = []
        elsewhere: list[tuple[int, str]] = []
        for i, tag in enumerate(self._tags):
            if tag.scale_from is None:
                continue
            power = device.tags[tag.scale_from]
            within = (
                power.table == request.table
                and request.address <= power.address
                and power.address + power.count <= request.address + request.count
            )
            if within:
                inside.append((i, power))
            else:
                elsewhere.append((i, tag.name))
        self.elsewhere: tuple[str, ...] = tuple(name for _, name in elsewhere)
        self._elsewhere = elsewhere
        self._inside: list[tuple[int, int]] = []
        self._power_decoder: Decoder | None = None
        if inside:
            names = tuple(dict.fromkeys(power.name for _, power in inside))
            self._inside = [(i, names.index(power.name)) for i, power in inside]
            self._power_decoder = Decoder(_renamed(request, names), device)

    def decode(self, payload: bytes, powers: Mapping[str, int | None] | None = None) -> Decoded:
        """The values in the data bytes of one reply.

        powers: for each tag of `elsewhere`, the power of ten that its scale_from tag holds now; None or absent: none,
        and the tag's value is missing. Raises ValueError for another number of bytes than the request asked for.
        """
        count = len(self._tags)
        value, raw, quality = (
            np.empty(count),
            np.empty(count, dtype=np.uint64),
            np.empty(count, dtype=np.uint8),
        )
        if len(payload) != self._payload.size:
            raise ValueError(f"{len(payload)} data bytes instead of {self._payload.size}")
        self._payload[:] = np.frombuffer(payload, dtype=np.uint8)
        if self._power_decoder is not None:
            found = self._power_decoder.decode(payload).plain
            for i, place in self._inside:
                self._powers[i] = _usable(power_of(found[place]))
        for i, name in self._elsewhere:
            self._powers[i] = _usable((powers or {}).get(name))
        self._decode(
            self._payload,
            self._layout,
            self._numbers,
            self._missing,
            self._powers,
            value,
            raw,
            quality,
            self._bits32,
            self._as32,
            self._bits64,
            self._as64,
        )
        return Decoded(value, raw, quality, self._plain(payload, value, raw, quality))

    def _plain(
        self,
        payload: bytes,
        value: NDArray[np.float64],
        raw: NDArray[np.uint64],
        quality: NDArray[np.uint8],
    ) -> list[Plain]:
        plain: list[Plain] = value.tolist()
        if quality.tobytes().count(Quality.GOOD) < len(plain):  # seldom, and quicker to ask than to search
            for i in np.flatnonzero(quality > LAST_WITH_VALUE).tolist():
                plain[i] = None
        for i in self._whole:
            if plain[i] is not None:
                plain[i] = int(plain[i])  # type: ignore[arg-type]
        for i in self._bool:
            if plain[i] is not None:
                plain[i] = bool(plain[i])
        for i in self._exact:
            if plain[i] is not None:
                tag = self._tags[i]
                number = int(raw[i])
                signed = number - 2**64 if tag.type == "int64" and tag.exact and number >= 2**63 else number
                plain[i] = exact_value(tag, signed, int(self._powers[i]))
        for i in self._text:
            plain[i] = self._string(payload, i)
            if plain[i] is None:
                quality[i] = Quality.MISSING
        return plain

    def _string(self, payload: bytes, i: int) -> str | None:
        """Text up to its first NUL without trailing blanks, invalid UTF-8 shown escaped; None where all is 0xFF."""
        tag = self._tags[i]
        start = 2 * (tag.address - self._address)
        data = payload[start : start + 2 * tag.count]
        if ORDER_BITS[tag.order] & 2:
            data = b"".join(data[k : k + 2][::-1] for k in range(0, len(data), 2))
        data = data[: tag.length]
        if data and set(data) == {0xFF}:
            return None
        return data.split(b"\0")[0].rstrip(b" ").decode("utf-8", "backslashreplace")


def decimal_scale(tag: Tag) -> tuple[int, int, int]:
    """(multiplier, addend, divisor), all whole numbers: value = (raw * multiplier + addend) / divisor."""
    digits = max(0, -int(tag.scale.as_tuple().exponent), -int(tag.offset.as_tuple().exponent))
    divisor: int = 10**digits
    return int(tag.scale * divisor), int(tag.offset * divisor), divisor


def exact_value(tag: Tag, raw: int, power: int = 0) -> int | float | str:
    """A 64-bit integer's value to the last digit: an int, or a decimal as float where that holds it, else as text."""
    multiplier, addend, divisor = decimal_scale(tag)
    top: int = raw * multiplier * 10 ** max(power, 0) + addend * 10 ** max(-power, 0)
    bottom: int = divisor * 10 ** max(-power, 0)
    whole, rest = divmod(top, bottom)
    if rest == 0:
        return whole
    if abs(top) < EXACT:
        return top / bottom
    sign = "-" if top < 0 else ""
    whole, rest = divmod(abs(top), bottom)
    return f"{sign}{whole}.{rest:0{len(str(bottom)) - 1}d}".rstrip("0")


def power_of(plain: Plain) -> int | None:
    """The power of ten that a scale_from tag's value means; None where it is none."""
    if isinstance(plain, bool) or not isinstance(plain, int) or abs(plain) > LARGEST_POWER:
        return None
    return plain


def _usable(power: int | None) -> int:
    return c.NO_POWER if power is None or abs(power) > LARGEST_POWER else power


def _exact(tag: Tag) -> bool:
    """True where a double cannot hold every value: 64-bit integers, and bit fields as wide as that."""
    return tag.exact or (tag.bits is not None and tag.bits[1] - tag.bits[0] >= EXACT.bit_length() - 1)


def _whole(tag: Tag) -> bool:
    """True where the value is always a whole number, so that JSON shows 5 and not 5.0."""
    integral = tag.scale == tag.scale.to_integral_value() and tag.offset == tag.offset.to_integral_value()
    return integral and tag.scale_from is None and tag.type not in ("float32", "float64", "string")


def _renamed(request: Request, names: tuple[str, ...]) -> Request:
    return Request(
        device=request.device,
        unit=request.unit,
        function=request.function,
        address=request.address,
        count=request.count,
        every=request.every,
        tags=names,
        wanted=request.wanted,
    )

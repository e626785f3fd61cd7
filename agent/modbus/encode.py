"""Values -> the frames that write them. Pure; what a tag's configuration does not allow is refused in plain words."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from agent.config.types import Device, Tag
from agent.twin.records import Plain

WIDTHS = {"int16": 1, "uint16": 1, "int32": 2, "uint32": 2, "int64": 4, "uint64": 4}
BCD_DIGITS = {"bcd16": 4, "bcd32": 8}
FLOATS = {"float32": ">f", "float64": ">d"}
MOST_DIGITS = 400
FULL_MASK = 0xFFFF
ROUNDING = {"float32": Decimal("1e-6"), "float64": Decimal("1e-12")}
"""Share by which a float that was written, scaled there and back, may read back different."""
SMALLEST = Decimal("1e-30")


class EncodeProblem(Exception):
    """The value cannot be written to the tag; the message says why in plain words."""


@dataclass(frozen=True, slots=True)
class WireWrite:
    """One write as it goes out. `words` for functions 6 and 16, `bits` for 5 and 15, masks for 22.

    With masks and another function than 22 the register is read, changed and written back under the line's lock.
    """

    unit: int
    function: int
    address: int
    words: tuple[int, ...] = ()
    bits: tuple[bool, ...] = ()
    and_mask: int = FULL_MASK
    or_mask: int = 0

    @property
    def masked(self) -> bool:
        """True where only some bits of one register change."""
        return self.and_mask != FULL_MASK


def encode(tag: Tag, device: Device, value: Plain, power: int | None = None) -> WireWrite:
    """The frame that writes `value`, in the tag's unit, to the nearest step that the register can hold.

    `power` is what the tag of `scale_from` holds now. A name of `states` stands for its number. Raises EncodeProblem
    for a wrong type, a value outside the range of `write` or of the type, and for a tag without `write`.
    """
    if tag.write is None:
        raise EncodeProblem("not writable: its configuration has no `write`")
    if tag.table == "coil":
        return _coil(tag, device, value)
    if tag.bit is not None or tag.bits is not None:
        return _field(tag, device, value)
    words = _words(tag, value, power)
    function = tag.write.function or (6 if len(words) == 1 else 16)
    return WireWrite(device.unit, function, tag.address, words=words)


def _coil(tag: Tag, device: Device, value: Plain) -> WireWrite:
    assert tag.write is not None
    return WireWrite(device.unit, tag.write.function or 5, tag.address, bits=(_truth(value),))


def _field(tag: Tag, device: Device, value: Plain) -> WireWrite:
    """A bit or a bit field: only its bits change. The field may lie in any register of a 32- or 64-bit tag."""
    assert tag.write is not None
    if tag.bit is not None:
        low, high, number = tag.bit, tag.bit, int(_truth(value))
    else:
        assert tag.bits is not None
        low, high = tag.bits
        number = _integer(tag, value)
        _inside(number, 0, (1 << (high - low + 1)) - 1, "the bit field holds")
    word = low // 16
    if high // 16 != word:
        raise EncodeProblem("the bit field lies in two registers, which cannot be written at once")
    reversed_words = tag.order in ("CDAB", "DCBA")
    address = tag.address + (word if reversed_words else tag.count - 1 - word)
    shift = low % 16
    mask = ((1 << (high - low + 1)) - 1) << shift
    bits = number << shift
    if tag.order in ("BADC", "DCBA"):
        mask, bits = _swapped(mask), _swapped(bits)
    return WireWrite(device.unit, tag.write.function or 22, address, and_mask=FULL_MASK & ~mask, or_mask=bits)


def _swapped(word: int) -> int:
    return word >> 8 | (word & 0xFF) << 8


def _words(tag: Tag, value: Plain, power: int | None) -> tuple[int, ...]:
    if tag.type == "string":
        return _ordered(tag, _text(tag, value))
    if tag.type == "bool":
        return (int(_truth(value)),)
    number = _number(tag, value)
    assert tag.write is not None
    low, high = map(_exactly, tag.write.range or tag.range or (-math.inf, math.inf))
    _inside(number, low, high, "allowed are values")
    if tag.scale_from is not None and power is None:
        raise EncodeProblem(f"its power of ten ({tag.scale_from}) is not known, so it cannot be scaled")
    raw = (number - tag.offset) / tag.scale.scaleb(power or 0)
    if tag.type in FLOATS:
        try:
            packed = struct.pack(FLOATS[tag.type], float(raw))
        except OverflowError:
            packed = b""
        if not packed or math.isinf(struct.unpack(FLOATS[tag.type], packed)[0]):
            raise EncodeProblem(f"{value} does not fit into a {tag.type}")
        return _ordered(tag, packed)
    steps = _nearest(raw, lambda step: low <= step * tag.scale.scaleb(power or 0) + tag.offset <= high)
    if tag.type in BCD_DIGITS:
        digits = BCD_DIGITS[tag.type]
        _inside(steps, 0, 10**digits - 1, f"{tag.type} holds raw values")
        return _ordered(tag, bytes.fromhex(f"{steps:0{digits}d}"))
    return _ordered(tag, _integer_bytes(tag, steps))


def _nearest(raw: Decimal, allowed: Callable[[int], bool]) -> int:
    """The step nearest to `raw` whose value is allowed too: rounding leads out of no range."""
    steps = int(raw.to_integral_value())
    other = math.floor(raw) if steps > raw else math.ceil(raw)
    return other if not allowed(steps) and allowed(other) else steps


def _integer_bytes(tag: Tag, steps: int) -> bytes:
    size = 2 * WIDTHS[tag.type]
    signed = tag.type.startswith("int")
    low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
    _inside(steps, low, high, f"{tag.type} holds raw values")
    pattern = steps % (1 << 8 * size)
    if pattern in {raw % (1 << 8 * size) for raw in tag.missing}:
        raise EncodeProblem("that raw value means 'not available' to the device")
    return pattern.to_bytes(size, "big")


def _ordered(tag: Tag, data: bytes) -> tuple[int, ...]:
    words = [data[k : k + 2] for k in range(0, len(data), 2)]
    if tag.order in ("BADC", "DCBA"):
        words = [word[::-1] for word in words]
    if tag.order in ("CDAB", "DCBA") and tag.type != "string":
        words.reverse()
    return tuple(int.from_bytes(word, "big") for word in words)


def _text(tag: Tag, value: Plain) -> bytes:
    if not isinstance(value, str):
        raise EncodeProblem("it takes text")
    try:
        data = value.encode()
    except UnicodeEncodeError:
        raise EncodeProblem("the text holds half of a character, which is no text") from None
    if len(data) > tag.length:
        raise EncodeProblem(f"the text is {len(data)} bytes long; it holds {tag.length}")
    return data.ljust(2 * tag.count, b"\0")


def _truth(value: Plain) -> bool:
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise EncodeProblem("it takes true or false")


def _integer(tag: Tag, value: Plain) -> int:
    number = _number(tag, value)
    if number != number.to_integral_value():
        raise EncodeProblem("it takes a whole number")
    return int(number)


def _number(tag: Tag, value: Plain) -> Decimal:
    """The value as an exact decimal. JSON carries integers beyond 2^53 as text, so digits in text are taken too."""
    if isinstance(value, bool) or value is None:
        raise EncodeProblem("it takes a number")
    if isinstance(value, str):
        for number, name in tag.states.items():
            if name == value:
                return Decimal(number)
        try:
            parsed = Decimal(value)
        except InvalidOperation:
            names = f" or one of {', '.join(tag.states.values())}" if tag.states else ""
            raise EncodeProblem(f"{value!r} is no number{names}") from None
    else:
        parsed = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
    if not parsed.is_finite():
        raise EncodeProblem("it takes a finite number")
    if parsed.adjusted() > MOST_DIGITS:  # before anything counts its digits one by one
        raise EncodeProblem("the number is larger than any type holds")
    return parsed


def _exactly(limit: float) -> Decimal:
    """A limit as the configuration writes it: 0.1 itself, not the double next to it."""
    return Decimal(repr(float(limit)))


def _inside(number: Decimal | int, low: Decimal | int, high: Decimal | int, words: str) -> None:
    if not low <= number <= high:
        raise EncodeProblem(f"{number} is out of range; {words} from {_shown(low)} to {_shown(high)}")


def _shown(limit: Decimal | int) -> str:
    return str(limit) if isinstance(limit, int) else f"{float(limit):g}"


def readback_matches(tag: Tag, value: Plain, readback: Plain, power: int | None = None) -> bool:
    """True where what the device shows is what was written, to the nearest step of the register."""
    if readback is None:
        return False
    if tag.boolean:
        return bool(readback) == _truth(value)
    if tag.type == "string":
        return isinstance(value, str) and readback == value.rstrip("\0 ")
    wanted, shown = _number(tag, value), _number(tag, readback)
    if tag.type in ROUNDING:
        return abs(wanted - shown) <= max(abs(wanted) * ROUNDING[tag.type], SMALLEST)
    step = Decimal(0) if tag.bits is not None else abs(tag.scale.scaleb(power or 0))
    return abs(wanted - shown) <= step / 2

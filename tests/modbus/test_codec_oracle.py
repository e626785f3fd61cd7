"""Decoding beside an oracle of its own: struct for the bytes, fractions for the scale. And back through encode."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.config.types import Device, Tag, Url, Write
from agent.modbus.codec import Decoder, encode, readback_matches
from agent.modbus.plan import plan_device, request_for
from agent.twin.quality import Quality
from agent.twin.records import Plain

URL = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)
FORMATS = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}
ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
SCALES = ("1", "0.1", "0.01", "0.001", "1e-6", "2.5", "10", "1000", "-1", "-0.25", "0.3048")
OFFSETS = ("0", "-40", "0.5", "273.15", "-1000")
EXACT = 2**53


def on_the_wire(value: float, kind: str, order: str) -> bytes:
    """The registers that hold `value`, made by struct and by moving single bytes."""
    data = struct.pack(">" + FORMATS[kind], value)
    words = [data[k : k + 2] for k in range(0, len(data), 2)]
    if order in ("CDAB", "DCBA"):
        words = words[::-1]
    if order in ("BADC", "DCBA"):
        words = [word[::-1] for word in words]
    return b"".join(words)


@st.composite
def readings(draw: st.DrawFn) -> tuple[str, str, int | float]:
    """(type, order, raw value that the register holds)"""
    kind, order = draw(st.sampled_from(sorted(FORMATS))), draw(st.sampled_from(ORDERS))
    if kind == "float32":
        return (
            kind,
            order,
            draw(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)),
        )
    if kind == "float64":
        return kind, order, draw(st.floats(-1e300, 1e300, allow_subnormal=False))
    bits = int(kind.lstrip("uint"))
    least = 0 if kind.startswith("u") else -(2 ** (bits - 1))
    most = 2**bits - 1 if kind.startswith("u") else 2 ** (bits - 1) - 1
    return kind, order, draw(st.integers(least, most) | st.sampled_from([least, most, 0, 1]))


def device_of(*tags: Tag) -> Device:
    return Device("d", URL, tags={tag.name: tag for tag in tags})


def decoded(dev: Device, payload: bytes) -> dict[str, tuple[Plain, Quality, float]]:
    request = request_for(dev, tuple(dev.tags))
    result = Decoder(request, dev).decode(payload)
    return {
        tag: (plain, Quality(int(quality)), float(value))
        for tag, plain, quality, value in zip(request.tags, result.plain, result.quality, result.value)
    }


@settings(max_examples=300, deadline=None)
@given(
    many=st.lists(
        st.tuples(readings(), st.sampled_from(SCALES), st.sampled_from(OFFSETS)), min_size=1, max_size=20
    )
)
def test_numbers_in_one_reply(many) -> None:  # type: ignore[no-untyped-def]
    tags, payload = [], b""
    for i, ((kind, order, raw), scale, offset) in enumerate(many):
        tags.append(
            Tag(
                f"t{i}", "input", len(payload) // 2, type=kind, order=order,
                scale=Decimal(scale), offset=Decimal(offset),
            )
        )  # fmt: skip
        payload += on_the_wire(raw, kind, order)
    assume(len(payload) <= 250)
    got = decoded(device_of(*tags), payload)
    for tag, ((kind, _, raw), scale, offset) in zip(tags, many):
        plain, quality, value = got[tag.name]
        if kind == "float32":
            raw = float(str(np.float32(raw)))  # the decimal that is meant, 100.1 and not 100.0999984741211
        want = Fraction(raw) if isinstance(raw, int) else Fraction(Decimal(repr(raw)))
        want = want * Fraction(scale) + Fraction(offset)
        assert quality is Quality.GOOD and plain is not None
        if isinstance(raw, int):
            small = abs(want) * 10**6 < EXACT
            if small:  # the double nearest to the exact decimal
                assert value == float(want)
            if kind.endswith("64"):
                assert Fraction(plain) == want or (isinstance(plain, float) and plain == float(want))
        size = max(abs(want - Fraction(offset)), abs(Fraction(offset)))
        meant = kind != "float32" or 1e-9 < abs(raw) < 1e12  # beyond, a float32 is shown to its own precision
        assert abs(Fraction(value) - want) <= size / 2 ** (50 if meant else 22)


@settings(max_examples=500, deadline=None)
@given(number=st.floats(min_value=2.0**-30, max_value=2.0**40, width=32))
@pytest.mark.parametrize("sign", [1, -1])
def test_float32_is_the_decimal_that_numpy_prints(sign: int, number: float) -> None:
    tag = Tag("t", "input", 0, type="float32")
    [(plain, _, _)] = decoded(device_of(tag), on_the_wire(sign * number, "float32", "ABCD")).values()
    assert plain == float(str(np.float32(sign * number)))


@settings(max_examples=200, deadline=None)
@given(word=st.integers(0, 2**64 - 1), kind=st.sampled_from(["uint16", "uint32", "uint64"]), data=st.data())
def test_bits_and_fields(word: int, kind: str, data: st.DataObject) -> None:
    width = int(kind[4:])
    order = data.draw(st.sampled_from(ORDERS))
    bit = data.draw(st.integers(0, width - 1))
    low = data.draw(st.integers(0, width - 1))
    high = data.draw(st.integers(low, min(low + 51, width - 1)))
    word %= 1 << width
    dev = device_of(
        Tag("bit", "input", 0, type=kind, order=order, bit=bit),
        Tag("field", "input", 0, type=kind, order=order, bits=(low, high)),
        Tag("whole", "input", 0, type=kind, order=order),
    )
    got = decoded(dev, on_the_wire(word, kind, order))
    binary = f"{word:0{width}b}"[::-1]
    assert got["bit"][0] is (binary[bit] == "1")
    assert got["field"][0] == int(binary[low : high + 1][::-1], 2)
    assert got["whole"][0] == word


@settings(max_examples=200, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=60), first=st.integers(0, 65000), data=st.data())
def test_coils_lie_lowest_bit_first(flags: list[bool], first: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, len(flags) - 1), min_size=1))
    tags = [Tag(f"c{k}", "coil", first + k, type="bool") for k in sorted(chosen)]
    dev = device_of(*tags)
    [request] = plan_device(dev)
    skip = min(chosen)
    bits = flags[skip : skip + request.count]
    payload = np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tobytes()
    assert Decoder(request, dev).decode(payload).plain == [flags[k] for k in sorted(chosen)]


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=20), swapped=st.booleans(), pad=st.sampled_from(["", "\0", " ", "\0\0 "]))
def test_text_as_written_up_to_its_first_nul(text: str, swapped: bool, pad: str) -> None:
    data = (text + pad).encode()
    assume(data and set(data) != {0xFF})
    tag = Tag("t", "input", 0, type="string", length=len(data), order="BADC" if swapped else "ABCD")
    whole = data.ljust(2 * tag.count, b"\0")
    wire = b"".join(whole[k : k + 2][::-1] if swapped else whole[k : k + 2] for k in range(0, len(whole), 2))
    [(plain, quality, value)] = decoded(device_of(tag), wire).values()
    assert plain == text.split("\0")[0].rstrip(" ")
    assert quality is Quality.GOOD and math.isnan(value)


@settings(max_examples=300, deadline=None)
@given(digits=st.integers(0, 99_999_999), order=st.sampled_from(ORDERS), bad=st.none() | st.integers(0, 7))
def test_bcd_digit_by_digit(digits: int, order: str, bad: int | None) -> None:
    nibbles = list(f"{digits:08d}")
    if bad is not None:
        nibbles[bad] = "C"
    tag = Tag("t", "input", 0, type="bcd32", order=order)
    [(plain, quality, _)] = decoded(
        device_of(tag), on_the_wire(int("".join(nibbles), 16), "uint32", order)
    ).values()
    assert (plain, quality) == ((digits, Quality.GOOD) if bad is None else (None, Quality.MISSING))


@settings(max_examples=400, deadline=None)
@given(
    reading=readings(),
    scale=st.sampled_from(SCALES),
    offset=st.sampled_from(OFFSETS),
    power=st.integers(-4, 4),
)
def test_what_is_read_can_be_written_back(reading, scale: str, offset: str, power: int) -> None:  # type: ignore[no-untyped-def]
    """Reading a register, writing the value and reading again gives the same words (or the same float)."""
    kind, order, raw = reading
    if isinstance(raw, int):
        assume(abs(raw) < 2**40 or (scale, offset, power) == ("1", "0", 0))
    else:
        assume(raw == 0.0 or 1e-6 < abs(raw) < 1e9)
        scale, offset, power = scale, "0", 0
    tag = Tag(
        "t", "holding", 0, type=kind, order=order, scale=Decimal(scale), offset=Decimal(offset),
        scale_from="sf", write=Write(),
    )  # fmt: skip
    dev = device_of(tag, Tag("sf", "holding", 90, type="int16"))
    request = request_for(dev, ("t",))
    decoder = Decoder(request, dev)
    words = on_the_wire(raw, kind, order)
    first = decoder.decode(words, {"t": power}).plain[0]
    wire = encode(tag, dev, first, power)
    again = struct.pack(f">{len(wire.words)}H", *wire.words)
    second = decoder.decode(again, {"t": power}).plain[0]
    assert readback_matches(tag, first, second, power)
    if isinstance(raw, int):
        assert again == words
    else:
        assert second == pytest.approx(first, rel=2e-7)

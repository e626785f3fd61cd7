"""Bytes to values and back: hand-computed tables, an oracle for the kernel, and round trips."""

from __future__ import annotations

import math
import struct
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.types import Device, Tag, Url, Write
from agent.modbus import kernels, reference
from agent.modbus.codec import Decoder, EncodeProblem, encode, power_of, readback_matches
from agent.modbus.orders import readings
from agent.modbus.plan import plan_device, request_for
from agent.twin.quality import Quality

URL = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)
ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
INTEGERS = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "bcd16", "bcd32")


def one(tag: Tag, hexadecimal: str, **powers: int | None):  # type: ignore[no-untyped-def]
    """(plain, quality) of one tag at address 0 read from these bytes."""
    power = Tag("sf", "holding", 50, type="int16")
    dev = Device("d", URL, tags={tag.name: tag, "sf": power})
    decoded = Decoder(request_for(dev, (tag.name,)), dev).decode(bytes.fromhex(hexadecimal), powers)
    return decoded.plain[0], Quality(int(decoded.quality[0]))


def tag(type: str, **more: object) -> Tag:
    return Tag("t", "holding", 0, type=type, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "wire", "want"),
    [
        (tag("uint16"), "FFFE", 65534),
        (tag("int16"), "FFFE", -2),
        (tag("uint16", order="BADC"), "3412", 0x1234),
        (tag("uint16", order="CDAB"), "1234", 0x1234),
        (tag("uint16", scale=Decimal("0.1")), "007B", 12.3),
        (tag("uint16", scale=Decimal("0.1")), "0003", 0.3),
        (tag("int16", scale=Decimal("0.01"), offset=Decimal("-40")), "0001", -39.99),
        (tag("uint16", scale=Decimal("2"), offset=Decimal("1")), "0003", 7),
        (tag("uint16", scale=Decimal("1.8"), offset=Decimal("32")), "0064", 212.0),
        (tag("int32"), "FFFFFF85", -123),
        (tag("uint32"), "12345678", 0x12345678),
        (tag("uint32", order="CDAB"), "56781234", 0x12345678),
        (tag("uint32", order="BADC"), "34127856", 0x12345678),
        (tag("uint32", order="DCBA"), "78563412", 0x12345678),
        (tag("float32"), "42C80000", 100.0),
        (tag("float32"), "42C83333", 100.1),
        (tag("float32", order="CDAB"), "333342C8", 100.1),
        (tag("float32", order="DCBA"), "3333C842", 100.1),
        (tag("float32", scale=Decimal("0.001")), "42C83333", 0.1001),
        (tag("float32"), "00000001", 1.401298464324817e-45),
        (tag("float64"), "3FF199999999999A", 1.1),
        (tag("uint64"), "FFFFFFFFFFFFFFFF", 2**64 - 1),
        (tag("int64"), "FFFFFFFFFFFFFFFE", -2),
        (tag("uint64", order="CDAB"), "0001000000000020", (0x20 << 48) + 1),
        (tag("uint64", order="DCBA"), "0100000000002000", (0x20 << 48) + 1),
        (tag("uint64", scale=Decimal("10")), "0020000000000001", (2**53 + 1) * 10),
        (tag("uint64", scale=Decimal("0.001")), "0020000000000001", "9007199254740.993"),
        (tag("uint64", scale=Decimal("0.001")), "0000000000000005", 0.005),
        (tag("bcd16"), "1234", 1234),
        (tag("bcd32"), "00123456", 123456),
        (tag("bcd32", order="CDAB"), "34560012", 123456),
        (tag("uint16", bit=4), "0010", True),
        (tag("uint16", bit=4), "FFEF", False),
        (tag("uint16", bits=(8, 11)), "0A00", 10),
        (tag("bool"), "0001", True),
        (tag("uint64", bits=(0, 63)), "FFFFFFFFFFFFFFFE", 2**64 - 2),
        (tag("int64", bits=(0, 62)), "7FFFFFFFFFFFFFFE", 2**63 - 2),
        (tag("string", length=6), "4142204300 00".replace(" ", ""), "AB C"),
        (tag("string", length=5), "414243444546", "ABCDE"),
        (tag("string", length=4, order="BADC"), "42414443", "ABCD"),
        (tag("string", length=4), "41FF2000", "A\\xff"),
        (tag("string", length=8), "4142000043444546", "AB"),  # what an older, longer text left behind its end
        (tag("string", length=4), "00004344", ""),
    ],
)
def test_values(what: Tag, wire: str, want: object) -> None:
    got, quality = one(what, wire)
    assert got == want and type(got) is type(want)
    assert quality is Quality.GOOD


@pytest.mark.parametrize(
    ("what", "wire", "quality"),
    [
        (tag("uint16", missing=(0x8000, 0xFFFF)), "FFFF", Quality.MISSING),
        (tag("uint16", missing=(0x8000, 0xFFFF)), "8000", Quality.MISSING),
        (tag("int16", missing=(0x8000,)), "8000", Quality.MISSING),
        (tag("int16", missing=(-32768,)), "8000", Quality.MISSING),
        (tag("int32", missing=(-1,)), "FFFFFFFF", Quality.MISSING),
        (tag("uint16", scale=Decimal("0.1"), missing=(65535,)), "FFFF", Quality.MISSING),
        (tag("float32"), "7FC00000", Quality.MISSING),
        (tag("float32"), "7F800000", Quality.MISSING),
        (tag("float64"), "FFF0000000000000", Quality.MISSING),
        (tag("bcd16"), "12A4", Quality.MISSING),
        (tag("uint16", range=(0, 100)), "0065", Quality.UNCERTAIN),
        (tag("uint16", range=(0, 100)), "0064", Quality.GOOD),
        (tag("uint16", scale=Decimal("0.001"), loop_current=True), "0E10", Quality.MISSING),  # 3.6 mA
        (tag("uint16", scale=Decimal("0.001"), loop_current=True), "0E74", Quality.UNCERTAIN),  # 3.7 mA
        (tag("uint16", scale=Decimal("0.001"), loop_current=True), "0ED8", Quality.GOOD),  # 3.8 mA
        (tag("uint16", scale=Decimal("0.001"), loop_current=True), "5014", Quality.GOOD),  # 20.5 mA
        (tag("uint16", scale=Decimal("0.001"), loop_current=True), "5208", Quality.MISSING),  # 21.0 mA
        (tag("string", length=4), "FFFFFFFF", Quality.MISSING),
    ],
)
def test_qualities(what: Tag, wire: str, quality: Quality) -> None:
    plain, got = one(what, wire)
    assert got is quality
    assert (plain is None) == (quality is Quality.MISSING)


@pytest.mark.parametrize(("power", "want"), [(-1, 12.3), (0, 123), (2, 12300), (-3, 0.123), (None, None)])
def test_power_of_ten_from_elsewhere(power: int | None, want: float | None) -> None:
    plain, quality = one(tag("int16", scale_from="sf"), "007B", t=power)
    assert plain == want
    assert (quality is Quality.MISSING) == (power is None)


def test_power_of_ten_in_the_same_reply() -> None:
    tags = {
        "w": Tag("w", "holding", 0, type="int16", scale_from="sf"),
        "sf": Tag("sf", "holding", 1, type="int16", missing=(0x8000,)),
    }
    dev = Device("d", URL, tags=tags)
    [request] = plan_device(dev)
    decoder = Decoder(request, dev)
    assert decoder.elsewhere == ()
    assert decoder.decode(bytes.fromhex("007BFFFF")).plain == [12.3, -1]
    assert decoder.decode(bytes.fromhex("007B8000")).plain == [None, None]


def test_coils_and_discretes() -> None:
    tags = {f"c{i}": Tag(f"c{i}", "coil", 3 + i, type="bool") for i in range(10)}
    dev = Device("d", URL, tags=tags)
    [request] = plan_device(dev)
    assert (request.function, request.address, request.count) == (1, 3, 10)
    assert Decoder(request, dev).decode(bytes([0b10000101, 0b10])).plain == [
        bool(bit) for bit in (1, 0, 1, 0, 0, 0, 0, 1, 0, 1)
    ]


@pytest.mark.parametrize("plain", [True, 1.0, 23, -23, "3", None])
def test_what_is_no_power_of_ten(plain: object) -> None:
    assert power_of(plain) is None  # type: ignore[arg-type]


TYPES = st.sampled_from([*INTEGERS, "float32", "float64"])


@settings(max_examples=400, deadline=None)
@given(
    data=st.binary(min_size=16, max_size=16),
    types=st.lists(st.tuples(TYPES, st.sampled_from(ORDERS), st.integers(0, 4)), min_size=1, max_size=6),
    scale=st.sampled_from(["1", "0.1", "0.01", "2.5", "10", "-1"]),
    power=st.sampled_from([-128, -3, 0, 2]),
)
def test_kernel_equals_reference(data, types, scale, power) -> None:  # type: ignore[no-untyped-def]
    tags = {
        f"t{i}": Tag(
            f"t{i}",
            "holding",
            at,
            type=kind,
            order=order,
            scale=Decimal(scale),
            range=(-1e6, 1e6),
            missing=(7,),
        )
        for i, (kind, order, at) in enumerate(types)
    }
    dev = Device("d", URL, tags=tags)
    request = request_for(dev, tuple(tags))
    decoder = Decoder(request, dev)
    payload = np.frombuffer((data * 2)[: 2 * request.count], dtype=np.uint8).copy()
    n = len(tags)
    powers = np.full(n, power, dtype=np.int64)
    results = []
    for decode in (kernels.decode, reference.decode):
        value, raw, quality = np.empty(n), np.empty(n, dtype=np.uint64), np.empty(n, dtype=np.uint8)
        decode(
            payload, decoder._layout, decoder._numbers, decoder._missing, powers, value, raw, quality,
            decoder._bits32, decoder._as32, decoder._bits64, decoder._as64,
        )  # fmt: skip
        results.append((value.tolist(), raw.tolist(), quality.tolist()))
    assert repr(results[0]) == repr(results[1])


@settings(max_examples=300, deadline=None)
@given(bits=st.integers(0, 2**32 - 1))
def test_float32_is_the_shortest_decimal_that_is_the_same_float(bits: int) -> None:
    number = struct.unpack(">f", struct.pack(">I", bits))[0]
    plain, _ = one(tag("float32"), f"{bits:08X}")
    if not math.isfinite(number):
        assert plain is None
        return
    assert np.float32(plain) == np.float32(number)
    if 1e-12 < abs(number) < 1e12:
        assert len(repr(plain)) <= len(repr(float(str(np.float32(number))))) + 1


@settings(max_examples=400, deadline=None)
@given(data=st.data(), kind=st.sampled_from(INTEGERS), order=st.sampled_from(ORDERS))
def test_what_is_written_is_read(data, kind: str, order: str) -> None:  # type: ignore[no-untyped-def]
    size = {"bcd16": (0, 9999), "bcd32": (0, 99999999)}
    width = int("".join(ch for ch in kind if ch.isdigit()))
    low, high = size.get(
        kind, (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if kind[0] == "i" else (0, 2**width - 1)
    )
    value = data.draw(st.integers(low, high))
    what = tag(kind, order=order, write=Write())
    dev = Device("d", URL, tags={"t": what})
    wire = encode(what, dev, value)
    payload = b"".join(word.to_bytes(2, "big") for word in wire.words)
    plain = Decoder(request_for(dev, ("t",)), dev).decode(payload).plain[0]
    assert plain == value
    assert readback_matches(what, value, plain)


@pytest.mark.parametrize(
    ("what", "value", "function", "words"),
    [
        (tag("uint16", scale=Decimal("0.1"), write=Write()), 18.5, 6, (185,)),
        (tag("uint16", scale=Decimal("0.1"), write=Write(function=16)), 18.5, 16, (185,)),
        (tag("uint16", scale=Decimal("0.1"), write=Write()), 18.54, 6, (185,)),  # the nearest step
        (tag("int16", offset=Decimal("-40"), write=Write()), -45, 6, (0xFFFB,)),
        (tag("float32", write=Write()), 100, 16, (0x42C8, 0)),
        (tag("uint16", states={0: "idle", 3: "hot"}, write=Write()), "hot", 6, (3,)),
        (tag("uint64", write=Write()), str(2**53 + 1), 16, (0x20, 0, 0, 1)),
        (tag("string", length=4, write=Write()), "AB", 16, (0x4142, 0)),
        (tag("bcd16", write=Write()), 1234, 6, (0x1234,)),
        (
            tag("uint16", scale=Decimal("0.5"), write=Write(range=(0, 99.9))),
            99.9,
            6,
            (199,),
        ),  # not on to 100.0
        (tag("uint16", scale=Decimal("0.5"), write=Write(range=(0.1, 90))), 0.1, 6, (1,)),
        (tag("int16", scale=Decimal("-0.5"), write=Write(range=(0, 99.9))), 99.9, 6, (0xFF39,)),
    ],
)
def test_encode(what: Tag, value: object, function: int, words: tuple[int, ...]) -> None:
    wire = encode(what, Device("d", URL, unit=7), value)  # type: ignore[arg-type]
    assert (wire.unit, wire.function, wire.words) == (7, function, words)


@pytest.mark.parametrize(
    ("what", "value", "address", "and_mask", "or_mask"),
    [
        (tag("uint16", bit=3, write=Write()), True, 0, 0xFFF7, 0x0008),
        (tag("uint16", bit=3, write=Write()), False, 0, 0xFFF7, 0),
        (tag("uint16", bits=(4, 7), write=Write()), 9, 0, 0xFF0F, 0x0090),
        (tag("uint16", bit=3, order="BADC", write=Write()), True, 0, 0xF7FF, 0x0800),
        (tag("uint32", bit=3, write=Write()), True, 1, 0xFFF7, 0x0008),
        (tag("uint32", bit=3, order="CDAB", write=Write()), True, 0, 0xFFF7, 0x0008),
    ],
)
def test_encode_bits(what: Tag, value: object, address: int, and_mask: int, or_mask: int) -> None:
    wire = encode(what, Device("d", URL), value)  # type: ignore[arg-type]
    assert (wire.function, wire.address, wire.and_mask, wire.or_mask) == (22, address, and_mask, or_mask)


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        (tag("uint16"), 1, "not writable"),
        (
            tag("uint16", write=Write(range=(0, 100))),
            101,
            "101 is out of range; allowed are values from 0 to 100",
        ),
        (tag("uint16", write=Write()), 70000, "out of range; uint16 holds raw values from 0 to 65535"),
        (tag("uint16", write=Write()), -1, "out of range"),
        (tag("uint16", write=Write()), math.nan, "finite"),
        (tag("uint16", write=Write()), "abc", "'abc' is no number"),
        (tag("uint16", write=Write(), states={1: "on"}), "onn", "no number or one of on"),
        (tag("uint16", write=Write()), True, "it takes a number"),
        (tag("uint16", write=Write()), None, "it takes a number"),
        (tag("uint16", bit=0, write=Write()), 2, "true or false"),
        (tag("uint16", bits=(0, 3), write=Write()), 16, "the bit field holds from 0 to 15"),
        (tag("string", length=2, write=Write()), "abc", "3 bytes long; it holds 2"),
        (tag("float32", write=Write()), 1e39, "does not fit into a float32"),
        (tag("float32", write=Write()), "1e400", "does not fit into a float32"),
        (tag("float32", write=Write()), 10**400, "does not fit into a float32"),
        (tag("float64", write=Write()), "1e400", "does not fit into a float64"),
        (tag("uint16", write=Write()), "1e2000000", "larger than any type holds"),
        (tag("uint16", bits=(0, 3), write=Write()), "1e2000000", "larger than any type holds"),
        (tag("uint16", write=Write()), 10**4000, "larger than any type holds"),
        (tag("string", length=8, write=Write()), "\ud800", "half of a character"),
        (tag("int16", scale_from="sf", write=Write()), 1, "power of ten (sf) is not known"),
        (tag("int16", missing=(-32768,), write=Write()), -32768, "not available"),
    ],
)
def test_refused(what: Tag, value: object, words: str) -> None:
    with pytest.raises(EncodeProblem) as refusal:
        encode(what, Device("d", URL), value)  # type: ignore[arg-type]
    assert words in str(refusal.value)


def test_coil_is_written_by_function_5_or_15() -> None:
    coil = Tag("c", "coil", 9, type="bool", write=Write())
    assert encode(coil, Device("d", URL), True).function == 5
    assert encode(
        Tag("c", "coil", 9, type="bool", write=Write(function=15)), Device("d", URL), True
    ).bits == (True,)


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.96, 1.1, 99.9, 100.7])
def test_the_limits_themselves_may_be_written(limit: float) -> None:
    for limits in ((limit, 200.0), (-200.0, limit)):
        what = tag("int16", scale=Decimal("0.01"), write=Write(range=limits))
        assert encode(what, Device("d", URL), limit).words == (round(100 * limit),)


def test_readback_differs() -> None:
    tenth = tag("uint16", scale=Decimal("0.1"), write=Write())
    assert readback_matches(tenth, 18.54, 18.5)
    assert not readback_matches(tenth, 18.54, 18.4)
    assert not readback_matches(tenth, 18.5, None)
    assert readback_matches(tag("float64", scale=Decimal("2.5")), 83886082.27935036, 83886082.27935037)
    assert not readback_matches(tag("float64"), 83886082.2, 83886082.3)
    assert readback_matches(tag("float32"), 0.1, 0.1) and not readback_matches(tag("float32"), 0.1, 0.1001)


@pytest.mark.parametrize("payload", [b"", b"\1", b"\0\1", b"\0\1\0\1\0\1"])
def test_a_reply_of_another_length_is_refused(payload: bytes) -> None:
    dev = Device("d", URL, tags={"t": tag("uint32")})
    with pytest.raises(ValueError, match="instead of 4"):
        Decoder(request_for(dev, ("t",)), dev).decode(payload)


def test_every_order_side_by_side() -> None:
    found = readings([0x42C8, 0x3333])
    assert found["float32"]["ABCD"] == 100.1
    assert found["int16"] == {"ABCD": 0x42C8, "BADC": 0xC842 - 65536}
    assert found["string"]["ABCD"] == "B\\xc833"
    assert "float64" not in found

"""Simulated devices: values that are lifelike and legal, writes that stay, and loops that close."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.load import load
from agent.config.tags import raw_range
from agent.config.types import (
    Avoid,
    Config,
    ControllerConfig,
    Device,
    LoopConfig,
    ModelConfig,
    Tag,
    Url,
    Write,
)
from agent.control.pid import Pid
from agent.modbus.codec import Decoded, Decoder, encode, power_of
from agent.modbus.framers import Answer
from agent.modbus.plan import plan_device, request_for
from agent.modbus.requests import write_steps
from agent.modbus.simulator import Simulation
from agent.runtime.clock import FakeClock
from agent.twin.quality import Quality
from agent.twin.records import Plain

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "config.example.yaml"
HERE = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)
THERE = Url("rtu:///dev/ttyUSB0?baud=9600", "rtu", path="/dev/ttyUSB0", baud=9600)


class Bench:
    """A simulation on a clock moved by hand, read and written as a line does."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = FakeClock()
        self.simulation = Simulation(config, self.clock.mono)

    def send(self, pdu: bytes, *, url: Url = HERE, unit: int = 1) -> bytes | None:
        return self.simulation.line(url.text)(unit, pdu)

    def poll(self, name: str, *, whole: bool = True) -> dict[str, tuple[Plain, Quality]]:
        """tag -> (value, quality) of a device, by the requests of its plan or by one for each tag."""
        device = self.config.devices[name]
        requests = plan_device(device) if whole else tuple(request_for(device, (tag,)) for tag in device.tags)
        found: dict[str, tuple[Plain, Quality]] = {}
        for _ in range(2):  # powers of ten from another reply are known the second time
            for request in requests:
                pdu = struct.pack(">BHH", request.function, request.address, request.count)
                reply = self.send(pdu, url=device.url, unit=device.unit)
                assert reply is not None and reply[0] == request.function, request
                decoder = Decoder(request, device)
                powers = {
                    tag: power_of(found.get(device.tags[tag].scale_from or "", (None,))[0])
                    for tag in decoder.elsewhere
                }
                decoded: Decoded = decoder.decode(reply[2:], powers)
                for tag, plain, quality in zip(request.tags, decoded.plain, decoded.quality):
                    found[tag] = plain, Quality(int(quality))
        return found

    def value(self, name: str, tag: str) -> Plain:
        return self.poll(name)[tag][0]

    def write(self, name: str, tag: str, value: Plain) -> bytes | None:
        """Sends the frames of a write; the last reply."""
        device = self.config.devices[name]
        steps = write_steps(encode(device.tags[tag], device, value))
        function, body = next(steps)
        while True:
            reply = self.send(bytes([function]) + body, url=device.url, unit=device.unit)
            assert reply is not None
            exception = reply[1] if reply[0] & 0x80 else None
            payload = None if exception is not None else reply[2:] if function < 5 else b""
            try:
                function, body = steps.send(Answer(payload, exception, 0.0, 0.0))
            except StopIteration:
                return reply


def device(
    *tags: Tag, name: str = "d", url: Url = HERE, unit: int = 1, avoid: tuple[Avoid, ...] = ()
) -> Device:
    return Device(name, url, unit=unit, avoid=avoid, tags={tag.name: tag for tag in tags})


def bench(*devices: Device, loops: Mapping[str, LoopConfig] | None = None) -> Bench:
    return Bench(Config("c.yaml", "gw", None, devices={one.name: one for one in devices}, loops=loops or {}))


def example() -> Config:
    config = load(str(EXAMPLE)).config
    assert config is not None
    return config


# -- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_every_value_of_the_example_is_good_at_any_time(whole: bool) -> None:
    plant = Bench(example())
    seen: dict[str, set[Plain]] = {}
    for _ in range(120):
        for name in plant.config.devices:
            for tag, (plain, quality) in plant.poll(name, whole=whole).items():
                assert quality is Quality.GOOD, (name, tag, plain)
                seen.setdefault(tag, set()).add(plain)
        plant.clock.advance(3.7)
    constant = {tag for tag, values in seen.items() if len(values) == 1}
    assert constant == {
        "serial",
        "power_sf",
        "target",
        "watchdog",
        "running",
    }  # still, written, or an interlock
    assert seen["fault_code"] == {0, 3}


TYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "bcd16", "bcd32", "float32", "float64")


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(TYPES),
    order=st.sampled_from(["ABCD", "CDAB", "BADC", "DCBA"]),
    scale=st.sampled_from(["1", "0.1", "0.001", "-0.5", "250"]),
    offset=st.sampled_from(["0", "-40", "273.15"]),
    steps=st.none() | st.tuples(st.integers(0, 9000), st.integers(0, 900)),
    missing=st.lists(st.integers(0, 60), max_size=3),
    counter=st.booleans(),
    t=st.floats(0, 1e6),
)
def test_values_are_legal_whatever_the_tag(  # type: ignore[no-untyped-def]
    kind, order, scale, offset, steps, missing, counter, t
) -> None:
    limits = None
    if steps is not None:
        ends = (steps[0] * Decimal(scale) + Decimal(offset), sum(steps) * Decimal(scale) + Decimal(offset))
        limits = (float(min(ends)), float(max(ends)))
        if steps[1] < len(missing):
            missing = []  # some value must be left
    tag = Tag(
        "t", "holding", 7, type=kind, order=order, scale=Decimal(scale), offset=Decimal(offset), range=limits,
        missing=() if kind.startswith("float") else tuple(missing),
        counter=counter and not kind.startswith("float"),
    )  # fmt: skip
    plant = bench(device(tag))
    plant.clock.advance(t)
    plain, quality = plant.poll("d")["t"]
    assert quality is Quality.GOOD, plain


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(TYPES), low=st.floats(-1e12, 1e12), width=st.floats(0, 1e9))
def test_a_range_beyond_the_type_gives_the_nearest_that_it_holds(kind: str, low: float, width: float) -> None:
    tag = Tag("t", "holding", 0, type=kind, range=(low, low + width))
    plain, _ = bench(device(tag)).poll("d")["t"]
    bounds = raw_range(tag)
    least, most = bounds if bounds is not None else (low, low + width)
    assert isinstance(plain, int | float)
    nearest = min(max(plain, low), low + width)
    slack = 1.0 if bounds is not None else 1e-6 * abs(plain) + 1e-40
    assert abs(plain - nearest) <= slack or plain in (least, most)


def test_a_counter_counts_up_and_rolls_over() -> None:
    plant = bench(device(Tag("n", "holding", 0, type="uint16", counter=True)))
    counts = []
    for _ in range(500):
        counts.append(plant.value("d", "n"))
        plant.clock.advance(50.0)
    steps = [(after - before) % 65536 for before, after in itertools.pairwise(counts)]  # type: ignore[operator]
    assert set(steps) == {150}
    assert sum(after < before for before, after in itertools.pairwise(counts)) == 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("power", "want"),
    [
        (Tag("sf", "holding", 9, type="int16"), -1),
        (Tag("sf", "holding", 9), 0),
        (Tag("sf", "holding", 9, type="int16", range=(2, 3)), 2),
        (Tag("sf", "holding", 9, type="int16", missing=(-1,)), -2),
        (Tag("sf", "holding", 900, type="int16"), -1),
    ],
)
def test_powers_of_ten_are_constant_and_their_values_in_range(power: Tag, want: int) -> None:
    plant = bench(device(Tag("p", "holding", 0, type="int32", scale_from="sf", range=(-5000, 5000)), power))
    for _ in range(20):
        values = plant.poll("d")
        assert values["sf"][0] == want
        assert values["p"][1] is Quality.GOOD
        plant.clock.advance(7.0)


def test_text_bits_and_fields() -> None:
    tags = (
        Tag("s", "holding", 0, type="string", length=5, order="BADC"),
        Tag("b", "input", 4, bit=3),
        Tag("f", "input", 4, bits=(4, 6), states={1: "one", 5: "five"}),
        Tag("d", "discrete", 2, type="bool"),
        Tag("two", "holding", 20, type="uint32", bits=(14, 17)),
    )
    plant = bench(device(*tags))
    seen: dict[str, set[Plain]] = {tag.name: set() for tag in tags}
    for _ in range(60):
        for tag, (plain, quality) in plant.poll("d").items():
            assert quality is Quality.GOOD
            seen[tag].add(plain)
        plant.clock.advance(2.0)
    assert seen["b"] == seen["d"] == {True, False}
    assert seen["f"] == {1, 5}
    assert seen["two"] == {0}
    [text] = seen["s"]
    assert isinstance(text, str) and text.startswith("SIM-")


def test_two_names_for_one_unit_share_its_registers() -> None:
    one = device(Tag("a", "holding", 0, write=Write()))
    other = device(
        Tag("b", "holding", 0),
        Tag("v", "holding", 5, type="int16", scale_from="sf"),
        Tag("sf", "holding", 6, type="int16"),
        name="e",
    )
    plant = bench(one, other)
    assert plant.write("d", "a", 4711) == bytes.fromhex("06 0000 1267")
    assert plant.value("e", "b") == 4711
    assert plant.poll("e")["v"][1] is Quality.GOOD
    assert plant.simulation.lines == {HERE.text: {1: ("d", "e")}}


# -- refusals ---------------------------------------------------------------------------------------------------

PLAIN = (
    Tag("ro", "holding", 0),
    Tag("rw", "holding", 1, write=Write()),
    Tag("rw2", "holding", 2, type="float32", write=Write()),
    Tag("flag", "holding", 4, bit=2, write=Write()),
    Tag("far", "holding", 9),
    Tag("pump", "coil", 0, type="bool", write=Write()),
    Tag("valve", "coil", 1, type="bool", write=Write()),
    Tag("seen", "coil", 2, type="bool"),
    Tag("in", "input", 0),
)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        ("03 0005 0001", "83 02"),  # in the hole that `avoid` keeps open
        ("03 000A 0001", "83 02"),
        ("03 0000 0000", "83 03"),
        ("03 0000 007E", "83 03"),
        ("01 0000 07D1", "81 03"),
        ("03 FFFF 0002", "83 02"),
        ("03 0000", "83 03"),
        ("07", "87 01"),
        ("2B 0D 01 00", "AB 01"),
        ("06 0000 0001", "86 02"),  # no `write`
        ("06 0009 0001", "86 02"),
        ("06 0001", "86 03"),
        ("10 0000 0002 04 0001 0002", "90 02"),  # one of the two has no `write`
        ("10 0001 0001 04 0001", "90 03"),
        ("10 0001 0001 02 000102", "90 03"),
        ("10 0001 0000 00", "90 03"),
        ("05 0000 1234", "85 03"),
        ("05 0002 FF00", "85 02"),
        ("0F 0000 0003 01 07", "8F 02"),
        ("0F 0000 0002 02 07", "8F 03"),
        ("16 0000 FFFF 0001", "96 02"),
        ("16 0001 FFFF", "96 03"),
        ("2B 0E 05 00", "AB 03"),
        ("2B 0E 04 07", "AB 02"),
    ],
)
def test_refused_as_a_device_refuses(request_: str, reply: str) -> None:
    plant = bench(device(*PLAIN, avoid=(Avoid("holding", 5, 5),)))
    before = [plant.send(bytes.fromhex("03 0000 0005")), plant.send(bytes.fromhex("01 0000 0003"))]
    assert plant.send(bytes.fromhex(request_)) == bytes.fromhex(reply)
    after = [plant.send(bytes.fromhex("03 0000 0005")), plant.send(bytes.fromhex("01 0000 0003"))]
    assert before == after


def test_unknown_units_are_silent_and_lines_are_apart() -> None:
    plant = bench(
        device(Tag("a", "holding", 0)), device(Tag("a", "holding", 50), name="e", url=THERE, unit=7)
    )
    ask = bytes.fromhex("03 0000 0001")
    assert plant.send(ask) is not None
    assert plant.send(ask, unit=2) is None
    assert plant.send(ask, url=THERE) is None
    assert plant.send(ask, url=THERE, unit=7) == bytes.fromhex("83 02")


def test_identification() -> None:
    plant = bench(device(*PLAIN))
    whole = plant.send(bytes.fromhex("2B 0E 01 00"))
    assert whole is not None
    assert whole[:7] == bytes.fromhex("2B 0E 01 81 00 00 03")
    assert whole[7:17] == b"\x00\x08Edgetwin"
    assert plant.send(bytes.fromhex("2B 0E 04 02")) == bytes.fromhex("2B 0E 04 81 00 00 01 02 01") + b"0"
    assert plant.send(bytes.fromhex("2B 0E 01 01")) == bytes.fromhex("2B 0E 01 81 00 00 02") + whole[17:]


# -- writes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (Tag("t", "holding", 3, write=Write()), 60000),
        (Tag("t", "holding", 3, write=Write(function=16)), 5),
        (Tag("t", "holding", 3, type="int16", scale=Decimal("0.1"), write=Write()), -12.3),
        (Tag("t", "holding", 3, type="float32", order="CDAB", write=Write()), 100.1),
        (Tag("t", "holding", 3, type="uint64", order="DCBA", write=Write()), 2**60 + 1),
        (Tag("t", "holding", 3, type="string", length=6, write=Write()), "abc"),
        (Tag("t", "holding", 3, type="bcd32", write=Write()), 12345678),
        (Tag("t", "holding", 3, bit=9, write=Write()), True),
        (Tag("t", "holding", 3, bit=9, write=Write(function=6)), True),
        (Tag("t", "holding", 3, bits=(4, 7), write=Write()), 11),
        (Tag("t", "holding", 3, bits=(4, 7), write=Write(function=16)), 11),
        (Tag("t", "coil", 3, type="bool", write=Write()), True),
        (Tag("t", "coil", 3, type="bool", write=Write(function=15)), True),
    ],
)
def test_what_is_written_stays(tag: Tag, value: Plain) -> None:
    plant = bench(device(tag, Tag("other", tag.table, 12, type="bool" if tag.table == "coil" else "uint16")))
    assert plant.value("d", "t") != value
    reply = plant.write("d", "t", value)
    assert reply is not None and not reply[0] & 0x80
    others = set()
    for _ in range(40):
        assert plant.value("d", "t") == value
        others.add(plant.value("d", "other"))
        plant.clock.advance(5.0)
    assert len(others) > 1  # the rest moves on


def test_a_writable_tag_is_still_until_it_is_written() -> None:
    plant = bench(device(Tag("t", "holding", 0, range=(10, 30), write=Write())))
    before = plant.value("d", "t")
    plant.clock.advance(13.0)
    assert plant.value("d", "t") == before == 20


# -- loops ------------------------------------------------------------------------------------------------------


def closed(plant: Bench, loop: LoopConfig, setpoint: float, seconds: float) -> list[float]:
    """PVs of every step while the loop's own controller writes its output, and the last output."""
    pid = Pid(loop, loop.every)
    seen = []
    for _ in range(int(seconds / loop.every)):
        pv = plant.value(*loop.pv)
        assert isinstance(pv, int | float)
        seen.append(float(pv))
        reply = plant.write(*loop.out, round(pid.step(setpoint, seen[-1], 0.0, loop.every, loop.every), 6))
        assert reply is not None and not reply[0] & 0x80
        plant.clock.advance(loop.every)
    return seen


@pytest.mark.parametrize("setpoint", [60.0, 180.0, 250.0])
def test_the_loop_of_the_example_settles(setpoint: float) -> None:
    plant = Bench(example())
    loop = plant.config.loops["oven"]
    tail = closed(plant, loop, setpoint, 900.0)[-60:]
    assert all(abs(pv - setpoint) < 5.0 for pv in tail)
    low, high = loop.trip or (0, 0)
    assert all(low < pv < high for pv in tail)


@pytest.mark.parametrize(
    "controller",
    [
        ControllerConfig(kp=0.5, ti=5.0),
        ControllerConfig(kp=20.0, ti=10.0),
        ControllerConfig(kp=1.0, ti=0.0, td=0.0),
    ],
)
@pytest.mark.parametrize("action", ["reverse", "direct"])
@pytest.mark.parametrize("out_elsewhere", [False, True])
def test_any_loop_can_be_held(controller: ControllerConfig, action: str, out_elsewhere: bool) -> None:
    out = Tag("out", "holding", 10, type="float32", write=Write(range=(0, 100)))
    pv = Tag("pv", "input", 0, type="int16", scale=Decimal("0.1"), range=(-50, 150))
    devices = (device(pv), device(out, name="e", url=THERE, unit=4)) if out_elsewhere else (device(pv, out),)
    loop = LoopConfig(
        "l", ("d", "pv"), (devices[-1].name, "out"), 70.0, (0, 100), every=0.5, controller=controller,
        action=action,  # type: ignore[arg-type]
    )  # fmt: skip
    seen = closed(bench(*devices, loops={"l": loop}), loop, 70.0, 600.0)
    tail = seen[-60:]
    assert max(tail) - min(tail) < 4.0  # at rest, whatever the gain
    if controller.ti:
        assert abs(sum(tail) / 60 - 70.0) < 2.0


def test_the_process_has_the_time_constant_of_the_model() -> None:
    out = Tag("out", "holding", 10, type="float32", write=Write(range=(0, 100)))
    pv = Tag("pv", "input", 0, type="float32", range=(0, 100))
    loop = LoopConfig(
        "l", ("d", "pv"), ("d", "out"), 50.0, (0, 100), model=ModelConfig(t1=80.0),
        controller=ControllerConfig(kp=1.0), trip=(0, 60),
    )  # fmt: skip
    plant = bench(device(out, pv), loops={"l": loop})
    plant.write("d", "out", 0.0)
    for _ in range(1000):
        plant.clock.advance(1.0)
        rest = plant.value("d", "pv")
    plant.write("d", "out", 100.0)
    plant.clock.advance(80.0)
    risen = plant.value("d", "pv")
    assert rest == pytest.approx(6.0, abs=0.1)  # a tenth of the span within trip is left free
    assert risen == pytest.approx(6.0 + 48.0 * (1 - 2.718281828**-1), abs=0.2)


def test_interlocks_are_true() -> None:
    tags = (
        Tag("pv", "holding", 0),
        Tag("out", "holding", 1, write=Write()),
        Tag("ok", "coil", 0, type="bool"),
    )
    loop = LoopConfig("l", ("d", "pv"), ("d", "out"), 50.0, (0, 100), interlock=(("d", "ok"),))
    plant = bench(device(*tags), loops={"l": loop})
    for _ in range(30):
        assert plant.value("d", "ok") is True
        plant.clock.advance(4.0)


# -- the command ------------------------------------------------------------------------------------------------

"""Chains over a real socket: the simulator's own, and makes of device with their quirks."""

from __future__ import annotations

import asyncio
import functools
import json
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agent.cli.main import run
from agent.cli.read import lines_of
from agent.config.load import parse
from agent.config.types import Config
from agent.modbus.server import ModbusServer
from agent.modbus.simulated import ports
from agent.modbus.simulator import Simulation
from agent.runtime.clock import SystemClock
from agent.runtime.plant import Plant
from agent.runtime.poll import DevicePoll, poll_keys
from agent.twin.quality import Quality
from agent.twin.records import Event
from tests.modbus.test_discover import Serving


def configured(port: int, *tags: str, profile: str = "") -> Config:
    lines = "".join(f"      {tag}\n" for tag in tags)
    given = f"    profile: {profile}\n" if profile else ""
    block = f"    tags:\n{lines}" if tags else ""
    loaded = parse(f"devices:\n  d:\n    url: tcp://127.0.0.1:{port}\n{given}{block}", "config.yaml")
    assert loaded.config is not None and loaded.problems == [], loaded.problems
    return loaded.config


def laid(*spans: tuple[int, list[int]]) -> dict[int, int]:
    return {first + k: word for first, words in spans for k, word in enumerate(words)}


def makes(words: Mapping[int, int]) -> Callable[[int, bytes], bytes]:
    """A device with these holding registers and no others."""

    def answer(unit: int, pdu: bytes) -> bytes:
        first, count = struct.unpack(">HH", pdu[1:])
        span = range(first, first + count)
        if pdu[0] != 3 or any(address not in words for address in span):
            return bytes([pdu[0] | 0x80, 2])
        return bytes([3, 2 * count]) + struct.pack(f">{count}H", *(words[address] for address in span))

    return answer


async def poll(config: Config) -> DevicePoll:
    keys = [(name, tag) for name, device in config.devices.items() for tag in device.tags]
    async with lines_of(config, set(config.devices)) as line_of:
        polled = await poll_keys(config, line_of, keys, deadline=SystemClock().mono() + 10.0)
    return polled.devices["d"]


def polled(answer: Callable[[int, bytes], bytes | None], *tags: str, profile: str = "") -> DevicePoll:
    """One poll of device d, which answers like this."""

    async def go() -> DevicePoll:
        server = ModbusServer(answer)
        port = await server.start("127.0.0.1", 0)
        try:
            return await poll(configured(port, *tags, profile=profile))
        finally:
            await server.stop()

    return asyncio.run(go())


TAGS = (
    "maker: {sunspec: 1+2, type: string, length: 32}",
    "power: {sunspec: 101-103+14, type: int16, scale_from: sf}",
    "sf: {sunspec: 101-103+15, type: int16}",
)


def test_a_poll_finds_its_tags_and_names_what_is_absent() -> None:
    words = laid(
        (50000, [0x5375, 0x6E53]),
        (50002, [1, 65, 0x4142, *[0] * 64]),
        (50069, [103, 50, *[0] * 12, 230, 0xFFFF, *[0] * 36]),
        (50121, [0xFFFF, 0]),
    )
    got = polled(makes(words), *TAGS, "soc: {sunspec: 124+6}")
    assert {name: one.plain for name, one in got.tags.items()} == {
        "maker": "AB",
        "power": 23.0,
        "sf": -1,
        "soc": None,
    }
    assert got.tags["soc"].quality is Quality.ILLEGAL
    assert got.error == "no model 124 in the SunSpec chain; there are 1, 103"
    assert got.tags["power"].raw == (230,)


def test_a_poll_of_a_device_without_a_chain() -> None:
    got = polled(makes({7: 5}), *TAGS, "plain: {holding: 7}")
    assert got.error == "no SunSpec marker at 40000, 50000 or 0"
    assert got.tags["plain"].plain == 5
    assert {one.quality for name, one in got.tags.items() if name != "plain"} == {Quality.ILLEGAL}


def test_a_poll_of_nobody_says_so() -> None:
    got = polled(lambda unit, pdu: None, *TAGS)
    assert {one.quality for one in got.tags.values()} == {Quality.TIMEOUT}


def test_the_simulator_has_a_chain_and_moving_values() -> None:
    config = configured(1502, *TAGS, "model: {sunspec: 101-103+0}", "later: {sunspec: 160+8}")
    simulation = Simulation(config, time.monotonic)
    [url] = ports(config, 0)
    got = polled(simulation.line(url), *TAGS, "model: {sunspec: 101-103+0}", "later: {sunspec: 160+8}")
    assert got.error is None
    assert {one.quality for one in got.tags.values()} == {Quality.GOOD}
    assert got.tags["model"].plain == 103


# -- the shipped profiles -------------------------------------------------------------------------------------------

SUNS = [0x5375, 0x6E53]


def text(letters: str, registers: int) -> list[int]:
    return list(struct.unpack(f">{registers}H", letters.encode().ljust(2 * registers, b"\0")))


def common(length: int) -> list[int]:
    body = [*text("ACME", 16), *text("Sun 5", 16), *text("", 8), *text("1.2", 8), *text("SN77", 16), 3, 0]
    return [1, length, *body[:length]]


def chained(base: int, *models: list[int]) -> dict[int, int]:
    return laid((base, [*SUNS, *(word for model in models for word in model), 0xFFFF, 0]))


INTEGERS = [
    410, 410, 0xFFFF, 0xFFFF, 0xFFFE,  # A: 4.10, one phase
    0xFFFF, 0xFFFF, 0xFFFF, 2305, 0xFFFF, 0xFFFF, 0xFFFF,  # V: 230.5 against the neutral
    0xFC18, 1, 5001, 0xFFFE, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000,  # W: -1000 x 10; Hz: 50.01
    0, 0, 0, 0xFFFF, 0x8000, 0xFFFF, 0x8000, 0x8000, 0x8000,  # no energy: an accumulator of 0
    455, 0x8000, 0x8000, 0x8000, 0xFFFF, 4, 0xFFFF, 0, 2, *[0] * 10,
]  # fmt: skip
NAN = float("nan")
FLOATS = [
    *struct.unpack(
        ">46H",
        struct.pack(
            ">23f", 4.5, 4.5, NAN, NAN, NAN, NAN, NAN, 230.5, NAN, NAN, -1000.0, 50.0, NAN, NAN, 0.5, 12345.0,
            NAN, NAN, NAN, 45.5, NAN, NAN, -0.5,
        ),
    ),
    4, 0xFFFF, 0, 2, *[0] * 10,
]  # fmt: skip
assert (len(INTEGERS), len(FLOATS)) == (50, 60)


@pytest.mark.parametrize(("base", "length"), [(40000, 66), (40000, 65), (50000, 66), (0, 65)])
@pytest.mark.parametrize("number", [101, 102, 103])
def test_profile_sunspec(base: int, length: int, number: int) -> None:
    words = chained(base, common(length), [number, 50, *INTEGERS], [120, 26, *[0] * 26])
    got = polled(makes(words), profile="sunspec")
    assert got.error is None
    values = {name: one.plain for name, one in got.tags.items() if one.plain is not None}
    assert values == {
        "common_length": length, "maker": "ACME", "product": "Sun 5", "options": "", "version": "1.2",
        "serial_number": "SN77", "device_address": 3, "model": number, "model_length": 50,
        "current": 4.1, "current_l1": 4.1, "current_sf": -2, "voltage_l1": 230.5, "voltage_sf": -1,
        "active_power": -10000.0, "active_power_sf": 1, "frequency": 50.01, "frequency_sf": -2, "energy_sf": 0,
        "cabinet_temperature": 45.5, "temperature_sf": -1, "state": 4, "events": 2,
    }  # fmt: skip
    assert {one.quality for name, one in got.tags.items() if name not in values} == {Quality.MISSING}
    # value and power of ten came in one reply
    [inverter] = [request for request, _ in got.replies if "active_power" in request.tags]
    assert {"active_power_sf", "current", "current_sf", "temperature_sf"} <= set(inverter.tags)


@pytest.mark.parametrize(("base", "length"), [(40000, 66), (40000, 65), (50000, 65), (0, 66)])
@pytest.mark.parametrize("number", [111, 113])
def test_profile_sunspec_float(base: int, length: int, number: int) -> None:
    words = chained(base, common(length), [number, 60, *FLOATS])
    got = polled(makes(words), profile="sunspec-float")
    assert got.error is None
    values = {name: one.plain for name, one in got.tags.items() if one.plain is not None}
    assert values == {
        "common_length": length, "maker": "ACME", "product": "Sun 5", "options": "", "version": "1.2",
        "serial_number": "SN77", "device_address": 3, "model": number, "model_length": 60,
        "current": 4.5, "current_l1": 4.5, "voltage_l1": 230.5, "active_power": -1000.0, "frequency": 50.0,
        "power_factor": 0.5, "energy": 12345.0, "cabinet_temperature": 45.5, "other_temperature": -0.5,
        "state": 4, "events": 2,
    }  # fmt: skip
    assert {one.quality for name, one in got.tags.items() if name not in values} == {Quality.MISSING}


@pytest.mark.parametrize(
    ("profile", "number", "body", "other"),
    [("sunspec", 113, FLOATS, "sunspec-float"), ("sunspec-float", 103, INTEGERS, "sunspec")],
)
def test_the_wrong_profile_names_the_right_one(
    profile: str, number: int, body: list[int], other: str
) -> None:
    got = polled(makes(chained(40000, common(66), [number, len(body), *body])), profile=profile)
    assert got.error is not None
    assert got.error.endswith(f"there are 1, {number}; profile {other} has them")
    assert got.tags["maker"].plain == "ACME"
    assert got.tags["active_power"].quality is Quality.ILLEGAL


# -- while the agent runs -------------------------------------------------------------------------------------------


class Moving:
    """A device whose registers, and with them its chain, can be changed; a write is taken where there is a register."""

    def __init__(self, words: dict[int, int]) -> None:
        self.words = words

    def answer(self, unit: int, pdu: bytes) -> bytes:
        if pdu[0] != 6:
            return makes(self.words)(unit, pdu)
        address, word = struct.unpack(">HH", pdu[1:])
        if address not in self.words:
            return bytes([0x86, 2])
        self.words[address] = word
        return pdu


def controls(base: int, length: int, power: int) -> dict[int, int]:
    body = [power, 0, *[0] * 22]
    return chained(base, common(length), [123, 24, *body])


WRITTEN = (
    "limit: {sunspec: 123+2, every: 50ms, write: {min_interval: 0s}}",
    "other: {sunspec: 124+2, every: 50ms, write: true}",
)


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 20 s")


def test_a_chain_that_moves_between_two_connections(tmp_path: Path) -> None:
    async def go() -> None:
        moving = Moving(controls(40000, 66, 11))
        server = ModbusServer(moving.answer)
        port = await server.start("127.0.0.1", 0)
        config = configured(port, *WRITTEN)
        told: list[Event] = []
        plant = Plant(
            config, state_dir=tmp_path, clock=SystemClock(), sink=lambda row: None, on_event=told.append
        )
        [line] = plant.lines
        task = asyncio.create_task(line.run())
        sample = functools.partial(plant.twin.sample, ("d", "limit"))
        write = functools.partial(plant.writer.write, source="test")
        try:
            await until(lambda: sample().plain == 11)
            assert plant.twin.sample(("d", "other")).quality is Quality.ILLEGAL
            outcome = await write(("d", "limit"), 12, deadline=SystemClock().mono() + 5.0)
            assert (outcome.ok, moving.words[40072]) == (True, 12)
            outcome = await write(("d", "other"), 12, deadline=SystemClock().mono() + 5.0)
            assert outcome.error == "d/other: no model 124 in the SunSpec chain; there are 1, 123"
            await server.stop()
            moving.words = controls(50000, 65, 21)
            server = ModbusServer(moving.answer)
            await server.start("127.0.0.1", port)
            await until(lambda: sample().plain == 21)
            assert [event.name for event in told if event.name.startswith("sunspec")] == [
                "sunspec_chain",
                "sunspec_moved",
            ]
            outcome = await write(("d", "limit"), 22, deadline=SystemClock().mono() + 5.0)
            assert (outcome.ok, moving.words[50071]) == (True, 22)
        finally:
            await line.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop()

    asyncio.run(go())


# -- commissioning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "body", "span", "profile"),
    [
        (103, INTEGERS, "40060-40080", "sunspec"),
        (111, FLOATS, "0-20", "sunspec-float"),
    ],
)
def test_probe_recognises_a_chain(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    body: list[int],
    span: str,
    profile: str,
) -> None:
    answer = makes(chained(40000, common(65), [number, len(body), *body]))
    with Serving(answer) as url:
        words = ["--unit", "1", "--holding", span, "--pause", "0s", "--timeout", "5s", "--yaml"]
        assert run(["probe", url, *words]) == 0
        block = capsys.readouterr().out
        assert f"# SunSpec models from 40000: 1, {number}\n" in block
        assert f"    profile: {profile}\n" in block
        assert "holding_400" not in block  # the profile reads them
        file = tmp_path / "config.yaml"
        file.write_text(block)
        assert run(["check", str(file)]) == 0
        capsys.readouterr()
        assert run(["read", str(file), "unit1/maker", "unit1/voltage_l1", "--json"]) == 0
        tags = json.loads(capsys.readouterr().out)["devices"]["unit1"]["tags"]
        assert [tag["v"] for tag in tags.values()] == ["ACME", 230.5]


def test_probe_of_a_device_without_a_chain_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    with Serving(makes({7: 3})) as url:
        assert run(["probe", url, "--unit", "1", "--holding", "7", "--pause", "0s", "--yaml"]) == 0
        block = capsys.readouterr().out
        assert "SunSpec" not in block and "profile" not in block
        assert "holding_7" in block

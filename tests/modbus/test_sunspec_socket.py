"""Chains over a real socket: the simulator's own, and makes of device with their quirks."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Mapping

from agent.cli.read import lines_of
from agent.config.load import parse
from agent.config.types import Config
from agent.modbus.server import ModbusServer
from agent.modbus.simulated import ports
from agent.modbus.simulator import Simulation
from agent.runtime.clock import SystemClock
from agent.runtime.poll import DevicePoll, poll_keys
from agent.twin.quality import Quality


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

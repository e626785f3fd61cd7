"""Each shipped profile against a simulated device of its make, with words worked out by hand."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from agent.config.load import parse
from agent.config.profiles import SHIPPED, shipped
from agent.config.types import Device
from agent.config.urls import device_url
from agent.modbus.codec import Decoder
from agent.modbus.discover import Asker
from agent.modbus.plan import Request, plan_device
from agent.modbus.requests import read_body
from agent.modbus.server import ModbusServer
from agent.runtime.clock import SystemClock
from agent.twin.quality import Quality
from agent.twin.records import Plain


def device_of(profile: str) -> Device:
    loaded = parse(f"devices:\n  d: {{url: tcp://127.0.0.1, profile: {profile}}}\n", "config.yaml")
    assert loaded.problems == []
    assert loaded.config is not None
    return loaded.config.devices["d"]


class Make:
    """A simulated device: its registers by function, the longest request, what one register reads alone."""

    def __init__(
        self, function: int, words: dict[int, int], *, longest: int = 125, alone: dict[int, int] | None = None
    ) -> None:
        self.function = function
        self.words = words
        self.longest = longest
        self.alone = alone or {}

    def answer(self, unit: int, pdu: bytes) -> bytes:
        first, count = struct.unpack(">HH", pdu[1:])
        span = range(first, first + count)
        if pdu[0] != self.function:
            return bytes([pdu[0] | 0x80, 1])
        if count > self.longest:
            return bytes([pdu[0] | 0x80, 3])
        if any(address not in self.words for address in span):
            return bytes([pdu[0] | 0x80, 2])
        values = [self.words[address] for address in span]
        if count == 1:
            values = [self.alone.get(first, values[0])]
        return bytes([pdu[0], 2 * count]) + struct.pack(f">{count}H", *values)


def polled(device: Device, make: Make, *, cautious: bool = False) -> dict[str, tuple[Plain, Quality]]:
    """Every tag's value and quality, read by the planned requests from a server of this make.

    cautious: as at first, before a hole was found to be borne.
    """

    async def go() -> list[tuple[Request, bytes]]:
        server = ModbusServer(make.answer)
        port = await server.start("127.0.0.1", 0)
        asker = Asker(device_url(f"tcp://127.0.0.1:{port}"), clock=SystemClock(), timeout=5.0, pause=0.0)
        replies = []
        try:
            for request in plan_device(device, cautious=cautious):
                answer = await asker.ask(1, request.function, read_body(request))
                assert answer.payload is not None, (request, answer.exception)
                replies.append((request, answer.payload))
        finally:
            asker.close()
            await server.stop()
        return replies

    values: dict[str, tuple[Plain, Quality]] = {}
    for request, payload in asyncio.run(go()):
        decoder = Decoder(request, device)
        assert decoder.elsewhere == ()  # each power of ten comes in the same reply
        decoded = decoder.decode(payload)
        for name, plain, quality in zip(request.tags, decoded.plain, decoded.quality, strict=True):
            values[name] = plain, Quality(quality)
    assert values.keys() == device.tags.keys()
    return values


def laid(words: dict[int, list[int]]) -> dict[int, int]:
    return {start + k: word for start, row in words.items() for k, word in enumerate(row)}


def test_the_profiles_that_are_there() -> None:
    assert set(shipped()) == {
        "eastron-sdm120",
        "eastron-sdm630",
        "carlo-gavazzi-em24",
        "sunspec",
        "sunspec-float",
    }
    assert all(path.parent == SHIPPED for path in shipped().values())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_profile_is_fine_and_says_what_it_is(name: str) -> None:
    device = device_of(name)
    assert len(device.tags) > 10
    assert not any(tag.write for tag in device.tags.values())
    assert Path(SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


def test_eastron_sdm120() -> None:
    words = laid(
        {
            0: [0x4366, 0x8000],  # 230.5
            6: [0x3FA0, 0x0000],  # 1.25
            12: [0x438F, 0xC000],  # 287.5
            18: [0x4390, 0x0000],  # 288
            24: [0xC100, 0x0000],  # -8
            30: [0x3F40, 0x0000],  # 0.75
            36: [0x4270, 0x0000],  # 60
            70: [0x4248, 0x0000],  # 50
            72: [0x449A, 0x5000],  # 1234.5
            74: [0x0000, 0x0000],
            84: [0x43C8, 0x0000],  # 400
            258: [0x3F00, 0x0000],  # 0.5
            342: [0x449A, 0x5000],
            344: [0x7FC0, 0x0000],  # not a number
        }
    )
    device = device_of("eastron-sdm120")
    values = polled(device, Make(4, words, longest=60), cautious=True)  # the holes are refused
    bears = Make(4, dict.fromkeys(range(400), 0) | words, longest=60)
    assert polled(device, bears) == values
    assert len(plan_device(device)) < len(plan_device(device, cautious=True))
    wanted = {
        "voltage": 230.5, "current": 1.25, "active_power": 287.5, "apparent_power": 288.0, "reactive_power": -8.0,
        "power_factor": 0.75, "phase_angle": 60.0, "frequency": 50.0, "import_energy": 1234.5, "export_energy": 0.0,
        "demand_power": 400.0, "demand_current": 0.5, "total_energy": 1234.5,
    }  # fmt: skip
    assert {name: values[name] for name in wanted} == {name: (v, Quality.GOOD) for name, v in wanted.items()}
    assert values["total_reactive_energy"] == (None, Quality.MISSING)


def test_eastron_sdm630() -> None:
    words = dict.fromkeys(range(400), 0)  # its holes read 0
    words |= laid(
        {
            0: [0x4366, 0x8000, 0x4367, 0x0000, 0x4365, 0x0000],  # 230.5, 231, 229
            10: [0x3FA0, 0x0000],
            16: [0x438F, 0xC000],
            52: [0x449A, 0x5000],  # 1234.5
            62: [0xBF40, 0x0000],  # -0.75
            70: [0x4248, 0x0000],
            204: [0x43C8, 0x0000],  # 400
            224: [0x3F00, 0x0000],
            342: [0x461C, 0x4000],  # 10000
        }
    )
    values = polled(device_of("eastron-sdm630"), Make(4, words, longest=80))
    wanted = {
        "voltage_l1": 230.5, "voltage_l2": 231.0, "voltage_l3": 229.0, "current_l3": 1.25, "active_power_l3": 287.5,
        "active_power": 1234.5, "power_factor": -0.75, "frequency": 50.0, "voltage_l3_l1": 400.0,
        "neutral_current": 0.5, "total_energy": 10000.0,
    }  # fmt: skip
    assert {name: values[name] for name in wanted} == {name: (v, Quality.GOOD) for name, v in wanted.items()}
    assert values["active_power_l1"] == (0.0, Quality.GOOD)


def test_carlo_gavazzi_em24() -> None:
    words = dict.fromkeys([*range(80), *range(770, 774), *range(0x5000, 0x5007), 0xA000, 0xA100], 0)
    words |= laid(
        {
            0: [2305, 0],  # low word first: 230.5 V
            10: [4001, 0],  # 400.1 V, whose high word is the register of the model code
            12: [0x86A0, 0x0001],  # 100000 mA
            18: [0xFF9C, 0xFFFF],  # -100 -> -10 W
            40: [0x4240, 0x000F],  # 1000000 -> 100000 W
            50: [0xFFFF, 499],
            52: [0xE240, 0x0001],  # 123456 -> 12345.6 kWh
            78: [5, 0],
            0x5000: [0x4241, 0x3132, 0x3334, 0x3536, 0x3738, 0x3941, 0x0000],
            0xA000: [7, 0],
            0xA100: [3],
        }
    )
    values = polled(device_of("carlo-gavazzi-em24"), Make(3, words, alone={11: 1650}))
    wanted = {
        "voltage_l1": 230.5, "voltage_l3_l1": 400.1, "model_code": 1650, "current_l1": 100.0, "active_power_l1": -10.0,
        "active_power": 100000.0, "phase_sequence": 65535, "frequency": 49.9, "import_energy": 12345.6,
        "export_energy": 0.5, "serial_number": "BA123456789A", "application": 7, "front_switch": 3,
    }  # fmt: skip
    assert {name: values[name] for name in wanted} == {name: (v, Quality.GOOD) for name, v in wanted.items()}


def text(letters: str, registers: int) -> list[int]:
    return list(struct.unpack(f">{registers}H", letters.encode().ljust(2 * registers, b"\0")))


MODEL_103 = [
    103, 50, 1234, 411, 412, 0xFFFF, 0xFFFE,  # A: 12.34, 4.11, 4.12, phase C not there; 10^-2
    4000, 4001, 4002, 2305, 2306, 2307, 0xFFFF,  # V: 10^-1
    0xFC18, 1, 5001, 0xFFFE,  # W: -1000 x 10; Hz: 50.01
    900, 1, 0x8000, 0x8000, 99, 0,  # VA: 9000; VAr not there; PF: 99
    0x0012, 0xD687, 0,  # 1234567 Wh
    55, 0xFFFF, 6100, 0xFFFF, 0x0190, 1,  # DC: 5.5 A, 610 V, 4000 W
    455, 0x8000, 0x8000, 0xFFFB, 0xFFFF,  # 45.5 and -0.5 degrees
    4, 0xFFFF, 0, 0x0002, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
]  # fmt: skip


def test_sunspec() -> None:
    common = [
        1,
        66,
        *text("ACME", 16),
        *text("Sun 5", 16),
        *text("", 8),
        *text("1.2", 8),
        *text("SN77", 16),
        1,
        0,
    ]
    words = laid({40000: [0x5375, 0x6E53, *common, *MODEL_103, 0xFFFF, 0]})
    assert words[40070] == 103
    assert words[40070 + 52] == 0xFFFF  # the end of the chain: model 103 has 50 registers behind its length
    device = device_of("sunspec")
    values = polled(device, Make(3, words))
    wanted = {
        "common_length": 66, "maker": "ACME", "product": "Sun 5",
        "version": "1.2", "serial_number": "SN77", "device_address": 1, "model": 103, "model_length": 50,
        "current": 12.34, "current_l2": 4.12, "voltage_l1_l2": 400.0, "voltage_l3": 230.7, "active_power": -10000.0,
        "frequency": 50.01, "apparent_power": 9000.0, "power_factor": 99.0, "energy": 1234567.0, "dc_current": 5.5,
        "dc_voltage": 610.0, "dc_power": 4000.0, "cabinet_temperature": 45.5, "other_temperature": -0.5, "state": 4,
        "events": 2,
    }  # fmt: skip
    assert {name: values[name] for name in wanted} == {name: (v, Quality.GOOD) for name, v in wanted.items()}
    missing = {"current_l3", "reactive_power", "reactive_power_sf", "heat_sink_temperature", "maker_state"}
    assert {name for name, (_, quality) in values.items() if quality is Quality.MISSING} == missing | {
        "transformer_temperature"
    }
    assert device.tags["state"].states[4] == "mppt"


def test_a_power_of_ten_that_changes_changes_the_value() -> None:
    words = laid({40000: [0] * 70, 40070: MODEL_103}) | {40085: 0xFFFF}
    assert polled(device_of("sunspec"), Make(3, words))["active_power"] == (-100.0, Quality.GOOD)

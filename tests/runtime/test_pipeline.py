"""Replies in, twin, rows, totals and events out; a device that restarts sends its loops through their start again."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from typing import Any

import pytest

from agent.config.types import Config, Device, Fail, Tag
from agent.modbus.line import Reply, ScanDone
from agent.modbus.plan import Request, plan_device
from agent.runtime.clock import FakeClock
from agent.runtime.loops import Loops
from agent.runtime.pipeline import Pipeline
from agent.twin.counter import Counter
from agent.twin.history import History
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Event, Key, Outcome, Row
from agent.twin.table import Twin
from tests.runtime.rig import OUT, configuration

UPTIME = Tag("uptime", "holding", 40, type="uint32", unit="s", counter=True)
PARTS = Tag("parts", "holding", 42, type="uint16", counter=True)
PLC = {"pv": 45.0, "out": 40.0, "watchdog": 0, "other": 0, "uptime": 1000, "parts": 7}


def site(*, second: bool = False, **loop: Any) -> Config:
    """The rig's device and loop, and two counters; `second`: a device of the same kind that no loop uses."""
    config = configuration(fail=Fail(resume=3), **loop)
    plc = config.devices["plc"]
    plc = dataclasses.replace(plc, tags={**plc.tags, "uptime": UPTIME, "parts": PARTS})
    devices: dict[str, Device] = {"plc": plc}
    if second:
        devices["press"] = dataclasses.replace(plc, name="press", unit=2)
    return dataclasses.replace(config, devices=devices)


class Plant:
    """A pipeline with real loops and a twin; devices are dicts of values, replies are made of them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = FakeClock()
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.written: list[tuple[Key, float]] = []
        self.twin = Twin(build_layout(config))
        self.values = {name: dict(PLC) for name in config.devices}
        self.loops = Loops(
            config,
            twin=self.twin,
            write=self.write,
            forecast=lambda _: None,
            clock=self.clock,
            on_event=self.events.append,
        )
        counters = {
            (device.name, tag.name): Counter(tag)
            for device in config.devices.values()
            for tag in device.tags.values()
            if tag.counter
        }
        self.pipeline = Pipeline(
            config,
            self.twin,
            predictor=None,
            slots={},
            health=None,
            loops=self.loops,
            history=History(len(self.twin.layout.keys)),
            counters=counters,
            sink=self.rows.append,
            on_event=self.events.append,
        )
        self._k = 0

    async def write(self, key: Key, value: float, **_: Any) -> Outcome:
        self.written.append((key, value))
        self.values[key[0]][key[1]] = value
        return Outcome(True, applied=value, readback=value)

    def payload(self, request: Request) -> bytes:
        data = bytearray(2 * request.count)
        for name in request.tags:
            tag = self.config.devices[request.device].tags[name]
            kind = {"float32": ">f", "uint32": ">I", "uint16": ">H"}[tag.type]
            value = self.values[request.device][name]
            struct.pack_into(
                kind, data, 2 * (tag.address - request.address), value if kind == ">f" else int(value)
            )
        return bytes(data)

    async def scan(self, count: int = 1, *, lost: bool = False) -> None:
        for _ in range(count):
            self.clock.advance(1.0)
            self._k += 1
            now = self.clock.mono()
            for device in self.config.devices.values():
                for request in plan_device(device):
                    reply = Reply(now, 0.01, self.payload(request), Quality.GOOD)
                    if lost:
                        reply = Reply(now, None, None, Quality.LINK, None, "connection refused")
                    self.pipeline.on_reply(request, reply)
                self.pipeline.on_scan(ScanDone(device.name, 1.0, self._k, now, now, now, 1, 0))
            for _ in range(5):
                await asyncio.sleep(0)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]


def test_a_reply_reaches_twin_and_row() -> None:
    async def story() -> None:
        plant = Plant(site(mode="off"))
        await plant.scan()
        assert {tag: plant.twin.sample(("plc", tag)).plain for tag in PLC} == PLC
        seen = {tag: value for row in plant.rows for tag, value in zip(row.tags, row.values)}
        assert seen == PLC
        assert {row.quality for row in plant.rows} == {None}
        assert (plant.pipeline.values_read, plant.pipeline.values_bad) == (6, 0)

    asyncio.run(story())


def test_a_failed_request_takes_the_values_away() -> None:
    async def story() -> None:
        plant = Plant(site(mode="off"))
        await plant.scan()
        plant.rows.clear()
        await plant.scan(lost=True)
        assert {plant.twin.sample(("plc", tag)).quality for tag in PLC} == {Quality.LINK}
        assert {plant.twin.sample(("plc", tag)).plain for tag in PLC} == {None}
        for row in plant.rows:
            assert row.values == [None] * len(row.tags)
            assert row.quality == bytes([Quality.LINK]) * len(row.tags)
        assert plant.pipeline.values_bad == 6

    asyncio.run(story())


@pytest.mark.parametrize(("tag", "before", "after"), [("uptime", 1000, 3), ("parts", 700, 0)])
def test_a_counter_that_falls_is_told_and_its_loops_start_again(tag: str, before: int, after: int) -> None:
    async def story() -> None:
        plant = Plant(site(second=True))
        plant.values["plc"][tag] = plant.values["press"][tag] = before
        await plant.scan(8)
        assert plant.loops.holder_of(OUT) == "oven"
        steps = len(plant.written)
        assert steps > 0
        plant.values["plc"][tag] = after
        await plant.scan()
        [told] = plant.named("counter_reset")
        assert (told.device, told.tag, told.value, told.limit) == ("plc", tag, after, before)
        [restart] = plant.named("loop_restart")
        assert "restarted" in restart.text
        assert "waiting" in (plant.loops.views()["oven"].reason or "")
        assert len(plant.written) == steps  # nothing is written before the start is through
        await plant.scan(5)
        assert plant.loops.views()["oven"].reason is None
        assert len(plant.written) > steps
        row = plant.twin.layout.row[("plc", tag)]
        assert plant.twin.total[row] == before + after
        assert len(plant.named("counter_reset")) == 1

    asyncio.run(story())


def test_the_restart_of_another_device_is_no_matter_of_the_loop() -> None:
    async def story() -> None:
        plant = Plant(site(second=True))
        await plant.scan(8)
        plant.values["press"]["uptime"] = 0
        await plant.scan()
        assert [event.device for event in plant.named("counter_reset")] == ["press"]
        assert plant.named("loop_restart") == []

    asyncio.run(story())


def test_a_roll_over_is_no_restart() -> None:
    async def story() -> None:
        plant = Plant(site())
        plant.values["plc"]["parts"] = 65_530
        await plant.scan(8)
        plant.values["plc"]["parts"] = 4
        await plant.scan()
        assert plant.named("counter_reset") == []
        assert plant.named("loop_restart") == []
        assert plant.twin.total[plant.twin.layout.row[("plc", "parts")]] == 65_540

    asyncio.run(story())


def test_a_restart_behind_an_outage_is_seen_in_the_first_reply() -> None:
    async def story() -> None:
        plant = Plant(site())
        await plant.scan(8)
        await plant.scan(1, lost=True)
        plant.values["plc"] |= {"uptime": 1, "out": 0.0}
        steps = len(plant.written)
        await plant.scan()
        assert len(plant.named("counter_reset")) == 1
        assert plant.loops.views()["oven"].reason
        assert len(plant.written) == steps

    asyncio.run(story())


def test_an_outage_alone_ends_at_the_door_of_a_start() -> None:
    """No counter tells of it, but the measured value was not good for so long that the loop failed and came back."""

    async def story() -> None:
        plant = Plant(site())
        await plant.scan(8)
        await plant.scan(10, lost=True)
        assert plant.loops.views()["oven"].mode == "fail"
        plant.values["plc"]["out"] = 12.0
        steps = len(plant.written)
        await plant.scan(2)
        assert len(plant.written) == steps
        await plant.scan(6)
        first = plant.written[steps][1]
        assert abs(first - 12.0) < 1.0  # it goes on from what the device holds, not from what it wrote before

    asyncio.run(story())

"""A line takes other devices while it runs, in virtual time: who stays loses nothing, who changed begins anew."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from agent.config.types import Device
from agent.modbus.faults import LinkFault
from agent.modbus.plan import Request
from tests.modbus.faultserver import registers
from tests.modbus.plant import Plant, device, request
from tests.modbus.virtual import LoopClock, in_virtual_time


async def change(plant: Plant, devices: list[Device], changed: set[str], requests: list[Request]) -> None:
    """What a reload does to a line."""
    plans = {one.name: tuple(each for each in requests if each.device == one.name) for one in devices}
    await plant.line.pause.hold()
    plant.line.change(devices, changed, plans, {})
    plant.line.pause.release()


def test_neighbours_stay_on_their_grid_through_many_changes() -> None:
    async def test(clock: LoopClock) -> None:
        a, b = device("a", 1), device("b", 2, timeout=0.05)
        first = [request("a", 1, every=0.1), request("b", 2, every=0.2)]
        plant = Plant(clock, [a, b], first)
        plant.link.delay[2] = 0.03
        async with plant.running():
            for step in range(40):
                await asyncio.sleep(0.37)  # now between two requests, now in the middle of one
                address = 200 + step
                other = dataclasses.replace(b, timeout=0.05 + step / 1000)
                await change(
                    plant, [a, other], {"b"}, [first[0], request("b", 2, address=address, every=0.2)]
                )
                await asyncio.sleep(0.5)
                newest = plant.of("b")[-1]
                assert newest.payload == registers(address, 2)
        scans = plant.scans_of("a")
        assert [scan.k for scan in scans] == list(range(len(scans))) and len(scans) > 340
        assert all(scan.ok == 1 and scan.started - scan.due < 0.04 for scan in scans)
        turns = [scan.due for scan in plant.scans_of("b")]
        assert all(
            (due - turns[0]) % 0.2 == pytest.approx(0.0, abs=1e-6) or (due - turns[0]) % 0.2 > 0.1999
            for due in turns
        )
        assert len(plant.link.attempts) == 1, "the connection was opened anew"

    in_virtual_time(test)


def test_devices_come_and_go() -> None:
    async def test(clock: LoopClock) -> None:
        a, b, c = device("a", 1), device("b", 2), device("c", 3)
        reads = {one.name: request(one.name, one.unit, every=0.1) for one in (a, b, c)}
        plant = Plant(clock, [a, b], [reads["a"], reads["b"]])
        async with plant.running():
            await asyncio.sleep(1.0)
            await change(plant, [c, a], {"c"}, [reads["a"], reads["c"]])
            gone = len(plant.of("b"))
            await asyncio.sleep(2.0)
            assert len(plant.of("b")) == gone and plant.line.device_states() == {"c": "ok", "a": "ok"}
            assert len(plant.of("c")) == pytest.approx(20, abs=1)
            await change(plant, [], set(), [])
            sent = len(plant.link.sent)
            await asyncio.sleep(2.0)
            assert len(plant.link.sent) == sent
            await change(plant, [b], {"b"}, [reads["b"]])
            await asyncio.sleep(1.0)
            assert len(plant.of("b")) >= gone + 8
        assert [scan.k for scan in plant.scans_of("a")] == list(range(len(plant.scans_of("a"))))

    in_virtual_time(test)


def test_who_waits_for_a_device_that_changed_is_told() -> None:
    async def test(clock: LoopClock) -> None:
        a = device("a", 1, timeout=1.0)
        read = request("a", 1, every=10.0)
        plant = Plant(clock, [a], [read])
        plant.link.delay[1] = 0.9
        async with plant.running():
            await asyncio.sleep(0.1)
            waiting = [
                asyncio.ensure_future(plant.line._jobs.done("a", clock.mono() + 60, request=read))
                for _ in range(2)
            ]
            await asyncio.sleep(0.1)
            other = dataclasses.replace(a, timeout=2.0)
            await change(plant, [other], {"a"}, [read])
            await asyncio.sleep(0.01)
            assert all(one.done() for one in waiting)
            assert isinstance(waiting[1].exception(), LinkFault)
            assert str(waiting[1].exception()) == "the configuration of a has changed: ask again"

    in_virtual_time(test)


def test_a_device_that_comes_to_a_dead_line_is_told_so_too() -> None:
    async def test(clock: LoopClock) -> None:
        a, b = device("a", 1), device("b", 2)
        plant = Plant(clock, [a], [request("a", 1, every=1.0)])
        plant.link.up = False
        async with plant.running():
            await asyncio.sleep(5.0)
            assert plant.told("link_down") == ["raised"]
            await change(plant, [a, b], {"b"}, [request("a", 1, every=1.0), request("b", 2, every=1.0)])
            assert [(event.device, event.state) for event in plant.events if event.name == "link_down"] == [
                ("a", "raised"),
                ("b", "raised"),
            ]
            plant.link.up = True
            await asyncio.sleep(40.0)
            assert plant.told("link_down").count("cleared") == 2
            assert plant.line.device_states() == {"a": "ok", "b": "ok"}

    in_virtual_time(test)


def test_a_line_that_has_not_begun_or_has_ended_can_be_held() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=1.0)])
        await asyncio.wait_for(plant.line.pause.hold(), 1.0)
        plant.line.pause.release()
        async with plant.running():
            await asyncio.sleep(2.0)
        await asyncio.wait_for(plant.line.pause.hold(), 1.0)
        assert len(plant.of("a")) >= 1

    in_virtual_time(test)

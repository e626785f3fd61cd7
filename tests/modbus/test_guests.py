"""Requests of scan and probe on a line that is polled: they take its spare time and nothing else."""

from __future__ import annotations

import asyncio
import struct

from agent.config.types import Limits
from agent.modbus.guests import Heard
from tests.modbus.faultserver import registers
from tests.modbus.plant import Plant, device, request
from tests.modbus.virtual import LoopClock, in_virtual_time

READ_ONE = struct.pack(">HH", 7, 1)


async def asked(plant: Plant, number: int, *, timeout: float = 0.5, within: float = 15.0) -> Heard:
    deadline = plant.clock.mono() + within
    return await plant.line.guest(number, 3, READ_ONE, timeout=timeout, deadline=deadline)


def kept_its_grid(plant: Plant, name: str) -> bool:
    scans = plant.scans_of(name)
    return (
        all(scan.started - scan.due < 0.005 and not scan.failed for scan in scans)
        and plant.line.scans()[f"{name}/100ms"]["overruns"] == 0
    )


def test_a_guest_is_answered_between_the_scans() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=0.1)])
        plant.link.delay[9] = 0.04
        async with plant.running():
            await asyncio.sleep(1.0)
            heard = [await asked(plant, number) for number in (9, 1, 9, 9)]
        assert all(one.answer is not None and one.answer.payload == registers(7, 1) for one in heard)
        assert kept_its_grid(plant, "a")

    in_virtual_time(test)


def test_silence_of_a_guest_costs_the_others_nothing_and_says_nothing_of_them() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1), device("b", 2)], [request("a", 1, every=0.1), request("b", 2)])
        for number in range(10, 30):
            plant.link.delay[number] = None
        async with plant.running():
            await asyncio.sleep(1.0)
            started = clock.mono()
            heard = [await asked(plant, number) for number in range(10, 30)]
            assert clock.mono() - started < 40.0
            assert plant.line.device_states() == {"a": "ok", "b": "ok"}
            assert plant.line.status()["errors"] == {}
        assert all(one.answer is None and not one.unreachable for one in heard)
        assert all(0.02 <= one.limit < 0.1 for one in heard)  # less than was granted: that is all there is
        assert kept_its_grid(plant, "a")
        assert len(plant.link.attempts) == 1
        assert plant.events == []

    in_virtual_time(test)


def test_a_guest_that_had_too_little_time_gets_more() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=0.1)])
        plant.link.delay[9] = 0.08
        async with plant.running():
            await asyncio.sleep(1.0)
            due = plant.scans_of("a")[-1].due
            await asyncio.sleep(due + 0.1 + 0.06 - clock.mono())  # only 40 ms are left
            heard = await asked(plant, 9)
        assert heard.answer is not None
        assert sum(unit == 9 for _, unit, _, _ in plant.link.sent) == 2
        assert kept_its_grid(plant, "a")

    in_virtual_time(test)


def test_a_late_reply_to_a_guest_does_not_make_a_device_slow() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=5.0)])
        async with plant.running():
            await asyncio.sleep(7.0)
            plant.link.delay[1] = 0.1
            first = await asked(plant, 1, timeout=0.05)
            await asyncio.sleep(0.2)
            plant.link.delay[1] = 0.002
            second = await asked(plant, 1, timeout=0.05)
            await asyncio.sleep(20.0)
            assert plant.line.device_states() == {"a": "ok"}
        assert first.answer is None and not first.late
        assert second.answer is not None and second.late
        assert plant.events == []

    in_virtual_time(test)


def test_a_guest_that_goes_away_is_not_asked_for() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=0.1)])
        plant.link.delay[1] = 0.095  # leaves no time
        async with plant.running():
            await asyncio.sleep(1.0)
            waiting = asyncio.create_task(asked(plant, 9))
            await asyncio.sleep(0.5)
            waiting.cancel()
            plant.link.delay[1] = 0.002
            await asyncio.sleep(1.0)
        assert all(unit == 1 for _, unit, _, _ in plant.link.sent)

    in_virtual_time(test)


def test_a_line_without_spare_time_and_one_without_connection_are_told_apart() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=0.1)])
        plant.link.delay[1] = 0.095
        async with plant.running():
            await asyncio.sleep(1.0)
            crowded = await asked(plant, 9, within=3.0)
            waiting = asyncio.create_task(asked(plant, 9))
            await asyncio.sleep(0.01)
            plant.link.drop()
            dropped = await waiting
            down = await asked(plant, 9)
        assert crowded.fault is not None and "no time" in crowded.fault.words and not crowded.unreachable
        for one in (dropped, down):
            assert one.unreachable and one.fault is not None and "refused" in one.fault.words

    in_virtual_time(test)


def test_a_guest_opens_a_connection_that_rests() -> None:
    async def test(clock: LoopClock) -> None:
        one = device("a", 1, limits=Limits(close_after_poll=True))
        plant = Plant(clock, [one], [request("a", 1, every=10.0)])
        async with plant.running():
            await asyncio.sleep(12.0)
            assert not plant.link.connected
            heard = await asked(plant, 9)
            await asyncio.sleep(1.0)
            assert not plant.link.connected
        assert heard.answer is not None

    in_virtual_time(test)

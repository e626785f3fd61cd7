"""What a line must bear from its devices and their users, beside what test_line.py shows; in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
import re

import pytest

from agent.config.types import Device, Limits, Tag
from agent.modbus.codec import WireWrite
from agent.modbus.faults import LinkFault
from agent.modbus.plan import plan_device
from agent.twin.quality import Quality
from tests.modbus.faultserver import registers
from tests.modbus.plant import URL, Plant, device, request
from tests.modbus.virtual import LoopClock, in_virtual_time


def write(unit: int, address: int, value: int) -> WireWrite:
    return WireWrite(unit=unit, function=6, address=address, words=(value,))


@pytest.mark.parametrize(("longest", "refusal"), [(1, 1), (1, 2), (5, 1), (5, 3), (50, 2)])
def test_a_device_that_bears_short_reads_only(longest: int, refusal: int) -> None:
    """Whichever exception it refuses longer ones with."""

    async def test(clock: LoopClock) -> None:
        tags = {f"t{at}": Tag(f"t{at}", "holding", at, every=1.0) for at in range(100, 180)}
        whole = Device("d", URL, tags=tags)
        plant = Plant(clock, [whole], plan_device(whole))
        plant.link.longest, plant.link.refusal = longest, refusal
        async with plant.running():
            await asyncio.sleep(60.0)
            plant.replies.clear()
            await asyncio.sleep(2.0)
        assert {tag for one, _ in plant.replies for tag in one.tags} == set(tags)
        assert all(reply.payload == registers(one.address, one.count) for one, reply in plant.replies)

    in_virtual_time(test)


def test_a_timeout_of_one_unit_throws_no_request_of_another_away() -> None:
    async def test(clock: LoopClock) -> None:
        units = [device("dead", 2, timeout=0.5), device("b", 3), device("c", 4)]
        plant = Plant(clock, units, [])
        plant.link.delay[2] = None
        async with plant.running():
            asked = clock.mono()
            calls = [
                plant.line.read([request(name, unit, address=10 * i)], deadline=asked + 5)
                for i, (name, unit) in enumerate(
                    (("dead", 2), ("b", 3), ("c", 4), ("dead", 2), ("b", 3), ("c", 4))
                )
            ]
            replies = [reply for [(_, reply)] in await asyncio.gather(*calls)]
        assert [reply.quality for reply in replies if reply.payload is None] == [Quality.TIMEOUT] * 2
        assert sum(reply.payload is not None for reply in replies) == 4

    in_virtual_time(test)


def test_a_write_to_a_dead_unit_holds_nobody_up() -> None:
    async def test(clock: LoopClock) -> None:
        units = [device("dead", 2, timeout=0.5), device("good", 3)]
        plant = Plant(clock, units, [request("dead", 2), request("good", 3, every=0.1)])
        plant.link.delay[2] = None
        async with plant.running():
            await asyncio.sleep(10.0)
            before, asked = len(plant.scans_of("good")), clock.mono()
            for value in range(20):
                with pytest.raises(LinkFault):
                    await plant.line.write("dead", write(2, 7, value), deadline=clock.mono() + 3.0)
            assert clock.mono() - asked < 61.0
        late = [scan.started - scan.due for scan in plant.scans_of("good")[before:]]
        assert len(late) > 15
        assert max(late) < 0.01

    in_virtual_time(test)


def test_what_waits_fails_at_once_when_the_connection_is_lost() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1, timeout=10.0)], [request("a", 1)])
        async with plant.running():
            await asyncio.sleep(2.1)
            plant.link.delay[1] = 5.0
            lost = clock.mono()
            calls = [
                asyncio.create_task(plant.line.write("a", write(1, 7, value), deadline=lost + 30))
                for value in range(5)
            ]
            await asyncio.sleep(0.1)
            plant.link.drop()
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(answer, LinkFault)
                assert answer.quality is Quality.LINK
            assert clock.mono() - lost < 1.5

    in_virtual_time(test)


def test_writes_get_through_a_line_that_reads_more_than_it_can() -> None:
    """Two hundred registers each 200 ms from a device that needs 120 ms for a hundred."""

    async def test(clock: LoopClock) -> None:
        reads = [request("a", 1, address=at, count=100, every=0.2) for at in (1000, 1100)]
        plant = Plant(clock, [device("a", 1)], reads)
        plant.link.delay[1] = 0.12
        rng = random.Random(1)
        took = []
        async with plant.running():
            for value in range(200):
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                asked = clock.mono()
                await plant.line.write("a", write(1, 7, value), deadline=asked + 5)
                took.append(clock.mono() - asked)
        sent = [int.from_bytes(body[2:], "big") for _, _, function, body in plant.link.sent if function == 6]
        assert sent == list(range(200))
        assert max(took) <= 0.24 + 0.001  # the read under way, and the write itself
        assert sum(reply.payload is not None for reply in plant.of("a")) > 300

    in_virtual_time(test)


def test_after_a_write_is_confirmed_no_older_value_is_told() -> None:
    async def test(clock: LoopClock) -> None:
        reads = [request("a", 1, address=at, count=10, every=0.1) for at in (0, 20, 40)]
        plant = Plant(clock, [device("a", 1)], reads)
        plant.link.delay[1] = 0.03
        rng = random.Random(2)
        async with plant.running():
            for value in range(1, 200):
                await asyncio.sleep(rng.uniform(0.0, 0.3))
                await plant.line.write("a", write(1, 5, 1000 + value), deadline=clock.mono() + 5)
                plant.replies.clear()
                await asyncio.sleep(0.15)
                told = [
                    int.from_bytes(reply.payload[10:12], "big")
                    for one, reply in plant.replies
                    if one.address == 0 and reply.payload
                ]
                assert set(told) <= {1000 + value}

    in_virtual_time(test)


def test_a_pause_is_kept_between_a_read_and_a_write_and_none_is_made_up() -> None:
    async def test(clock: LoopClock) -> None:
        for pause in (0.0, 0.025):
            plant = Plant(clock, [device("a", 1, limits=Limits(pause=pause))], [request("a", 1, every=0.1)])
            async with plant.running():
                for value in range(50):
                    await asyncio.sleep(0.0371)
                    await plant.line.write("a", write(1, 7, value), deadline=clock.mono() + 5)
                    [(_, reply)] = await plant.line.read([request("a", 1, 7, 1)], deadline=clock.mono() + 5)
                    assert reply.payload == value.to_bytes(2, "big")
            waits = [b[0] - a[0] - 0.002 for a, b in itertools.pairwise(plant.link.sent)]
            after_writes = [b[0] - a[0] - 0.002 for a, b in itertools.pairwise(plant.link.sent) if a[2] == 6]
            assert min(waits) >= pause - 1e-9
            assert max(after_writes) == pytest.approx(pause, abs=1e-6)

    in_virtual_time(test)


def test_a_unit_about_as_slow_as_its_timeout_does_not_flap() -> None:
    """300 to 900 ms against a timeout of 500: slow, told once, its values still good."""

    async def test(clock: LoopClock) -> None:
        plant = Plant(
            clock,
            [device("a", 1, timeout=0.5)],
            [request("a", 1, every=2.0)],
        )
        rng = random.Random(3)
        async with plant.running():
            for _ in range(1800):
                plant.link.delay[1] = rng.uniform(0.3, 0.9)
                await asyncio.sleep(1.0)
            line = plant.line.status()
        status = line["devices"]["a"]
        late = plant.of("a")[300:]
        assert sum(reply.payload is None for reply in late) <= 0.01 * len(late)
        assert plant.told("device_silent") == []
        assert len(plant.told("device_slow")) <= 10
        assert status["timeout_ms"] >= 900
        assert 250 < line["rtt_ms"]["p50"] < 950
        told = [event.text for event in plant.events if event.name == "device_slow"]
        assert re.search(r"[5-8]\d\d ms", told[0])

    in_virtual_time(test)

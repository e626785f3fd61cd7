"""Devices that do not refuse an address that they lack but keep silent at it: learnt, and not mistaken for anything."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from agent.config.types import Device, Tag
from agent.modbus.plan import Learnt, plan_device
from tests.modbus.plant import URL, Plant
from tests.modbus.virtual import LoopClock, in_virtual_time


def device(name: str, unit: int, *addresses: int, every: float = 1.0, **options: Any) -> Device:
    tags = {
        f"t{address}": Tag(f"t{address}", "holding", address, type="uint16", every=every)
        for address in addresses
    }
    return Device(name, URL, unit=unit, tags=tags, **options)


class Known(dict[str, Learnt]):
    """What is known of each device, and every tag that was ever thought to be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: set[str] = set()

    def learn(self, name: str, learnt: Learnt) -> None:
        self[name] = learnt
        self.ever |= learnt.refused


def plant_of(clock: LoopClock, *devices: Device, learnt: Known) -> Plant:
    requests = [request for one in devices for request in plan_device(one, cautious=True)]
    return Plant(clock, devices, requests, on_learnt=learnt.learn)


def values(plant: Plant, name: str, since: float) -> set[str]:
    """Tags that were read since then."""
    return {
        tag
        for request, reply in plant.replies
        if request.device == name and reply.payload is not None and reply.t > since
        for tag in request.tags
    }


def test_a_silent_address_costs_its_own_tag_only() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, *range(100, 120), *range(300, 305)), learnt=known)
        plant.link.silent_at = {107}
        async with plant.running():
            await asyncio.sleep(120.0)
            since = clock.mono()
            await asyncio.sleep(5.0)
            assert plant.line.device_states() == {"a": "degraded"}
        everything = {f"t{address}" for address in (*range(100, 120), *range(300, 305))}
        assert values(plant, "a", since) == everything - {"t107"}
        assert known["a"].refused == {"t107"}
        assert known["a"].silent == known["a"].illegal == (("holding", (107, 108)),)
        told = [event.text for event in plant.events if event.name == "address_refused"]
        assert told == ["a: the device keeps silent at holding 107 (t107); the other tags are read"]

    in_virtual_time(test)


def test_a_silent_address_in_the_only_request_is_found_too() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, *range(100, 120)), learnt=known)
        plant.link.silent_at = {100, 101}  # where the first sign of life is looked for
        async with plant.running():
            await asyncio.sleep(180.0)
            since = clock.mono()
            await asyncio.sleep(5.0)
        assert values(plant, "a", since) == {f"t{address}" for address in range(102, 120)}
        assert known["a"].refused == {"t100", "t101"}

    in_virtual_time(test)


def test_it_is_tried_again_seldom_and_taken_back() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, *range(100, 110), 300), learnt=known)
        plant.link.silent_at = {104}
        async with plant.running():
            await asyncio.sleep(3600.0)
            asked = [
                at
                for at, _, _, body in plant.link.sent
                if int.from_bytes(body[:2], "big") <= 104 < sum(divmod(int.from_bytes(body, "big"), 65536))
            ]
            assert len([at for at in asked if at > clock.mono() - 3000]) <= 6
            failures = [scan for scan in plant.scans_of("a")[200:] if scan.ok < 3]
            assert failures == []  # a try does not take the device out of its schedule
            plant.link.silent_at = set()
            await asyncio.sleep(3700.0)
            since = clock.mono()
            await asyncio.sleep(5.0)
            assert plant.line.device_states() == {"a": "ok"}
        assert "t104" in values(plant, "a", since)
        assert known["a"] == Learnt()

    in_virtual_time(test)


def test_the_neighbour_keeps_its_period() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        good = device("good", 2, 100, 101, every=0.1)
        plant = plant_of(clock, device("a", 1, *range(100, 120), 300), good, learnt=known)
        plant.link.silent_at = {110}
        async with plant.running():
            await asyncio.sleep(300.0)
        assert known["a"].refused == {"t110"}
        late = [scan.started - scan.due for scan in plant.scans_of("good")]
        # two silences at its own turn, each a timeout, are what it takes to look into it
        assert sum(one > 0.005 for one in late) <= 12
        assert all(one < 0.005 for one in late[100:])

    in_virtual_time(test)


def test_a_dead_device_is_just_dead() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, *range(100, 120), 300), learnt=known)
        async with plant.running():
            for _ in range(10):  # there, gone in the middle of a scan, there again
                plant.link.delay[1] = 0.002
                await asyncio.sleep(7.3)
                plant.link.delay[1] = None
                await asyncio.sleep(7.1)
            assert plant.line.device_states() == {"a": "silent"}
            plant.link.delay[1] = 0.002
            await asyncio.sleep(60.0)
            assert plant.line.device_states() == {"a": "ok"}
        assert known.get("a", Learnt()) == Learnt()
        assert not known.ever

    in_virtual_time(test)


def test_death_in_the_middle_of_the_halving_proves_nothing() -> None:
    async def test(clock: LoopClock) -> None:
        for cut in range(3, 40, 2):  # so many requests from the first silence on
            known = Known()
            plant = plant_of(clock, device("a", 1, *range(100, 120), 300, every=60.0), learnt=known)
            plant.link.silent_at = {104}
            async with plant.running():
                while len(plant.link.sent) < cut:
                    await asyncio.sleep(0.05)
                plant.link.delay[1] = None
                await asyncio.sleep(100.0)
                plant.link.delay[1] = 0.002
                await asyncio.sleep(900.0)
            assert known["a"].refused == known.ever == {"t104"}, cut
            assert known["a"].silent == (("holding", (104, 105)),), cut

    in_virtual_time(test)


def test_a_device_that_only_needs_longer_for_more_is_slow() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, *range(100, 200), 300, timeout=0.2), learnt=known)
        answer = plant.link.transact

        async def slower(unit: int, function: int, body: bytes, **times: float) -> Any:
            plant.link.delay[1] = 0.01 * int.from_bytes(body[2:4], "big")
            return await answer(unit, function, body, **times)  # type: ignore[arg-type]

        plant.link.transact = slower  # type: ignore[method-assign, assignment]
        async with plant.running():
            await asyncio.sleep(300.0)
            assert plant.line.device_states() == {"a": "slow"}
            since = clock.mono()
            await asyncio.sleep(10.0)
        assert known.get("a", Learnt()) == Learnt()
        assert not known.ever
        assert len(values(plant, "a", since)) == 101

    in_virtual_time(test)


def test_a_hole_at_which_a_device_keeps_silent_is_not_bridged() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, 100, 101, 110, 111), learnt=known)
        plant.link.silent_at = {105}
        async with plant.running():
            await asyncio.sleep(3600.0)
            assert plant.line.device_states() == {"a": "ok"}
            since = clock.mono()
            await asyncio.sleep(5.0)
        assert len(values(plant, "a", since)) == 4
        assert known["a"].illegal == known["a"].silent == (("holding", (102, 110)),)

    in_virtual_time(test)


def test_replies_that_get_lost_now_and_then_prove_nothing() -> None:
    async def test(clock: LoopClock) -> None:
        known = Known()
        plant = plant_of(clock, device("a", 1, *range(100, 120), 300), learnt=known)
        answer = plant.link.transact
        chance = random.Random(7)

        async def lossy(unit: int, function: int, body: bytes, **times: float) -> Any:
            plant.link.delay[1] = None if chance.random() < 0.15 else 0.002
            return await answer(unit, function, body, **times)  # type: ignore[arg-type]

        plant.link.transact = lossy  # type: ignore[method-assign, assignment]
        async with plant.running():
            await asyncio.sleep(3600.0)
        assert known.get("a", Learnt()) == Learnt()
        assert not known.ever
        assert "degraded" not in plant.line.device_states().values()

    in_virtual_time(test)

"""When a silent device is tried again, alone on its line: the connection that is renewed meanwhile changes nothing."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from agent.config.types import Retry
from tests.modbus.plant import Plant, device, request
from tests.modbus.virtual import LoopClock, in_virtual_time


@pytest.mark.parametrize(("first", "most"), [(30.0, 300.0), (10.0, 40.0), (60.0, 60.0)])
@pytest.mark.parametrize("every", [0.1, 1.0, 60.0])
def test_a_silent_device_is_tried_each_second_then_after_first_then_twice_as_long(
    first: float, most: float, every: float
) -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("dead", 1, retry=Retry(first, most))], [request("dead", 1, every=every)])
        plant.link.delay[1] = None
        async with plant.running():
            await asyncio.sleep(60.0 + 8 * most)
        tries = [at for at, _, _, _ in plant.link.sent]
        early = [at for at in tries if at - tries[0] < 30.0]
        assert 29 <= len(early) <= 32
        assert max(b - a for a, b in itertools.pairwise(early)) <= 1.05
        gaps = [b - a for a, b in itertools.pairwise(tries[len(early) - 1 :])]
        if gaps[0] <= 1.5:
            del gaps[0]  # the try with which the 30 s are over
        wanted = [min(first * 2**k, most) for k in range(len(gaps))]
        assert gaps == pytest.approx(wanted, abs=1.0)  # from the end of a try to the next
        assert len(plant.link.attempts) >= 3  # it was renewed

    in_virtual_time(test)


def test_a_device_is_tried_at_once_when_the_connection_was_down_and_is_back() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        plant.link.delay[1] = None
        async with plant.running():
            await asyncio.sleep(400.0)  # the next try is minutes away
            plant.link.up = False
            while plant.link.connected or plant.line.device_states()["a"] != "link":
                await asyncio.sleep(1.0)  # until it is renewed, in vain
            plant.link.delay[1] = 0.002
            plant.link.up = True
            back = clock.mono()
            await asyncio.sleep(31.0)
            assert plant.line.device_states() == {"a": "ok"}
        answered = next(reply.t for reply in plant.of("a") if reply.payload is not None)
        connected = next(at for at in plant.link.attempts if at >= back)
        assert answered - connected < 0.1

    in_virtual_time(test)

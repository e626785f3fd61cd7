"""Silent addresses and guests over real sockets and ports: what a missing reply costs depends on the framing."""

from __future__ import annotations

import asyncio
import random

import pytest

from agent.config.types import Device, Tag, Url
from agent.modbus.line import Line, Reply
from agent.modbus.plan import Learnt, Request, plan_device
from agent.runtime.clock import SystemClock
from tests.modbus.faultserver import FaultServer, registers

ADDRESSES = (*range(100, 108), 300)


def device(name: str, unit: int, url: Url) -> Device:
    tags = {f"t{at}": Tag(f"t{at}", "holding", at, type="uint16", every=0.2) for at in ADDRESSES}
    return Device(name, url, unit=unit, timeout=0.1, tags=tags)


async def serving(server: FaultServer, scheme: str) -> Url:
    if scheme == "rtu":
        path = await server.start_on_a_port()
        return Url(f"rtu://{path}", "rtu", path=path, baud=115200)
    server.rtu = scheme == "rtu+tcp"
    await server.start()
    return Url(f"{scheme}://127.0.0.1:{server.port}", scheme, "127.0.0.1", server.port)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp", "rtu"])
def test_a_silent_address_is_learnt_and_guests_are_answered(scheme: str) -> None:
    async def test() -> None:
        server = FaultServer(in_order=True, silent_at={104}, silent_units={9})
        url = await serving(server, scheme)
        learnt: dict[str, Learnt] = {}
        replies: list[tuple[Request, Reply]] = []
        devices = [device("a", 1, url), device("b", 2, url)]
        clock = SystemClock()
        line = Line(
            url,
            devices,
            {one.name: plan_device(one, cautious=True) for one in devices},
            clock=clock,
            on_reply=lambda request, reply: replies.append((request, reply)),
            on_scan=lambda done: None,
            on_event=lambda event: None,
            rng=random.Random(1),
            on_learnt=learnt.__setitem__,
        )
        task = asyncio.create_task(line.run())
        end = clock.mono() + 90.0
        while not all(learnt.get(name, Learnt()).refused for name in ("a", "b")):
            assert clock.mono() < end, learnt
            await asyncio.sleep(0.05)
        answered = 0
        for number in (9, 1, 9, 2):
            heard = await line.guest(
                number, 3, b"\x01\x2c\x00\x01", timeout=0.1, deadline=clock.mono() + 30.0
            )
            answered += heard.answer is not None and heard.answer.payload == registers(300, 1)
            assert (heard.answer is None) == (number == 9)
        known = len(replies)
        while len({tag for request, reply in replies[known:] if reply.payload for tag in request.tags}) < 8:
            assert clock.mono() < end
            await asyncio.sleep(0.05)
        await line.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop()
        assert answered == 2
        assert {name: known.refused for name, known in learnt.items()} == {"a": {"t104"}, "b": {"t104"}}
        for request, reply in replies:
            assert reply.payload is None or reply.payload == registers(request.address, request.count)

    asyncio.run(test())

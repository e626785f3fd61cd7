"""What stands behind a bridged hole is compared with what it is without it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Literal

import pytest

from agent.config.types import Device, Tag, Url
from agent.modbus.holes import Holes, bridged
from agent.modbus.plan import Learnt, plan_device
from tests.modbus.faultserver import Asked, Conversation, FaultServer, registers
from tests.modbus.plant import URL, Plant
from tests.modbus.test_line_socket import Site
from tests.modbus.virtual import LoopClock, in_virtual_time

Memory = Callable[[int, int], int]
"""(address, number of the read) -> word"""


def device(*addresses: int, type: str = "uint16", table: str = "holding") -> Device:
    kind = {"type": type} if table in ("holding", "input") else {"type": "bool"}
    tags = {
        f"t{address}": Tag(f"t{address}", table, address, **kind)  # type: ignore[arg-type]
        for address in addresses
    }
    return Device("d", URL, tags=tags)


def compared(
    device: Device, memory: Memory, left_out: frozenset[int] = frozenset(), *, until: float = 3000.0
) -> tuple[Holes, list[tuple[int, int]], int]:
    """Lets a device answer until nothing is asked before `until`; (holes, distrusted spans, reads)."""
    holes = Holes(device, (), plan_device(device))
    distrusted, reads = [], 0
    while (now := holes.wanted_at()) < until:
        request = holes.next(now)
        assert request is not None
        reads += 1
        there = [at for at in range(request.address, request.address + 200) if at not in left_out]
        payload = b"".join(memory(at, reads).to_bytes(2, "big") for at in there[: request.count])
        proof = holes.told(payload, now)
        if proof is not None and not proof.trusted:
            distrusted.append(proof.span)
            # a distrusted hole is not in the next plan
            holes.plan(plan_device(device, Learnt(illegal=((proof.table, proof.span),))))
    return holes, distrusted, reads


def test_which_holes_a_request_bridges() -> None:
    whole = device(100, 101, 105, 110, 111)
    [request] = plan_device(whole)
    assert [(hole.span, hole.part.address, hole.part.count) for hole in bridged(request, whole)] == [
        ((102, 105), 105, 1),
        ((106, 110), 110, 2),
    ]
    for without in (device(*range(100, 110)), device(100, 104, table="coil")):
        [request] = plan_device(without)
        assert bridged(request, without) == []


def test_an_honest_device_is_trusted_after_one_comparison() -> None:
    holes, distrusted, reads = compared(device(100, 101, 105, 106), lambda at, read: at)
    assert (distrusted, reads) == ([], 4)
    assert holes.wanted_at() == float("inf")
    holes.plan(plan_device(device(100, 101, 105, 106)))
    assert holes.next(0.0) is None  # still trusted


@pytest.mark.parametrize("addresses", [(100, 101, 105, 106), (100, 105), (100, 101, 102, 105, 106, 107, 108)])
@pytest.mark.parametrize("undefined", [{102}, {103, 104}, {102, 103, 104}])
def test_a_shift_is_found(addresses: tuple[int, ...], undefined: set[int]) -> None:
    if 102 in addresses:
        undefined = undefined - {102} or {103}
    _, distrusted, reads = compared(device(*addresses), lambda at, read: at, frozenset(undefined))
    first = 103 if 102 in addresses else 102 if 101 in addresses else 101
    assert distrusted == [(first, 105)]
    assert reads == 12


def test_a_shift_among_equal_values_is_found() -> None:
    values = {105: 230, 106: 230, 107: 230, 108: 17}
    whole = device(100, *values)
    _, distrusted, _ = compared(whole, lambda at, read: values.get(at, 7), frozenset({103}))
    assert distrusted == [(101, 105)]


def test_zeros_prove_nothing_and_are_looked_at_again() -> None:
    whole = device(100, 105, 106)
    dark = {100: 9}
    holes, distrusted, _ = compared(whole, lambda at, read: dark.get(at, 0), frozenset({103}), until=1.0)
    assert distrusted == []
    assert 1.0 < holes.wanted_at() < float("inf")

    def day(at: int, read: int) -> int:
        return at if read > 24 else dark.get(at, 0)

    _, distrusted, _ = compared(whole, day, frozenset({103}))
    assert distrusted == [(101, 105)]


@pytest.mark.parametrize(
    "moves",
    [
        lambda rng, at, read: read & 1,  # a toggle
        lambda rng, at, read: 40_000 + read,  # a counter
        lambda rng, at, read: 230 + read // 3 % 2,
        lambda rng, at, read: 500 + rng.randrange(-3, 4),  # noise
        lambda rng, at, read: rng.randrange(4),
        lambda rng, at, read: at if rng.random() < 0.5 else 0,
    ],
)
def test_values_that_move_are_no_shift(moves: Callable[[random.Random, int, int], int]) -> None:
    for seed in range(150):
        rng = random.Random(seed)
        moving = set(rng.sample([100, 101, 105, 106, 107, 108], rng.randrange(1, 7)))

        def memory(at: int, read: int, rng: random.Random = rng, moving: set[int] = moving) -> int:
            return moves(rng, at, read) if at in moving else at

        _, distrusted, _ = compared(device(100, 101, 105, 106, 107, 108), memory)
        assert distrusted == [], seed


def test_a_shift_is_found_though_some_values_move() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        moving = set(rng.sample([101, 106, 108], 2))

        def memory(at: int, read: int, rng: random.Random = rng, moving: set[int] = moving) -> int:
            return rng.randrange(1000, 60_000) if at in moving else at

        _, distrusted, _ = compared(device(100, 101, 105, 106, 107, 108), memory, frozenset({102, 103}))
        assert distrusted == [(102, 105)], seed


def test_a_part_that_cannot_be_read_is_put_off() -> None:
    whole = device(100, 105)
    holes = Holes(whole, (), plan_device(whole))
    assert holes.next(5.0) is not None
    assert holes.told(None, 5.0) is None
    assert holes.next(6.0) is None
    assert holes.wanted_at() == 65.0


def test_the_line_learns_the_hole_and_reads_right_values_from_then_on() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(100, 101, 105, 106)
        kept: dict[str, Learnt] = {}
        made = Plant(clock, [whole], plan_device(whole), on_learnt=kept.__setitem__)
        made.link.left_out = {103}
        async with made.running():
            await asyncio.sleep(3.0)
            assert made.told("hole_distrusted") == ["raised"]
            [told] = [event for event in made.events if event.name == "hole_distrusted"]
            assert "holding 102-104" in told.text
            assert kept["d"] == Learnt(illegal=(("holding", (102, 105)),))
            assert made.line.status()["devices"]["d"]["learnt"] == ["avoid: [holding 102-104]"]
            before = len(made.replies)
            await asyncio.sleep(3.0)
            later = made.replies[before:]
            assert {(request.address, request.count) for request, _ in later} == {(100, 2), (105, 2)}
            assert all(reply.payload == registers(request.address, request.count) for request, reply in later)

    in_virtual_time(test)


def test_no_value_from_behind_a_hole_is_handed_on_before_the_hole_is_proven() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(100, 101, 105, 106)
        for left_out, want in ((set(), {(100, 7)}), ({103}, {(100, 2), (105, 2)})):
            made = Plant(clock, [whole], plan_device(whole, cautious=True))
            made.link.left_out = left_out
            async with made.running():
                await asyncio.sleep(5.0)
                before = len(made.replies)
                await asyncio.sleep(2.0)
            assert {(request.address, request.count) for request, _ in made.replies[before:]} == want
            for request, reply in made.replies:
                assert reply.payload == registers(request.address, request.count), (
                    "a shifted value was handed on"
                )

    in_virtual_time(test)


def test_comparing_ends_and_waits_for_spare_time() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(100, 101, 105, 106)
        made = Plant(clock, [whole], plan_device(whole))
        async with made.running():
            await asyncio.sleep(10.5)
        assert made.told("hole_distrusted") == []
        assert len(made.link.sent) == 4 + len(made.replies)
        assert all(scan.started - scan.due < 0.003 for scan in made.scans_of("d"))

    in_virtual_time(test)


async def _shifting(here: Conversation, asked: Asked) -> None:
    """A device without register 103, which it leaves out."""
    there = [at for at in range(asked.address, asked.address + asked.count + 1) if at != 103]
    data = b"".join(at.to_bytes(2, "big") for at in there[: asked.count])
    await here.send(here.frame(asked, bytes((asked.function, len(data))) + data))


@pytest.mark.parametrize("rtu", [False, True])
def test_over_a_socket(rtu: bool) -> None:
    async def test() -> None:
        server = await FaultServer(rtu=rtu).start()
        server.break_next(_shifting, times=1_000_000)
        scheme: Literal["tcp", "rtu+tcp"] = "rtu+tcp" if rtu else "tcp"
        url = Url(f"{scheme}://127.0.0.1:{server.port}", scheme, "127.0.0.1", server.port)
        site = Site(url, {"d": 1}, list(plan_device(device(100, 101, 105, 106))), timeout=2.0)
        try:
            async with site.running():
                async with asyncio.timeout(20.0):
                    while not any(event.name == "hole_distrusted" for event in site.events):
                        await asyncio.sleep(0.01)
                before, wrong = len(site.replies), site.wrong
                async with asyncio.timeout(20.0):
                    while len(site.replies) < before + 4:
                        await asyncio.sleep(0.01)
            assert 7 in {asked.count for asked in server.asked}  # read across the hole, to compare
            assert site.wrong == wrong
        finally:
            await server.stop()

    asyncio.run(test())

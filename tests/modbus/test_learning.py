"""What a device refuses is found by halving; all that can be read is read."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from agent.config.types import Device, Limits, Tag
from agent.modbus.learning import Learner
from agent.modbus.plan import NOTHING_LEARNT, Learnt, Request, plan_device
from agent.twin.quality import Quality
from tests.modbus.plant import URL, Plant
from tests.modbus.virtual import LoopClock, in_virtual_time


def device(*addresses: int, type: str = "uint16", **limits: int) -> Device:
    tags = {f"t{address}": Tag(f"t{address}", "holding", address, type=type) for address in addresses}
    return Device("d", URL, tags=tags, limits=Limits(**limits))


def learn(
    device: Device, refused: set[int], longest: int = 125, most: int = 60, known: Learnt = NOTHING_LEARNT
) -> tuple[Learner, int]:
    """Plans and studies until every planned request is answered; returns the learner and the reads it took."""
    learner = Learner(device, known)
    reads = 0

    def ok(request: Request) -> bool:
        span = range(request.address, request.address + request.count)
        return request.count <= longest and not refused.intersection(span)

    for now in range(0, 1000, 100):
        bad = [one for one in learner.plan() if not ok(one) and not learner.is_refused(one)]
        if not bad:
            return learner, reads
        learner.refused(bad[0], float(now))
        while learner.wanted_at() == float("-inf"):
            request = learner.next(float(now))
            assert request is not None
            reads += 1
            assert reads <= most
            learner.told(request, ok(request), float(now))
    raise AssertionError("never came to an end")


def test_one_refused_address_costs_its_own_tag_only() -> None:
    learner, reads = learn(device(*range(100, 140)), {117})
    assert learner.learnt.refused == {"t117"}
    assert reads <= 14
    read = {name for request in learner.plan() if not learner.is_refused(request) for name in request.tags}
    assert read == {f"t{address}" for address in range(100, 140)} - {"t117"}
    assert all(
        117 not in range(request.address, request.address + request.count)
        for request in learner.plan()
        if not learner.is_refused(request)
    )


def test_a_hole_that_cannot_be_read_is_not_bridged_again() -> None:
    trusted = (("holding", (103, 110)),)  # as a device may be changed behind the same address
    learner, _ = learn(device(100, 101, 102, 110, 111), {105}, known=Learnt(trusted=trusted))
    assert learner.learnt == Learnt(illegal=trusted, trusted=trusted)
    assert learner.as_yaml() == ["avoid: [holding 103-109]"]


@pytest.mark.parametrize("longest", [1, 2, 7, 50, 80, 124])
def test_the_longest_request_is_found(longest: int) -> None:
    learner, _ = learn(device(*range(0, 125)), set(), longest)
    assert learner.learnt == Learnt(longest=longest)
    assert learner.as_yaml() == [f"limits: {{registers: {longest}}}"]
    assert max(request.count for request in learner.plan()) <= longest


def test_several_causes_at_once() -> None:
    whole = device(*range(0, 40), *range(60, 100))
    learner, _ = learn(whole, {3, 50, 77}, longest=30)
    assert learner.learnt.refused == {"t3", "t77"}
    assert learner.learnt.longest <= 30
    read = {name for request in learner.plan() if not learner.is_refused(request) for name in request.tags}
    assert read == set(whole.tags) - {"t3", "t77"}


def test_no_limit_is_learnt_that_a_tag_does_not_fit_in() -> None:
    learner, _ = learn(device(0, 4, 8, 12, type="float64"), set(), longest=4)
    assert learner.learnt.longest in (0, 4)
    assert [request.count for request in learner.plan()] == [4, 4, 4, 4]


def test_a_device_that_refuses_everything_teaches_nothing() -> None:
    learner = Learner(device(1, 2, 3))
    [request] = learner.plan()
    learner.refused(request, 0.0)
    while (asked := learner.next(0.0)) is not None:
        assert not learner.told(asked, False, 0.0)
    assert learner.learnt == Learnt()
    learner.refused(request, 1.0)
    assert learner.next(1.0) is None  # not at each scan
    learner.refused(request, 31.0)
    assert learner.next(31.0) is not None


def test_a_refused_tag_is_tried_again_and_comes_back() -> None:
    learner, _ = learn(device(1, 2, 3), {2})
    at = learner.wanted_at()
    waits = []
    for _ in range(12):
        request = learner.next(at)
        assert request is not None and request.tags == ("t2",)
        assert not learner.told(request, False, at)
        waits.append(learner.wanted_at() - at)
        at = learner.wanted_at()
    assert waits[0] == 10.0
    assert waits == sorted(waits)
    assert waits[-1] == 3600.0
    assert learner.told(request, True, at)
    assert learner.learnt == Learnt()


def test_the_line_reads_all_that_can_be_read() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(*range(100, 120), *range(130, 140))
        made = Plant(clock, [whole], plan_device(whole))
        made.link.refused = {104, 125}
        async with made.running():
            await asyncio.sleep(2.0)
            good = {
                name for request, reply in made.replies if reply.payload is not None for name in request.tags
            }
            assert good == set(whole.tags) - {"t104"}
            before = len(made.replies)
            await asyncio.sleep(1.0)
            last = {name: reply for request, reply in made.replies[before:] for name in request.tags}
            assert last["t104"].quality is Quality.ILLEGAL
            assert last["t104"].rtt is None  # it was not asked again
            assert all(reply.payload is not None for name, reply in last.items() if name != "t104")
            assert made.line.device_states() == {"d": "degraded"}
            learnt = made.line.status()["devices"]["d"]["learnt"]
            assert learnt == ["avoid: [holding 120-129]", "# t104: the device refuses holding 104"]
            assert [event.tag for event in made.events if event.name == "address_refused"] == ["t104"]
            made.link.refused = set()
            await asyncio.sleep(30.0)
            assert made.line.device_states() == {"d": "ok"}
            assert made.told("address_refused") == ["raised", "cleared"]

    in_virtual_time(test)


def test_what_was_learnt_is_handed_on_and_taken_back() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(*range(100, 110))
        kept: dict[str, Learnt] = {}
        for _ in range(2):
            made = Plant(clock, [whole], plan_device(whole), learnt=kept, on_learnt=kept.__setitem__)
            made.link.refused = {104}
            async with made.running():
                await asyncio.sleep(5.0)
        assert kept["d"].refused == {"t104"}
        assert made.events == []
        asked = [(body[1], body[3]) for _, _, _, body in made.link.sent]
        assert [one for one in asked if 104 in range(one[0], sum(one))] == [(104, 1)]  # once, by itself

    in_virtual_time(test)


def test_a_busy_answer_teaches_nothing() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(*range(100, 110))
        made = Plant(clock, [whole], plan_device(whole))
        made.link.exceptions[1] = 2
        async with made.running():
            await asyncio.sleep(1.001)
            made.link.exceptions[1] = 6
            await asyncio.sleep(5.0)
            del made.link.exceptions[1]
            await asyncio.sleep(3.0)
            assert made.line.status()["devices"]["d"]["learnt"] == []
            assert made.line.device_states() == {"d": "ok"}

    in_virtual_time(test)


def test_learning_waits_for_spare_time() -> None:
    async def test(clock: LoopClock) -> None:
        whole = device(*range(100, 120))
        other = dataclasses.replace(
            device(5), name="fast", unit=2, tags={"x": Tag("x", "holding", 5, every=0.1)}
        )
        made = Plant(clock, [whole, other], [*plan_device(whole), *plan_device(other)])
        made.link.delay[1] = 0.03
        made.link.refused = {104}
        async with made.running():
            await asyncio.sleep(10.0)
        late = [scan.started - scan.due for scan in made.scans_of("fast")]
        assert sum(one > 0.005 for one in late) <= 12  # behind the slow one's own scans only
        assert made.told("address_refused") == ["raised"]

    in_virtual_time(test)


def test_what_is_not_even_refused_is_remembered_as_silent() -> None:
    learner = Learner(device(*range(100, 110), 120))
    (request,) = [one for one in learner.goal() if one.address == 100 and one.count == 21]
    learner.refused(request, 0.0, silent=True)
    assert learner.wary
    while learner.studying:
        node = learner.next(0.0)
        assert node is not None
        hit = {104, 115}.intersection(range(node.address, node.address + node.count))
        learner.told(node, not hit, 0.0, silent=bool(hit))
    assert learner.learnt.refused == {"t104"}
    hole = ("holding", (110, 120))
    assert learner.learnt.silent == learner.learnt.illegal == (("holding", (104, 105)), hole)
    assert learner.as_yaml() == [
        "avoid: [holding 110-119]",
        "# t104: the device keeps silent at holding 104",
    ]
    assert learner.wary  # at the next try too
    again = learner.next(3600.0)
    assert again is not None and again.tags == ("t104",)
    learner.told(again, True, 3600.0)
    assert learner.learnt.silent == learner.learnt.illegal == (hole,)

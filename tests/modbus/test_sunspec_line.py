"""A line that finds its tags by the device's own chain, in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from agent.config.sunspec import Model, at_usual_places
from agent.config.types import Device, SunSpec, Tag
from agent.modbus.encode import WireWrite
from agent.modbus.faults import LinkFault
from agent.modbus.plan import Request, plan_device
from agent.modbus.sunspec import BASES, marks
from agent.twin.quality import Quality
from tests.modbus.plant import Plant, device, request
from tests.modbus.virtual import LoopClock, in_virtual_time

MODELS = (Model(1, 40002, 66), Model(103, 40070, 50))


def inverter(*, every: float = 1.0, wants: tuple[int, int] = (101, 103), plain: bool = False) -> Device:
    tags = {
        "maker": Tag("maker", "holding", 0, "string", length=32, every=every, sunspec=SunSpec(1, 1, 2)),
        "power": Tag("power", "holding", 0, "int16", every=every, sunspec=SunSpec(*wants, 14)),
        "power_sf": Tag("power_sf", "holding", 0, "int16", every=every, sunspec=SunSpec(*wants, 15)),
    }
    if plain:
        tags["plain"] = Tag("plain", "holding", 7, every=every)
    return device("inv", 1, tags=at_usual_places(tags))


class Inverter(Plant):
    """A line with an inverter that has these registers and refuses all others, and devices beside it."""

    def __init__(
        self, clock: LoopClock, own: Device, *others: tuple[Device, Request], **options: Any
    ) -> None:
        self.placed: list[Device] = []
        requests = [*plan_device(own, cautious=True), *(request for _, request in others)]
        devices = [own, *(one for one, _ in others)]
        super().__init__(clock, devices, requests, on_placed=self.placed.append, **options)

    def has(self, base: int | None, *models: Model) -> None:
        """The chain from now on; bodies count up from 0 in each model."""
        words = {} if base is None else marks(base, models)
        for model in models:
            words |= {model.address + 2 + k: k for k in range(model.length)}
        self.link.written = {**words, 7: 777, 100: 1, 101: 2}
        self.link.refused = set(range(65536)) - self.link.written.keys()

    def reads(self, after: float = 0.0) -> list[tuple[int, int]]:
        """(address, count) of what the inverter was asked for."""
        return [
            (int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big"))
            for t, unit, function, body in self.link.sent
            if unit == 1 and function == 3 and t >= after
        ]

    def last(self) -> dict[str, Quality]:
        return {
            tag: reply.quality
            for request, reply in self.replies
            for tag in request.tags
            if request.device == "inv"
        }

    def texts(self, name: str = "sunspec_chain") -> list[tuple[str, str]]:
        return [(event.state, event.text) for event in self.events if event.name == name]


@pytest.mark.parametrize(("base", "length"), [(40000, 66), (40000, 65), (50000, 65), (0, 66)])
def test_any_base_and_both_lengths(base: int, length: int) -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        first = base + 2 + 2 + length
        made.has(base, Model(1, base + 2, length), Model(103, first, 50))
        async with made.running():
            await asyncio.sleep(10.0)
            tried = BASES[: BASES.index(base) + 1]
            walk = [(one, 2) for one in (*tried, base + 2, first, first + 52)]
            assert made.reads()[: len(walk)] == walk
            rest = made.reads()[len(walk) :]
            assert (base + 4, 16) in rest or any(a <= base + 4 and a + c >= first + 16 for a, c in rest)
            assert not set(walk) & set(rest)  # once
            assert set(made.last().values()) == {Quality.GOOD}
            assert made.line.placements["inv"].device.tags["power"].address == first + 14
            assert len(made.scans_of("inv")) >= 9
            assert made.texts() == []
            assert made.line.device_states() == {"inv": "ok"}

    in_virtual_time(test)


def test_no_chain_is_told_once_and_other_tags_are_read() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter(plain=True))
        made.has(None)
        async with made.running():
            await asyncio.sleep(100.0)
            words = "no SunSpec marker at 40000, 50000 or 0"
            assert made.texts() == [("raised", f"inv: {words}")]
            assert made.last() == {
                "maker": Quality.ILLEGAL,
                "power": Quality.ILLEGAL,
                "power_sf": Quality.ILLEGAL,
                "plain": Quality.GOOD,
            }
            assert {reply.words for reply in made.of("inv") if reply.payload is None} == {words}
            status = made.line.status()["devices"]["inv"]
            assert (status["state"], status["problem"]) == ("degraded", words)
            assert f"# {words}" in status["learnt"]
            assert made.reads().count((40000, 2)) == 3  # at first, after 30 s and 60 s later
            assert len(made.scans_of("inv")) >= 99
            made.has(40000, *MODELS)
            await asyncio.sleep(130.0)
            assert made.texts()[1:] == [("cleared", "inv: its SunSpec chain has all its tags")]
            assert set(made.last().values()) == {Quality.GOOD}
            assert made.line.device_states() == {"inv": "ok"}

    in_virtual_time(test)


def test_the_other_kind_of_model_names_its_profile() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(40000, MODELS[0], Model(113, 40070, 60))
        async with made.running():
            await asyncio.sleep(5.0)
            words = "no model 101-103 in the SunSpec chain; there are 1, 113; profile sunspec-float has them"
            assert made.texts() == [("raised", f"inv: {words}")]
            assert made.last() == {
                "maker": Quality.GOOD,
                "power": Quality.ILLEGAL,
                "power_sf": Quality.ILLEGAL,
            }

    in_virtual_time(test)


def test_a_chain_that_moved_while_the_connection_was_gone() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(40000, *MODELS)
        async with made.running():
            await asyncio.sleep(5.0)
            assert [one.tags["power"].address for one in made.placed] == []  # as it was planned
            made.link.drop()
            made.has(0, Model(1, 2, 65), Model(103, 69, 50))
            made.link.up = True
            t = clock.mono()
            await asyncio.sleep(5.0)
            assert made.reads(t)[:6] == [(40000, 2), (50000, 2), (0, 2), (2, 2), (69, 2), (121, 2)]
            assert all(a < 200 for a, _ in made.reads(t)[3:])
            assert [one.tags["power"].address for one in made.placed] == [83]
            assert made.told("sunspec_moved") == ["raised"]
            assert set(made.last().values()) == {Quality.GOOD}
            assert not made.told("address_refused")

    in_virtual_time(test)


def test_a_device_that_was_silent_is_walked_before_it_is_read() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(40000, *MODELS)
        async with made.running():
            await asyncio.sleep(5.0)
            made.link.delay[1] = None
            await asyncio.sleep(5.0)
            assert set(made.last().values()) == {Quality.TIMEOUT}
            made.has(0, Model(1, 2, 65), Model(103, 69, 50))
            made.link.delay[1] = 0.002
            t = clock.mono()
            await asyncio.sleep(5.0)
            assert made.reads(t)[:3] == [(40000, 2), (50000, 2), (0, 2)]
            assert set(made.last().values()) == {Quality.GOOD}

    in_virtual_time(test)


def test_silence_during_the_walk_and_a_busy_device() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(40000, *MODELS)
        made.link.delay[1] = None
        async with made.running():
            await asyncio.sleep(5.0)
            assert set(made.last().values()) == {Quality.TIMEOUT}
            assert set(made.reads()) == {(40000, 2)}
            made.link.delay[1] = 0.002
            made.link.exceptions[1] = 6
            await asyncio.sleep(5.0)
            assert set(made.reads()) == {(40000, 2)}
            assert len(made.reads()) < 80  # not in a storm
            made.link.exceptions.clear()
            await asyncio.sleep(3.0)
            assert set(made.last().values()) == {Quality.GOOD}

    in_virtual_time(test)


def test_a_device_that_lacks_everything_and_falls_silent_comes_back() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(None)
        async with made.running():
            await asyncio.sleep(5.0)
            made.link.delay[1] = None
            await asyncio.sleep(60.0)  # the next walk is not answered
            assert set(made.last().values()) == {Quality.TIMEOUT}
            made.has(40000, *MODELS)
            made.link.delay[1] = 0.002
            await asyncio.sleep(60.0)
            assert set(made.last().values()) == {Quality.GOOD}
            assert all(count for _, count in made.reads())

    in_virtual_time(test)


def test_a_rare_scan_is_read_soon_although_the_walk_takes_many_reads() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter(every=3600.0))
        made.has(40000, *MODELS)
        async with made.running():
            await asyncio.sleep(5.0)
            assert set(made.last().values()) == {Quality.GOOD}
            made.link.delay[1] = None
            made.link.drop()
            made.link.up = True
            await asyncio.sleep(5.0)
            made.has(0, Model(1, 2, 65), Model(103, 69, 50))
            made.link.delay[1] = 0.002
            await asyncio.sleep(5.0)
            assert set(made.last().values()) == {Quality.GOOD}
            assert made.line.placements["inv"].device.tags["power"].address == 83

    in_virtual_time(test)


def test_the_walk_costs_the_other_devices_nothing() -> None:
    async def test(clock: LoopClock) -> None:
        other = device("other", 2, every=0.05)
        made = Inverter(clock, inverter(), (other, request("other", 2, every=0.05)))
        long = tuple(Model(103 if k == 40 else 700, 40002 + 12 * k, 10 if k != 40 else 50) for k in range(41))
        made.has(40000, *long)
        made.link.refused -= {100, 101}
        made.link.delay[1] = 0.01
        async with made.running():
            await asyncio.sleep(10.0)
            assert len(made.reads()) > 45
            passes = made.scans_of("other")
            assert made.line.scans()["other/50ms"]["overruns"] == 0
            assert max(scan.started - scan.due for scan in passes) <= 0.011
            assert all(scan.ok == 1 for scan in passes)

    in_virtual_time(test)


WIRE = WireWrite(1, 6, 40084, words=(5,))


def test_nothing_is_written_where_the_tag_was() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(40000, *MODELS)
        async with made.running():
            await asyncio.sleep(2.0)
            placement = await made.line.placed("inv", deadline=clock.mono() + 1.0)
            assert placement.device.tags["power"].address == 40084
            await made.line.write("inv", WIRE, deadline=clock.mono() + 1.0)
            assert made.link.written[40084] == 5
            made.link.drop()
            made.has(0, Model(1, 2, 65), Model(103, 69, 50))
            made.link.up = True
            with pytest.raises(LinkFault, match="others now, as its SunSpec chain says"):
                await made.line.write("inv", WIRE, deadline=clock.mono() + 5.0)
            assert 40084 not in made.link.written
            placement = await made.line.placed("inv", deadline=clock.mono() + 1.0)
            assert placement.device.tags["power"].address == 83

    in_virtual_time(test)


def test_a_line_without_scans_walks_for_whoever_asks() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.line = type(made.line)(
            made.line.url,
            [inverter()],
            {},
            clock=clock,
            on_reply=lambda request, reply: None,
            on_scan=lambda done: None,
            on_event=lambda event: None,
            rng=random.Random(1),
            link=made.link,
        )
        made.has(50000, Model(1, 50002, 65), Model(103, 50069, 50))
        async with made.running():
            placement = await made.line.placed("inv", deadline=clock.mono() + 5.0)
            assert placement.device.tags["power"].address == 50083
            assert placement.absent == {}

    in_virtual_time(test)


def test_learning_goes_on_at_the_addresses_of_the_chain() -> None:
    async def test(clock: LoopClock) -> None:
        made = Inverter(clock, inverter())
        made.has(50000, Model(1, 50002, 65), Model(103, 50069, 50))
        made.link.refused.add(50083)
        async with made.running():
            await asyncio.sleep(30.0)
            assert made.last() == {
                "maker": Quality.GOOD,
                "power": Quality.ILLEGAL,
                "power_sf": Quality.GOOD,
            }
            texts = [event.text for event in made.events if event.name == "address_refused"]
            assert texts == ["inv: the device refuses holding 50083 (power); the other tags are read"]

    in_virtual_time(test)

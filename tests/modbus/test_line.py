"""The line in virtual time: grids, silent and slow units, outages, writes."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from agent.config.types import Limits, Retry
from agent.modbus.codec import WireWrite
from agent.modbus.faults import DeviceFault, LinkFault
from agent.twin.quality import Quality
from tests.modbus.faultserver import registers
from tests.modbus.plant import Plant, device, request
from tests.modbus.virtual import LoopClock, in_virtual_time


def test_scans_stay_on_their_grid() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(
            clock, [device("a", 1), device("b", 2)], [request("a", 1, every=0.05), request("b", 2, every=1.0)]
        )
        async with plant.running():
            await asyncio.sleep(60.0)
        fast = plant.scans_of("a")
        assert len(fast) in (1199, 1200, 1201)
        assert [scan.k for scan in fast] == list(range(len(fast)))
        for scan in fast:
            assert scan.due == pytest.approx(fast[0].due + scan.k * 0.05, abs=1e-6)
            assert 0.0 <= scan.started - scan.due < 0.005
        assert len(plant.scans_of("b")) in (59, 60)
        phases = {plant.scans_of(name)[0].due % 0.05 for name in ("a", "b")}
        assert len(phases) == 2
        assert all(reply.payload == registers(100, 2) for reply in plant.of("a"))
        told = plant.line.scans()["a/50ms"]
        assert told["done"] == len(fast)
        assert told["overruns"] == 0

    in_virtual_time(test)


def test_an_overrun_is_skipped_and_counted() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=0.1)])
        plant.link.delay[1] = 0.25
        async with plant.running():
            await asyncio.sleep(30.0)
        scans = plant.scans_of("a")
        assert 90 <= len(scans) <= 125
        assert all(abs((scan.due - scans[0].due) / 0.1 % 1.0 - 0.5) > 0.49 for scan in scans)  # on the grid
        overruns = plant.line.scans()["a/100ms"]["overruns"]
        assert 290 <= overruns + len(scans) <= 300
        assert all(reply.payload for reply in plant.of("a"))

    in_virtual_time(test)


def test_a_dead_unit_costs_its_neighbour_nothing() -> None:
    async def test(clock: LoopClock) -> None:
        devices = [device("good", 1), device("dead", 2, timeout=0.5)]
        plant = Plant(clock, devices, [request("good", 1, every=0.1), request("dead", 2, every=1.0)])
        plant.link.delay[2] = None
        async with plant.running():
            await asyncio.sleep(600.0)
            assert plant.line.device_states() == {"good": "ok", "dead": "silent"}
        late = [scan.started - scan.due for scan in plant.scans_of("good")]
        assert len(late) >= 5990
        # the first request, before anybody knew, took its whole timeout; after it nothing is late
        assert sum(one > 0.005 for one in late) <= 6
        assert all(one < 0.005 for one in late[60:])
        dead = plant.scans_of("dead")
        assert len(dead) in (599, 600)
        assert all((scan.ok, scan.failed) == (0, 1) for scan in dead)
        assert all(reply.quality is Quality.TIMEOUT for reply in plant.of("dead"))
        assert plant.told("device_silent") == ["raised"]

    in_virtual_time(test)


def test_tries_of_a_silent_unit_become_rare() -> None:
    async def test(clock: LoopClock) -> None:
        devices = [device("good", 1), device("dead", 2, retry=Retry(30.0, 300.0))]
        plant = Plant(clock, devices, [request("good", 1), request("dead", 2, every=5.0)])
        plant.link.delay[2] = None
        start = clock.mono()
        async with plant.running():
            await asyncio.sleep(1200.0)
            status = plant.line.status()["devices"]["dead"]
        tries = [t - start for t, unit, _, _ in plant.link.sent if unit == 2]
        assert 25 <= sum(t < 30 for t in tries) <= 33
        assert sum(t >= 35 for t in tries) <= 7
        gaps = [b - a for a, b in itertools.pairwise(tries) if b > 65]
        assert gaps[:3] == sorted(gaps[:3])
        assert max(gaps) <= 302.0
        assert status["state"] == "silent"
        assert 0 < status["retry_s"] <= 300

    in_virtual_time(test)


def test_a_unit_comes_back_by_itself() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1), device("b", 2)], [request("a", 1), request("b", 2)])
        plant.link.delay[2] = None
        async with plant.running():
            await asyncio.sleep(20.0)
            plant.link.delay[2] = 0.002
            await asyncio.sleep(2.5)
            assert plant.line.device_states()["b"] == "ok"
            assert plant.told("device_silent") == ["raised", "cleared"]
            assert plant.of("b")[-1].payload == registers(100, 2)

    in_virtual_time(test)


def test_one_lost_reply_is_made_good_before_the_next_turn() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1, timeout=0.2)], [request("a", 1, every=60.0)])
        plant.link.delay[1] = None
        async with plant.running():
            await asyncio.sleep(1.1)
            assert plant.of("a")[0].quality is Quality.TIMEOUT
            plant.link.delay[1] = 0.002
            await asyncio.sleep(3.0)
        assert plant.of("a")[-1].payload == registers(100, 2)
        assert len(plant.scans) == 1

    in_virtual_time(test)


def test_a_slow_unit_is_told_from_a_dead_one() -> None:
    async def test(clock: LoopClock) -> None:
        devices = [device("good", 1), device("slow", 2, timeout=0.2)]
        plant = Plant(clock, devices, [request("good", 1), request("slow", 2, every=1.0)])
        plant.link.delay[2] = 0.4
        async with plant.running():
            await asyncio.sleep(60.0)
            assert plant.line.device_states()["slow"] == "slow"
            assert plant.line.status()["devices"]["slow"]["timeout_ms"] >= 400
        assert plant.told("device_slow") == ["raised"]
        assert plant.told("device_silent") == []
        good = [reply for reply in plant.of("slow") if reply.payload is not None]
        assert len(good) >= 50
        late = [scan.started - scan.due for scan in plant.scans_of("good")]
        assert max(late[2:]) < 0.01

    in_virtual_time(test)


def test_a_unit_slower_than_the_slack_is_told_so_and_harms_nobody() -> None:
    async def test(clock: LoopClock) -> None:
        devices = [device("good", 1), device("slow", 2, timeout=0.2)]
        plant = Plant(clock, devices, [request("good", 1, every=0.1), request("slow", 2, every=1.0)])
        plant.link.delay[2] = 0.15
        async with plant.running():
            await asyncio.sleep(60.0)
            late = [scan.started - scan.due for scan in plant.scans_of("good")]
            assert sum(one > 0.01 for one in late) < 80

    in_virtual_time(test)


def test_no_connection_is_told_each_period() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        plant.link.up = False
        async with plant.running():
            await asyncio.sleep(10.5)
            assert plant.line.tried
            assert plant.line.status()["state"] == "down"
            assert plant.line.device_states() == {"a": "link"}
        assert len(plant.scans) in (10, 11)
        assert [reply.quality for reply in plant.of("a")] == [Quality.LINK] * len(plant.scans)
        assert {(scan.ok, scan.failed) for scan in plant.scans} == {(0, 1)}
        assert plant.told("link_down") == ["raised"]
        gaps = [b - a for a, b in itertools.pairwise(plant.link.attempts)]
        assert max(gaps) <= 1.0

    in_virtual_time(test)


def test_attempts_become_rare_after_a_minute() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        plant.link.up = False
        async with plant.running():
            await asyncio.sleep(600.0)
        gaps = [b - a for a, b in itertools.pairwise(plant.link.attempts)]
        late = [gap for at, gap in zip(plant.link.attempts, gaps) if at - plant.link.attempts[0] > 120]
        assert 10.0 < max(late) <= 30.1
        assert min(late) > 5.0

    in_virtual_time(test)


@pytest.mark.parametrize("every", [0.05, 1.0, 3600.0])
@pytest.mark.parametrize("seed", range(5))
def test_values_are_back_soon_after_the_device_is(every: float, seed: int) -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=every)])
        async with plant.running():
            await asyncio.sleep(5.0)
            plant.link.drop()
            await asyncio.sleep(7.0 + 0.37 * seed)
            assert plant.told("link_down") == ["raised"]
            before = len(plant.replies)
            plant.link.up = True
            await asyncio.sleep(1.5)
            assert any(reply.payload == registers(100, 2) for _, reply in plant.replies[before:])
            assert plant.told("link_down") == ["raised", "cleared"]
            assert plant.line.status()["state"] == "up"

    in_virtual_time(test)


def test_a_reconnect_that_works_at_once_is_no_outage() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        async with plant.running():
            await asyncio.sleep(3.0)
            plant.link.drop()
            plant.link.up = True
            await asyncio.sleep(3.0)
        assert plant.told("link_down") == []
        assert all(reply.payload for reply in plant.of("a"))

    in_virtual_time(test)


def test_a_host_that_accepts_and_closes_is_not_stormed() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        async with plant.running():
            await asyncio.sleep(3.0)
            plant.link.slams = True
            plant.link.drop()
            plant.link.up = True
            await asyncio.sleep(60.0)
        assert 60 < len(plant.link.attempts) < 150
        assert plant.told("link_down") == ["raised"]

    in_virtual_time(test)


def test_exceptions_of_a_gateway_count_against_the_unit() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1), device("b", 2)], [request("a", 1), request("b", 2, every=0.2)])
        plant.link.exceptions[2] = 11
        async with plant.running():
            await asyncio.sleep(20.0)
            assert plant.line.device_states() == {"a": "ok", "b": "silent"}
        assert sum(unit == 2 for _, unit, _, _ in plant.link.sent) < 25
        assert {reply.quality for reply in plant.of("b")} == {Quality.TIMEOUT}
        assert all(reply.payload for reply in plant.of("a"))
        assert len(plant.link.attempts) == 1

    in_virtual_time(test)


def test_a_busy_device_is_asked_again_soon() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=60.0)])
        plant.link.exceptions[1] = 6
        async with plant.running():
            await asyncio.sleep(1.2)
            assert plant.of("a")[0].quality is Quality.DEVICE
            del plant.link.exceptions[1]
            await asyncio.sleep(0.2)
            assert plant.of("a")[-1].payload == registers(100, 2)
            assert plant.line.device_states() == {"a": "ok"}

    in_virtual_time(test)


def write(unit: int, address: int, value: int) -> WireWrite:
    return WireWrite(unit=unit, function=6, address=address, words=(value,))


def test_writes_go_first_and_each_is_sent() -> None:
    async def test(clock: LoopClock) -> None:
        many = [request("a", 1, address=200 + 10 * i, every=0.2) for i in range(20)]
        plant = Plant(clock, [device("a", 1)], many)
        plant.link.delay[1] = 0.01
        async with plant.running():
            await asyncio.sleep(5.0)
            asked = clock.mono()
            one, two = write(1, 7, 1), write(1, 7, 2)
            await asyncio.gather(
                plant.line.write("a", one, deadline=asked + 5), plant.line.write("a", two, deadline=asked + 5)
            )
            assert clock.mono() - asked < 0.035
            [(_, reply)] = await plant.line.read([request("a", 1, address=7, count=1)], deadline=asked + 5)
            assert reply.payload == b"\0\2"
        values = [body[2:] for _, _, function, body in plant.link.sent if function == 6]
        assert values == [b"\0\1", b"\0\2"]

    in_virtual_time(test)


def test_writes_fail_with_words() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        async with plant.running():
            await asyncio.sleep(2.0)
            plant.link.exceptions[1] = 4
            with pytest.raises(DeviceFault, match="exception 4"):
                await plant.line.write("a", write(1, 7, 1), deadline=clock.mono() + 5)
            del plant.link.exceptions[1]
            plant.link.delay[1] = None
            with pytest.raises(LinkFault) as caught:
                await plant.line.write("a", write(1, 7, 1), deadline=clock.mono() + 5)
            assert caught.value.quality is Quality.TIMEOUT
            plant.link.drop()
            await asyncio.sleep(0.5)
            with pytest.raises(LinkFault, match="connection refused") as caught:
                await plant.line.write("a", write(1, 7, 1), deadline=clock.mono() + 5)
            assert caught.value.quality is Quality.LINK
            [(_, reply)] = await plant.line.read([request("a", 1)], deadline=clock.mono() + 5)
            assert reply.quality is Quality.LINK
            assert reply.words == "connection refused"

    in_virtual_time(test)


def test_a_line_without_scans_serves_requests() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [])
        async with plant.running():
            [(_, reply)] = await plant.line.read([request("a", 1)], deadline=clock.mono() + 5)
            assert reply.payload == registers(100, 2)
            assert reply.rtt == pytest.approx(0.002)
            await plant.line.close()
            with pytest.raises(LinkFault, match="closed"):
                await plant.line.write("a", write(1, 7, 1), deadline=clock.mono() + 5)

    in_virtual_time(test)


def test_pauses_are_kept_while_others_go_on() -> None:
    async def test(clock: LoopClock) -> None:
        devices = [device("a", 1, limits=Limits(pause=0.1)), device("b", 2)]
        requests = [request("a", 1, address=10 * i) for i in range(5)] + [request("b", 2, every=0.05)]
        plant = Plant(clock, devices, requests)
        async with plant.running():
            await asyncio.sleep(20.0)
        sent = [t for t, unit, _, _ in plant.link.sent if unit == 1]
        assert min(b - a for a, b in itertools.pairwise(sent)) >= 0.1
        assert len(sent) >= 90
        assert max(scan.started - scan.due for scan in plant.scans_of("b")) < 0.01

    in_virtual_time(test)


def test_the_connection_is_closed_between_polls_where_asked() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(
            clock, [device("a", 1, limits=Limits(close_after_poll=True))], [request("a", 1, every=5.0)]
        )
        async with plant.running():
            await asyncio.sleep(22.0)
            assert not plant.link.connected
            assert plant.line.device_states() == {"a": "ok"}
            assert plant.line.status()["state"] == "up"
        assert len(plant.link.attempts) == len(plant.scans) == 5
        assert all(reply.payload for reply in plant.of("a"))
        assert plant.events == []

    in_virtual_time(test)


def test_a_mute_connection_is_made_anew() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1)])
        async with plant.running():
            await asyncio.sleep(5.0)
            plant.link.delay[1] = None
            await asyncio.sleep(60.0)
        assert 2 <= len(plant.link.attempts) <= 5

    in_virtual_time(test)


def test_utilisation_and_round_trips_are_known() -> None:
    async def test(clock: LoopClock) -> None:
        plant = Plant(clock, [device("a", 1)], [request("a", 1, every=0.1)])
        plant.link.delay[1] = 0.02
        async with plant.running():
            await asyncio.sleep(70.0)
            status = plant.line.status()
        assert status["utilisation"] == pytest.approx(0.2, abs=0.02)
        assert status["rtt_ms"] == {"p50": pytest.approx(20.0), "p99": pytest.approx(20.0)}
        assert status["requests"] >= 690
        assert status["errors"] == {}

    in_virtual_time(test)

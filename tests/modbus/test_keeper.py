"""Keeping a connection up, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from agent.modbus.keeper import Keeper
from tests.modbus.virtual import FakeLink, LoopClock, in_virtual_time


def keeper(clock: LoopClock) -> tuple[Keeper, FakeLink]:
    link = FakeLink(clock)
    made = Keeper(link, clock=clock, rng=random.Random(1), changed=lambda: None)
    link.lost = made.lost
    return made, link


async def keep(made: Keeper, clock: LoopClock, seconds: float) -> None:
    """What a line does: keeps the connection, sleeps until there is something to do."""
    end = clock.mono() + seconds
    while (now := clock.mono()) < end:
        made.keep()
        wake = made.wake_at
        await asyncio.sleep(0.001 if wake == float("inf") else min(max(wake - now, 0.0005), end - now))


def test_waits_grow_in_the_first_minute_to_a_second_then_to_half_a_minute() -> None:
    async def test(clock: LoopClock) -> None:
        made, link = keeper(clock)
        link.up = False
        await keep(made, clock, 900.0)
        gaps = [(a - link.attempts[0], b - a) for a, b in itertools.pairwise(link.attempts)]
        assert gaps[0][1] < 0.11
        assert max(gap for at, gap in gaps if at < 58) <= 1.0
        assert 25 < max(gap for at, gap in gaps if at > 300) <= 30.1
        assert len({round(gap, 3) for at, gap in gaps if at > 300}) > 3  # jitter
        assert made.state == "down"
        assert made.hopeless
        assert made.words == "connection refused"

    in_virtual_time(test)


def test_only_a_good_reply_resets_the_waits() -> None:
    async def test(clock: LoopClock) -> None:
        made, link = keeper(clock)
        link.slams = True
        await keep(made, clock, 50.0)
        slammed = len(link.attempts)
        assert slammed < 110
        link.slams = False
        await keep(made, clock, 2.0)
        assert made.state == "up"
        assert made.failures > 0
        made.good()
        assert made.failures == 0
        link.drop()
        link.up = True
        assert made.state == "connecting"
        before = clock.mono()
        await keep(made, clock, 0.01)
        assert link.attempts[-1] == pytest.approx(before)
        assert made.usable

    in_virtual_time(test)


def test_a_mute_connection_is_given_up_later_each_time() -> None:
    async def test(clock: LoopClock) -> None:
        made, link = keeper(clock)
        await keep(made, clock, 0.01)
        made.good()
        given_up = []
        for second in range(200):
            await keep(made, clock, 1.0)
            if made.mute():
                given_up.append(second)
        assert given_up[0] in (9, 10)
        waits = [b - a for a, b in itertools.pairwise(given_up)]
        assert waits == sorted(waits)
        assert waits[-1] >= 70
        assert len(link.attempts) == len(given_up) + 1

    in_virtual_time(test)


def test_a_fault_of_ours_is_no_storm(caplog: pytest.LogCaptureFixture) -> None:
    async def test(clock: LoopClock) -> None:
        made, link = keeper(clock)

        async def broken(timeout: float) -> None:
            link.attempts.append(clock.mono())
            raise ValueError("no such thing")

        link.connect = broken  # type: ignore[method-assign]
        await keep(made, clock, 20.0)
        assert len(link.attempts) < 45
        assert made.words == "ValueError: no such thing"

    in_virtual_time(test)
    assert "should not" in caplog.text


def test_a_connection_at_rest_waits_for_nothing() -> None:
    async def test(clock: LoopClock) -> None:
        made, link = keeper(clock)
        await keep(made, clock, 0.01)
        made.rest()
        assert link.connected  # not used yet
        made.good()
        made.rest()
        assert not link.connected
        assert made.state == "up"
        assert made.wake_at == float("inf")
        made.keep()
        await asyncio.sleep(0.01)
        assert made.usable

    in_virtual_time(test)

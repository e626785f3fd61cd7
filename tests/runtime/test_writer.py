"""The one way to a register: ranges, intervals, budgets and the value read back, on a fake line and a fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from agent.config.types import Config, Device, Tag, Url, Write
from agent.modbus.codec import WireWrite
from agent.modbus.faults import DeviceFault, LinkFault
from agent.modbus.line import Reply
from agent.modbus.plan import Request
from agent.runtime.clock import FakeClock
from agent.runtime.writer import NONVOLATILE_INTERVAL, Gate, Writer
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Event, Outcome, Plain
from agent.twin.table import Twin

URL = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)


class FakeLine:
    """Registers that take writes; `stuck` ones show their old value, `slow` ones for a while."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.registers: dict[int, int] = {}
        self.writes: list[tuple[float, WireWrite]] = []
        self.fault: Exception | None = None
        self.stuck = False
        self.settles_at = 0.0
        self.pending: dict[int, int] = {}

    async def write(self, device: str, wire: WireWrite, *, deadline: float) -> Reply:
        self.writes.append((self.clock.now, wire))
        if self.fault is not None:
            raise self.fault
        for k, word in enumerate(wire.words):
            if not self.stuck:
                self.pending[wire.address + k] = word
        return Reply(self.clock.now, 0.001, b"", Quality.GOOD)

    async def read(self, requests: Sequence[Request], *, deadline: float) -> list[tuple[Request, Reply]]:
        if self.clock.now >= self.settles_at:
            self.registers |= self.pending
        [request] = requests
        words = [self.registers.get(request.address + k, 0) for k in range(request.count)]
        payload = b"".join(word.to_bytes(2, "big") for word in words)
        return [(request, Reply(self.clock.now, 0.001, payload, Quality.GOOD))]


class Rig:
    def __init__(self, **write: Any) -> None:
        tags = {
            "plain": Tag("plain", "holding", 1),
            "target": Tag("target", "holding", 2, scale=Decimal("0.1"), write=Write(**write)),
        }
        config = Config("c.yaml", "gw", None, devices={"m": Device("m", URL, tags=tags)})
        self.clock = FakeClock()
        self.line = FakeLine(self.clock)
        self.events: list[Event] = []
        self.slept: list[float] = []
        twin = Twin(build_layout(config))
        self.writer = Writer(
            config,
            twin,
            {"m": self.line},
            self.clock,
            self.events.append,
            self.sleep,  # type: ignore[dict-item]
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    def write(self, value: Plain, *, tag: str = "target", patience: float = 5.0, **more: Any) -> Outcome:
        return asyncio.run(self.awrite(value, tag=tag, patience=patience, **more))

    async def awrite(
        self, value: Plain, *, tag: str = "target", patience: float = 5.0, **more: Any
    ) -> Outcome:
        return await self.writer.write(
            ("m", tag), value, source="socket", deadline=self.clock.now + patience, **more
        )


def test_written_and_read_back() -> None:
    rig = Rig()
    assert rig.write(18.5) == Outcome(True, applied=18.5, readback=18.5)
    assert [wire.words for _, wire in rig.line.writes] == [(185,)]


def test_never_without_write() -> None:
    rig = Rig()
    outcome = rig.write(1, tag="plain")
    assert not outcome.ok and "m/plain is not writable" in (outcome.error or "")
    assert rig.line.writes == []


def test_out_of_range_never_reaches_the_line() -> None:
    rig = Rig(range=(0, 20))
    outcome = rig.write(20.1)
    assert not outcome.ok and "out of range" in (outcome.error or "")
    assert rig.line.writes == []


def test_a_value_that_does_not_take_is_told() -> None:
    rig = Rig()
    rig.line.stuck = True
    outcome = rig.write(18.5)
    assert not outcome.ok and outcome.readback == 0.0
    assert outcome.error == "m/target: wrote 18.5, the device shows 0.0"
    assert sum(rig.slept) == pytest.approx(2.0)


def test_a_device_may_take_its_time() -> None:
    rig = Rig()
    rig.line.settles_at = rig.clock.now + 1.5
    assert rig.write(18.5).ok


def test_without_verify_nothing_is_read() -> None:
    rig = Rig(verify=False)
    rig.line.stuck = True
    assert rig.write(18.5) == Outcome(True, applied=18.5)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (LinkFault("no connection to 127.0.0.1:502", Quality.LINK), "no connection"),
        (DeviceFault(3), "exception 3"),
    ],
)
def test_faults_are_outcomes(fault: Exception, words: str) -> None:
    rig = Rig()
    rig.line.fault = fault
    outcome = rig.write(1)
    assert not outcome.ok and words in (outcome.error or "")


def test_two_in_a_row_are_both_sent() -> None:
    rig = Rig(min_interval=1.0)

    async def both() -> list[Outcome]:
        return [await rig.awrite(1.0), await rig.awrite(0.0)]

    assert [one.ok for one in asyncio.run(both())] == [True, True]
    assert [wire.words for _, wire in rig.line.writes] == [(10,), (0,)]
    assert rig.line.writes[1][0] - rig.line.writes[0][0] >= 1.0


def test_what_comes_too_soon_is_held_and_the_newest_is_written() -> None:
    rig = Rig(min_interval=1.0, verify=False)

    async def three() -> list[Outcome]:
        first = await rig.awrite(1.0)
        later = await asyncio.gather(rig.awrite(2.0), rig.awrite(3.0))
        return [first, *later]

    first, second, third = asyncio.run(three())
    assert first.ok and third.ok
    assert not second.ok and "superseded" in (second.error or "")
    assert [wire.words for _, wire in rig.line.writes] == [(10,), (30,)]


def test_a_hold_beyond_the_deadline_is_refused_at_once() -> None:
    rig = Rig(nonvolatile=True, verify=False)
    assert rig.write(1).ok
    outcome = rig.write(2, patience=5.0)
    assert not outcome.ok and "possible in 60.0 s" in (outcome.error or "")
    assert len(rig.line.writes) == 1


def test_safety_is_not_held_up() -> None:
    rig = Rig(min_interval=100.0, daily=1, verify=False)
    assert rig.write(1).ok
    assert rig.write(0, safety=True).ok
    assert [wire.words for _, wire in rig.line.writes] == [(10,), (0,)]


def test_the_daily_budget_is_told_once() -> None:
    rig = Rig(min_interval=0.0, daily=3, verify=False)
    outcomes = [rig.write(k) for k in range(6)]
    assert [one.ok for one in outcomes] == [True] * 3 + [False] * 3
    assert [event.name for event in rig.events] == ["write_budget"]
    rig.clock.advance(86_400)
    assert rig.write(1).ok


def test_expired_while_it_waited() -> None:
    rig = Rig()
    outcome = rig.write(1, patience=-0.1)
    assert not outcome.ok and "expired" in (outcome.error or "")
    assert rig.line.writes == []


@pytest.mark.parametrize(
    ("write", "want"),
    [
        (Write(min_interval=2.0), 2.0),
        (Write(nonvolatile=True), NONVOLATILE_INTERVAL),
        (Write(min_interval=0.0), 0.0),
    ],
)
def test_gate(write: Write, want: float) -> None:
    gate = Gate(write)
    assert gate.earliest(100.0) == 100.0
    gate.written(100.0)
    assert gate.earliest(100.0) == 100.0 + want

"""RTU on a serial port: a pty pair whose other end misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent.config.types import Url
from agent.modbus import waiting
from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.modbus.link import Link
from agent.runtime.clock import SystemClock
from agent.twin.quality import Quality
from tests.modbus.faults import BOTH, COSTS_NOTHING, ON_RTU
from tests.modbus.faultserver import Asked, Conversation, FaultServer, registers

TIMEOUT = 0.06
"""For requests that are not to be answered, in seconds; others get LONG, which no load of the machine exhausts."""
LONG = 2.0
ROWS = [name for name in ON_RTU if not name.startswith(("fin", "rst"))]


class Port:
    """A link to the server's port; each answer is compared with what the registers hold."""

    def __init__(self, path: str, **options: Any) -> None:
        url = Url(f"rtu://{path}", "rtu", path=path, baud=115200, **options)
        self.lost: list[str] = []
        self.late: list[int] = []
        self.wrong: list[Answer] = []
        self.link = Link(
            url,
            clock=SystemClock(),
            on_lost=self.lost.append,
            on_late=lambda unit, seconds: self.late.append(unit),
        )

    async def read(self, address: int, count: int, *, timeout: float = LONG) -> Answer | LinkFault:
        await self.link.connect(LONG)
        body = address.to_bytes(2, "big") + count.to_bytes(2, "big")
        try:
            answer = await self.link.transact(1, 3, body, timeout=timeout, within=3 * LONG)
        except LinkFault as fault:
            return fault
        if answer.exception is None and answer.payload != registers(address, count):
            self.wrong.append(answer)
        return answer


def run(test: Callable[[FaultServer, Port], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def whole() -> None:
        server = FaultServer(in_order=True)
        port = Port(await server.start_on_a_port(), **options)
        try:
            await test(server, port)
        finally:
            port.link.close()
            await server.stop()

    asyncio.run(whole())


def is_good(answer: Answer | LinkFault) -> bool:
    return isinstance(answer, Answer) and answer.payload is not None


@pytest.mark.parametrize("name", ROWS)
def test_no_wrong_value_is_taken_and_the_next_good_one_is(name: str) -> None:
    async def test(server: FaultServer, port: Port) -> None:
        addresses = itertools.count(100, 50)
        for number, count in enumerate((10, 10, 1)):
            assert is_good(await port.read(next(addresses), count + number % 2))
            server.break_next(ON_RTU[name])
            at_once = name in COSTS_NOTHING or name[-1].isdigit()
            met = await port.read(next(addresses), count, timeout=LONG if at_once else TIMEOUT)
            if name in COSTS_NOTHING:
                assert is_good(met), met
            after = [await port.read(next(addresses), count) for _ in range(4)]
            assert is_good(after[-1]), after
        assert port.wrong == []

    run(test)


@pytest.mark.parametrize("told", [True, False])
def test_an_adapter_that_echoes(told: bool) -> None:
    """Told or found out by a read: no echo of a write to a dead device passes for its answer."""

    async def test(server: FaultServer, port: Port) -> None:
        server.echo = True
        assert is_good(await port.read(10, 2))
        write = port.link.transact
        assert (await write(1, 6, b"\0\1\0\2", timeout=TIMEOUT, within=1.0)).payload == b""
        server.break_next(BOTH["silent"])
        with pytest.raises(LinkFault) as caught:
            await write(1, 6, b"\0\1\0\3", timeout=TIMEOUT, within=1.0)
        assert caught.value.quality is Quality.TIMEOUT
        assert is_good(await port.read(20, 2))
        assert port.wrong == []

    run(test, local_echo=told)


def test_an_echo_with_noise_before_it_in_one_piece_with_the_reply() -> None:
    async def test(server: FaultServer, port: Port) -> None:
        async def all_at_once(here: Conversation, asked: Asked) -> None:
            await here.send(b"\xff" + asked.raw + here.good(asked))

        server.break_next(all_at_once, 3)
        for address in (10, 20, 30):
            assert is_good(await port.read(address, 2))
        assert port.wrong == []

    run(test, local_echo=True)


@pytest.mark.parametrize("count", [1, 2])
def test_a_unit_that_is_one_reply_behind_for_ever_gives_no_value(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """It refuses the loopback too, and is asked again only when what it owes would pass for lost."""

    async def test(server: FaultServer, port: Port) -> None:
        held: list[bytes] = []

        async def one_behind(here: Conversation, asked: Asked) -> None:
            refused = here.frame(asked, bytes((asked.function | 0x80, 1)))
            held.append(here.good(asked) if asked.function == 3 else refused)
            if len(held) > 1:
                await here.send(held.pop(0))

        server.break_next(one_behind, 100)
        for address in range(100, 300, 10):
            await port.read(address, count, timeout=TIMEOUT)
            if address % 50 == 20:
                await asyncio.sleep(5 * TIMEOUT)
        assert len(server.asked) > 10
        assert port.wrong == []

    monkeypatch.setattr(waiting, "LATEST", 4 * TIMEOUT)
    run(test)


def test_a_unit_that_refuses_the_loopback_is_read_again_after_a_late_reply() -> None:
    async def test(server: FaultServer, port: Port) -> None:
        async def refuses(here: Conversation, asked: Asked) -> None:
            refused = here.frame(asked, bytes((asked.function | 0x80, 1)))
            await here.send(here.good(asked) if asked.function == 3 else refused)

        for address in range(100, 200, 20):
            server.break_next(ON_RTU["late"])
            await port.read(address, 1, timeout=TIMEOUT)
            server.break_next(refuses, 4)
            assert is_good(await port.read(address + 10, 1))
            assert is_good(await port.read(address, 1))
        assert port.wrong == []

    run(test)


def test_the_reply_behind_a_late_exception_is_not_taken_for_the_next_one() -> None:
    """The exception of a request that was given up passes for the answer to the next; its own is still to come."""

    async def test(server: FaultServer, port: Port) -> None:
        first: list[Asked] = []

        async def slow(here: Conversation, asked: Asked) -> None:
            first.append(asked)
            refused = here.frame(asked, bytes((asked.function | 0x80, 6)))
            await asyncio.sleep(0.1)
            await here.send(refused if len(first) == 1 else here.good(asked))

        server.break_next(slow, 2)
        assert isinstance(await port.read(100, 10, timeout=TIMEOUT), LinkFault)
        met = await port.read(120, 5)
        assert isinstance(met, Answer) and met.exception == 6
        assert is_good(await port.read(140, 5))
        assert is_good(await port.read(160, 5))
        assert port.wrong == []

    run(test)


def test_frames_keep_their_distance() -> None:
    """3.5 characters at 9600 baud are 4 ms."""

    async def test(server: FaultServer, port: Port) -> None:
        port.link.close()
        slow = Port(port.link.url.path)
        slow.link = Link(
            dataclasses.replace(port.link.url, baud=9600),
            clock=SystemClock(),
            on_lost=slow.lost.append,
            on_late=lambda unit, seconds: None,
        )
        answers = [await slow.read(address, 1) for address in range(0, 50, 5)]
        slow.link.close()
        assert all(is_good(answer) for answer in answers)
        sent = [answer.t - answer.rtt for answer in answers if isinstance(answer, Answer)]
        ends = [answer.t for answer in answers if isinstance(answer, Answer)]
        assert min(start - end for end, start in zip(ends, sent[1:])) >= 3.5 * 11 / 9600  # 8E1

    run(test)


def test_a_broadcast_waits_for_nobody_but_the_turnaround() -> None:
    async def test(server: FaultServer, port: Port) -> None:
        server.silent_units.add(0)
        await port.link.connect(2.0)
        answer = await port.link.transact(0, 6, b"\0\1\0\2", timeout=5.0, within=5.0)
        assert answer.payload == b""
        assert 0.1 <= answer.rtt < 4.0
        assert [asked.unit for asked in server.asked] == [0]
        assert is_good(await port.read(20, 2))

    run(test)


def test_a_missing_port_is_told_with_those_that_are_there() -> None:
    async def test(server: FaultServer, port: Port) -> None:
        with pytest.raises(
            LinkFault, match=r"rtu:///dev/ttyNONE: there is no such serial port; there (are|is)"
        ):
            await Port("/dev/ttyNONE").link.connect(2.0)

    run(test)


@pytest.mark.parametrize("path", ["/dev", "/dev/null", "/etc/passwd"])
def test_what_is_no_port_is_told(path: str) -> None:
    async def test(server: FaultServer, port: Port) -> None:
        with pytest.raises(LinkFault, match=f"rtu://{path}: this is no serial port$"):
            await Port(path).link.connect(2.0)

    run(test)


def test_a_port_that_another_program_holds_is_told() -> None:
    async def test(server: FaultServer, port: Port) -> None:
        await port.link.connect(2.0)
        other = Port(port.link.url.path)
        with pytest.raises(LinkFault, match="another program holds this port"):
            await other.link.connect(2.0)
        port.link.close()
        await other.link.connect(2.0)
        assert is_good(await other.read(10, 2))
        other.link.close()

    run(test)


def test_a_port_that_is_pulled_out_fails_the_waiting_call() -> None:
    async def test(server: FaultServer, port: Port) -> None:
        async def pull(here: Conversation, asked: Asked) -> None:
            server.pull_out()

        assert is_good(await port.read(10, 2))
        server.break_next(pull)
        met = await port.read(20, 2)
        assert isinstance(met, LinkFault)
        assert met.quality is Quality.LINK
        assert len(port.lost) == 1
        assert not port.link.connected

    run(test)

"""Whatever a device or a line does, no wrong value is taken, and the next good one is."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent.config.types import Url
from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.modbus.link import Link
from agent.runtime.clock import SystemClock
from agent.twin.quality import Quality
from tests.modbus.faults import BOTH, COSTS_NOTHING, ON_RTU, ON_TCP
from tests.modbus.faultserver import Asked, Conversation, Fault, FaultServer, bits, crc, registers

TIMEOUT = 0.06
"""For requests that are not to be answered, in seconds; others get LONG, which no load of the machine exhausts."""
LONG = 3.0
ROWS = [("tcp", name) for name in ON_TCP] + [("rtu+tcp", name) for name in ON_RTU]


class Caller:
    """A link to a server, connected whenever it is not. Each answer is compared with what the registers hold."""

    def __init__(self, server: FaultServer, scheme: str, accept: frozenset[str] = frozenset()) -> None:
        url = Url(f"{scheme}://127.0.0.1:{server.port}", scheme, "127.0.0.1", server.port)  # type: ignore[arg-type]
        self.lost: list[str] = []
        self.late: list[tuple[int, float]] = []
        self.wrong: list[tuple[int, int, Answer]] = []
        self.link = Link(
            url,
            clock=SystemClock(),
            on_lost=self.lost.append,
            on_late=lambda unit, seconds: self.late.append((unit, seconds)),
            accept=accept,
        )

    async def read(
        self, address: int, count: int, *, function: int = 3, unit: int = 1, timeout: float = LONG
    ) -> Answer | LinkFault:
        await self.link.connect(LONG)
        body = address.to_bytes(2, "big") + count.to_bytes(2, "big")
        try:
            answer = await self.link.transact(unit, function, body, timeout=timeout, within=2 * LONG)
        except LinkFault as fault:
            return fault
        right = bits(address, count) if function < 3 else registers(address, count)
        if answer.exception is None and answer.payload != right:
            self.wrong.append((address, count, answer))
        return answer


def run(
    test: Callable[[FaultServer, Caller], Coroutine[Any, Any, None]],
    scheme: str,
    *,
    in_order: bool = False,
    **options: Any,
) -> None:
    async def whole() -> None:
        server = await FaultServer(rtu=scheme == "rtu+tcp", in_order=in_order).start()
        caller = Caller(server, scheme, **options)
        try:
            await test(server, caller)
        finally:
            caller.link.close()
            await server.stop()

    asyncio.run(whole())


def is_good(answer: Answer | LinkFault) -> bool:
    return isinstance(answer, Answer) and answer.payload is not None


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "any order"])
@pytest.mark.parametrize(("scheme", "name"), ROWS)
def test_no_wrong_value_is_taken_and_the_next_good_one_is(scheme: str, name: str, in_order: bool) -> None:
    fault = (ON_TCP if scheme == "tcp" else ON_RTU)[name]
    at_once = name in COSTS_NOTHING or name[:9] == "exception" or name[:3] in ("fin", "rst")
    at_once = at_once and name not in ("exception_without_code", "exception_of_another_function")

    async def test(server: FaultServer, caller: Caller) -> None:
        addresses = itertools.count(100, 50)
        # one length for all, so that only the address tells right from wrong; and then lengths that change
        for number, count in enumerate((10, 10, 1, 7)):
            assert is_good(await caller.read(next(addresses), count + number % 2))
            server.break_next(fault)
            met = await caller.read(next(addresses), count, timeout=LONG if at_once else TIMEOUT)
            if name in COSTS_NOTHING:
                assert is_good(met), met
            if name.startswith("exception_") and name[-1].isdigit():
                assert isinstance(met, Answer) and met.exception == int(name.split("_")[1])
            after = [await caller.read(next(addresses), count) for _ in range(2)]
            if name == "rst_after":
                await server.idle()  # the reset comes by the clock: not to meet the next round's request
            after += [await caller.read(next(addresses), count) for _ in range(2)]
            assert is_good(after[-1]), after
        assert caller.wrong == []
        assert server.most_live == 1

    run(test, scheme, in_order=in_order)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
@pytest.mark.parametrize("function", [1, 2, 4])
def test_the_other_tables_are_read(scheme: str, function: int) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        for count in (1, 3, 8, 9, 20):
            assert is_good(await caller.read(0x0300 + count, count, function=function))
        assert caller.wrong == []

    run(test, scheme)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
@pytest.mark.parametrize("name", ["fin_before", "rst_before", "fin_in_the_middle", "rst_in_the_middle"])
def test_the_end_of_the_connection_fails_the_waiting_call_at_once(scheme: str, name: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        await caller.link.connect(1.0)
        server.break_next(BOTH[name])
        started = asyncio.get_running_loop().time()
        with pytest.raises(LinkFault) as caught:
            await caller.link.transact(1, 3, b"\0\0\0\1", timeout=20.0, within=20.0)
        assert asyncio.get_running_loop().time() - started < 5.0
        assert caught.value.quality is Quality.LINK
        assert len(caller.lost) == 1
        assert not caller.link.connected

    run(test, scheme)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_never_more_than_one_socket_over_many_faults(scheme: str) -> None:
    table = ON_TCP if scheme == "tcp" else ON_RTU
    quick = [
        fault
        for name, fault in table.items()
        if name in COSTS_NOTHING or name[:3] in ("fin", "rst") or name[-1].isdigit()
    ]

    async def test(server: FaultServer, caller: Caller) -> None:
        for number, fault in zip(range(500), itertools.cycle(quick)):
            server.break_next(fault)
            await caller.read(number * 20, 10, timeout=LONG)
        assert is_good([await caller.read(5, 5) for _ in range(3)][-1])
        assert caller.wrong == []
        assert server.connections > 50
        assert server.most_live == 1

    run(test, scheme)


def test_a_late_reply_proves_life() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        server.break_next(BOTH["late"])
        assert isinstance(await caller.read(10, 2, unit=7, timeout=TIMEOUT), LinkFault)
        await asyncio.sleep(0.1)
        assert [unit for unit, _ in caller.late] == [7]
        assert TIMEOUT < caller.late[0][1] < 5.0
        assert is_good(await caller.read(20, 2, unit=7))

    run(test, "tcp")


@pytest.mark.parametrize("count", [1, 10])
def test_a_late_rtu_reply_of_the_same_shape_is_not_taken(count: int) -> None:
    """Every reply comes one request too late, for ever: none of them is taken for the next one."""

    async def test(server: FaultServer, caller: Caller) -> None:
        held: list[bytes] = []

        async def one_behind(here: Conversation, asked: Asked) -> None:
            held.append(here.good(asked))
            if len(held) > 1:
                await here.send(held.pop(0))

        server.break_next(one_behind, 12)
        for address in range(100, 160, 10):
            await caller.read(address, count, timeout=TIMEOUT)
        assert caller.wrong == []

    run(test, "rtu+tcp")


def test_a_write_is_confirmed_by_its_own_echo_only() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        async def other_value(here: Conversation, asked: Asked) -> None:
            await here.send(here.frame(asked, asked.pdu[:-1] + b"\x99"))

        await caller.link.connect(1.0)
        write = caller.link.transact
        assert (await write(1, 6, b"\0\1\0\2", timeout=TIMEOUT, within=1.0)).payload == b""
        assert (await write(1, 16, b"\0\1\0\1\2\0\2", timeout=TIMEOUT, within=1.0)).exception is None
        for body in ((6, b"\0\1\0\2"), (5, b"\0\1\xff\0"), (16, b"\0\1\0\1\2\0\2"), (22, b"\0\1\0\2\0\3")):
            server.break_next(other_value)
            with pytest.raises(LinkFault, match="another address or value"):
                await write(1, *body, timeout=TIMEOUT, within=1.0)

    run(test, "tcp")


def _answering(tid: int | None = None, unit: int | None = None) -> Fault:
    async def answer(here: Conversation, asked: Asked) -> None:
        await here.send(here.frame(asked, asked.answer(), tid=tid, unit=unit))

    return answer


def test_what_a_device_answers_wrong_may_be_accepted() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        server.break_next(_answering(tid=0, unit=255), 2)
        assert is_good(await caller.read(10, 2))
        assert is_good(await caller.read(20, 2))
        server.break_next(BOTH["late"])
        assert not is_good(await caller.read(30, 2, timeout=TIMEOUT))
        assert not caller.link.connected  # a late reply could not be told from the next one
        assert is_good(await caller.read(40, 2))
        assert caller.wrong == []

    run(test, "tcp", accept=frozenset({"transaction", "unit"}))


def test_what_came_instead_is_said() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        server.break_next(_answering(tid=0))
        assert "transaction 0 instead of 1" in str(await caller.read(10, 2, timeout=TIMEOUT))
        server.break_next(_answering(unit=9))
        assert "unit 9 instead of 1" in str(await caller.read(10, 2, timeout=TIMEOUT))
        server.break_next(BOTH["short"])
        assert "2 data bytes instead of 4" in str(await caller.read(10, 2, timeout=TIMEOUT))

        async def as_on_a_serial_line(here: Conversation, asked: Asked) -> None:
            body = bytes((asked.unit,)) + asked.answer()
            await here.send(body + crc(body))

        server.break_next(as_on_a_serial_line)
        assert "it sent a reply in RTU framing" in str(await caller.read(10, 2, timeout=TIMEOUT))

    run(test, "tcp")


def test_a_connection_that_cannot_be_made_is_told_plainly() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        await server.stop()
        with pytest.raises(LinkFault, match=r"tcp://127\.0\.0\.1:\d+: connection refused"):
            await caller.link.connect(1.0)

    run(test, "tcp")


def lookup(answers: list[list[str] | None]) -> Callable[..., list[tuple[Any, ...]]]:
    """A name service that gives these addresses in turn; None: it cannot be reached."""

    def getaddrinfo(host: str, port: int, **options: Any) -> list[tuple[Any, ...]]:
        found = answers.pop(0)
        if found is None:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return getaddrinfo


def test_a_name_is_tried_at_each_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        named = dataclasses.replace(caller.link.url, host="plc.example")
        caller.link = Link(
            named, clock=SystemClock(), on_lost=caller.lost.append, on_late=lambda unit, seconds: None
        )
        monkeypatch.setattr(
            "agent.modbus.link.socket.getaddrinfo", lookup([["127.0.0.2", "127.0.0.1"], None])
        )
        assert is_good(await caller.read(10, 2))
        caller.link.close()
        assert is_good(await caller.read(10, 2))  # the name service is gone, the address is known
        assert server.most_live == 1

    run(test, "tcp")


def test_a_name_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        named = dataclasses.replace(caller.link.url, host="plc.example")
        caller.link = Link(
            named, clock=SystemClock(), on_lost=caller.lost.append, on_late=lambda unit, seconds: None
        )
        monkeypatch.setattr("agent.modbus.link.socket.getaddrinfo", lookup([None]))
        with pytest.raises(LinkFault, match=r"the name plc\.example is not known"):
            await caller.link.connect(LONG)

    run(test, "tcp")

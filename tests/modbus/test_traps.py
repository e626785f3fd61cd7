"""What devices, gateways and lines really do, row by row: docs/modbus-traps.md names a test for each, most elsewhere.

Here stand those that no other file shows.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import re
import socket
from pathlib import Path

import pytest

from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.twin.quality import Quality
from tests.modbus.faults import BOTH, ON_RTU, ON_TCP
from tests.modbus.faultserver import Asked, Conversation, FaultServer
from tests.modbus.test_link import LONG, TIMEOUT, Caller, is_good, run

ROOT = Path(__file__).parents[2]
TRAPS, COMPLAINTS = 29, 51
LATER = 0.12
"""Seconds; longer than TIMEOUT, short enough for a test."""


def _rows() -> list[tuple[list[str], list[str]]]:
    """(numbers, tests) of each row of the table."""
    lines = (ROOT / "docs" / "modbus-traps.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|") for line in lines if re.match(r"\| (T?\d+(, )?)+\. ", line)]
    return [(re.findall(r"T?\d+", row[1].split(".")[0]), re.findall(r"`([^`]+)`", row[3])) for row in cells]


def test_the_table_has_every_row_once() -> None:
    numbers = [number for row, _ in _rows() for number in row]
    want = [f"T{n}" for n in range(1, TRAPS + 1)] + [str(n) for n in range(1, COMPLAINTS + 1)]
    assert sorted(numbers) == sorted(want)


@pytest.mark.parametrize(("row", "tests"), _rows(), ids=lambda cell: cell[0])
def test_the_tests_that_the_table_names_are_there(row: list[str], tests: list[str]) -> None:
    assert tests
    for name in tests:
        file, function = name.split("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_closing_fails_the_waiting_call_at_once(scheme: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        await caller.link.connect(LONG)
        server.silent_units.add(1)
        call = asyncio.create_task(caller.link.transact(1, 3, b"\0\0\0\1", timeout=20.0, within=20.0))
        while not server.asked:
            await asyncio.sleep(0.001)
        caller.link.close()
        with pytest.raises(LinkFault, match="the line was closed") as caught:
            await asyncio.wait_for(call, 5.0)
        assert caught.value.quality is Quality.LINK

    run(test, scheme)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_a_request_is_sent_once_and_silence_leaves_the_connection_to_the_others(scheme: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        server.silent_units.add(9)
        for address in range(12):
            assert not is_good(await caller.read(100 * address, 1 + address, unit=9, timeout=0.01))
        assert [asked.address for asked in server.asked if asked.unit == 9] == list(range(0, 1200, 100))
        assert is_good(await caller.read(10, 2))
        assert (server.connections, caller.lost) == (1, [])

    run(test, scheme)


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_late_long_reply_and_the_right_one_in_one_segment(pieces: int) -> None:
    """2 x 259 bytes: more than the longest frame, and the right one is taken from behind the late one."""

    async def test(server: FaultServer, caller: Caller) -> None:
        async def both(here: Conversation, asked: Asked) -> None:
            data = here.good(server.asked[-2]) + here.good(asked)
            size = -(-len(data) // pieces)
            for at in range(0, len(data), size):
                await here.send(data[at : at + size])
                await asyncio.sleep(0.002)

        for address in (100, 300, 500):
            server.break_next(BOTH["silent"])
            assert not is_good(await caller.read(address, 125, timeout=TIMEOUT))
            server.break_next(both)
            assert is_good(await caller.read(address + 100, 125))
        assert caller.wrong == []
        assert [unit for unit, _ in caller.late] == [1, 1, 1]
        assert server.connections == 1

    run(test, "tcp")


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_a_call_that_is_cancelled_leaves_no_reply_for_the_next(scheme: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        await caller.link.connect(LONG)
        for address in (100, 300, 500):
            server.break_next(BOTH["late"])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(caller.read(address, 10), 0.02)
            for step in (20, 40, 60):
                assert is_good(await caller.read(address + step, 10))
        assert caller.wrong == []
        assert server.most_live == 1

    run(test, scheme)


@pytest.mark.parametrize(
    "name", ["count_lies", "count_lies_more", "wrong_function", "empty", "huge_length", "odd"]
)
def test_what_cannot_be_decoded_does_not_cost_the_connection(name: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        for address in (100, 200):
            server.break_next(ON_TCP[name])
            assert not is_good(await caller.read(address, 10, timeout=TIMEOUT))
            assert is_good(await caller.read(address + 50, 10))
        assert (server.connections, caller.lost, caller.wrong) == (1, [], [])

    run(test, "tcp")


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
@pytest.mark.parametrize(("asked_for", "sent"), [(20, 1), (3, 2), (9, 1), (8, 2)])
def test_fewer_or_more_bits_than_asked_for_are_not_taken(scheme: str, asked_for: int, sent: int) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        async def answer(here: Conversation, asked: Asked) -> None:
            await here.send(here.frame(asked, bytes((asked.function, sent)) + b"\xff" * sent))

        server.break_next(answer)
        assert not is_good(await caller.read(100, asked_for, function=1, timeout=TIMEOUT))
        assert is_good(await caller.read(200, asked_for, function=1))
        assert caller.wrong == []

    run(test, scheme)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_a_reply_that_drips_is_waited_for_and_not_asked_for_again(scheme: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        server.break_next(BOTH["slow_drip"])
        assert is_good(await caller.read(100, 10))
        assert len(server.asked) == 1
        assert caller.wrong == []

    run(test, scheme)


def test_transaction_ids_wrap_without_harm() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        await caller.link.connect(LONG)
        assert caller.link._now is not None
        caller.link._now._tid = 0xFFFD
        for address in range(100, 150, 10):
            assert is_good(await caller.read(address, 2))
        assert [asked.tid for asked in server.asked] == [0xFFFE, 0xFFFF, 1, 2, 3]

    run(test, "tcp")


def test_pymodbus_writes_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        for name in ("silent", "wrong_tid", "flood", "count_lies", "rst_before"):
            server.break_next(ON_TCP[name])
            await caller.read(100, 10, timeout=TIMEOUT)

    with caplog.at_level(logging.INFO):
        run(test, "tcp")
    assert caplog.records == []


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_a_pulled_cable_is_noticed_by_the_kernel(scheme: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        await caller.link.connect(LONG)
        assert caller.link._now is not None and caller.link._now.transport is not None
        sock = caller.link._now.transport.get_extra_info("socket")
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, every, tries = (
            sock.getsockopt(tcp, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + every * tries <= 30
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 10_000
        assert sock.getsockopt(tcp, socket.TCP_NODELAY) == 1

    run(test, scheme)


def test_a_reply_that_came_while_the_loop_was_blocked_is_taken() -> None:
    """The timer has run out too by then: what has arrived counts."""

    async def test(server: FaultServer, caller: Caller) -> None:
        await caller.link.connect(LONG)
        loop = asyncio.get_running_loop()

        async def blocking(here: Conversation, asked: Asked) -> None:
            await here.send(here.good(asked))
            until = loop.time() + 2 * LATER
            while loop.time() < until:  # a compiler, or a thread that holds the interpreter
                pass

        server.break_next(blocking)
        answer = await caller.read(10, 2, timeout=LATER)
        assert isinstance(answer, Answer) and answer.payload is not None
        assert answer.rtt > LATER
        assert caller.late == []

    run(test, "tcp")


def test_a_device_that_stalls_and_then_sends_all_it_owes() -> None:
    """None of what comes late is taken, and all of it proves that the device lives."""

    async def test(server: FaultServer, caller: Caller) -> None:
        async def all_at_once(here: Conversation, asked: Asked) -> None:
            await here.send(b"".join(here.good(one) for one in server.asked))

        server.break_next(BOTH["silent"], 6)
        for address in range(100, 700, 100):
            assert not is_good(await caller.read(address, 100, timeout=0.02))
        server.break_next(all_at_once)
        assert is_good(await caller.read(700, 100))
        assert caller.wrong == []
        assert len(caller.late) == 6
        assert server.connections == 1

    run(test, "tcp")


def test_a_broken_rtu_reply_does_not_cost_the_whole_timeout_and_is_told() -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        server.break_next(ON_RTU["bad_crc"])
        answer = await caller.read(100, 10, timeout=20.0)
        assert isinstance(answer, LinkFault) and answer.quality is Quality.TIMEOUT
        assert re.fullmatch(
            r"no right answer within \d{2,4} ms: it sent a reply with a wrong CRC", answer.words
        )
        assert is_good(await caller.read(100, 10))
        assert caller.wrong == []
        assert server.connections <= 2

    run(test, "rtu+tcp")


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_bytes_that_are_no_modbus_are_told(scheme: str) -> None:
    async def test(server: FaultServer, caller: Caller) -> None:
        async def answer(here: Conversation, asked: Asked) -> None:
            await here.send(b"SSH-2.0-OpenSSH_9.6\r\n")

        server.break_next(answer)
        assert "it sent 21 bytes that are no reply" in str(await caller.read(10, 2, timeout=TIMEOUT))
        assert is_good(await caller.read(20, 2))

    run(test, scheme)


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_a_connection_that_is_closed_as_soon_as_the_answer_is_there(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What closes it runs while the reply is still being read."""

    async def test(server: FaultServer, caller: Caller) -> None:
        for address in range(0, 500, 10):
            server.break_next(ON_RTU["garbage_after" if address % 20 else "twice"])
            assert is_good(await caller.read(address, 10))
            caller.link.close()
        assert caller.wrong == caller.lost == []
        assert (server.connections, server.most_live) == (50, 1)

    with caplog.at_level(logging.INFO):
        run(test, scheme)
    assert caplog.records == []

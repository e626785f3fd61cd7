"""What two-wire lines really do, beside test_link_serial.py: echoes before any read, answers to broadcasts."""

from __future__ import annotations

import asyncio

import pytest

from agent.modbus.faults import LinkFault
from agent.twin.quality import Quality
from tests.modbus.faultserver import Asked, Conversation, FaultServer
from tests.modbus.test_link_serial import LONG, TIMEOUT, Port, is_good, run

WRITES = {
    "coil": (5, b"\0\1\xff\0"),
    "register": (6, b"\0\1\0\3"),
    "mask": (22, b"\0\1\0\2\0\3"),
    "registers": (16, b"\0\1\0\1\2\0\3"),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("told", [True, False])
def test_a_write_before_any_read_is_not_confirmed_by_its_echo(name: str, told: bool) -> None:
    """Nobody has said that the line echoes, and the device is dead: a write that comes first must not pass."""

    async def test(server: FaultServer, port: Port) -> None:
        server.echo = True
        server.silent_units.add(1)
        await port.link.connect(LONG)
        with pytest.raises(LinkFault) as caught:
            await port.link.transact(1, *WRITES[name], timeout=TIMEOUT, within=LONG)
        assert caught.value.quality is Quality.TIMEOUT
        server.silent_units.clear()
        answer = await port.link.transact(1, *WRITES[name], timeout=LONG, within=3 * LONG)
        assert answer.payload == b""

    run(test, local_echo=told)


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_before_any_read_reaches_a_living_device(name: str, echo: bool) -> None:
    async def test(server: FaultServer, port: Port) -> None:
        server.echo = echo
        function, body = WRITES[name]
        await port.link.connect(LONG)
        for _ in range(2):
            answer = await port.link.transact(1, function, body, timeout=LONG, within=3 * LONG)
            assert answer.payload == b""
        assert [asked.pdu for asked in server.asked if asked.function == function] == 2 * [
            bytes((function,)) + body
        ]
        assert len(server.asked) <= 3  # at most one read to find out whether the line echoes

    run(test)


@pytest.mark.parametrize("later", [0.0, 0.02])
def test_an_answer_to_a_broadcast_is_not_taken_for_the_next_read(later: float) -> None:
    """There should be none; some devices send it, at once or into the next request's waiting time."""

    async def test(server: FaultServer, port: Port) -> None:
        async def answers(here: Conversation, asked: Asked) -> None:
            await asyncio.sleep(later)
            await here.send(here.frame(asked, asked.pdu) + here.frame(asked, asked.pdu, unit=1))

        assert is_good(await port.read(10, 2))
        server.break_next(answers)
        answer = await port.link.transact(0, 6, b"\0\1\0\7", timeout=TIMEOUT, within=LONG)
        assert answer.payload == b""
        for address in (1, 20, 30):
            assert is_good(await port.read(address, 1))
        assert port.wrong == []

    run(test)

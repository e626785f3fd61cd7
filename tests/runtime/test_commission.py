"""Which line a url of scan and probe means, and what is not asked of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from agent.config.types import Avoid, Device
from agent.config.urls import device_url
from agent.modbus.line import Line
from agent.runtime import commission
from agent.runtime.clock import FakeClock


def line(url: str, *, avoid: tuple[Avoid, ...] = ()) -> Line:
    parsed = device_url(url)
    return Line(
        parsed,
        [Device("meter", parsed, unit=5, avoid=avoid)],
        {},
        clock=FakeClock(now=10.0),
        on_reply=lambda request, reply: None,
        on_scan=lambda done: None,
        on_event=lambda event: None,
        rng=random.Random(1),
    )


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ("tcp://PLC", "tcp://plc:502"),
        ("tcp://plc:503", None),
        ("tcp://other", None),
        ("rtu+tcp://plc", "the running agent holds this as tcp://plc:502; ask with that url"),
    ],
)
def test_a_host_and_port(asked: str, held: str | None) -> None:
    outcome = commission.held([line("tcp://other:777"), line("tcp://plc:502")], device_url(asked))
    assert (outcome.result if outcome.ok else outcome.error) == held


def test_a_serial_port_by_whatever_name(tmp_path: Path) -> None:
    port, by_id = tmp_path / "ttyUSB0", tmp_path / "usb-adapter"
    port.touch()
    by_id.symlink_to(port)
    lines = [line(f"rtu://{port}?baud=9600&parity=N")]
    outcome = commission.held(lines, device_url(f"rtu://{by_id}?baud=9600&parity=N&local_echo=true"))
    assert outcome.result == lines[0].url.text
    outcome = commission.held(lines, device_url(f"rtu://{by_id}?baud=19200&parity=N"))
    assert not outcome.ok and "baud=9600" in str(outcome.error)


@pytest.mark.parametrize(
    ("unit", "function", "body", "avoided"),
    [
        (5, 3, b"\0\x3b\0\x02", True),
        (5, 3, b"\0\x45\0\x01", True),
        (5, 3, b"\0\x46\0\x01", False),
        (5, 3, b"\0\x3a\0\x02", False),
        (5, 4, b"\0\x3c\0\x01", False),  # another table
        (6, 3, b"\0\x3c\0\x01", False),  # another unit
        (5, 17, b"", False),
    ],
)
def test_what_is_to_be_avoided(unit: int, function: int, body: bytes, avoided: bool) -> None:
    one = line("tcp://plc", avoid=(Avoid("holding", 60, 69),))

    async def ask() -> object:
        await one.close()  # whatever goes to the line is told that there is none
        outcome = await commission.ask_unit([one], one.url, unit, function, body, timeout=1.0, deadline=20.0)
        return outcome.result["fault"]

    assert asyncio.run(ask()) == ("avoided" if avoided else "unreachable")

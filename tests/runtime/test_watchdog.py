"""The watchdog is fed by what turns: every device's scans, the loops' ticks, the cloud thread; not by a timer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.config.load import load
from agent.modbus.line import ScanDone
from agent.runtime.clock import FakeClock
from agent.runtime.service import Service
from agent.twin.records import Event
from tests.ports import free_port

TEXT = """
gateway: line7
state_dir: {folder}/state
page: off
devices:
  press:
    url: tcp://127.0.0.1:1
    on_loss: hold
    tags: {{t: {{holding: 0}}, u: {{holding: 1, write: {{range: [0, 100]}}}}}}
  meter:
    url: tcp://127.0.0.1:2
    tags: {{energy: {{holding: 0, every: 1m}}}}
loops:
  oven: {{pv: press/t, out: press/u, setpoint: 50}}
"""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock) -> Iterator[Service]:
    (tmp_path / "state").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(TEXT.format(folder=tmp_path))
    config = load(str(path)).config
    assert config is not None
    made = Service(config, state_dir=tmp_path / "state", clock=clock)
    yield made
    made.cloud.stop(0.0)


def turn(service: Service, *, scans: str = "press meter", loops: bool = True, cloud: bool = True) -> None:
    """What turns in a healthy agent, or a part of it."""
    now = service.clock.mono()
    for device in scans.split():
        every = 60.0 if device == "meter" else 1.0
        service.plant._on_scan(ScanDone(device, every, 1, now, now, now, 0, 1))
    if loops:
        service.plant.loops.tick()
    if cloud:
        service.cloud._beat = now


def test_a_scan_whose_requests_all_failed_feeds_it(service: Service, clock: FakeClock) -> None:
    for _ in range(300):
        clock.advance(10.0)
        turn(service)
        assert service.healthy()


@pytest.mark.parametrize(
    ("part", "after", "words"),
    [
        ({"scans": "meter"}, 31.0, "no scan of press has ended for 31 s"),
        ({"scans": "press"}, 181.0, "no scan of meter has ended for 181 s"),
        ({"loops": False}, 11.0, "the loops have not turned for 11 s"),
        ({"cloud": False}, 60.0, "the cloud thread does not turn any more"),
    ],
)
def test_what_stands_still_is_named(
    service: Service, clock: FakeClock, part: dict[str, object], after: float, words: str
) -> None:
    turn(service)
    for _ in range(int(after) - 1):
        clock.advance(1.0)
        turn(service, **part)  # type: ignore[arg-type]
        assert service.healthy()
    clock.advance(1.0)
    turn(service, **part)  # type: ignore[arg-type]
    assert not service.healthy() and service.status()["healthy"] is False
    assert words in service.status()["problems"]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def pings(service: Service, systemd: socket.socket) -> list[str]:
    """What the watchdog's task sends in a moment."""

    async def some() -> None:
        task = asyncio.create_task(service._watchdog())
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(some())
    systemd.setblocking(False)
    told = []
    while True:
        try:
            told.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return told


def test_no_ping_while_something_hangs(
    service: Service, clock: FakeClock, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    turn(service)
    assert set(pings(service, systemd)) == {"WATCHDOG=1"}
    clock.advance(31.0)
    turn(service, scans="meter")
    assert pings(service, systemd) == []
    turn(service)
    assert set(pings(service, systemd)) == {"WATCHDOG=1"}


@pytest.mark.process
def test_the_way_of_a_service(tmp_path: Path, systemd: socket.socket) -> None:
    """READY once the kernels are there and the links were tried; pings while the PLC is dead; STOPPING at the end."""
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    path = tmp_path / "config.yaml"
    text = TEXT.format(folder=tmp_path).replace(":1\n", f":{silent.getsockname()[1]}\n")
    path.write_text(text.replace(":2\n", f":{free_port()}\n"))
    environment = {**os.environ, "WATCHDOG_USEC": "600000"}
    environment.pop("WATCHDOG_PID", None)
    started = time.monotonic()
    with (tmp_path / "log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", str(path)], env=environment, stdout=log, stderr=log
        )
    try:
        told: list[str] = []
        while told.count("WATCHDOG=1") < 10:
            told.append(systemd.recv(4096).decode())
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=30) == 0
        while "STOPPING=1\nSTATUS=stopping" not in told:
            told.append(systemd.recv(4096).decode())
    finally:
        agent.kill()
        silent.close()
    ready = next(i for i, one in enumerate(told) if one.startswith("READY=1"))
    assert told[0] == "STATUS=compiling kernels" and told[1].startswith("EXTEND_TIMEOUT_USEC=")
    assert told[ready] == "READY=1\nSTATUS=3 tags on 2 lines"
    assert time.monotonic() - started >= 0.5  # the silent PLC had its half second before READY
    assert told[-1].startswith("STOPPING=1")


def test_a_disk_or_a_broker_that_takes_nothing_is_a_problem(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outbox(state: Literal["raised", "cleared"]) -> Event:
        text = "the outbox cannot be written" if state == "raised" else "the outbox can be written again"
        return Event(None, "outbox_unwritable", "alarm", state, text, 0.0, alarm=True)

    def told() -> list[str]:
        return [problem for problem in service.status()["problems"] if not problem.startswith("tcp:")]

    online: dict[str, Any] = {"state": "online", "protocol": 5, "unacked": 0, "error": None}
    monkeypatch.setattr(service.cloud, "status", lambda: {"outbox": {}, "uplink": online})
    service._event_from_outside(outbox("raised"))
    service._event_from_outside(Event(None, "publish_refused", "warning", "raised", "once", 0.0))
    assert told() == ["the outbox cannot be written"]
    service._event_from_outside(outbox("cleared"))
    assert told() == []
    online["error"] = "the broker refuses edgetwin/v1/line4/data/press: Not authorized"
    assert told() == [f"broker: {online['error']}"]

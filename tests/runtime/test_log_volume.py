"""How much the log holds: a healthy hour and a dead PLC for a day are a few lines. In virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config.load import load
from agent.modbus.line import Line
from agent.modbus.plan import plan_device
from agent.runtime.calm import MOST
from agent.runtime.clock import FakeClock
from agent.runtime.service import Service
from agent.twin.records import Event
from tests.modbus.virtual import FakeLink, LoopClock, in_virtual_time

HOUR, DAY = 3600.0, 86_400.0
TEXT = """
gateway: line7
state_dir: {folder}/state
page: off
devices:
  press: {{url: "tcp://127.0.0.1:1", unit: 1, tags: {{t: {{holding: 0}}, u: {{holding: 9, type: float32}}}}}}
  meter: {{url: "tcp://127.0.0.1:1", unit: 2, tags: {{energy: {{holding: 0, every: 10s}}}}}}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "state").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(TEXT.format(folder=tmp_path))
    config = load(str(path)).config
    assert config is not None
    made = Service(config, state_dir=tmp_path / "state")
    yield made
    made.cloud.stop(0.0)


def lived(service: Service, seconds: float, fault: Callable[[FakeLink], None]) -> int:
    """Scans that ended while the two devices' line ran for so long with a fault."""
    ended = 0

    def count(_: object) -> None:
        nonlocal ended
        ended += 1

    async def story(clock: LoopClock) -> None:
        link = FakeLink(clock)
        fault(link)
        devices = list(service.config.devices.values())
        line = Line(
            devices[0].url,
            devices,
            {device.name: plan_device(device) for device in devices},
            clock=clock,
            on_reply=lambda request, reply: None,
            on_scan=count,
            on_event=service.on_event,
            rng=random.Random(1),
            link=link,
        )
        link.lost, link.late = line.lost, line.late
        running = asyncio.ensure_future(line.run())
        await asyncio.sleep(seconds)
        await line.close()
        await running

    in_virtual_time(story)
    return ended


def nothing(_: FakeLink) -> None:
    pass


def unreachable(link: FakeLink) -> None:
    link.up = False


def silent(link: FakeLink) -> None:
    link.delay[1] = None


def slams(link: FakeLink) -> None:
    link.slams = True


def refuses(link: FakeLink) -> None:
    link.exceptions[1] = 2


@pytest.mark.parametrize(
    ("fault", "seconds", "most"),
    [(nothing, HOUR, 5), (unreachable, DAY, 10), (silent, DAY, 10), (slams, DAY, 50), (refuses, DAY, 50)],
    ids=["healthy", "unreachable", "silent", "ends every connection", "refuses everything"],
)
def test_lines_of_the_log(
    service: Service,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[FakeLink], None],
    seconds: float,
    most: int,
) -> None:
    with caplog.at_level(logging.INFO):
        scans = lived(service, seconds, fault)
    assert scans > 0.9 * seconds, "it did not live as long as that"
    assert len(caplog.records) <= most, [record.getMessage() for record in caplog.records][:60]
    assert fault is nothing or caplog.records, "nothing was told of a fault"


def test_a_device_that_comes_and_goes_fills_no_log(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second another fault and its end: the page and the central side have them all, the journal ten."""
    monkeypatch.setattr(service, "clock", FakeClock())
    with caplog.at_level(logging.INFO):
        for _ in range(500):
            for state in ("raised", "cleared"):
                service.on_event(
                    Event("press", "device_silent", "warning", state, "no answer", 0.0, alarm=True)
                )
    assert len(caplog.records) == MOST
    assert len(service.events) == min(1000, service.events.maxlen or 0)

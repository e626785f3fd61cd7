"""A line on a fake link, and all that it told."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from agent.config.types import Device, Url
from agent.modbus.line import Line, Reply, ScanDone
from agent.modbus.plan import Request
from agent.twin.records import Event
from tests.modbus.virtual import FakeLink, LoopClock

URL = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)


def device(name: str, unit: int, **options: Any) -> Device:
    return Device(name, URL, unit=unit, **options)


def request(device: str, unit: int, address: int = 100, count: int = 2, every: float = 1.0) -> Request:
    tags = tuple(f"t{address + i}" for i in range(count))
    return Request(
        device=device,
        unit=unit,
        function=3,
        address=address,
        count=count,
        every=every,
        tags=tags,
        wanted=count,
    )


class Plant:
    """A line on a fake link, and all that it told."""

    def __init__(
        self, clock: LoopClock, devices: Sequence[Device], requests: Sequence[Request], **options: Any
    ) -> None:
        self.clock = clock
        self.link = FakeLink(clock)
        self.replies: list[tuple[Request, Reply]] = []
        self.scans: list[ScanDone] = []
        self.events: list[Event] = []
        plans = {
            one.name: tuple(request for request in requests if request.device == one.name) for one in devices
        }
        self.line = Line(
            URL,
            devices,
            plans,
            clock=clock,
            on_reply=lambda request, reply: self.replies.append((request, reply)),
            on_scan=self.scans.append,
            on_event=self.events.append,
            rng=random.Random(1),
            link=self.link,
            **options,
        )
        self.link.lost = self.line.lost
        self.link.late = self.line.late

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.line.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def of(self, device: str) -> list[Reply]:
        return [reply for request, reply in self.replies if request.device == device]

    def scans_of(self, device: str) -> list[ScanDone]:
        return [scan for scan in self.scans if scan.device == device]

    def told(self, name: str) -> list[str]:
        return [event.state for event in self.events if event.name == name]

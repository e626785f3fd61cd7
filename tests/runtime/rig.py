"""Loops on a twin, with a writer and a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.config.types import Config, Device, Fail, Heartbeat, LoopConfig, Tag, Url, Write
from agent.runtime.clock import FakeClock
from agent.runtime.loops import Loops
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Event, Key, Outcome
from agent.twin.table import Twin

PV, OUT, BEAT = ("plc", "pv"), ("plc", "out"), ("plc", "watchdog")


def configuration(*, on_loss: Any = "hold", min_interval: float = 0.0, **loop: Any) -> Config:
    """One device, one loop in auto at 1 s; `loop` are fields of LoopConfig."""
    tags = (
        Tag("pv", "holding", 0, type="float32"),
        Tag("out", "holding", 10, type="float32", write=Write(range=(0, 100), min_interval=min_interval)),
        Tag("watchdog", "holding", 20, write=Write()),
        Tag("other", "holding", 30, write=Write()),
    )
    device = Device(
        "plc", Url("tcp://h:502", "tcp", "h", 502), on_loss=on_loss, tags={t.name: t for t in tags}
    )
    fields: dict[str, Any] = {
        "name": "oven",
        "pv": PV,
        "out": OUT,
        "setpoint": 50.0,
        "limits": (0.0, 100.0),
        "mode": "auto",
        "fail": Fail(),
        **loop,
    }
    return Config(
        "c.yaml", "g", Path("/nowhere"), devices={"plc": device}, loops={"oven": LoopConfig(**fields)}
    )


@dataclass
class Asked:
    """One write that the loops asked for."""

    key: Key
    value: float
    source: str
    safety: bool
    deadline: float
    answer: asyncio.Future[Outcome]


@dataclass
class Rig:
    """`slow` True: a write waits until the test answers it; otherwise it arrives at once."""

    config: Config
    clock: FakeClock = field(default_factory=FakeClock)
    events: list[Event] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    slow: bool = False
    ahead: Any = None

    def __post_init__(self) -> None:
        self.twin = Twin(build_layout(self.config))
        self.registers: dict[Key, float] = {PV: 50.0, OUT: 40.0, BEAT: 0.0, ("plc", "other"): 0.0}
        self.loops = Loops(
            self.config,
            twin=self.twin,
            write=self.write,
            forecast=lambda _: self.ahead,
            clock=self.clock,
            on_event=self.events.append,
            on_change=self.kept.append,
        )

    async def write(
        self, key: Key, value: float, *, source: str, deadline: float, safety: bool = False, **_: Any
    ) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.asked.append(Asked(key, value, source, safety, deadline, answer))
        if not self.slow or key == BEAT:
            self.registers[key] = value
            return Outcome(True, applied=value, readback=value)
        return await answer

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def scan(self, count: int = 1, *, good: bool = True, every: float = 1.0) -> None:
        for _ in range(count):
            self.clock.advance(every)
            for key, value in self.registers.items():
                row = np.array([self.twin.layout.row[key]])
                if good or key != PV:
                    quality = np.array([Quality.GOOD], dtype=np.uint8)
                    self.twin.apply(row, np.array([value]), quality, [value], self.clock.mono())
                else:
                    self.twin.fail(row, Quality.TIMEOUT, self.clock.mono())
            self.loops.on_scan("plc")
            await self.settle()

    async def tick(self, seconds: float, count: int = 1) -> None:
        for _ in range(count):
            self.clock.advance(seconds)
            self.loops.tick()
            await self.settle()

    def outputs(self) -> list[float]:
        return [one.value for one in self.asked if one.key == OUT]

    @property
    def mode(self) -> str:
        return self.loops.views()["oven"].mode


def play(story: Callable[[Rig], Coroutine[Any, Any, None]], config: Config | None = None) -> Rig:
    """Runs the story on a rig of `config` in an event loop of its own."""
    rig = Rig(configuration() if config is None else config)
    asyncio.run(story(rig))
    return rig


def heartbeat(timeout: float = 3.0) -> Heartbeat:
    return Heartbeat(BEAT, timeout)

"""A loop on a bench: a PLC with one output register, scans on a grid, and a clock that the test moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.config.types import ControllerConfig, Fail, Heartbeat, LoopConfig
from agent.control.loop import Loop
from agent.control.signals import Inputs, Sample, Step
from agent.twin.records import Event

PV, OUT, SP, RUN, FF = ("plc", "pv"), ("plc", "out"), ("plc", "sp"), ("plc", "running"), ("plc", "load")
TICKS = 4


def config(**changes: Any) -> LoopConfig:
    """A loop in auto, 1 s, output 0 to 100, PI; `changes` are fields of LoopConfig."""
    plain = LoopConfig(
        name="oven",
        pv=PV,
        out=OUT,
        setpoint=50.0,
        limits=(0.0, 100.0),
        every=1.0,
        mode="auto",
        controller=ControllerConfig(kp=2.0, ti=20.0, b=0.7),
    )
    return dataclasses.replace(plain, **changes)


def failing(to: Any, *, resume: int | None = 3, after: int = 3, on_stop: Any = "hold") -> Fail:
    return Fail(after=after, to=to, on_stop=on_stop, resume=resume)


def beating(timeout: float = 3.0) -> Heartbeat:
    return Heartbeat(("plc", "watchdog"), timeout)


@dataclass
class Bench:
    """`good`, `pv`, `sp`, `running` are what the next scan finds; `register` is the PLC's output."""

    loop: Loop
    register: float = 40.0
    pv: float = 50.0
    good: bool = True
    sp: Sample | None = None
    running: Sample | None = None
    ahead: tuple[float, ...] = ()
    reachable: bool = True
    rival: Callable[[float], float] | None = None
    now: float = 1000.0
    writes: list[tuple[float, float, bool]] = field(default_factory=list)
    beats: list[tuple[float, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def scan(self, count: int = 1) -> None:
        """So many scans, each a period later, with ticks in between."""
        every = self.loop.config.every
        for _ in range(count):
            self.pass_time(every)
            if self.rival is not None:
                self.register = self.rival(self.register)
            self.take(self.loop.on_sample(self.now, self.inputs()))

    def pass_time(self, seconds: float) -> None:
        """Ticks without samples."""
        for _ in range(TICKS):
            self.now += seconds / TICKS
            self.take(self.loop.on_tick(self.now))

    def inputs(self) -> Inputs:
        now = self.now
        value = self.pv if self.good else float("nan")
        return Inputs(
            pv=Sample(value, self.good, now),
            out=Sample(self.register, True, now),
            setpoint=self.sp,
            interlocks=() if self.running is None else (self.running,),
            ahead=self.ahead,
        )

    def take(self, step: Step) -> None:
        self.events += step.events
        if step.heartbeat is not None:
            self.beats.append((self.now, step.heartbeat))
        if step.write is None:
            return
        self.writes.append((self.now, step.write, step.safety))
        self.loop.on_write_begin(step.write)
        if self.reachable:
            self.register = step.write
        self.loop.on_write_done(
            self.now,
            value=step.write,
            ok=self.reachable,
            readback=step.write if self.reachable else None,
            error=None if self.reachable else "no connection",
            safety=step.safety,
        )

    @property
    def mode(self) -> str:
        return self.loop.view().mode

    def names(self) -> list[tuple[str, str]]:
        return [(event.name, event.state) for event in self.events]


def bench(**changes: Any) -> Bench:
    """A bench with `config(**changes)`, before its first scan."""
    made = config(**changes)
    return Bench(Loop(made, pv_period=made.every))


def running(**changes: Any) -> Bench:
    """A bench whose loop has taken over at register 40 with the PV on its setpoint: it has nothing to do."""
    made = bench(**changes)
    made.scan(4)
    assert made.loop.engaged
    return made


def on(value: bool, *, good: bool = True) -> Sample:
    return Sample(float(value), good, 0.0)

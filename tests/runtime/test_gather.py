"""Forecasts of several devices in one call, where no loop waits for them: the same as one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agent.config.types import Config, Device, Fail, HealthConfig, LoopConfig, PredictConfig, Tag, Url, Write
from agent.modbus.replies import ScanDone
from agent.predict.health import Health
from agent.predict.predictor import for_config
from agent.runtime.clock import FakeClock
from agent.runtime.loops import Loops
from agent.runtime.pipeline import GATHER, Pipeline
from agent.twin.history import History
from agent.twin.layout import build_layout
from agent.twin.records import Event, Outcome
from agent.twin.table import Twin

TAGS = [f"t{i}" for i in range(3)]
DEVICES = ("a", "b", "c")
Later = Callable[[float, Callable[[], None]], None]


async def write(*_: object, **__: object) -> Outcome:
    return Outcome(True)


class Site:
    """Three devices; with `loop` a loop looks at the first one."""

    def __init__(self, later: Later | None, *, loop: bool = False) -> None:
        tags = {name: Tag(name, "holding", 2 * i, type="float32") for i, name in enumerate(TAGS)}
        tags["out"] = Tag("out", "holding", 900, type="float32", write=Write(range=(0, 100)))
        oven = LoopConfig(
            "oven", ("a", "t0"), ("a", "out"), setpoint=1.0, limits=(0.0, 9.0), mode="off", fail=Fail()
        )
        self.config = Config(
            "c.yaml",
            "g",
            None,
            devices={name: Device(name, Url("tcp://h", "tcp"), tags=tags) for name in DEVICES},
            predict=PredictConfig(tags=tuple((device, name) for device in DEVICES for name in TAGS)),
            health={name: HealthConfig(tags=tuple(TAGS), warmup=40, hold=2.0) for name in DEVICES},
            loops={"oven": oven} if loop else {},
        )
        self.clock, self.events, self.calls = FakeClock(), list[Event](), list[int]()
        self.twin = Twin(build_layout(self.config))
        found = for_config(self.config)
        assert found is not None
        self.predictor = found
        self.health = Health(self.config, found.keys, found)
        update = found.update

        def updated(slots: np.ndarray, *rest: object, **more: object) -> None:
            self.calls.append(len(slots))
            update(slots, *rest, **more)  # type: ignore[arg-type]

        found.update = updated  # type: ignore[method-assign, assignment]
        self.pipeline = Pipeline(
            self.config,
            self.twin,
            predictor=found,
            slots={key: slot for slot, key in enumerate(found.keys)},
            health=self.health,
            loops=Loops(
                self.config,
                twin=self.twin,
                write=write,
                forecast=lambda _: None,
                clock=self.clock,
                on_event=self.events.append,
            ),
            history=History(len(self.twin.layout.keys)),
            counters={},
            sink=lambda row: None,
            on_event=self.events.append,
            later=later,
        )

    def scan(self, device: str, k: int, level: float) -> None:
        self.clock.advance(0.1)
        t = self.clock.mono()
        values = level + np.random.default_rng([k, ord(device)]).normal(size=len(TAGS))
        rows = np.array([self.twin.layout.row[(device, name)] for name in TAGS])
        self.twin.apply(rows, values, np.zeros(len(TAGS), dtype=np.uint8), values.tolist(), t)
        self.pipeline.on_scan(ScanDone(device, 1.0, k, t, t, t, ok=1, failed=0))


def test_gathered_forecasts_are_the_same_as_single_ones() -> None:
    jobs: list[Callable[[], None]] = []
    waits: list[float] = []

    def later(seconds: float, job: Callable[[], None]) -> None:
        waits.append(seconds)
        jobs.append(job)

    together, single = Site(later), Site(None)
    for k in range(80):
        for device in DEVICES:
            for site in (together, single):
                site.scan(device, k, 50.0 if k < 60 or device != "b" else 90.0)
                site.clock.advance(0.2)
        for job in jobs:
            job()
        jobs.clear()
    assert together.calls == [9] * 80 and single.calls == [3] * 240 and set(waits) == {GATHER}
    assert np.array_equal(together.predictor.y, single.predictor.y) and np.isfinite(single.predictor.y).all()
    assert np.array_equal(together.health.scores(), single.health.scores())
    assert together.events == single.events and single.events[0].state == "raised"


def test_a_device_that_a_loop_looks_at_does_not_wait() -> None:
    jobs: list[Callable[[], None]] = []
    site = Site(lambda _, job: jobs.append(job), loop=True)
    for device in DEVICES:
        site.scan(device, 0, 50.0)
    assert site.calls == [3]
    site.pipeline.take_gathered()
    assert site.calls == [3, 6]


def test_the_next_scan_of_a_device_does_not_overtake_the_one_that_waits() -> None:
    site = Site(lambda _, job: None)
    site.scan("a", 0, 50.0)
    site.scan("b", 0, 50.0)
    site.scan("a", 1, 50.0)
    assert site.calls == [6]

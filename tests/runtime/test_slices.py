"""A scan of more tags than one call takes in a millisecond: slices take turns with the line, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from agent.config.types import Config, Device, Fail, HealthConfig, LoopConfig, PredictConfig, Tag, Url, Write
from agent.modbus.replies import ScanDone
from agent.predict import predictor as room
from agent.predict.health import Health
from agent.predict.predictor import for_config
from agent.runtime.clock import FakeClock
from agent.runtime.loops import Loops
from agent.runtime.pipeline import Pipeline
from agent.twin.history import History
from agent.twin.layout import build_layout
from agent.twin.records import Event, Outcome
from agent.twin.table import Twin

SLICE = room.SLICE
TAGS = 2 * SLICE + 100
URL = Url("tcp://h:502", "tcp", "h", 502)


class Site:
    """A pipeline with TAGS forecast tags of one device; what it calls is written down in order."""

    def __init__(self, *, soon: Callable[[Callable[[], None]], None] | None = None) -> None:
        names = [f"t{i:04}" for i in range(TAGS)]
        tags = {name: Tag(name, "holding", 2 * i, type="float32") for i, name in enumerate(names)}
        tags["out"] = Tag("out", "holding", 9000, type="float32", write=Write(range=(0, 100)))
        last = ("press", names[-1])
        loop = LoopConfig(
            "oven", last, ("press", "out"), setpoint=50.0, limits=(0.0, 100.0), mode="off", fail=Fail()
        )
        self.config = Config(
            "c.yaml",
            "g",
            None,
            devices={"press": Device("press", URL, tags=tags)},
            predict=PredictConfig(tags=tuple(("press", name) for name in names)),
            health={"press": HealthConfig(tags=tuple(names), warmup=40, hold=2.0)},
            loops={"oven": loop},
        )
        self.clock = FakeClock()
        self.twin = Twin(build_layout(self.config))
        self.calls: list[Any] = []
        self.events: list[Event] = []
        self.waiting: list[Callable[[], None]] = []
        found = for_config(self.config)
        assert found is not None
        self.predictor = found
        self.health = Health(self.config, found.keys, found)
        self.slots = {key: slot for slot, key in enumerate(found.keys)}
        update, weigh = found.update, self.health.weigh

        def updated(slots: Any, *rest: Any, **more: Any) -> None:
            self.calls.append(("forecast", slots.tolist()))
            update(slots, *rest, **more)

        def weighed(device: str, t: float) -> list[Event]:
            self.calls.append(("weigh", device))
            return weigh(device, t)

        found.update = updated  # type: ignore[method-assign]
        self.health.weigh = weighed  # type: ignore[method-assign]
        loops = Loops(
            self.config,
            twin=self.twin,
            write=self.write,
            forecast=lambda _: None,
            clock=self.clock,
            on_event=self.events.append,
        )
        loops.on_scan = lambda device: self.calls.append(("loops", device))  # type: ignore[method-assign]
        more = {"soon": soon} if soon else {}
        self.pipeline = Pipeline(
            self.config,
            self.twin,
            predictor=found,
            slots=self.slots,
            health=self.health,
            loops=loops,
            history=History(len(self.twin.layout.keys)),
            counters={},
            sink=lambda row: None,
            on_event=self.events.append,
            **more,
        )
        self.k = 0

    async def write(self, *_: Any, **__: Any) -> Outcome:
        return Outcome(True)

    def scan(self, level: float) -> None:
        """A finished scan whose tags all read near `level`."""
        self.clock.advance(1.0)
        t = self.clock.mono()
        self.k += 1
        values = level + np.random.default_rng(self.k).normal(size=TAGS)
        rows = np.array([self.twin.layout.row[key] for key in self.predictor.keys])
        self.twin.apply(rows, values, np.zeros(TAGS, dtype=np.uint8), values.tolist(), t)
        self.pipeline.on_scan(ScanDone("press", 1.0, self.k, t, t, t, ok=1, failed=0))


def sizes(site: Site) -> list[Any]:
    return [(what, len(of)) if what == "forecast" else what for what, of in site.calls]


def test_loops_go_on_after_the_first_slice_and_one_slice_runs_per_turn() -> None:
    later: list[Callable[[], None]] = []
    site = Site(soon=later.append)
    site.scan(50.0)
    assert sizes(site) == [("forecast", SLICE), "loops"]
    assert site.calls[0][1][0] == TAGS - 1, "the tag that a loop looks at does not wait"
    for wanted in ([("forecast", SLICE)], [("forecast", 100), "weigh"]):
        assert len(later) == 1, "never two at once: they would run together"
        site.calls.clear()
        later.pop()()
        assert sizes(site) == wanted
    assert later == []


def test_every_tag_is_forecast_once_per_scan_with_the_values_of_that_scan() -> None:
    later: list[Callable[[], None]] = []
    site, whole = Site(soon=later.append), Site(soon=lambda job: job())
    for k in range(60):
        level = 50.0 if k < 50 else 90.0
        site.scan(level)
        whole.scan(level)
        if k % 3:  # else the next scan finds the slices still waiting
            while later:
                later.pop()()
    while later:
        later.pop()()
    for one in (site, whole):
        one.pipeline.settle()
    seen = sorted(slot for what, of in site.calls if what == "forecast" for slot in of)
    assert seen == sorted(list(range(TAGS)) * 60)
    for mine, other in ((site.predictor.y, whole.predictor.y), (site.health.scores(), whole.health.scores())):
        assert np.array_equal(mine, other, equal_nan=True) and np.isfinite(mine).any()
    assert site.events == whole.events and [event.state for event in site.events] == ["raised"]


def test_a_line_is_served_between_two_slices() -> None:
    async def story() -> None:
        site = Site()

        async def line() -> None:
            for _ in range(4):
                site.calls.append(("line", "served"))
                await asyncio.sleep(0)

        serving = asyncio.create_task(line())
        site.scan(50.0)
        await serving
        shown = [what for what, _ in site.calls]
        between = shown[shown.index("loops") :]
        assert between[:6] == ["loops", "line", "forecast", "line", "forecast", "weigh"]

    asyncio.run(story())


def test_a_fault_in_one_slice_does_not_stop_the_others() -> None:
    later: list[Callable[[], None]] = []
    site = Site(soon=later.append)
    site.scan(50.0)
    right, site.predictor.update = site.predictor.update, None  # type: ignore[assignment,method-assign]
    try:
        later.pop()()
    except TypeError:
        pass
    site.predictor.update = right  # type: ignore[method-assign]
    later.pop()()
    assert sizes(site)[-2:] == [("forecast", 100), "weigh"]

"""What the agent itself recorded, replayed: the same forecasts, intervals, health and alarms, number for number."""

from __future__ import annotations

import csv
import io
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config.types import Config, Device, HealthConfig, PredictConfig, Tag, Url
from agent.modbus.plan import Request, plan_device
from agent.modbus.replies import Reply, ScanDone
from agent.predict.replay import Reader, Replay
from agent.runtime.clock import FakeClock
from agent.runtime.plant import Plant
from agent.twin.quality import Quality
from agent.twin.records import Event, Row
from tests.predict.series import ar2

URL = Url("tcp://127.0.0.1:1", "tcp", "127.0.0.1", 1)
TAGS = (
    Tag("temperature", "holding", 0, type="float32"),
    Tag("pressure", "holding", 1000, type="int16", scale=Decimal("0.1")),  # far away: a request of its own
)
DEVICE = Device("press", URL, tags={tag.name: tag for tag in TAGS})
CONFIG = Config(
    "config.yaml",
    "gw",
    None,
    devices={"press": DEVICE},
    predict=PredictConfig(tags=tuple(("press", tag.name) for tag in TAGS), horizon=(1, 5)),
    health={"press": HealthConfig(tags=("temperature", "pressure"), warmup=100, hold=5.0)},
)


class Agent:
    """The agent between wire and queue, with a PLC that is two series, and a record of what it handed out."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(now=0.0)
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.shown: list[Any] = []
        self.plant = Plant(
            CONFIG,
            state_dir=folder,
            clock=self.clock,
            sink=self.rows.append,
            on_event=self.events.append,
        )
        self.recorded = io.StringIO()
        self._writer = csv.writer(self.recorded)
        self._writer.writerow(["time", *(tag.name for tag in TAGS)])

    def scan(self, values: dict[str, float], *, late: float, lost: str | None = None) -> None:
        """One scan whose replies come a little late; the reply with the tag `lost` does not come at all."""
        plant = self.plant
        assert plant.predictor is not None and plant.health is not None
        foretold = plant.predictor.one_step()
        due = self.clock.mono()
        self.clock.advance(late)
        self.rows.clear()
        for request in plan_device(DEVICE):
            plant.pipeline.on_reply(request, self._reply(request, values, lost))
            self.clock.advance(0.01)
        now = self.clock.mono()
        plant.pipeline.on_scan(ScanDone("press", 1.0, len(self.shown), due, due, now, ok=1, failed=0))
        read = {tag: value for row in self.rows for tag, value in zip(row.tags, row.values, strict=True)}
        self._writer.writerow([now, *("" if read[tag.name] is None else read[tag.name] for tag in TAGS)])
        self.shown.append((*foretold, plant.health.scores()))
        self.clock.now = due + 1.0

    def _reply(self, request: Request, values: dict[str, float], lost: str | None) -> Reply:
        now = self.clock.mono()
        if lost in request.tags:
            return Reply(now, None, None, Quality.LINK, None, "no answer")
        (name,) = request.tags
        return Reply(now, 0.01, PACK[name](values[name]), Quality.GOOD)


PACK = {
    "temperature": lambda value: struct.pack(">f", value),
    "pressure": lambda value: struct.pack(">h", round(10 * value)),
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    one = Agent(tmp_path_factory.mktemp("state"))
    temperature, pressure = 180.0 + ar2(500, 1), 20.0 + ar2(500, 2)
    temperature[300:340] += 60.0  # an alarm
    rng = np.random.default_rng(3)
    for i in range(500):
        if i == 200:
            one.clock.advance(30.0)  # the machine slept
        lost = "pressure" if 150 <= i < 160 else None
        values = {"temperature": temperature[i], "pressure": pressure[i]}
        one.scan(values, late=float(rng.uniform(0.0, 0.08)), lost=lost)
    return one


def test_the_record_replays_to_the_same_numbers(agent: Agent) -> None:
    replay = Replay(CONFIG, Reader(io.StringIO(agent.recorded.getvalue()), lenient=False, say=pytest.fail))
    shown: list[Any] = []
    result = replay.run(lambda sample, one, foretold: shown.append((*foretold, one.health.scores())))
    assert result.rows == 500 and replay.keys == [("press", tag.name) for tag in TAGS]
    for mine, other in zip(shown, agent.shown, strict=True):
        for part, wanted in zip(mine, other, strict=True):
            assert np.array_equal(part, wanted, equal_nan=True)
    assert np.isfinite(shown[-1]).all()
    predictor = agent.plant.predictor
    assert predictor is not None
    assert np.array_equal(replay.predictor.y, predictor.y) and np.array_equal(replay.predictor.a, predictor.a)
    assert {name: tag["horizons"] for name, tag in result.tags.items()} == {
        tag.name: {str(h): book for h, book in predictor.book(slot).items()} for slot, tag in enumerate(TAGS)
    }


def test_and_to_the_same_alarms(agent: Agent) -> None:
    replay = Replay(CONFIG, Reader(io.StringIO(agent.recorded.getvalue()), lenient=False, say=pytest.fail))
    events = replay.run().events
    assert events == [event for event in agent.events if event.name == "health_low"]
    assert [event.state for event in events][:2] == ["raised", "cleared"]

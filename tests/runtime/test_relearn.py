"""A device's health reference set anew through the doors; a commissioning that goes on after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.cli import main as cli
from agent.cli import relearn as command
from agent.config.types import Config, Device, HealthConfig, PredictConfig, Tag, Url
from agent.modbus.replies import ScanDone
from agent.runtime import state
from agent.runtime.clock import FakeClock
from agent.runtime.doors import Doors
from agent.runtime.plant import Plant
from agent.statefile import write_atomic
from agent.twin.records import Ask, Event, Outcome
from tests.predict.series import ar2

WARMUP = 60
Y = 20.0 + ar2(400)
URL = Url("tcp://127.0.0.1:1", "tcp", "127.0.0.1", 1)
DEVICES = {
    name: Device(
        name, URL, tags={tag: Tag(tag, "holding", 2 * i, type="float32") for i, tag in enumerate("ab")}
    )
    for name in ("press", "oven")
}
CONFIG = Config(
    "config.yaml",
    "gw",
    None,
    devices=DEVICES,
    predict=PredictConfig(tags=(("press", "a"), ("press", "b"))),
    health={"press": HealthConfig(tags=("a", "b"), warmup=WARMUP, hold=3.0)},
)


class Site:
    """A plant whose readings are handed in, and its doors."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.folder, self.clock = folder, clock
        self.events: list[Event] = []
        self.plant = Plant(
            CONFIG, state_dir=folder, clock=clock, sink=lambda row: None, on_event=self.events.append
        )
        self.doors = Doors(
            CONFIG,
            self.plant.writer,
            self.plant.loops,
            clock,
            dict,
            lambda t: 0,
            on_local_change=lambda name: None,
            relearn=self.plant.relearn,
        )

    def feed(self, series: Any) -> list[float | None]:
        """The press's score after each value, one a second."""
        scores = []
        twin = self.plant.twin
        rows = np.array([twin.layout.row[("press", tag)] for tag in "ab"])
        for y in series:
            self.clock.advance(1.0)
            t = self.clock.mono()
            twin.apply(rows, np.full(2, y), np.zeros(2, dtype=np.uint8), [float(y)] * 2, t)
            self.plant.pipeline.on_scan(ScanDone("press", 1.0, 0, t, t, t, ok=1, failed=0))
            assert self.plant.health is not None
            scores.append(self.plant.health.views()["press"].score)
        return scores

    def relearn(self, device: str) -> Outcome:
        async def ask() -> Outcome:
            one = Ask("relearn", "cmd", self.clock.mono() + 5.0, extra={"device": device})
            outcome = await self.doors.handle(one)
            await asyncio.get_running_loop().shutdown_default_executor()
            return outcome

        return asyncio.run(ask())

    def restarted(self) -> Site:
        self.plant.write_state(*self.plant.state())
        return Site(self.folder, self.clock)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, FakeClock())


def test_a_device_is_commissioned_anew(site: Site) -> None:
    site.feed(Y[:100])
    assert site.feed(Y[100:130] + 50.0)[-1] == pytest.approx(0.0, abs=0.1)
    outcome = site.relearn("press")
    assert outcome.ok and outcome.result == {"device": "press", "tags": ["a", "b"], "warmup": WARMUP}
    assert [(e.name, e.state) for e in site.events] == [("health_low", "raised"), ("health_low", "cleared")]
    scores = site.feed(Y[130:230] + 50.0)
    assert scores[: WARMUP - 1] == [None] * (WARMUP - 1) and np.median(scores[-20:]) > 0.8  # type: ignore[arg-type]


def test_what_was_learnt_before_does_not_come_back_after_a_power_cut(site: Site) -> None:
    site.feed(Y[:100])
    site.plant.write_state(*site.plant.state())
    site.relearn("press")
    again = Site(site.folder, site.clock)
    assert again.feed(Y[100 : 100 + WARMUP - 2]) == [None] * (WARMUP - 2)


def test_half_a_commissioning_goes_on_after_a_restart(site: Site) -> None:
    site.feed(Y[: WARMUP - 10])
    again = site.restarted()
    scores = again.feed(Y[WARMUP - 10 : WARMUP + 20])
    assert scores[0] is None and scores[15] is not None


def test_a_damaged_file_is_set_aside_and_the_commissioning_begins_anew(site: Site) -> None:
    site.feed(Y[: WARMUP - 10])
    site.plant.write_state(*site.plant.state())
    write_atomic(site.folder / state.COMMISSIONING, b"rubbish")
    again = Site(site.folder, site.clock)
    assert (site.folder / f"{state.COMMISSIONING}.damaged").exists()
    assert again.feed(Y[: WARMUP - 2]) == [None] * (WARMUP - 2)


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("mill", "there is no device 'mill'"),
        ("oven", "device 'oven' has no health score: nothing of it is forecast"),
    ],
)
def test_what_cannot_be_learnt_is_refused(site: Site, device: str, why: str) -> None:
    outcome = site.relearn(device)
    assert (outcome.ok, outcome.error) == (False, why)


# -- the command ----------------------------------------------------------------------------------------------------

YAML = """\
devices:
  press:
    url: tcp://127.0.0.1:1
    tags: {a: {holding: 0, type: float32}}
"""


@pytest.fixture
def written(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(YAML, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (None, 1, "no agent runs with"),
        ({"ok": False, "error": "nothing of it is forecast"}, 1, "edgetwin: nothing of it is forecast"),
        (
            {"ok": True, "result": {"device": "press", "tags": ["a"], "warmup": 400}},
            0,
            "press: 1 tag is learnt anew; its health score is back after 400 samples",
        ),
        (
            {"ok": True, "result": {"device": "press", "tags": ["a", "b"], "warmup": 400}},
            0,
            "press: 2 tags are learnt anew; its health score is back after 400 samples of each",
        ),
    ],
)
def test_the_command_asks_the_agent(
    answer: dict[str, Any] | None,
    status: int,
    said: str,
    written: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def ask_daemon(candidates: Any, message: Any, *, timeout: float, config_path: str) -> Any:
        asked.append((message, config_path))
        return answer

    monkeypatch.setattr("agent.runtime.socket.ask_daemon", ask_daemon)
    assert cli.run(["relearn", written, "press"]) == status
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert asked == [({"op": "relearn", "device": "press"}, written)]


def test_a_device_that_is_not_there_is_a_usage_error(
    written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["relearn", written, "mill"]) == 2
    assert "there is no device 'mill'" in capsys.readouterr().err
    assert command.HELP and command.EXAMPLE.startswith("edgetwin relearn ")

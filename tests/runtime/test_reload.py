"""SIGHUP on a service that is built and does not run: what is wrong changes nothing, the rest touches what differs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.config.load import load
from agent.modbus.line import Line
from agent.runtime.reload import Reload
from agent.runtime.service import Service
from agent.twin.quality import Quality
from agent.twin.records import Event
from tests.ports import free_port

TEXT = """
gateway: line7
state_dir: {folder}/state
page: off
devices:
  plc:
    url: tcp://127.0.0.1:1
    on_loss: hold
    tags:
      t: {{holding: 0}}
      u: {{holding: 1, write: {{range: [0, 100]}}}}
loops:
  oven: {{pv: plc/t, out: plc/u, setpoint: 50, controller: {{type: pid, kp: 2}}}}
"""


class Rig:
    """A service that is built and not run, and what a reload makes of its file."""

    def __init__(self, folder: Path) -> None:
        (folder / "state").mkdir()
        self.path = folder / "config.yaml"
        self.path.write_text(TEXT.format(folder=folder))
        config = load(str(self.path)).config
        assert config is not None
        self.service = Service(config, state_dir=folder / "state")
        self.started: list[Line] = []
        self.service._start_line = self.started.append  # type: ignore[method-assign]
        self.reload = Reload(self.service, lambda one: one)

    def change(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))

        async def run() -> None:
            self.reload.ask()
            assert self.reload._job is not None
            await self.reload._job

        asyncio.run(run())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.service.cloud.stop(0.0)


def test_a_wrong_one_changes_nothing_and_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    before, plant = rig.service.config, rig.service.plant.pipeline
    with caplog.at_level(logging.ERROR):
        rig.change("holding: 1", "holdin: 1")
    assert rig.service.config is before and rig.service.plant.pipeline is plant
    assert "holdin" in rig.service.config_errors[0] and "holdin" in caplog.text
    rig.change("holdin: 1", "holding: 1")
    assert rig.service.config_errors == []


def test_a_secret_that_cannot_be_read_changes_nothing(rig: Rig) -> None:
    before, cloud = rig.service.config, rig.service.cloud
    rig.change("page: off", "page: off\nmqtt: {username: line7, password: {env: NOT_SET_ANYWHERE}}")
    assert rig.service.config is before and rig.service.cloud is cloud
    assert "NOT_SET_ANYWHERE is not set" in rig.service.config_errors[0]


def test_loops_take_parameters_while_they_run(rig: Rig) -> None:
    loop, line = rig.service.plant.loops._runners["oven"].loop, rig.service.plant.lines[0]
    rig.change("kp: 2", "kp: 3")
    assert rig.service.plant.loops._runners["oven"].loop is loop and loop.config.controller.kp == 3
    assert rig.service.plant.lines == [line] and not rig.started
    assert rig.service.doors.config is rig.service.config


PAGE = f'page: {{listen: "127.0.0.1:{free_port()}"}}'
CASES = {
    "a tag moved": ("holding: 0", "holding: 5", {"loop"}),
    "a tag came": ("t: {holding: 0}", "t: {holding: 0}\n      v: {holding: 7}", set()),
    "another address": ("tcp://127.0.0.1:1", "tcp://127.0.0.1:3", {"line", "loop"}),
    "another pause": (
        "on_loss: hold",
        "on_loss: hold\n    limits: {pause_after_connect: 1s}",
        {"line", "loop"},
    ),
    "another name of a loop": ("oven:", "kiln:", {"loop"}),
    "another period of a loop": ("setpoint: 50", "every: 5s, setpoint: 50", {"loop"}),
    "another name of the gateway": ("gateway: line7", "gateway: line8", {"cloud"}),
    "another batch": ("page: off", "page: off\nmqtt: {batch: 5s}", {"cloud"}),
    "no forecasts": ("page: off", "page: off\npredict: off", {"predictor"}),
    "a page": ("page: off", PAGE, {"front"}),
    "another device": (
        "loops:",
        '  other: {url: "tcp://127.0.0.1:2", tags: {a: {holding: 0}}}\nloops:',
        set(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_differs_is_made_anew(rig: Rig, case: str) -> None:
    service = rig.service

    def parts() -> dict[str, object]:
        plant = service.plant
        return {
            "line": plant.line_of["plc"],
            "loop": next(iter(plant.loops._runners.values())).loop,
            "cloud": service.cloud,
            "front": service.front,
            "predictor": plant.predictor and plant.predictor.keys[:1],
        }

    before = parts()
    old, new, expected = CASES[case]
    rig.change(old, new)
    after = parts()
    assert {
        name for name in before if before[name] is not after[name] and before[name] != after[name]
    } == expected
    assert {line.url.text for line in rig.started} == {
        line.url.text for line in service.plant.lines if line is not before["line"]
    }
    service.front.stop()


def test_a_device_that_stays_keeps_its_values_and_its_models(rig: Rig) -> None:
    plant = rig.service.plant
    row = plant.layout.row[("plc", "t")]
    plant.twin.apply(np.array([row]), np.array([7.5]), np.zeros(1, dtype=np.uint8), [7.5], 3.0)
    assert plant.predictor is not None
    for i in range(40):
        plant.predictor.update(np.array([0]), np.array([float(i % 5)]), np.array([float(i)]))
    forecast = plant.predictor.ahead(0)[0].copy()
    rig.change("loops:", '  other: {url: "tcp://127.0.0.1:2", tags: {a: {holding: 0}}}\nloops:')
    assert plant.twin.sample(("plc", "t")).plain == 7.5 and plant.twin.sample(("plc", "t")).t == 3.0
    assert plant.twin.sample(("other", "a")).quality is Quality.LINK
    assert plant.predictor.seen(plant.slots[("plc", "t")]) == 40
    assert plant.predictor.ahead(plant.slots[("plc", "t")])[0].tolist() == forecast.tolist()


def test_an_alarm_of_what_is_no_more_is_cleared(rig: Rig) -> None:
    service = rig.service
    service.on_event(Event("plc", "link_down", "warning", "raised", "plc: no connection", 0.0, alarm=True))
    service.on_event(Event("plc", "loop_fail_oven", "alarm", "raised", "loop oven: bad", 0.0, alarm=True))
    rig.change("kp: 2", "kp: 4")
    assert [event.state for event in service.events] == ["raised", "raised"]
    rig.change("oven:", "kiln:")
    assert [(event.name, event.state) for event in service.events][2:] == [("loop_fail_oven", "cleared")]
    rig.change("t: {holding: 0}", "t: {holding: 0, unit: bar}")
    assert [(event.name, event.state) for event in service.events][3:] == [("link_down", "cleared")]


def test_nothing_changed(rig: Rig) -> None:
    pipeline = rig.service.plant.pipeline
    rig.change("kp: 2", "kp: 2.0")
    assert rig.service.plant.pipeline is pipeline


def test_a_fault_half_way_ends_the_run_for_systemd_to_start_it_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.service._stop = asyncio.Event()
    monkeypatch.setattr(rig.service.plant.writer, "change", lambda *_: 1 / 0)
    rig.change("kp: 2", "kp: 5")
    assert rig.service._stop.is_set() and rig.service._failed == 1
    assert "the reload failed half way" in caplog.text


@pytest.mark.parametrize(("span", "longest"), [("4s", 1.0), ("20s", 5.0), ("10m", 8.0)])
def test_another_link_is_made_within_a_part_of_what_a_kill_may_cost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, span: str, longest: float
) -> None:
    """Readings wait in memory while the old one waits for a broker that does not answer."""
    rig.change("page: off", f"page: off\nmqtt: {{outbox: {{batch: {span}}}}}")
    cloud, waited = rig.service.cloud, []
    stop = cloud.stop
    monkeypatch.setattr(cloud, "stop", lambda timeout, **how: (waited.append(timeout), stop(timeout, **how)))
    rig.change(f"batch: {span}", f"batch: {span}, rate: 5000")
    assert waited == [longest]

"""SIGHUP: what is wrong changes nothing, loops take their parameters while they run, the rest starts anew."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from agent.config.load import load
from agent.config.types import Config
from agent.runtime.reload import Reload
from agent.runtime.service import Service

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
        self.stop = asyncio.Event()
        self.reload = Reload(self.service, self.stop, lambda one: one)

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
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    yield made  # type: ignore[misc]
    made.service.cloud.stop(0.0)


def test_a_wrong_one_changes_nothing_and_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    before = rig.service.config
    with caplog.at_level(logging.ERROR):
        rig.change("holding: 1", "holdin: 1")
    assert rig.service.config is before and not rig.stop.is_set() and rig.reload.taken is None
    assert "holdin" in rig.service.config_errors[0] and "holdin" in caplog.text
    rig.change("holdin: 1", "holding: 1")
    assert rig.service.config_errors == []


def test_loops_take_parameters_while_they_run(rig: Rig) -> None:
    loops = rig.service.loops
    rig.change("kp: 2", "kp: 3")
    assert rig.service.loops is loops and not rig.stop.is_set()
    assert rig.service.config.loops["oven"].controller.kp == 3
    assert rig.service.doors.config is rig.service.config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("holding: 0", "holding: 5"),
        ("oven:", "kiln:"),
        ("setpoint: 50", "every: 5s, setpoint: 50"),
        ("gateway: line7", "gateway: line8"),
    ],
)
def test_anything_else_starts_anew(rig: Rig, old: str, new: str) -> None:
    before: Config = rig.service.config
    rig.change(old, new)
    assert rig.stop.is_set()
    assert rig.reload.taken is not None and rig.reload.taken != before


def test_nothing_changed(rig: Rig) -> None:
    rig.change("kp: 2", "kp: 2.0")
    assert not rig.stop.is_set() and rig.reload.taken is None

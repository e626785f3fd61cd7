"""The terminal's side of a test: what is asked before, and what happens when it ends early."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cli import experiment
from agent.cli.experiment import Wanted, carry_out, confirm, write_record
from agent.cli.fault import Failure
from agent.cli.main import run
from agent.config.types import LoopConfig
from tests.cli.test_tune import CONFIG

LOOP = LoopConfig("heat", ("oven", "pv"), ("oven", "out"), 20.0, (0.0, 100.0), trip=(0.0, 90.0), rate=2.0)
WANTED = Wanted("prbs", 5.0, 300.0)


class Agent:
    """Answers as the agent does: a row for each poll, until `length` rows are told or it is asked to stop."""

    def __init__(self, length: int = 5, over: str = "done", **look: Any) -> None:
        self.length, self.over = length, over
        self.look = {"mode": "shadow", "now": 40.0, "every": 1.0, "on_loss": "hold", **look}
        self.asked: list[Mapping[str, Any]] = []
        self.rows: list[list[float | None]] = []

    def __call__(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(message)
        if message["do"] == "look":
            return self.look
        if message["do"] == "stop":
            self.length, self.over = len(self.rows), "stopped"
            return {}
        self.rows.append([float(len(self.rows)), None if len(self.rows) == 1 else 20.0, 40.0])
        running = len(self.rows) < self.length
        return {
            "running": running,
            "over": None if running else self.over,
            "done": not running and self.over == "done",
            "restored": True,
            "base": 40.0,
            "seconds": 300.0,
            "elapsed": float(len(self.rows)),
            "rows": self.rows[message.get("first", 0) :],
            "more": False,
        }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.time, "sleep", lambda seconds: None)


def asked_on(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer + "\n"))


def test_the_operator_is_told_the_limits_and_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_on(monkeypatch, "y")
    confirm(Agent(), LOOP, WANTED, unit="%")
    text = capsys.readouterr().out
    assert "oven/out is at 40 %" in text
    assert "within 35 to 45, at 2 per second at most, for 300 s" in text
    assert "PV beyond 0 to 90" in text
    assert "warning" not in text


def test_what_nobody_watches_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_on(monkeypatch, "yes")
    confirm(Agent(on_loss="unknown"), dataclasses.replace(LOOP, trip=None), WANTED, unit="")
    text = capsys.readouterr().out
    assert "no `trip`" in text and "`on_loss`" in text


def test_no_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_on(monkeypatch, "")
    agent = Agent()
    with pytest.raises(Failure, match="nothing was moved"):
        confirm(agent, LOOP, WANTED, unit="")
    assert [message["do"] for message in agent.asked] == ["look"]


def test_every_row_is_taken_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    seen = carry_out(Agent(), WANTED)
    assert [row[0] for row in seen.rows] == [0, 1, 2, 3, 4]
    assert "296 s to go" in shown.getvalue() and "unknown" in shown.getvalue()
    write_record(tmp_path / "r.csv", LOOP, seen)
    assert (tmp_path / "r.csv").read_text().splitlines()[:3] == [
        "time,oven/pv,oven/out",
        "0.000,20.0,40.0",
        "1.000,,40.0",
    ]


def test_an_early_end_is_one_plain_line() -> None:
    with pytest.raises(Failure, match="ended early: PV trip; the output is back at 40"):
        carry_out(Agent(over="PV trip"), WANTED)


def test_ctrl_c_asks_for_the_end_and_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = Agent(length=50)
    waits = iter([None, None, KeyboardInterrupt])

    def sleep(seconds: float) -> None:
        if next(waits, None) is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        carry_out(agent, WANTED)
    assert [message["do"] for message in agent.asked] == ["begin", "poll", "poll", "stop", "poll"]
    assert "stopped; the output is back at 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what", "status"),
    [
        ([], "give DATA.csv, or one of", 2),
        (["x.csv", "--step", "--max-move", "3"], "give DATA.csv, or one of", 2),
        (["--step"], "--max-move", 2),
        (["--step", "--max-move", "3"], "no agent runs with this configuration", 1),
    ],
)
def test_half_a_request_is_refused(
    words: list[str], what: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edgetwin.yaml"
    config.write_text(f"state_dir: {tmp_path}/state\n" + CONFIG.replace("SETPOINT", "20"))
    assert run(["tune", str(config), "heat", *words]) == status
    assert what in capsys.readouterr().err

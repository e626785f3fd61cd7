"""`edgetwin whatif`: text, JSON, CSV and picture, from rest and from where the running agent has the loop."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import run
from agent.config import paths
from agent.twin.records import Outcome
from tests.runtime.test_socket import daemon

CONFIG = """\
gateway: line4
state_dir: FOLDER/state
devices:
  oven:
    url: tcp://127.0.0.1:1502
    on_loss: hold
    tags:
      temperature: {holding: 1, type: float32, unit: °C, range: [0, 300]}
      heater: {holding: 3, type: float32, unit: "%", write: {range: [0, 100], min_interval: 0s}}
      wanted: {holding: 5, type: float32}
loops:
  heat:
    pv: oven/temperature
    out: oven/heater
    setpoint: 150
    setpoint_limits: [0, 250]
    limits: [0, 100]
    every: 1s
    controller: {kp: 1.2, ti: 30s}
    model: {k: 2.0, t1: 30s, delay: 5s, bias: 20, grade: good}
"""


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent of this machine is asked."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setattr(paths, "RUNTIME_FOLDER", tmp_path / "run")
    monkeypatch.setattr(paths, "DEFAULT_STATE", tmp_path / "lib")
    (tmp_path / "state").mkdir()


def write_config(folder: Path, *changes: tuple[str, str]) -> str:
    text = CONFIG.replace("FOLDER", str(folder))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "edgetwin.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["whatif", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_from_rest_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert run(["whatif", config, "heat", "--setpoint", "200", "--for", "5m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "loop heat, the PID on a model graded good"
    assert lines[1] == "from rest: PV 150 °C, output 65 %, setpoint 150" and lines[2] == "to 200 °C:"
    assert lines[3].startswith("  settles        after ") and lines[4].startswith("  overshoot ")
    assert "load" not in "\n".join(lines)
    assert lines[-1].split()[0] == "300" and len(lines[-1].split()) == 4


def test_json_csv_and_picture_are_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, table, drawn = write_config(tmp_path), tmp_path / "out.csv", tmp_path / "out.svg"
    words = ["--setpoint", "200", "--load", "-5", "--for", "10m", "--csv", str(table), "--plot", str(drawn)]
    found = asked(capsys, config, "heat", *words)
    assert (
        found["from"] == {"pv": 150.0, "out": 65.0, "setpoint": 150.0, "mode": "auto", "reason": None}
        and found["goal"] == 200.0
    )
    assert found["settling_s"] > 20 and found["load"]["peak"] > 1 and found["controller"] == "pid"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["time", "setpoint", "oven/temperature", "oven/heater"] and len(rows) == 601
    by_time = {float(row["time"]): row for row in rows}
    for t, pv, out in zip(found["t"], found["pv"], found["out"], strict=True):
        assert float(by_time[round(t)]["oven/temperature"]) == pytest.approx(pv, rel=1e-5)
        assert float(by_time[round(t)]["oven/heater"]) == pytest.approx(out, rel=1e-5)
    words_drawn = {one.text for one in ElementTree.parse(drawn).iter() if one.text}
    assert {"setpoint limits", "setpoint", "PV foretold", "limits", "output", "load"} <= words_drawn


def test_it_starts_where_the_running_agent_has_the_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    with daemon(tmp_path / "state", config) as agent:
        seen = {
            "mode": "manual",
            "sp": 170.0,
            "pv": 160.0,
            "out": None,
            "now": 71.5,
            "every": 1.0,
            "reason": None,
        }
        agent.outcome = Outcome(True, result=seen)
        found = asked(capsys, config, "heat")
        assert found["from"] == {
            "pv": 160.0,
            "out": 71.5,
            "setpoint": 170.0,
            "mode": "manual",
            "reason": None,
        }
        assert found["goal"] == 170.0 and found["pv"][0] == 160.0 and "in manual" in found["notes"][0]
        agent.outcome = Outcome(True, result={**seen, "mode": "fail", "reason": "PV not good"})
        notes = asked(capsys, config, "heat")["notes"]
        assert notes[-1] == "it starts as if all were well, but now: PV not good"
        agent.outcome = Outcome(True, result={**seen, "now": None})
        assert run(["whatif", config, "heat"]) == 1
        assert "no good value of oven/heater now" in capsys.readouterr().err
        agent.outcome = Outcome(False, error="there is no loop 'heat'")
        assert run(["whatif", config, "heat"]) == 1
        assert "there is no loop 'heat'" in capsys.readouterr().err


def test_a_setpoint_tag_rests_in_the_middle_of_its_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = ("setpoint: 150", "setpoint: oven/wanted")
    assert (
        asked(capsys, write_config(tmp_path, tag), "heat", "--setpoint", "140")["from"]["setpoint"] == 125.0
    )
    no_limits = ("    setpoint_limits: [0, 250]\n", "")
    found = asked(capsys, write_config(tmp_path, tag, no_limits), "heat", "--setpoint", "140")
    assert found["from"]["setpoint"] == 150.0
    nothing = write_config(tmp_path, tag, no_limits, (", range: [0, 300]", ""))
    assert run(["whatif", nothing, "heat", "--setpoint", "140"]) == 1
    assert "nothing says where loop heat rests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words", "status", "error"),
    [
        (
            [("    model: ", "    # ")],
            ["--setpoint", "200"],
            1,
            "has no model: run `edgetwin tune` on it first",
        ),
        ([], ["--setpoint", "300"], 1, "300 is outside setpoint_limits, 0 to 250"),
        ([], [], 2, "nothing would change from 150: give --setpoint or --load"),
        ([], ["--setpoint", "200", "--for", "25h"], 1, "at most 24h"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    changes: list[tuple[str, str]],
    words: list[str],
    status: int,
    error: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["whatif", write_config(tmp_path, *changes), "heat", *words]) == status
    said = capsys.readouterr()
    assert said.out == "" and error in said.err and said.err.count("\n") == 1


def test_a_poor_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, ("grade: good", "grade: poor"))
    assert run(["whatif", config, "heat", "--load", "5"]) == 0
    assert "note: the model is graded poor: take this as a guess" in capsys.readouterr().out

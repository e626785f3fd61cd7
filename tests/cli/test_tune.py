"""`edgetwin tune`: from a CSV file to a table of gains, JSON and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.cli.main import run
from agent.config.load import load
from agent.config.types import LoopConfig, ModelConfig
from agent.control.record import Record
from tests.control.records import PLANTS, recorded

CONFIG = """\
gateway: line4
devices:
  oven:
    url: tcp://127.0.0.1:1502
    on_loss: hold
    tags:
      temperature: {holding: 1, type: float32}
      heater: {holding: 3, type: float32, write: {range: [0, 100]}}
      wanted: {holding: 5, type: float32}
loops:
  heat:
    pv: oven/temperature
    out: oven/heater
    setpoint: SETPOINT
    limits: [0, 100]
    every: 1s
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edgetwin.yaml"
    path.write_text(CONFIG.replace("SETPOINT", "20"))
    return path


def write_csv(
    path: Path, record: Record, *, names: str = "oven/temperature,oven/heater", setpoint: str = ""
) -> Path:
    """One row per sample, as a history is kept."""
    lines = [f"time,{names}" + (f",{setpoint}" if setpoint else "")]
    asked = record.setpoint if record.setpoint is not None else np.full(len(record.t), np.nan)
    for t, pv, out, wanted in zip(record.t, record.pv, record.out, asked, strict=True):
        cells = [
            f"{1_700_000_000 + t:.3f}",
            f"{pv:.5f}",
            f"{out:.5f}",
            *([f"{wanted:.5f}"] if setpoint else []),
        ]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def as_json(capsys: pytest.CaptureFixture[str], *args: str | Path, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["tune", *map(str, args), "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_record_gives_the_model_and_gains(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["L/T 0.5"], "random"))
    found = as_json(capsys, config, "heat", data)
    assert found["model"]["k"] == pytest.approx(1.0, rel=0.05)
    assert found["model"]["delay"] == pytest.approx(5.0, abs=1.0)
    assert found["model"]["grade"] == "good"
    assert set(found["gains"]) == {"simc", "amigo-pi", "amigo-pid", "ms", "predictive"}
    assert found["best"] == "ms"
    assert found["gains"]["ms"]["ms"] <= 1.52
    assert found["gains"]["predictive"]["overshoot"] < found["gains"]["ms"]["overshoot"]
    assert as_json(capsys, config, "heat", data, "--use", "simc")["best"] == "simc"


def test_the_table_says_what_to_write_and_the_picture_shows_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["two lags"], "random"))
    picture = tmp_path / "out.svg"
    assert run(["tune", str(config), "heat", str(data)]) == 0
    text = capsys.readouterr().out
    assert "grade fair" in text  # the gain is negative, the loop says reverse
    assert "  the configuration says action: reverse, and by this record it is the other way round" in text
    assert "    action: direct" in text.splitlines()
    [model] = [line.strip() for line in text.splitlines() if line.strip().startswith("model:")]
    [controller] = [line.strip() for line in text.splitlines() if line.strip().startswith("controller:")]
    config.write_text(config.read_text() + f"    action: direct\n    {model}\n    {controller}\n")
    assert run(["check", str(config)]) == 0
    capsys.readouterr()
    assert run(["tune", str(config), "heat", str(data), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "grade good" in text and "other way" not in text  # both agree now
    drawn = picture.read_text()
    assert drawn.startswith("<svg") and "PID Ms 1.5 (chosen)" in drawn


def test_a_swing_is_told_with_its_damping_and_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIMC and AMIGO have no rule for it, so that asking for one is a mistake that is told."""
    swing = ModelConfig(k=1.5, t1=6.0, damping=0.3, delay=2.3)
    data = write_csv(tmp_path / "h.csv", recorded(swing, "random"))
    found = as_json(capsys, config, "heat", data)
    assert found["model"]["damping"] == pytest.approx(0.3, abs=0.02)
    assert 0.0 < found["model"]["damping_error"] < 0.02
    assert set(found["gains"]) == {"ms", "predictive"}
    assert found["best"] == "ms"
    assert run(["tune", str(config), "heat", str(data), "--use", "simc"]) != 0
    assert "simc is nothing for this model; there are ms, predictive" in capsys.readouterr().err
    assert run(["tune", str(config), "heat", str(data), "--write"]) == 0
    out = capsys.readouterr().out
    assert f", damping {found['model']['damping']:g} +- " in out and " s² + 3." in out
    assert "SIMC and AMIGO have no rule for a process that oscillates" in out
    model = loaded(config).model
    assert model is not None
    assert (model.damping, model.t2) == (found["model"]["damping"], 0.0)


def test_a_process_that_integrates_is_written_and_foretold(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no t1, and is printed with 0s: that is what the configuration takes then."""
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["integrating"], "random"))
    assert run(["tune", str(config), "heat", str(data), "--write"]) == 0
    model = loaded(config).model
    assert model is not None
    assert (model.integrating, model.t1) == (True, 0.0)
    assert model.k == pytest.approx(0.1, rel=0.1)
    capsys.readouterr()
    assert run(["whatif", str(config), "heat", "--setpoint", "21", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settling_s"] > 0


def test_a_quiet_record_prints_no_gains(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["L/T 0.5"], "quiet"))
    assert run(["tune", str(config), "heat", str(data)]) == 1
    text = capsys.readouterr().out
    assert "grade poor" in text and "did not move by itself" in text
    assert "kp" not in text
    assert as_json(capsys, config, "heat", data, status=1)["gains"] == {}


@pytest.mark.parametrize(("setpoint", "column"), [("20", "setpoint"), ("oven/wanted", "oven/wanted")])
def test_steps_of_the_setpoint_are_told_by_its_column(
    setpoint: str, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edgetwin.yaml"
    config.write_text(CONFIG.replace("SETPOINT", setpoint))
    record = recorded(PLANTS["L/T 0.5"], "steps")
    data = write_csv(tmp_path / "h.csv", record, setpoint=column)
    found = as_json(capsys, config, "heat", data)
    assert found["model"]["moved_by"] == "setpoint"
    assert found["model"]["grade"] == "fair"
    assert found["best"] == "simc"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ("oven/temperature,oven/other", "no column oven/heater"),
        ("oven/heater,other", "no column oven/temperature"),
    ],
)
def test_a_column_that_is_not_there_is_named(
    names: str, what: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["L/T 1"], "random", samples=60), names=names)
    assert run(["tune", str(config), "heat", str(data)]) == 1
    assert what in capsys.readouterr().err


def test_what_cannot_be_is_one_plain_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["L/T 1"], "random", samples=30))
    assert run(["tune", str(config), "cold", str(data)]) == 2
    assert "there is no loop 'cold': heat" in capsys.readouterr().err
    assert run(["tune", str(config), "heat", str(data)]) == 1
    assert "40 are needed" in capsys.readouterr().err
    data.write_text("time,oven/temperature,oven/heater\n1,2,x\n")
    assert run(["tune", str(config), "heat", str(data)]) == 1
    assert "'x' in column oven/heater is no number" in capsys.readouterr().err
    assert run(["tune", str(config), "heat", str(tmp_path / "none.csv")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_write_changes_the_loop_and_nothing_else(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# ours\n" + config.read_text().replace(
        "    every: 1s\n", "    every: 1s   # fast enough\n    controller: {kp: 9, td: '0s'} # by hand\n"
    )
    config.write_text(text)
    config.chmod(0o640)
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["two lags"], "random"))
    assert run(["tune", str(config), "heat", str(data), "--use", "simc", "--write"]) == 0
    capsys.readouterr()
    after = config.read_text()
    assert [line for line in text.splitlines() if line not in after.splitlines()] == [
        "    controller: {kp: 9, td: '0s'} # by hand"
    ]
    assert after.splitlines()[-2].startswith("    model: {k: -")
    assert after.splitlines()[-1] == "    action: direct"
    assert config.stat().st_mode & 0o777 == 0o640
    loop = loaded(config)
    found = as_json(capsys, config, "heat", data, "--use", "simc")
    assert loop.controller.kp == found["gains"]["simc"]["kp"]
    assert loop.model is not None and loop.model.k == found["model"]["k"]
    assert loop.model.grade == "fair"  # the action was the other way round
    assert run(["tune", str(config), "heat", str(data), "--use", "predictive", "--write"]) == 0
    assert loaded(config).controller.type == "predictive"


def loaded(path: Path) -> LoopConfig:
    config = load(path).config
    assert config is not None
    return config.loops["heat"]


def test_a_poor_model_is_not_written(config: Path, tmp_path: Path) -> None:
    text = config.read_bytes()
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["two lags"], "quiet"))
    assert run(["tune", str(config), "heat", str(data), "--write"]) == 1
    assert config.read_bytes() == text


def test_unusual_places_are_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text().replace(
        "wanted: {holding: 5, type: float32", "wanted: {holding: 5, write: {range: [0, 9]}"
    )
    cool = "  cool: {pv: oven/temperature, out: oven/wanted, setpoint: 20, limits: [0, 9], controller: *c}\n"
    config.write_text(text + "    controller: &c {kp: 1}\n" + cool)
    before = config.read_bytes()
    data = write_csv(tmp_path / "h.csv", recorded(PLANTS["L/T 0.5"], "random"))
    assert run(["tune", str(config), "heat", str(data), "--write"]) == 1
    assert "not written: loops.heat.controller is shared by an anchor" in capsys.readouterr().err
    assert config.read_bytes() == before

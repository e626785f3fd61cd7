"""Labels: read strictly, fitted as Platt says, judged on rows that were left out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.cli.fault import Failure
from agent.config.types import HealthConfig
from agent.predict import calibrate as c
from agent.predict.health import Health
from agent.predict.predictor import Predictor
from agent.predict.replay import BadRow
from tests.predict.series import ar2
from tests.predict.test_replay import config, invoke, text


def labelled(rows: int = 6000, faults: int = 12, seed: int = 0) -> tuple[c.Floats, c.Flags]:
    """z and labels that are a logistic of it with a = 2, b = -1, but in runs, as faults are."""
    rng = np.random.default_rng(seed)
    faulty = np.zeros(rows, dtype=bool)
    for i in range(faults):
        faulty[(i * rows) // faults + 100 : (i * rows) // faults + 250] = True
    return np.where(faulty, 1.5, -0.5) + rng.normal(size=rows), faulty


def test_a_and_b_are_found_again() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=200_000)
    a, b = c.platt(z, rng.random(len(z)) < c.logistic(2.0, -1.0, z))
    assert (a, b) == pytest.approx((2.0, -1.0), abs=0.05)


def test_the_gradient_is_zero_at_the_fit() -> None:
    z, faulty = labelled(400, 3)
    a, b = c.platt(z, faulty)
    n, m = int(faulty.sum()), int((~faulty).sum())
    off = c.logistic(a, b, z) - np.where(faulty, (n + 1) / (n + 2), 1 / (m + 2))
    assert abs(off.sum()) < 1e-4 and abs(off @ z) < 1e-4


def test_labels_that_z_parts_without_error_stay_finite() -> None:
    z = np.concatenate([np.full(50, -3.0), np.full(5, 20.0)])
    faulty = z > 0.0
    p = c.logistic(*c.platt(z, faulty), z)
    assert p[-1] == pytest.approx(6 / 7, abs=1e-3) and p[0] == pytest.approx(1 / 52, abs=1e-3)


def test_a_fault_is_never_cut_by_a_block() -> None:
    _, faulty = labelled(faults=12)
    block = c.blocks(faulty)
    assert set(block) == set(range(c.BLOCKS)) and (np.diff(block) >= 0).all()
    assert not faulty[np.flatnonzero(np.diff(block)) + 1].any()


def test_the_figures_are_those_of_rows_left_out() -> None:
    z, faulty = labelled()
    fit = c.calibrate(z, faulty)
    assert (fit.rows, fit.faults, fit.runs, fit.blocks) == (6000, 1800, 12, 10)
    assert fit.brier is not None and fit.brier_base == pytest.approx(0.21) and fit.ece is not None
    assert fit.brier < 0.6 * fit.brier_base and fit.ece < 0.03
    assert sum(rows for _, _, rows in fit.bins) == 6000
    # Labels that have nothing to do with z are no better than their share, on rows that were not fitted to.
    noise = np.random.default_rng(5).normal(size=6000) + 0.02 * faulty
    useless = c.calibrate(noise, faulty)
    assert useless.brier is not None and useless.brier >= 0.999 * 0.21
    worse = replace(useless, brier=0.22, brier_base=0.21)
    assert "not to be used" in "\n".join(c.lines({"press": worse}))
    assert "not to be used" not in "\n".join(c.lines({"press": fit}))


def test_reliability_is_what_it_says() -> None:
    p = np.array([0.05, 0.05, 0.95, 1.0])
    bins = c.reliability(p, np.array([False, True, True, True]))
    assert [(round(mean, 3), share, rows) for mean, share, rows in bins] == [(0.05, 0.5, 2), (0.975, 1.0, 2)]


def test_one_fault_alone_cannot_be_judged() -> None:
    fit = c.calibrate(*labelled(500, 1))
    assert fit.a > 0.0 and fit.brier is None and fit.bins == ()
    assert "how good they are is not known" in "\n".join(c.lines({"press": fit}))


@pytest.mark.parametrize(
    ("z", "faulty", "why"),
    [
        ([1.0, 2.0], [True, True], "all of them are faults"),
        ([1.0, 2.0], [False, False], "none of them is a fault"),
        ([], [], "0 rows have a label"),
        ([0.0, 0.1, 5.0, 5.1], [True, True, False, False], "higher in the faults"),
    ],
)
def test_labels_that_teach_nothing_are_told(z: list[float], faulty: list[bool], why: str) -> None:
    with pytest.raises(c.Unfit, match=why):
        c.calibrate(np.array(z), np.array(faulty, dtype=bool))


def test_windows_and_moments_are_read() -> None:
    windows = c.read(["start,end\n", "2026-01-01T00:00:00Z,2026-01-01T00:01:00Z\n", "\n"])[None]
    began = 1_767_225_600.0
    assert [windows.of(began + s) for s in (-1, 0, 60, 61)] == [False, True, True, False]
    moments = c.read(["t,faulty,device\n", "5,1,press\n", "6,False,press\n"])["press"]
    assert [moments.of(t) for t in (4.0, 5.0, 6.0)] == [None, True, False]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "line 1: a header of time,label or of start,end"),
        (["time\n"], "line 1: a header"),
        (["time,label,what\n"], "line 1: a header"),
        (["time,label\n"], "line 1: no label comes"),
        (["time,label\n", "1,2\n"], "line 2: '2' is no label; 0 or 1 is wanted"),
        (["time,label\n", "x,1\n"], "line 2: 'x' is no time"),
        (["time,label\n", "1,1\n", "2\n"], "line 3: 1 cells where the header has 2"),
        (["start,end\n", "5,4\n"], "line 2: the window ends before it starts"),
    ],
)
def test_a_bad_label_is_told_with_its_line(lines: list[str], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        c.read(lines)


HEALTH = {"press": HealthConfig(tags=("y",), warmup=100)}


def plant() -> tuple[c.Floats, list[tuple[int, int]]]:
    series = ar2(3000)
    windows = [(start, start + 80) for start in range(500, 3000, 400)]
    for start, end in windows:
        series[start:end] += 25.0
    return series, windows


def test_the_command_prints_yaml_that_the_configuration_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series, windows = plant()
    data, labels = tmp_path / "data.csv", tmp_path / "labels.csv"
    data.write_text("".join(text({"y": series})), encoding="utf-8")
    labels.write_text("start,end\n" + "".join(f"{a},{b}\n" for a, b in windows), encoding="utf-8")
    setting = config("y", health=HEALTH)
    assert invoke(monkeypatch, setting, str(data), "--labels", str(labels)) == 0
    shown = capsys.readouterr().out
    assert "health:\n  press:\n    calibrate: {a: " in shown and "on rows left out (7 blocks)" in shown
    assert invoke(monkeypatch, setting, str(data), "--labels", str(labels), "--json") == 0
    fit = json.loads(capsys.readouterr().out)["calibrate"]["press"]
    assert fit["runs"] == 7 and fit["brier"] < fit["brier_base"] and 0.0 <= fit["ece"] < 0.2
    assert f"{{a: {fit['a']:.4g}, b: {fit['b']:.4g}}}" in shown
    # Pasted, the score is one minus that probability.
    pasted = config("y", health={"press": HealthConfig(("y",), warmup=100, calibrate=(fit["a"], fit["b"]))})
    model = Predictor([("press", "y")], np.ones(1))
    health = Health(pasted, [("press", "y")], model)
    for i, y in enumerate(series[:560]):
        model.update(np.array([0]), np.array([y]), np.array([float(i)]))
        health.update(np.array([0]), np.array([y]), float(i))
    z = health.z()["press"]
    assert health.views()["press"].score == pytest.approx(
        1.0 - 1.0 / (1.0 + math.exp(-(fit["a"] * z + fit["b"]))), abs=1e-9
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("time,label\n1,0\n2,0\n", "labels: no row of the history has both a label and a score"),
        ("time,label,device\n1,0,oven\n", "oven: 0 rows have a label"),
    ],
)
def test_labels_without_a_fit_are_told_and_the_rest_is_printed(
    content: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, labels = tmp_path / "data.csv", tmp_path / "labels.csv"
    data.write_text("".join(text({"y": ar2(300)})), encoding="utf-8")
    labels.write_text(content, encoding="utf-8")
    assert invoke(monkeypatch, config("y", health=HEALTH), str(data), "--labels", str(labels)) == 0
    told = capsys.readouterr()
    assert words in told.err and told.out.startswith("300 rows")


def test_bad_labels_fail_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_bytes(b"time,label\n1,maybe\n")
    with pytest.raises(Failure, match=r"labels.csv: line 2: 'maybe' is no label"):
        invoke(monkeypatch, config("y"), "data.csv", "--labels", str(labels))
    labels.write_bytes(b"\xff\xfe")
    with pytest.raises(Failure, match="UTF-8"):
        invoke(monkeypatch, config("y"), "data.csv", "--labels", str(labels))

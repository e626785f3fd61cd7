"""Replay: the same numbers as the daemon's, strict about its file, and times taken as what they are."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tracemalloc
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from agent.cli import replay as command
from agent.cli.fault import Failure
from agent.config.types import Config, Device, HealthConfig, PredictConfig, Tag, Url
from agent.predict.health import Health
from agent.predict.predictor import Predictor
from agent.predict.replay import BadHeader, BadRow, Reader, Replay, number, resolve, seconds
from tests.predict.series import ar2, relative_mae

Y = ar2(600)


def config(*names: str, every: float = 1.0, **more: object) -> Config:
    tags = {name: Tag(name, "holding", 0, type="float32", every=every) for name in names}
    devices = {"press": Device("press", Url("tcp://h", "tcp"), tags=tags)} if names else {}
    return Config("x", None, None, devices=devices, **more)  # type: ignore[arg-type]


def text(columns: dict[str, object], times: object = None) -> list[str]:
    values = list(columns.values())
    count = len(values[0])  # type: ignore[arg-type]
    when = range(count) if times is None else times
    rows = [",".join(["time", *columns])]
    for i, t in enumerate(when):  # type: ignore[arg-type]
        cells = ["" if np.isnan(column[i]) else repr(float(column[i])) for column in values]  # type: ignore[index]
        rows.append(",".join([str(t), *cells]))
    return [row + "\n" for row in rows]


def replay(
    lines: list[str], setting: Config | None = None, *, lenient: bool = False, **more: object
) -> Replay:
    said: list[str] = []
    one = Replay(setting or config("y"), Reader(lines, lenient=lenient, say=said.append), **more)  # type: ignore[arg-type]
    one.said = said  # type: ignore[attr-defined]
    return one


def test_the_same_numbers_as_the_daemon_s() -> None:
    health = {"press": HealthConfig(tags=("a", "b"), warmup=100)}
    setting = config("a", "b", health=health)
    a, b = ar2(400, 1), ar2(400, 2)
    b[200:210] = np.nan
    one = replay(text({"a": a, "press/b": b}), setting)
    rows: list[object] = []
    one.run(lambda sample, run, foretold: rows.append((*foretold, run.health.scores())))
    keys = [("press", "a"), ("press", "b")]
    model = Predictor(keys, np.ones(2))
    scorer = Health(setting, keys, model)
    foretold = model.one_step()
    events = []
    for i in range(400):
        values = np.array([a[i], b[i]])
        model.update(np.arange(2), values, np.full(2, float(i)))
        events += scorer.update(np.arange(2), values, float(i))
        for one_side, other in zip(rows[i], (*foretold, scorer.scores()), strict=True):  # type: ignore[call-overload]
            assert np.array_equal(one_side, other, equal_nan=True)
        foretold = model.one_step()
    assert one.result.events == events


def test_the_result_has_the_contract_s_shape_and_agrees_with_the_forecasts() -> None:
    one = replay(text({"y": Y}), horizon=(1, 5))
    made: list[tuple[float, float, float]] = []
    body = one.run(
        lambda sample, run, foretold: made.append(tuple(float(each[0]) for each in foretold))
    ).body()  # type: ignore[arg-type]
    assert json.loads(json.dumps(body)) == body
    assert (body["v"], body["rows"], body["skipped"]) == (1, 600, 0) and body["us_per_update"] > 0
    scores = body["tags"]["y"]["horizons"]
    assert body["tags"]["y"]["n"] == 600 and set(scores) == {"1", "5"}
    forecast, lower, upper = np.array(made).T
    assert np.isnan(forecast[:30]).all() and np.isfinite(forecast[30:]).all(), "scored from the 31st sample"
    error = np.abs(Y - forecast)[30:]
    last = np.abs(np.diff(Y))[29:]
    assert scores["1"]["mae"] == pytest.approx(error.mean())
    assert scores["1"]["relative_mae"] == pytest.approx(error.mean() / last.mean())
    assert scores["1"]["mase"] == pytest.approx(scores["1"]["relative_mae"])
    assert scores["1"]["coverage"] == pytest.approx(((lower <= Y) & (upper >= Y))[30:].mean())
    assert scores["1"]["mean_width"] == pytest.approx((upper - lower)[30:].mean())
    assert scores["5"]["mase"] > scores["1"]["mase"]
    assert set(scores["1"]) == {"mae", "relative_mae", "mase", "coverage", "mean_width"}


def test_what_is_undefined_is_null() -> None:
    constant = replay(text({"y": np.full(100, 3.0)})).run().body()["tags"]["y"]["horizons"]["1"]
    assert constant["mae"] == 0.0 and constant["relative_mae"] is None and constant["mase"] is None
    short = replay(text({"y": Y[:10]})).run().body()["tags"]["y"]["horizons"]["1"]
    assert all(value is None for value in short.values())


def test_an_unknown_tag_gets_the_defaults_and_the_period_of_the_file() -> None:
    times = [(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=5 * i)).isoformat() for i in range(600)]
    one = replay(text({"new": Y, "other/x": Y}, times), config())
    one.run()
    assert one.keys == [("replay", "new"), ("other", "x")] and (one.periods == 300.0).all()
    assert one.result.tags["new"]["horizons"]["1"]["relative_mae"] < 0.6


def test_unknown_tags_have_a_health_score_beside_a_section_that_names_other_devices() -> None:
    health = {"press": HealthConfig(tags=("y",), warmup=100)}
    one = replay(text({"new": Y, "newer": Y, "y": Y, "press/z": Y}), config("y", health=health))
    one.run()
    assert np.isfinite(one.health.scores()).tolist() == [True, True, True, False]


def test_a_file_sampled_otherwise_than_configured_is_told() -> None:
    one = replay(text({"y": Y}, range(0, 36000, 60)))
    assert one.run().notes == ["y: sampled every 60 s in the file, 1 s in the configuration"]
    assert one.result.tags["y"]["horizons"]["1"]["relative_mae"] < 0.6


def test_tags_of_other_periods_in_one_file() -> None:
    slow = np.full(2000, np.nan)
    slow[::10] = ar2(200)
    one = replay(text({"fast": ar2(2000), "slow": slow}), config())
    one.run()
    assert one.periods.tolist() == [1.0, 10.0]
    assert one.result.tags["slow"]["n"] == 200
    alone = replay(text({"slow": ar2(200)}, range(0, 2000, 10)), config()).run()
    assert alone.tags["slow"] == one.result.tags["slow"], "empty cells between are not missing samples"


def test_a_gap_in_the_times_is_a_gap() -> None:
    holes = Y.copy()
    holes[300:310] = np.nan
    kept = np.isfinite(holes)
    cut = replay(text({"y": Y[kept]}, np.arange(600.0)[kept]))
    empty = replay(text({"y": holes}))
    cut.run(), empty.run()
    assert np.allclose(cut.predictor.a, empty.predictor.a)


AUTUMN = datetime(2026, 10, 25, 3, 0)


def autumn(step: timedelta, count: int) -> list[datetime]:
    """Local times around the hour that clocks are set back: `count` before, and as many after."""
    return [AUTUMN - step * i for i in range(count, 0, -1)] + [
        AUTUMN - timedelta(hours=1) + step * i for i in range(count)
    ]


@pytest.mark.parametrize("minutes", [0.1, 5, 15, 30, 60])
def test_the_hour_that_comes_twice_is_an_hour_like_others(minutes: float) -> None:
    """Row for row the forecasts of the same values in a time that never jumps."""
    times = autumn(timedelta(minutes=minutes), 60)
    lines = text({"y": Y[:120]}, [t.isoformat() for t in times])
    one = replay(lines, config())
    plain = replay(text({"y": Y[:120]}, [60 * minutes * i for i in range(120)]), config())
    mine, other = [], []
    one.run(lambda sample, run, foretold: mine.append(foretold))
    plain.run(lambda sample, run, foretold: other.append(foretold))
    assert one.result.rows == one.result.tags["y"]["n"] == 120 and one.result.skipped == 0
    assert np.array_equal(mine, other, equal_nan=True) and np.isfinite(mine[-1]).all()
    back = AUTUMN - timedelta(hours=1)
    assert [said.partition(";")[0] for said in one.said] == [  # type: ignore[attr-defined]
        f"line 62: the time goes back to {back.isoformat()}"
    ]
    again = replay(lines, config(), lenient=True)
    assert again.run().tags == one.result.tags and again.said == []  # type: ignore[attr-defined]


def test_an_hour_back_is_no_such_hour_where_the_time_has_an_offset_or_none_was_due() -> None:
    step = timedelta(minutes=5)
    local = [t.isoformat() for t in autumn(step, 30)]
    for times in (
        [t + "+01:00" for t in local],
        [(t - datetime(2026, 1, 1)).total_seconds() for t in autumn(step, 30)],
        [*local[:30], (AUTUMN - timedelta(minutes=20)).isoformat()],
    ):
        with pytest.raises(BadRow, match=r"^line 32: the time .* is before that of the row above"):
            replay(text({"y": Y[: len(times)]}, times), config()).run()


def test_the_newest_row_first_is_refused() -> None:
    with pytest.raises(BadRow, match=r"^line 3: the time 98 is before .* the oldest row comes first"):
        replay(text({"y": Y[:100]}, range(99, -1, -1))).run()


def test_a_clock_set_back_begins_a_new_count_where_that_is_borne() -> None:
    body = replay(text({"y": Y[:200]}, [*range(5000, 5100), *range(100)]), lenient=True).run()
    assert body.tags["y"]["n"] == 200 and body.skipped == 0


def test_the_hour_that_is_left_out_is_a_gap() -> None:
    """What stamps without an offset say of spring is the same as what a logger that stood still for an hour says."""
    spring = datetime(2026, 3, 29, 2, 0)
    step = timedelta(minutes=5)
    times = [spring - step * i for i in range(100, 0, -1)] + [
        spring + timedelta(hours=1) + step * i for i in range(100)
    ]
    values = Y[:200].copy()
    one = replay(text({"y": values}, [t.isoformat() for t in times]), config())
    held = replay(text({"y": np.concatenate([values[:100], np.full(12, np.nan), values[100:]])}), config())
    one.run(), held.run()
    assert one.said == [] and np.allclose(one.predictor.a, held.predictor.a)  # type: ignore[attr-defined]


def test_time_zones_in_the_file_are_respected() -> None:
    assert seconds("2022-03-27T01:00:00+01:00") == seconds("2022-03-27T00:00:00Z") == 1648339200.0
    assert seconds("2022-03-27 00:00:00") == 1648339200.0 and seconds("12.5") == 12.5


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("5,1.0,2.0", "line 7: 3 cells where the header has 2"),
        ("5", "line 7: 1 cells where the header has 2"),
        ("yesterday,1.0", "line 7: 'yesterday' is no time"),
        ("inf,1.0", "line 7: 'inf' is no time"),
        ("5,much", "line 7: 'much' in column y is no number"),
        ("5,inf", "line 7: 'inf' in column y is no finite number"),
        ('5,"1\n2"', "line 7: '1\\n2' in column y is no number"),
        ("5," + 60 * "x", "line 7: '" + 39 * "x" + "…' in column y is no number"),
        ("4,1.0", "line 7: the time 4 stood in the row before already"),
    ],
)
def test_a_bad_row_is_told_with_its_line(row: str, reason: str) -> None:
    lines = text({"y": Y[:20]})
    lines[6] = row + "\n"
    with pytest.raises(BadRow) as told:
        replay(lines).run()
    assert str(told.value).startswith(reason)
    lenient = replay(lines, lenient=True)
    assert (lenient.run().skipped, lenient.result.rows) == (1, 19)
    assert lenient.said[0].startswith(reason) and lenient.said[0].endswith("skipped")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "the file is empty"),
        ("time\n", "names no tag"),
        ("time;y\n", "separated by semicolons where commas are wanted"),
        ("time\ty\n", "separated by tabs where commas are wanted"),
        ("time,y,y\n", "the tag y twice"),
        ("time,,y\n", "a column without a name"),
        ("time,y,press/y\n", "names a tag that another column names too"),
    ],
)
def test_a_bad_header_is_told(header: str, reason: str) -> None:
    with pytest.raises(BadHeader, match=reason):
        replay([header] if header else [])


def test_a_file_without_a_row_has_no_figures() -> None:
    found = replay(["time,y\n"]).run().body()
    assert (found["rows"], found["us_per_update"], found["tags"]["y"]["n"]) == (0, None, 0)
    assert set(found["tags"]["y"]["horizons"]["1"].values()) == {None}


def test_only_forecasts_that_were_shown_are_scored() -> None:
    y = Y[:200].copy()
    y[3:30:4] = np.nan
    one = replay(text({"y": y}))
    errors: list[float] = []
    one.run(lambda sample, _, foretold: errors.append(abs(sample.values[0] - foretold[0][0])))
    shown = np.array(errors)
    assert np.isnan(shown[:35]).all() and np.isfinite(shown[40:]).all()
    assert one.result.tags["y"]["horizons"]["1"]["mae"] == pytest.approx(np.nanmean(shown), rel=1e-12)


def test_a_tag_that_several_devices_have_needs_its_device() -> None:
    both = Config(
        "x",
        None,
        None,
        devices={n: Device(n, Url("t", "tcp"), tags={"y": Tag("y", "holding", 0)}) for n in "ab"},
    )
    with pytest.raises(BadHeader, match="write a/y"):
        resolve(["y"], both)
    assert resolve(["b/y"], both) == [("b", "y")]


@pytest.mark.parametrize("word", ["", "nan", "NaN", "null", "None", "NA"])
def test_words_for_missing(word: str) -> None:
    assert np.isnan(number(word, "y"))


def test_inputs_are_used_where_the_file_has_them() -> None:
    setting = config("y", "u", predict=PredictConfig(inputs={("press", "y"): (("press", "u"),)}))
    u = np.repeat(np.random.default_rng(3).integers(0, 2, 75), 40).astype(float)
    y = np.zeros(3000)
    for i in range(1, 3000):
        y[i] = 0.95 * y[i - 1] + 2.0 * u[i - 1] + 0.02 * np.sin(i)
    driven = replay(text({"y": y, "u": u}), setting).run().tags["y"]["horizons"]["1"]["mae"]
    alone = replay(text({"y": y}), setting).run().tags["y"]["horizons"]["1"]["mae"]
    assert driven < 0.8 * alone


def test_memory_does_not_grow_with_the_file() -> None:
    def lines(count: int) -> Iterator[str]:
        yield "time,y\n"
        for i in range(count):
            yield f"{i},{Y[i % 600]}\n"

    peaks = []
    for count in (1000, 4000):
        tracemalloc.start()
        Replay(config("y"), Reader(lines(count), lenient=False, say=print)).run()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000


def invoke(monkeypatch: pytest.MonkeyPatch, setting: Config, *words: str) -> int:
    loader = types.SimpleNamespace(load_or_fail=lambda path: setting)
    monkeypatch.setitem(sys.modules, "agent.cli.load", loader)  # type: ignore[arg-type]
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.main(parser.parse_args(["config.yaml", *words]))


def test_the_command_prints_json_and_writes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data.csv", tmp_path / "out.csv"
    series = Y.copy()
    series[100] = np.nan
    data.write_text("\ufeff" + "".join(text({"y": series})), encoding="utf-8")
    assert invoke(monkeypatch, config("y"), str(data), "--json", "--out", str(out), "--horizon", "1,3") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["rows"] == 600 and set(body["tags"]["y"]["horizons"]) == {"1", "3"}
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == ["time", "tag", "value", "forecast", "lower", "upper", "health"]
    assert (
        len(rows) == 600
        and rows[0]["forecast"] == ""
        and rows[100]["value"] == ""
        and rows[0]["health"] == ""
    )
    forecast = np.array([float(row["forecast"] or "nan") for row in rows])
    assert 0.3 < relative_mae(series, np.append(forecast[1:], np.nan), 1) < 0.6
    assert float(rows[500]["lower"]) <= float(rows[500]["forecast"]) <= float(rows[500]["upper"])
    assert 0.0 <= float(rows[500]["health"]) <= 1.0


def test_the_command_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("".join(text({"y": Y, "still": np.ones(600)})))
    assert invoke(monkeypatch, config("y"), str(data)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("600 rows, 0 skipped") and len(lines) >= 8
    assert any(line.startswith("still") and " - " in line for line in lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"time,y\n1,x\n", "line 2: 'x' in column y is no number (--lenient skips bad rows)"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_the_command_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    data = tmp_path / "data.csv"
    data.write_bytes(content)
    with pytest.raises(Failure) as told:
        invoke(monkeypatch, config("y"), str(data))
    assert words in str(told.value) and str(data) in str(told.value) and told.value.status == 1


@pytest.mark.parametrize("bad", ["", "0", "1,1", "x", "1,-2", "99999"])
def test_a_bad_horizon_is_a_usage_error(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as told:
        invoke(monkeypatch, config("y"), "data.csv", "--horizon", bad)
    assert told.value.code == 2


def test_what_is_read_is_not_written_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("".join(text({"y": Y[:50]})))
    (tmp_path / "same.csv").symlink_to(data)
    for option in ("--out", "--plot"):
        with pytest.raises(Failure, match="would be overwritten"):
            invoke(monkeypatch, config("y"), str(data), option, str(tmp_path / "same.csv"))
    assert data.read_text() == "".join(text({"y": Y[:50]}))

"""`replay --plot`: bounded whatever the file's length, with the fan beyond the last row."""

from __future__ import annotations

import re
import tracemalloc
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from agent.config.types import HealthConfig
from agent.plot import Band, Line, Panel, Rule, chart
from agent.predict.curves import MOST, NEWEST, TAGS, Curves
from agent.predict.replay import Reader, Replay
from tests.predict.series import ar2
from tests.predict.test_replay import config, invoke, replay, text

Y = ar2(600)


def drawn(lines: list[str], **more: object) -> list[Panel]:
    one = replay(lines, **more)  # type: ignore[arg-type]
    curves = Curves(one.names, ["bar"] * len(one.names))
    one.run(curves.add)
    return curves.panels(one)


def line(panel: Panel, name: str) -> Line:
    return next(shape for shape in panel.shapes if isinstance(shape, Line) and shape.name == name)


def test_a_tag_has_its_values_the_newest_with_the_fan_and_its_health() -> None:
    whole, newest, health = drawn(text({"y": Y}), horizon=(1, 20, 5))
    assert [panel.title for panel in (whole, newest, health)] == ["y", "y, the last 120 rows", "y: health"]
    assert line(whole, "value").y == pytest.approx(Y) and whole.unit == "bar" and not whole.clock
    fan = next(shape for shape in newest.shapes if isinstance(shape, Band) and not shape.name)
    assert list(fan.x) == [599.0, 600.0, 604.0, 619.0]
    widths = [high - low for low, high in zip(fan.low, fan.high, strict=True)]
    assert widths[0] == 0.0 < widths[1] < min(widths[2:])
    assert line(newest, "forecast").y[0] == Y[-1]
    band = next(shape for shape in whole.shapes if isinstance(shape, Band))
    inside = [low <= y <= high for low, y, high in zip(band.low, Y, band.high, strict=True)]
    assert 0.85 < np.mean(inside[100:]) < 0.95, "the interval stands at the row it was made for"
    assert (health.low, health.high) == (0.0, 1.0) and len(line(health, "health").x) > 0


def test_few_rows_have_no_second_look() -> None:
    titles = [panel.title for panel in drawn(text({"y": Y[:NEWEST]}))]
    assert titles == ["y", "y: health"]


def test_many_rows_are_bounded_and_a_spike_in_them_is_seen() -> None:
    count = 3 * MOST + 17
    series = np.tile(Y, 11)[:count]
    series[1234] = 99.0
    whole = drawn(text({"y": series}))[0]
    curve = line(whole, "value")
    assert len(curve.x) <= 2 * MOST and max(curve.y) == 99.0
    assert list(curve.x) == sorted(curve.x) and curve.x[0] == 0.0 and curve.x[-1] == count - 1
    assert abs(curve.x[curve.y.index(99.0)] - 1234) <= 4  # type: ignore[attr-defined]


def test_a_gap_is_a_gap_and_a_slow_tag_is_none() -> None:
    slow = np.full(600, np.nan)
    slow[::10] = ar2(60)
    holes = Y.copy()
    holes[300:310] = np.nan
    panels = drawn(text({"fast": holes, "slow": slow}), setting=config())
    assert np.isnan(line(panels[0], "value").y).sum() == 1
    assert not np.isnan(line(panels[3], "value").y).any() and not np.isnan(line(panels[4], "value").y).any()


def test_times_with_a_date_are_shown_as_such() -> None:
    times = [(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=i)).isoformat() for i in range(600)]
    panels = drawn(text({"y": Y}, times))
    assert all(panel.clock for panel in panels)
    assert "UTC, from 2026-01-01" in chart(panels)


def test_alarms_stand_in_the_health_of_their_device() -> None:
    shifted = np.concatenate([ar2(400), 50.0 + ar2(200)])
    health = {"press": HealthConfig(tags=("y",), warmup=100, hold=5.0)}
    panels = drawn(text({"y": shifted, "other/z": Y}), setting=config("y", health=health))
    rules = [[shape.at for shape in panel.shapes if isinstance(shape, Rule)] for panel in panels]
    assert len(rules[2]) == 1 and 400 <= rules[2][0] <= 450
    assert rules[5] == []


def test_memory_does_not_grow_with_the_file() -> None:
    def lines(count: int) -> Iterator[str]:
        yield "time,y\n"
        for i in range(count):
            yield f"{i},{Y[i % 600]}\n"

    peaks = []
    for count in (500, 2000):
        tracemalloc.start()
        one = Replay(config("y"), Reader(lines(count), lenient=False, say=print))
        curves = Curves(one.names, [""])
        one.run(curves.add)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000


def test_the_command_writes_a_picture_of_the_first_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = tmp_path / "data.csv", tmp_path / "out.svg"
    data.write_text("".join(text({f"y{n}": Y[:60] for n in range(TAGS + 1)})), encoding="utf-8")
    assert invoke(monkeypatch, config(), str(data), "--plot", str(picture)) == 0
    assert f"the picture shows the first {TAGS} of {TAGS + 1} tags" in capsys.readouterr().err
    shown = picture.read_text(encoding="utf-8")
    ET.fromstring(shown)
    assert "replay of data.csv" in shown and len(re.findall(r">y\d+: health<", shown)) == TAGS

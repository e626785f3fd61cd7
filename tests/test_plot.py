"""Charts: well-formed, small whatever the data, no spike lost, gaps left open, ticks that say what they mean."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from agent.plot import Band, Line, Panel, Rule, chart

SVG = "{http://www.w3.org/2000/svg}"


def paths(text: str, kind: str) -> list[str]:
    """The `d` of every curve (not of the legend) of one class."""
    groups = ET.fromstring(text).iter(f"{SVG}g")
    return [path.attrib["d"] for group in groups for path in group if path.attrib["class"] == kind]


def words(text: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(text).iter(f"{SVG}text")]


def heights(way: str) -> list[float]:
    """The y of every point of a polyline."""
    return [float(y) for _, y in re.findall(r"([\d.-]+) ([\d.-]+)", way)]


def test_titles_legends_and_units_stand_in_it_escaped() -> None:
    text = chart(
        [Panel([Line([0, 1], [1, 2], "a<b"), Rule(1.5, "limit")], title="T & x", unit="°C", x_unit="min")],
        title='"loop" \x07',
    )
    assert {"a<b", "limit", "T & x [°C]", "min", '"loop"  '} <= set(words(text))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "it loads nothing"
    assert "prefers-color-scheme:dark" in text


def test_a_million_points_stay_small_and_the_one_spike_is_seen() -> None:
    y = np.zeros(1_000_000)
    y[123_456] = 1.0
    text = chart([Panel([Line(np.arange(1_000_000.0), y)], low=0.0, high=1.0)], width=600)
    assert len(text) < 60_000
    drawn = heights(paths(text, "l0")[0])
    assert max(drawn) - min(drawn) == pytest.approx(160.0, abs=0.2)


def test_a_spike_within_a_band_is_seen_too() -> None:
    x = np.arange(100_000.0)
    high = np.ones(100_000)
    high[5_000] = 3.0
    text = chart([Panel([Band(x, np.zeros(100_000), high)], low=0.0, high=3.0)])
    assert len(text) < 60_000
    drawn = heights(paths(text, "b0")[0])
    assert max(drawn) - min(drawn) == pytest.approx(160.0, abs=0.2)


def test_nan_leaves_a_gap_and_a_lone_point_is_a_dot() -> None:
    text = chart([Panel([Line([0, 1, 2, 3, 4, 5], [1, 1, math.nan, 2, math.nan, 3])])])
    way = paths(text, "l0")[0]
    assert way.count("M") == 3 and way.count("h1.4") == 2 and "nan" not in text


def test_a_step_holds_its_value() -> None:
    text = chart([Panel([Line([0, 1, 2], [0, 1, 0], step=True)])])
    assert re.fullmatch(r"M[\d.]+ [\d.]+(H[\d.]+V[\d.]+){2}", paths(text, "l0")[0])


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan, math.nan],
        [5.0],
        [5.0, 5.0],
        [0.0, 0.0],
        [1e-300, 2e-300],
        [-1e300, 1e300],
        [1e9, 1e9 + 1e-3],
    ],
)
def test_every_data_gives_a_picture(values: list[float]) -> None:
    text = chart([Panel([Line(range(len(values)), values, "y")])])
    ET.fromstring(text)
    assert not re.search(r"\b(nan|inf)\b", text.replace("text-anchor", ""))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], {"0.0", "0.2", "0.4", "0.6", "0.8", "1.0"}),
        ([1e6, 1e6 + 0.04], {"1000000.00", "1000000.02"}),
        ([-50.0, 150.0], {"0", "50", "100"}),
        ([0.0, 4e-9], {"1e-09", "2e-09"}),
    ],
)
def test_ticks_are_round_and_tell_one_from_the_next(values: list[float], ticks: set[str]) -> None:
    assert ticks <= set(words(chart([Panel([Line([0, 1], values)])])))


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (12, {"00:00:02", "00:00:10"}),
        (600, {"00:02", "00:10"}),
        (2 * 86_400, {"12:00", "07-02"}),
        (400 * 86_400, {"2026-10-24"}),
        (1, {"00:00:00.2"}),
    ],
)
def test_clock_ticks_are_round_moments_of_utc(seconds: int, wanted: set[str]) -> None:
    began = 1_782_864_000.0  # 2026-07-01
    shown = words(chart([Panel([Line([began, began + seconds], [0, 1])], clock=True)]))
    assert wanted <= set(shown), shown
    assert "UTC, from 2026-07-01" in shown


def test_the_ends_of_an_axis_can_be_fixed() -> None:
    text = chart([Panel([Line([4, 6], [1, 2])], x_ends=(0.0, 10.0), low=0.0, high=4.0)])
    first, last = re.findall(r"([\d.]+) ([\d.]+)", paths(text, "l0")[0])
    assert float(last[0]) - float(first[0]) == pytest.approx((900 - 14 - 14 - 3 * 6.4) / 5, abs=15.0)
    assert float(first[1]) - float(last[1]) == pytest.approx(40.0, abs=0.2)
    assert {"0", "10"} <= set(words(text))


def test_the_last_label_stays_on_the_picture() -> None:
    began = 1_782_864_000.0
    svg = ET.fromstring(chart([Panel([Line([began, began + 20 * 86_400], [0, 1])], clock=True)], width=600))
    last = max(
        float(e.attrib["x"]) for e in svg.iter(f"{SVG}text") if re.fullmatch(r"\d{4}-.*", e.text or "")
    )
    assert 500 < last < 600 - 3 * 10


def test_a_long_legend_goes_on_in_the_next_row() -> None:
    lines = [Line([0, 1], [0, 1], f"a rather long name {n}", colour=n % 6) for n in range(12)]
    svg = ET.fromstring(chart([Panel(lines)], width=400))
    last = [element for element in svg.iter(f"{SVG}text") if (element.text or "").startswith("a rather")]
    assert all(float(element.attrib["x"]) < 400 for element in last)
    assert len({element.attrib["y"] for element in last}) > 3


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the line y has 2 x and 1 y"):
        chart([Panel([Line([0, 1], [0], "y")])])
    with pytest.raises(ValueError, match="the band b"):
        chart([Panel([Band([0, 1], [0, 1], [0], "b")])])
    with pytest.raises(ValueError, match="colour"):
        chart([Panel([Rule(1.0, colour=9)])])

"""The demo's summary must not be true when something in it was not."""

from typing import Any

import pytest

from agent.demo.judge import against_books, failed, settling, summary


def trace(values: list[float], step: float = 0.5) -> list[list[float]]:
    return [[k * step, value, 50.0] for k, value in enumerate(values)]


def test_settled_when_it_stays_in_the_band() -> None:
    values = [120.0] * 4 + [140.0] * 4 + [159.5] * 30
    assert settling(trace(values), old=120, new=160, at=2.0, end=18.0) == (True, 1.5)


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([120.0] * 40, 18.0),  # never got there
        ([120.0] * 4 + [160.0] * 30 + [161.0], 17.0),  # left the band in the last 5 s
        ([120.0] * 4 + [160.0] * 10, 18.0),  # the plant's trace ends too early to know
        ([], 18.0),
    ],
)
def test_not_settled(values: list[float], end: float) -> None:
    assert settling(trace(values), old=120, new=160, at=2.0, end=end) == (False, None)


def test_books() -> None:
    assert against_books([1, 2, 3, 4], [1, 2, 2, 4, 4, 4]) == (1, 3)
    assert against_books([1, 2], [2, 1]) == (0, 0)


def good() -> dict[str, Any]:
    values = [120.0] * 4 + [160.0] * 34
    return summary(
        seconds=18.0,
        plant={"trace": trace(values), "served": [1, 2]},
        central={"served": [1, 2], "messages": 9, "readings": 20, "lost": 0, "doubled": 0, "out_of_order": 0},
        status={
            "counts": {"values_read": 20, "values_bad": 0, "forecasts": 5},
            "forecasts": {"vessel/temperature": {"skill": 0.2, "coverage": 0.9}},
        },
        step=(120.0, 160.0, 2.0),
        end=18.0,
    )


def test_all_true_is_ok() -> None:
    body = good()
    assert body["ok"] and body["failed"] == []
    assert body["settling_s"] == 0.0


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("forecast_skill", 0.04),
        ("forecast_skill", None),
        ("lost", 1),
        ("duplicates", 1),
        ("loop_settled", False),
        ("values_bad", 3),
        ("forecasts", 0),
        ("readings_received", 0),
    ],
)
def test_each_part_can_fail(part: str, value: object) -> None:
    assert failed(good() | {part: value}) == [part]

"""The accounts of the chaos find every kind of fault, and its plan keeps its rules; else that test could not fail."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.books import compare
from tests.e2e.chaos import EVERY, LIMITS, MISTAKES, SPAN, WIDTH, Setting, plan
from tests.e2e.chaos_accounts import Kill, Watchful, astray, costs, unread, wrong_levels, wrong_writes
from tests.e2e.vessel import BEAT, PER_DEVICE, PER_EPOCH, VALVE, Served

STREAM = "0123abcd"
FIRST = PER_DEVICE + PER_EPOCH


def fed(count: int = FIRST + 1, level: Any = 7, **more: Any) -> Watchful:
    """Books of plc1 with one row; `more`: tags, and `q` their qualities."""
    books = Watchful("served")
    quality = more.pop("q", {})
    tags = {"served": count, "level": level, "epoch": 1, "r10": 1010} | more
    group = {"t": [1000], "c": {tag: [value] for tag, value in tags.items()}, "q": quality}
    books.feed("edgetwin/v1/line7/data/plc1", {"stream": STREAM, "seq": 1, "groups": [group]})
    return books


def test_right_values_are_right() -> None:
    books = fed()
    assert books.wrong == [] and books.rows == {FIRST + 1: ("plc1", 7)}
    assert fed(r10=None, q={"r10": [[0, "timeout"]]}).bad == {"plc1": [1.0]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"r10": 2010},  # another device's
        {"r10": 1011},  # another address
        {"r10": None},
        {"r10": 1010, "q": {"r10": [[0, "timeout"]]}},
        {"epoch": 2},
        {"count": FIRST + PER_EPOCH},
    ],
)
def test_a_wrong_value_is_found(wrong: dict[str, Any]) -> None:
    assert fed(**wrong).wrong != []


def test_a_wrong_value_of_the_twin_is_found() -> None:
    books = fed()
    body = {"reported": {"r10": {"v": 1011, "q": "good"}}}
    books.feed("edgetwin/v1/line7/twin/plc1", body)
    assert len(books.wrong) == 1


def test_a_level_that_was_not_sent_with_its_count_is_found() -> None:
    assert wrong_levels(fed(), {"plc1": Served({FIRST + 1: (0.0, 7)}, [])}) == []
    assert len(wrong_levels(fed(), {"plc1": Served({FIRST + 1: (0.0, 8)}, [])})) == 1
    assert len(wrong_levels(fed(), {"plc1": Served({}, [])})) == 1


def test_a_write_outside_the_limits_or_to_another_register_is_found() -> None:
    right = [(0.0, VALVE, limit) for limit in LIMITS] + [(0.0, BEAT, 9)]
    assert wrong_writes({"plc1": Served({}, right), "plc2": Served({}, [])}) == []
    for address, value in ((VALVE, LIMITS[0] - 1), (VALVE, LIMITS[1] + 1), (BEAT + 1, LIMITS[0])):
        assert len(wrong_writes({"plc1": Served({}, [(0.0, address, value)])})) == 1
    assert len(wrong_writes({"plc2": Served({}, right[:1])})) == 1


def test_replies_that_nothing_explains_are_counted() -> None:
    now = time.monotonic()
    served = Served({FIRST + 1: (now - 50, 7), FIRST + 2: (now - 49, 7), FIRST + 3: (now - 20, 7)}, [])
    assert unread(fed(), "plc1", served, []) == [now - 49, now - 20]
    assert unread(fed(), "plc1", served, [(now - 50, now - 48)]) == [now - 20]
    assert astray([Kill(now - 18, [])], [now - 49, now - 20]) == [now - 49]


@pytest.mark.parametrize(("seconds", "fault"), [(SPAN, False), (2 * SPAN, True)])
def test_a_kill_that_costs_more_than_it_may_is_found(seconds: float, fault: bool) -> None:
    rows = round(seconds / EVERY)
    books = fed()
    books.feed("edgetwin/v1/line7/gap/plc1", {"stream": STREAM, "from": 2, "to": 2, "reason": "restart"})
    journal = [("plc1", STREAM, 1, 4), ("plc1", STREAM, 2, rows * WIDTH["plc1"])]
    kill = Kill(1000.0, journal)
    [[one]] = costs([kill], compare(journal, books), {"plc1": [1000.0 - n * EVERY for n in range(rows)]})
    assert (one.closed, one.open, one.fault) == (rows, 0, fault)
    [[one]] = costs(
        [kill], compare(journal[:1], books), {"plc1": [1000.0 - n * EVERY / 2 for n in range(2 * rows)]}
    )
    assert (one.closed, one.open, one.fault) == (0, 2 * rows, True)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_ends_what_it_begins_and_changes_what_it_says(seed: int) -> None:
    acts = plan(seed, 100.0, Setting())
    assert acts == plan(seed, 100.0, Setting()) and all(act.at < 100.0 for act in acts)
    going: set[tuple[str, int]] = set()
    for act in acts:
        if act.setting is not None:
            assert act.setting.mistake is None or act.setting.mistake in MISTAKES
        elif act.what != "proxy cut":
            assert ((act.what, act.target) in going) != act.begin
            going ^= {(act.what, act.target)}
    assert going == set()
    assert len({act.what for act in acts}) >= 8

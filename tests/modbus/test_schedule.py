"""The schedule alone: grids, order, spare time, the states of a unit."""

from __future__ import annotations

import itertools
import random

import pytest

from agent.modbus.plan import Request
from agent.modbus.schedule import SPREAD, Schedule, Unit
from tests.modbus.plant import device, request


def schedule(*requests: Request, now: float = 100.0, **options: float) -> Schedule:
    names = sorted({(one.device, one.unit) for one in requests})
    made = Schedule(
        [device(name, unit, **options) for name, unit in names],
        {name: [one for one in requests if one.device == name] for name, _ in names},
        rng=random.Random(3),
    )
    made.start(now)
    return made


def finish(made: Schedule, now: float) -> list[tuple[str, int]]:
    """Starts what is due and ends it at once: (device, k)."""
    done = []
    for run in made.due(now):
        made.finish(run)
        done.append((run.scan.device, run.k))
    return done


def test_the_grid_does_not_drift_over_a_million_scans() -> None:
    made = schedule(request("a", 1, every=0.1))
    [scan] = made.scans
    for k in (0, 1, 999_999):
        scan.k = k
        assert scan.due == pytest.approx(scan.first + k * 0.1, abs=1e-7)
    now = scan.first + 1_000_000 * 0.1
    assert scan.take(now) == (1_000_000, pytest.approx(now))
    assert scan.due == pytest.approx(now + 0.1)


@pytest.mark.parametrize("late", [0.0, 0.04, 0.0999])
def test_a_little_late_is_no_overrun(late: float) -> None:
    made = schedule(request("a", 1, every=0.1))
    [scan] = made.scans
    for k in range(50):
        assert finish(made, scan.first + k * 0.1 + late) == [("a", k)]
    assert scan.overruns == 0


def test_what_is_a_period_late_is_skipped() -> None:
    made = schedule(request("a", 1, every=0.1))
    [scan] = made.scans
    assert finish(made, scan.first) == [("a", 0)]
    assert finish(made, scan.first + 0.55) == [("a", 5)]
    assert finish(made, scan.first + 0.56) == []
    assert scan.overruns == 4
    assert finish(made, scan.first + 0.6) == [("a", 6)]


def test_a_pass_under_way_is_not_started_twice() -> None:
    made = schedule(request("a", 1, every=0.1))
    [scan] = made.scans
    [run] = made.due(scan.first)
    assert made.due(scan.first + 0.1) == []
    assert scan.overruns == 1
    made.finish(run)
    assert finish(made, scan.first + 0.2) == [("a", 2)]


def test_first_scans_are_spread_but_soon() -> None:
    made = schedule(*(request(f"d{i}", i + 1, every=60.0) for i in range(20)))
    firsts = sorted(scan.first - 100.0 for scan in made.scans)
    assert firsts[0] >= 0
    assert firsts[-1] <= SPREAD
    assert min(b - a for a, b in itertools.pairwise(firsts)) == pytest.approx(SPREAD / 20)


def test_the_one_whose_period_ends_first_goes_first() -> None:
    made = schedule(request("slow", 1, every=10.0), request("fast", 2, every=0.1))
    made.due(200.0)
    run = made.pick(200.0)
    assert run is not None
    assert run.scan.device == "fast"


def test_a_device_in_its_pause_lets_others_go_first() -> None:
    made = schedule(request("a", 1, every=0.1), request("b", 2, every=10.0))
    made.due(200.0)
    made.units["a"].ready_at = 200.2
    run = made.pick(200.0)
    assert run is not None
    assert run.scan.device == "b"
    made.finish(run)
    assert made.pick(200.0) is None
    assert made.next_spare(200.0) == 200.2


def test_spare_time_ends_before_the_next_due_request_of_another() -> None:
    made = schedule(request("good", 1, every=1.0), request("dead", 2, every=1.0), timeout=0.5)
    good = next(scan for scan in made.scans if scan.device == "good")
    for run in made.due(good.first):
        made.finish(run)
    dead = made.units["dead"]
    dead.missed(good.first, good.first)
    now = good.first + 0.8
    dead.next_try = now
    picked = made.pick_silent(now)
    assert picked is not None
    unit, _, limit = picked
    assert unit is dead
    assert limit == pytest.approx(0.2, abs=0.01)
    assert limit < good.due - now
    assert made.pick_silent(good.due - 0.01) is None  # too little is left


def test_no_spare_time_while_another_is_due() -> None:
    made = schedule(request("good", 1), request("dead", 2))
    made.units["dead"].missed(100.0, 100.0)
    made.due(200.0)
    assert made.slack("dead", 200.0) == 0.0


def test_a_silent_unit_is_tried_each_second_then_rarely_and_forgiven_by_one_answer() -> None:
    unit = Unit("a", 1, 0.5, retry_first=30.0, retry_max=300.0)
    now, gaps = 0.0, []
    while now < 2000.0:
        unit.missed(now, now + 0.5)
        gaps.append(round(unit.next_try - now, 3))
        now = unit.next_try
    assert gaps[0] == 0.6
    assert set(gaps[1:30]) == {1.0}
    rare = [gap for gap in gaps if gap > 1.0]
    assert rare[:4] == [30.5, 60.5, 120.5, 240.5]
    assert set(rare[4:]) == {300.5}
    assert unit.state == "silent"
    unit.answered(now, 0.01)
    assert (unit.state, unit.demoted, unit.patience) == ("ok", False, 0.5)


def test_one_lost_reply_makes_no_unit_silent() -> None:
    unit = Unit("a", 1, 0.5)
    unit.missed(0.0, 0.5)
    assert (unit.state, unit.demoted) == ("ok", True)
    unit.answered(0.8, 0.01)
    assert (unit.state, unit.demoted) == ("ok", False)


def test_a_slow_unit_gets_more_time_and_loses_it_when_it_is_quick_again() -> None:
    unit = Unit("a", 1, 0.5)
    unit.missed(0.0, 0.5)
    unit.late(0.9, 0.9)
    assert (unit.state, unit.demoted) == ("slow", False)
    assert unit.patience == pytest.approx(1.35)
    unit.answered(2.0, 1.2)
    assert unit.patience == pytest.approx(1.8)
    for _ in range(9):
        unit.answered(3.0, 0.1)
    assert unit.state == "slow"
    unit.answered(3.0, 0.1)
    assert (unit.state, unit.patience) == ("ok", 0.5)


def test_what_failed_is_read_again_only_when_its_turn_is_far() -> None:
    near, far = request("a", 1, 10, every=0.2), request("a", 1, 20, every=60.0)
    made = schedule(near, far)
    for run in made.due(200.0):
        made.finish(run)
    made.owed = {near: 200.0, far: 200.0}
    picked = made.pick_owed(200.0)
    assert picked is not None
    assert picked[0] is far
    assert near not in made.owed

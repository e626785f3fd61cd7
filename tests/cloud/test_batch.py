"""Batches: one open per device, closed by age, by size, or at the end; nothing lost, nothing reordered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud import batch
from agent.cloud.batch import Batcher, Rhythm, lasts
from agent.twin.records import Row
from tests.cloud.harness import row


def test_a_batch_closes_a_moment_before_its_first_row_is_as_old_as_the_span() -> None:
    batcher = Batcher()
    assert batcher.next_due(1.0) is None
    batcher.add(row("press1", 10.0, 1), 10.0)
    batcher.add(row("press2", 10.4, 1), 10.4)
    batcher.add(row("press1", 10.9, 2), 10.9)
    assert batcher.next_due(1.0) == pytest.approx(10.95)
    assert list(batcher.take_due(10.94, 1.0)) == []
    [(device, rows)] = batcher.take_due(10.951, 1.0)
    assert device == "press1" and [one.t for one in rows] == [10.0, 10.9]
    assert batcher.next_due(1.0) == pytest.approx(11.35)
    batcher.add(row("press1", 11.2, 3), 11.2)
    assert [device for device, _ in batcher.take_all()] == ["press2", "press1"]
    assert batcher.next_due(1.0) is None and list(batcher.take_all()) == []


def test_what_is_due_soon_closes_along_with_what_is_due() -> None:
    batcher = Batcher()
    for device, t in (("press1", 10.0), ("press2", 10.05), ("press3", 10.2)):
        batcher.add(row(device, t, 1), t)
    assert list(batcher.take_due(10.94, 1.0)) == []
    assert [device for device, _ in batcher.take_due(10.951, 1.0)] == ["press1", "press2"]
    assert batcher.next_due(1.0) == pytest.approx(11.15)


def test_scans_in_the_rhythm_of_the_batches_fall_evenly_to_them() -> None:
    for every, span, each in ((1.0, 1.0, 1), (0.25, 1.0, 4), (1.0, 10.0, 10), (0.1, 0.5, 5)):
        batcher, sizes, now = Batcher(), [], 0.0
        for number in range(100):
            at = number * every + 0.003 * (number % 3)  # a little late, sometimes
            while now < at:
                sizes += [len(rows) for _, rows in batcher.take_due(now, span)]
                now += 0.001
            batcher.add(row("press1", at, number), at)
        assert set(sizes[1:]) == {each}


def test_what_was_ended_closes_whatever_its_age() -> None:
    batcher = Batcher()
    batcher.add(row("press1", 10.0, 1), 10.0)
    batcher.add(row("press2", 10.0, 1), 10.0)
    batcher.end(["press1", "press3"])
    [(device, rows)] = batcher.take_due(10.01, 1.0)
    assert device == "press1" and [one.t for one in rows] == [10.0]
    batcher.add(row("press1", 10.1, 2), 10.1)
    batcher.add(row("press3", 10.1, 1), 10.1)
    assert list(batcher.take_due(10.2, 1.0)) == []  # what came after the end waits for the next


def batches(
    every: float, span: float, late: Callable[[int], float] = lambda number: 0.0
) -> list[tuple[float, int]]:
    """(when it left, scans in it) of each batch of 200 scans, as the agent closes them: by a scan's end or by age."""
    batcher, rhythm, closed = Batcher(), Rhythm(), []
    for number in range(200):
        at = number * every + late(number)
        due = batcher.next_due(span)
        if due is not None and due < at:
            closed += [(due, len(rows)) for _, rows in batcher.take_due(due + 1e-9, span)]
        batcher.add(row("press1", at, number), at)
        if rhythm.ends("press1", at, span):
            batcher.end(["press1"])
            closed += [(at, len(rows)) for _, rows in batcher.take_due(at, span)]
    return closed


@pytest.mark.parametrize(
    ("every", "span", "each"),
    [(1.0, 1.0, 1), (0.25, 1.0, 4), (1.0, 10.0, 10), (0.1, 0.5, 5), (5.0, 1.0, 1), (60.0, 1.0, 1)],
)
def test_a_batch_leaves_with_the_scan_that_ends_it(every: float, span: float, each: int) -> None:
    closed = batches(every, span, lambda number: 0.003 * (number % 3))
    assert {count for _, count in closed[1:]} == {each}
    assert all(
        (at + 1e-6) % every < 0.007 for at, _ in closed
    )  # at the end of a scan, not a span after its first


@pytest.mark.parametrize(
    ("every", "span"), [(0.7, 1.0), (0.3, 1.0), (1.05, 1.0), (0.97, 1.0), (3.0, 10.0), (0.05, 1.0)]
)
def test_no_more_batches_leave_than_spans_pass(every: float, span: float) -> None:
    closed = batches(every, span)
    ends = 199 * every
    assert len(closed) <= ends / lasts(span) + 2
    assert max(after - before for (before, _), (after, _) in pairwise(closed)) <= span + every


def test_a_first_scan_that_came_late_does_not_make_all_others_late() -> None:
    closed = batches(1.0, 1.0, lambda number: 0.4 if number == 0 else 0.0)
    assert [at % 1.0 for at, _ in closed[2:]] == pytest.approx([0.0] * len(closed[2:]), abs=1e-6)
    assert {count for _, count in closed[2:]} == {1}


def test_a_longer_span_holds_for_what_is_open_already() -> None:
    batcher = Batcher()
    batcher.add(row("press1", 10.0, 1), 10.0)
    assert list(batcher.take_due(11.0, 20.0)) == []
    assert batcher.next_due(20.0) == pytest.approx(29.95)


def test_a_full_batch_closes_before_its_time() -> None:
    batcher = Batcher()
    wide = Row("press1", tuple(f"t{i}" for i in range(1000)), 10.0, [0.0] * 1000, None)
    for _ in range(batch.LARGEST // 1000 - 1):
        batcher.add(wide, 10.0)
    assert list(batcher.take_due(10.0, 1.0)) == []
    batcher.add(wide, 10.0)
    [(_, rows)] = batcher.take_due(10.0, 1.0)
    assert len(rows) * 1000 == batch.LARGEST


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0, 2), st.booleans()), max_size=60),
    st.floats(0.1, 5),
)
def test_every_row_leaves_once_and_in_order(steps: list[tuple[str, float, bool]], span: float) -> None:
    batcher, now, given_, taken = Batcher(), 0.0, [], []
    for count, (device, wait, look) in enumerate(steps):
        now += wait
        one = row(device, now, count)
        batcher.add(one, now)
        given_.append(one)
        if look:
            closed = list(batcher.take_due(now, span))
            assert len({name for name, _ in closed}) == len(closed)
            assert all(now - rows[0].t >= (1.0 - batch.EARLY) * batch.lasts(span) for _, rows in closed)
            assert not closed or any(now - rows[0].t >= batch.lasts(span) for _, rows in closed)
            taken += [one for _, rows in closed for one in rows]
    taken += [one for _, rows in batcher.take_all() for one in rows]
    for device in "abc":
        assert [one for one in taken if one.device == device] == [
            one for one in given_ if one.device == device
        ]

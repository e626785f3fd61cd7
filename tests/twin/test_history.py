"""An hour of buckets, in a ring."""

import numpy as np

from agent.twin.history import BUCKET, BUCKETS, MOST_TAGS, History


def rows(*numbers: int):  # type: ignore[no-untyped-def]
    return np.array(numbers, dtype=np.int64)


def test_min_max_last_of_a_bucket() -> None:
    history = History(2)
    for t, value in ((100.0, 5.0), (103.0, 2.0), (109.9, 3.0), (110.0, 9.0)):
        history.add(rows(1), np.array([value]), t)
    assert history.read(1) == [(100.0, 2.0, 5.0, 3.0), (110.0, 9.0, 9.0, 9.0)]
    assert history.read(0) == []


def test_missing_values_leave_the_bucket_as_it_is() -> None:
    history = History(1)
    history.add(rows(0), np.array([np.nan]), 0.0)
    assert history.read(0) == []
    history.add(rows(0), np.array([4.0]), 1.0)
    history.add(rows(0), np.array([np.nan]), 2.0)
    assert history.read(0) == [(0.0, 4.0, 4.0, 4.0)]


def test_the_ring_forgets_after_an_hour() -> None:
    history = History(1)
    for k in range(BUCKETS + 5):
        history.add(rows(0), np.array([float(k)]), k * BUCKET)
    points = history.read(0)
    assert len(points) == BUCKETS
    assert points[0][0] == 5 * BUCKET and points[-1][3] == BUCKETS + 4


def test_a_pause_leaves_no_old_points() -> None:
    history = History(1)
    history.add(rows(0), np.array([1.0]), 0.0)
    history.add(rows(0), np.array([2.0]), (BUCKETS + 50) * BUCKET)
    assert [point[3] for point in history.read(0)] == [2.0]


def test_tags_beyond_the_bound_have_none() -> None:
    history = History(MOST_TAGS + 10)
    history.add(rows(0, MOST_TAGS + 5), np.array([1.0, 2.0]), 0.0)
    assert history.read(0) == [(0.0, 1.0, 1.0, 1.0)]
    assert history.read(MOST_TAGS + 5) == []

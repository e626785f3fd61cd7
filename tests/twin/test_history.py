"""An hour of buckets, in a ring."""

import threading

import numpy as np

from agent.twin.history import BUCKET, BUCKETS, MOST_TAGS, ON_DEMAND, History


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


def test_a_tag_beyond_the_bound_is_recorded_once_it_was_asked_for() -> None:
    history = History(MOST_TAGS + 10)
    late = MOST_TAGS + 5
    assert history.read(late) == []
    history.add(rows(0, late), np.array([1.0, 2.0]), 20.0)
    assert history.read(late) == [(20.0, 2.0, 2.0, 2.0)]
    assert history.read(0) == [(20.0, 1.0, 1.0, 1.0)]


def test_of_the_asked_ones_the_longest_unasked_gives_way() -> None:
    history = History(MOST_TAGS + ON_DEMAND + 1)
    beyond = range(MOST_TAGS, MOST_TAGS + ON_DEMAND)
    for row in beyond:
        history.read(row)
    history.add(rows(*beyond), np.arange(float(ON_DEMAND)), 0.0)
    assert history.read(MOST_TAGS) == [(0.0, 0.0, 0.0, 0.0)]  # asked again: the next one is the oldest now
    assert history.read(MOST_TAGS + ON_DEMAND) == []  # takes the place of MOST_TAGS + 1, and starts empty
    assert history.read(MOST_TAGS) == [(0.0, 0.0, 0.0, 0.0)]
    assert history.read(MOST_TAGS + 2) == [(0.0, 2.0, 2.0, 2.0)]
    assert history.read(MOST_TAGS + 1) == []


def test_reading_and_adding_from_two_threads_gives_whole_buckets() -> None:
    history = History(50)
    every_row = np.arange(50, dtype=np.int64)
    stop = threading.Event()

    def write() -> None:
        k = 0
        while not stop.is_set():
            history.add(every_row, np.full(50, float(k)), float(k))
            k += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            for t, low, high, last in history.read(7):
                assert t <= low <= last == high < t + BUCKET
    finally:
        stop.set()
        writer.join()

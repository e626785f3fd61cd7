"""A central system's books: what is here, what is missing, what came twice, what will never come."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.books import Books, add, inside, merged


def batch(seq: int, readings: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "stream": "aaaaaaaa",
        "seq": seq,
        "groups": [{"t": [0] * readings, "c": {"x": [1] * readings}}],
        **more,
    }


def fed(*seqs: int, kind: str = "data") -> Books:
    books = Books()
    for seq in seqs:
        books.feed(kind, "line4", "press1", batch(seq))
    return books


def test_a_stream_without_holes_is_whole() -> None:
    books = fed(5, 6, 7)
    assert (books.lost(), books.doubled(), books.out_of_order(), books.readings()) == (0, 0, 0, 6)
    assert books.messages == 3


def test_a_hole_is_lost_until_backfill_brings_it() -> None:
    books = fed(1, 2, 5, 9)
    assert books.lost() == 5
    for seq in (3, 4, 6, 7, 8):
        assert books.feed("backfill", "line4", "press1", batch(seq))
    assert (books.lost(), books.out_of_order(), books.doubled()) == (0, 0, 0)


def test_a_gap_excuses_what_will_not_come_but_nothing_else() -> None:
    books = fed(1, 10)
    books.feed("gap", "line4", "press1", {"stream": "aaaaaaaa", "from": 2, "to": 8})
    assert books.lost() == 1
    books.feed("gap", "line4", "press1", {"stream": "bbbbbbbb", "from": 9, "to": 9})
    books.feed("gap", "line4", "press2", {"stream": "aaaaaaaa", "from": 9, "to": 9})
    books.feed("gap", "line5", "press1", {"stream": "aaaaaaaa", "from": 9, "to": 9})
    assert books.lost() == 1, "each gap is of its own gateway, device and stream"
    books.feed("gap", "line4", "press1", {"stream": "aaaaaaaa", "from": 9, "to": 40})
    assert books.lost() == 0


def test_the_same_key_twice_is_doubled_on_whichever_topic() -> None:
    books = fed(1, 2, 3)
    assert not books.feed("backfill", "line4", "press1", batch(2))
    assert not books.feed("data", "line4", "press1", batch(3))
    assert books.feed("data", "line4", "press2", batch(3)), "another device has its own numbers"
    assert books.doubled() == 2
    assert books.readings() == 8, "doubled readings are not counted"


def test_only_live_data_have_an_order() -> None:
    books = fed(4, 3)
    assert books.out_of_order() == 1
    books.feed("backfill", "line4", "press1", batch(1))
    assert books.out_of_order() == 1


def test_parts_make_one_batch() -> None:
    books = fed(1, 3)
    assert books.feed("data", "line4", "press1", batch(2, part=[2, 2]))
    assert books.lost() == 1, "half of it is not it"
    assert not books.feed("data", "line4", "press1", batch(2, part=[2, 2]))
    assert books.feed("data", "line4", "press1", batch(2, part=[1, 2]))
    assert books.lost() == 0 and books.doubled() == 1
    assert not books.feed("backfill", "line4", "press1", batch(2, part=[1, 2]))


def test_parts_of_another_cut_complete_a_batch_too() -> None:
    """Sent again over a connection with another limit, a batch comes in another number of parts."""
    books = Books()
    books.feed("data", "line4", "press1", batch(1, part=[1, 3]))
    assert books.feed("backfill", "line4", "press1", batch(1, part=[1, 2])), "of another cut, so not doubled"
    assert books.readings() == 0, "a third and a half are not a whole"
    assert books.feed("backfill", "line4", "press1", batch(1, part=[2, 2]))
    assert books.readings() == 4
    assert not books.feed("backfill", "line4", "press1", batch(1))


def test_gateways_are_told_apart() -> None:
    books = fed(1, 3)
    books.feed("data", "line5", "press1", batch(1))
    assert (books.lost("line4"), books.lost("line5"), books.lost()) == (1, 0, 1)
    assert (books.readings("line5"), books.readings()) == (2, 6)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_and_any_repetition_gives_the_same_books(seed: int) -> None:
    rng = random.Random(seed)
    seqs = list(range(1, 200)) * 2
    rng.shuffle(seqs)
    books = fed(*seqs, kind="backfill")
    [ledger] = books.of()
    assert ledger.have == [[1, 199]] and books.doubled() == 199 and books.lost() == 0


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)), max_size=30))
def test_ranges_hold_exactly_what_was_added(pieces: list[tuple[int, int]]) -> None:
    ranges: list[list[int]] = []
    wanted: set[int] = set()
    for first, length in pieces:
        add(ranges, first, first + length)
        wanted |= set(range(first, first + length + 1))
    assert {n for n in range(80) if inside(ranges, n)} == wanted
    assert ranges == merged(ranges)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges))


@given(
    st.sets(st.integers(1, 40), min_size=1),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=6),
)
def test_lost_is_what_is_neither_here_nor_excused(have: set[int], gaps: list[tuple[int, int]]) -> None:
    books = fed(*sorted(have))
    excused: set[int] = set()
    for first, length in gaps:
        books.feed("gap", "line4", "press1", {"stream": "aaaaaaaa", "from": first, "to": first + length})
        excused |= set(range(first, first + length + 1))
    assert books.lost() == len(set(range(min(have), max(have) + 1)) - have - excused)

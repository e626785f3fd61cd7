"""The accounts find every kind of fault; else a test that uses them could not fail."""

from __future__ import annotations

from typing import Any

from tests.books import SubscriberBooks, compare

STREAM = "0123abcd"
JOURNAL = [("a", STREAM, seq, 2) for seq in (1, 2, 3)]


def data(seq: int, values: list[int], **more: Any) -> dict[str, Any]:
    return {"stream": STREAM, "seq": seq, "groups": [{"t": [0], "c": {"n": values}, "q": {}}], **more}


def booked(*bodies: dict[str, Any]) -> SubscriberBooks:
    books = SubscriberBooks(identity="n")
    for body in bodies:
        kind = "gap" if "from" in body else "data"
        books.feed(f"edgetwin/v1/line4/{kind}/a", body)
    return books


def whole() -> list[dict[str, Any]]:
    return [data(1, [1, 2]), data(2, [3, 4]), data(3, [5, 6])]


def test_accounts_that_hold() -> None:
    books = booked(*whole(), data(2, [3, 4]))
    audit = compare(JOURNAL, books)
    assert audit.faults() == [] and audit.excused == []
    assert books.again == 1


def test_parts_make_one_batch() -> None:
    audit = compare(JOURNAL, booked(data(1, [1], part=[1, 2]), *whole()[1:]))
    assert audit.missing == [("a", STREAM, 1)]
    audit = compare(JOURNAL, booked(data(1, [1], part=[1, 2]), data(1, [2], part=[2, 2]), *whole()[1:]))
    assert audit.faults() == []


def test_a_batch_that_is_not_here_is_missing_unless_a_gap_names_it() -> None:
    bodies = [whole()[0], whole()[2]]
    audit = compare(JOURNAL, booked(*bodies))
    assert audit.missing == audit.holes == [("a", STREAM, 2)]
    gap = {"stream": STREAM, "from": 2, "to": 9, "reason": "restart"}
    audit = compare(JOURNAL, booked(*bodies, gap))
    assert audit.faults() == []
    assert audit.excused_of(JOURNAL[1:2]) == 2 and audit.excused_of(JOURNAL[2:]) == 0


def test_a_number_that_was_reserved_and_neither_used_nor_named_is_a_hole() -> None:
    audit = compare([JOURNAL[0], JOURNAL[2]], booked(whole()[0], whole()[2]))
    assert audit.missing == [] and audit.holes == [("a", STREAM, 2)]


def test_the_other_faults() -> None:
    assert compare(JOURNAL, booked(*whole(), data(4, [7, 8]))).invented == [("a", STREAM, 4)]
    assert compare(JOURNAL, booked(*whole()[:2], data(3, [5]))).differing == [("a", STREAM, 3)]
    assert compare(JOURNAL, booked(*whole(), data(3, [5, 7]))).differing == [("a", STREAM, 3)]
    assert compare(JOURNAL, booked(*whole()[:2], data(3, [4, 6]))).doubled == [4]

"""The cloud thread's mailbox: order kept, the reader woken by what cannot wait."""

from __future__ import annotations

import threading
import time

from agent.cloud.mailbox import Mailbox

LONG = 30.0


def box() -> Mailbox:
    """Texts are quiet, numbers are not."""
    return Mailbox(lambda item: isinstance(item, str))


def test_items_come_in_their_order_whoever_wakes() -> None:
    one = box()
    for item in ("a", 1, "b", 2):
        one.put(item)
    one.wait(LONG, eager=False)
    assert list(one.take(10)) == ["a", 1, "b", 2] and len(one) == 0


def test_a_quiet_item_waits_and_the_next_other_one_brings_it_along() -> None:
    one = box()
    one.put("a")
    began = time.monotonic()
    one.wait(0.01, eager=False)
    assert time.monotonic() - began >= 0.01
    threading.Timer(0.01, one.put, [1]).start()
    one.wait(LONG, eager=False)
    assert list(one.take(10)) == ["a", 1]


def test_an_eager_reader_is_woken_by_a_quiet_item_before_and_after() -> None:
    one = box()
    one.put("before")
    one.wait(LONG, eager=True)
    assert list(one.take(10)) == ["before"]
    threading.Timer(0.01, one.put, ["after"]).start()
    one.wait(LONG, eager=True)
    assert list(one.take(10)) == ["after"]


def test_what_one_turn_does_not_take_comes_in_the_next_without_a_wait() -> None:
    one = box()
    for number in range(5):
        one.put(number)
    one.wait(LONG, eager=False)
    assert list(one.take(3)) == [0, 1, 2]
    one.wait(LONG, eager=False)
    assert list(one.take(3)) == [3, 4]

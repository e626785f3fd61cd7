"""Requests as bytes."""

from __future__ import annotations

import pytest

from agent.modbus.codec import WireWrite
from agent.modbus.framers import Answer
from agent.modbus.plan import Request
from agent.modbus.requests import Step, read_body, write_steps

DONE = Answer(b"", None, 0.0, 0.0)


def frames(wire: WireWrite, *answers: Answer) -> tuple[list[Step], Answer]:
    """The frames of a write that is answered so, and what it came to."""
    steps = write_steps(wire)
    sent = [next(steps)]
    for answer in answers:
        try:
            sent.append(steps.send(answer))
        except StopIteration as end:
            return sent, end.value
    raise AssertionError("more frames than answers")


def test_a_read_is_address_and_count() -> None:
    assert read_body(Request("d", 1, 3, 0x1234, 10, 1.0, ("a",), 10)) == b"\x12\x34\x00\x0a"


@pytest.mark.parametrize(
    ("wire", "frame"),
    [
        (WireWrite(1, 5, 3, bits=(True,)), (5, b"\0\3\xff\0")),
        (WireWrite(1, 5, 3, bits=(False,)), (5, b"\0\3\0\0")),
        (WireWrite(1, 6, 3, words=(0xABCD,)), (6, b"\0\3\xab\xcd")),
        (WireWrite(1, 15, 3, bits=(True, False, True) + (True,) * 7), (15, b"\0\3\0\x0a\2\xfd\3")),
        (WireWrite(1, 16, 3, words=(1, 2)), (16, b"\0\3\0\2\4\0\1\0\2")),
        (WireWrite(1, 22, 3, and_mask=0xFFF0, or_mask=0x0005), (22, b"\0\3\xff\xf0\0\5")),
    ],
)
def test_each_function_has_its_frame(wire: WireWrite, frame: Step) -> None:
    assert frames(wire, DONE) == ([frame], DONE)


@pytest.mark.parametrize(("function", "last"), [(6, (6, b"\0\3\x12\x35")), (16, (16, b"\0\3\0\1\2\x12\x35"))])
def test_bits_are_changed_by_reading_first(function: int, last: Step) -> None:
    wire = WireWrite(1, function, 3, and_mask=0xFFF0, or_mask=0x0005)
    assert frames(wire, Answer(b"\x12\x34", None, 0.0, 0.0), DONE) == ([(3, b"\0\3\0\1"), last], DONE)


def test_a_device_without_mask_write_is_read_first() -> None:
    wire = WireWrite(1, 22, 3, and_mask=0xFFF0, or_mask=0x0005)
    unknown = Answer(None, 1, 0.0, 0.0)
    sent, _ = frames(wire, unknown, Answer(b"\x12\x34", None, 0.0, 0.0), DONE)
    assert sent == [(22, b"\0\3\xff\xf0\0\5"), (3, b"\0\3\0\1"), (6, b"\0\3\x12\x35")]


def test_a_refused_step_ends_the_write() -> None:
    refused = Answer(None, 2, 0.0, 0.0)
    assert frames(WireWrite(1, 6, 3, and_mask=0xFFF0, or_mask=5), refused) == ([(3, b"\0\3\0\1")], refused)
    assert frames(WireWrite(1, 22, 3, and_mask=0xFFF0, or_mask=5), refused)[1] == refused

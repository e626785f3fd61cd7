"""Raw text -> what is meant, and what is refused with advice."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import scalars
from agent.config.scalars import Wrong


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (scalars.integer, "0", 0),
        (scalars.integer, "-40", -40),
        (scalars.integer, "0x160", 352),
        (scalars.integer, "1_000", 1000),
        (scalars.integer, "0b101", 5),
        (scalars.integer, "0o17", 15),
        (scalars.integer, "1e3", 1000),
        (scalars.integer, "20.0", 20),
        (scalars.integer, "18446744073709551615", 2**64 - 1),
        (scalars.number, "1e-3", 0.001),
        (scalars.number, "-.5", -0.5),
        (scalars.number, "0.5", 0.5),
        (scalars.number, "5.", 5.0),
        (scalars.number, "0x160", 352.0),
        (scalars.decimal, "0.1", Decimal("0.1")),
        (scalars.decimal, "1.10", Decimal("1.10")),
        (scalars.duration, "500ms", 0.5),
        (scalars.duration, "50ms", 0.05),
        (scalars.duration, "1s", 1.0),
        (scalars.duration, "5m", 300.0),
        (scalars.duration, "2h", 7200.0),
        (scalars.duration, "7d", 604800.0),
        (scalars.duration, "1.5s", 1.5),
        (scalars.duration, "0", 0.0),
        (scalars.duration, "30 s", 30.0),
        (scalars.size, "64MiB", 64 << 20),
        (scalars.size, "512B", 512),
        (scalars.size, "1.5GiB", 3 << 29),
        (scalars.size, "1MB", 10**6),
        (scalars.span, "8-11", (8, 11)),
        (scalars.span, "8", (8, 8)),
        (scalars.span, "0x10-0x1F", (16, 31)),
        (scalars.boolean, "on", True),
        (scalars.boolean, "No", False),
    ],
)
def test_what_is_meant(read: Callable[[str], Any], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "what", "hint"),
    [
        (scalars.integer, "0010", "octal", "write 10"),
        (scalars.integer, "-0010", "octal", "write 10"),
        (scalars.number, "12:30", "base 60", "write a plain number"),
        (scalars.number, "1:2:3.5", "base 60", "write a plain number"),
        (scalars.integer, "1.5", "no whole number", ""),
        (scalars.integer, "1e90", "too large", ""),
        (scalars.integer, "9" * 81, "too long", ""),
        (scalars.number, ".inf", "no finite number", ""),
        (scalars.number, ".nan", "no finite number", ""),
        (scalars.number, "1e309", "too large", ""),
        (scalars.number, "1,5", "no number", "write 1.5"),
        (scalars.number, "١٢", "no number", ""),
        (scalars.number, "", "no number", ""),
        (scalars.duration, "5", "no unit", "write 5s"),
        (scalars.duration, "12:30", "base 60", "ms, s, m, h or d"),
        (scalars.duration, "5w", "not known", "ms, s, m, h or d"),
        (scalars.duration, "s", "no duration", "ms, s, m, h or d"),
        (scalars.duration, "1e300d", "too large", ""),
        (scalars.size, "64", "no unit", "MiB"),
        (scalars.size, "64Mib", "not known", "MiB"),
        (scalars.span, "11-8", "ends before", "write 8-11"),
        (scalars.span, "a-b", "no range", "8-11"),
        (scalars.boolean, "maybe", "neither true nor false", "true or false"),
    ],
)
def test_what_is_refused(read: Callable[[str], Any], text: str, what: str, hint: str) -> None:
    with pytest.raises(Wrong) as caught:
        read(text)
    assert what in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    ["on", "Off", "yes", "NO", "true", "null", "123", "1e3", "0x10", "1_000", "0010", "2026-01-01", "1e-3"],
)
def test_a_name_that_yaml_reads_otherwise_needs_quotes(text: str) -> None:
    with pytest.raises(Wrong, match="quotes"):
        scalars.name(text, plain=True)
    assert scalars.name(text, plain=False) == text


@pytest.mark.parametrize("text", ["temperature", "t1", "1st", "a-b_c", "y", "n", "0x", "1e", "offline"])
def test_a_name_that_needs_none(text: str) -> None:
    assert scalars.name(text, plain=True) == text


@pytest.mark.parametrize("text", ["", "~", "_a", "-a", "a.b", "a/b", "a b", "ä", "a\n", "12:30", "a" * 65])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(Wrong):
        scalars.name(text, plain=False)


@given(st.integers(-(2**70), 2**70))
def test_integers_are_exact(value: int) -> None:
    assert scalars.integer(str(value)) == value
    assert scalars.decimal(str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_round_trip(value: float) -> None:
    assert scalars.number(repr(value)) == value


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_wrong(text: str) -> None:
    for read in (
        scalars.integer,
        scalars.number,
        scalars.duration,
        scalars.size,
        scalars.span,
        scalars.boolean,
    ):
        try:
            read(text)
        except Wrong as wrong:
            assert str(wrong)
            assert "\n" not in str(wrong)


@pytest.mark.parametrize(
    "text", ["1ms", "50ms", "1s", "1500ms", "90s", "5m", "2h", "1d", "7d", "86401s", "1234567ms", "0.5ms"]
)
def test_a_duration_is_written_as_it_was_read(text: str) -> None:
    assert scalars.duration_text(scalars.duration(text)) == text

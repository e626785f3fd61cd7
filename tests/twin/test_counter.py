"""Roll-over and reset told apart, and a total that goes on."""

from decimal import Decimal

import pytest

from agent.config.types import Tag
from agent.twin.counter import Counter, raw_range


def counter(type_: str = "uint16", **more: object) -> Counter:
    return Counter(Tag("energy", "holding", 0, type=type_, counter=True, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type_", "raws", "told", "steps"),
    [
        ("uint16", [100, 150, 150], [None, None, None], 150),
        ("uint16", [65530, 4], [None, "rollover"], 65540),
        ("uint16", [62259, 3], [None, "reset"], 62262),  # one below the last twentieth of 65,536
        ("uint16", [62260, 3], [None, "rollover"], 65539),
        ("uint16", [5000, 10, 20], [None, "reset", None], 5020),
        ("int16", [32767, -32768, -32760], [None, "rollover", None], 32776),
        ("uint32", [4294967295, 0], [None, "rollover"], 4294967296),
        ("uint64", [2**64 - 1, 5], [None, "rollover"], 2**64 + 5),
        ("bcd16", [9999, 3], [None, "rollover"], 10003),
    ],
)
def test_what_a_fall_means(type_: str, raws: list[int], told: list[str | None], steps: int) -> None:
    one = counter(type_)
    assert [one.advance(raw) for raw in raws] == told
    assert one.steps == steps


def test_total_is_exact_beyond_doubles() -> None:
    one = counter("uint64", scale=Decimal(10))
    one.advance(2**60 + 1)
    assert one.total == (2**60 + 1) * 10


def test_total_takes_the_scale() -> None:
    one = counter(scale=Decimal("0.1"))
    one.advance(123)
    assert one.total == 12.3


def test_bit_field_has_its_own_range() -> None:
    assert raw_range(Tag("n", "holding", 0, bits=(4, 7))) == (0, 16)

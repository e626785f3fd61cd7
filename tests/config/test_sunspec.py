"""`sunspec:` of a tag: what it says, where that is in the usual chain, and what is told when it is wrong."""

from __future__ import annotations

import pytest

from agent.config.load import parse
from agent.config.sunspec import Model, usual
from agent.config.types import Device, SunSpec


def loaded(*tags: str) -> tuple[Device | None, list[str]]:
    """Device d whose tags t0, t1 ... are these, and the problems."""
    lines = "".join(f"      t{k}: {{{tag}}}\n" for k, tag in enumerate(tags))
    got = parse(f"devices:\n  d:\n    url: tcp://h\n    tags:\n{lines}", "c.yaml")
    return got.config and got.config.devices["d"], [str(problem) for problem in got.problems]


def device(*tags: str) -> Device:
    found, problems = loaded(*tags)
    assert found is not None and problems == []
    return found


@pytest.mark.parametrize(
    ("tag", "place", "address"),
    [
        ("sunspec: 1+2", SunSpec(1, 1, 2), 40004),
        ("sunspec: 103+14, type: int16", SunSpec(103, 103, 14), 40084),
        ("sunspec: 101-103+14, type: int16", SunSpec(101, 103, 14), 40084),
        ("sunspec: '111-113+22', type: float32", SunSpec(111, 113, 22), 40092),
    ],
)
def test_a_place_in_a_model(tag: str, place: SunSpec, address: int) -> None:
    made = device(tag).tags["t0"]
    assert (made.table, made.sunspec, made.address) == ("holding", place, address)


def test_models_stand_one_after_the_other_and_overlapping_ranges_are_one() -> None:
    made = device(
        "sunspec: 120+25",
        "sunspec: 101-103+0",
        "sunspec: 103+2",
        "sunspec: 64001+9, type: uint32",
        "holding: 7",
    )
    assert usual(made.tags.values()) == (
        Model(1, 40002, 66),
        Model(103, 40070, 50),
        Model(120, 40122, 24),
        Model(64001, 40148, 9),
    )
    assert [tag.address for tag in made.tags.values()] == [40147, 40070, 40072, 40157, 7]


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("sunspec: 103", "a model and an offset, as 103+14 or 101-103+14"),
        ("sunspec: 40084", "a model and an offset, as 103+14 or 101-103+14"),
        ("sunspec: 0+3", "there is no model 0; models are 1 to 65534, the lower first"),
        ("sunspec: 103-101+3", "there is no model 103-101; models are 1 to 65534, the lower first"),
        ("sunspec: 103+14, holding: 3", "holding and sunspec exclude each other"),
        ("unit: W", "give one of holding, input, coil, discrete, modicon or sunspec"),
    ],
)
def test_what_is_wrong(tag: str, words: str) -> None:
    _, problems = loaded(tag)
    assert len(problems) == 1
    assert words in problems[0], problems


def test_models_that_leave_the_table() -> None:
    _, problems = loaded(*(f"sunspec: {200 + k}+9000" for k in range(3)))
    assert len(problems) == 1
    assert "c.yaml:7:" in problems[0] and "run past 65535; mend the offsets" in problems[0]


def test_two_writers_of_one_register_of_a_model() -> None:
    _, problems = loaded("sunspec: 123+5, write: true", "sunspec: 123+5, write: true")
    assert len(problems) == 1 and "writes too" in problems[0]

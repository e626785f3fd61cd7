"""SunSpec chains: a table of them, broken ones too, and where they put a device's tags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.sunspec import Model, at_usual_places
from agent.config.types import Avoid, Config, Device, SunSpec, Tag, Url
from agent.modbus.plan import SUPPOSED, text
from agent.modbus.sunspec import MOST_MODELS, Chain, marks, placed, profile_of, walk

SUNS = [0x5375, 0x6E53]


def laid(*spans: tuple[int, list[int]]) -> dict[int, int]:
    return {first + k: word for first, words in spans for k, word in enumerate(words)}


def walked(words: Mapping[int, int], known: int | None = None) -> tuple[Chain, list[int]]:
    """The chain of a device that has these registers, and where it was read."""
    asked: list[int] = []
    steps = walk(known)
    address = next(steps)
    while True:
        asked.append(address)
        here = words.get(address), words.get(address + 1)
        try:
            address = steps.send(None if None in here else (here[0] or 0, here[1] or 0))
        except StopIteration as end:
            chain: Chain = end.value
            return chain, asked


NO_MARKER = "no SunSpec marker at 40000, 50000 or 0"
COMMON = Model(1, 40002, 66)
CASES: list[tuple[str, dict[int, int], Chain, list[int]]] = [
    (
        "common of 66",
        laid((40000, SUNS), (40002, [1, 66]), (40070, [103, 50]), (40122, [0xFFFF, 0])),
        Chain(40000, (COMMON, Model(103, 40070, 50))),
        [40000, 40002, 40070, 40122],
    ),
    (
        "common of 65",
        laid((40000, SUNS), (40002, [1, 65]), (40069, [101, 50]), (40121, [0xFFFF, 0])),
        Chain(40000, (Model(1, 40002, 65), Model(101, 40069, 50))),
        [40000, 40002, 40069, 40121],
    ),
    (
        "base 50000 after a refusal",
        laid((50000, SUNS), (50002, [1, 66]), (50070, [0xFFFF, 0xFFFF])),
        Chain(50000, (Model(1, 50002, 66),)),
        [40000, 50000, 50002, 50070],
    ),
    (
        "base 0 after other words",
        laid((40000, [0, 0]), (50000, [0x5375, 0]), (0, SUNS), (2, [1, 66]), (70, [0xFFFF, 0])),
        Chain(0, (Model(1, 2, 66),)),
        [40000, 50000, 0, 2, 70],
    ),
    (
        "a length of 0 is an end",
        laid((40000, SUNS), (40002, [1, 66]), (40070, [103, 0])),
        Chain(40000, (COMMON,)),
        [40000, 40002, 40070],
    ),
    ("no marker", laid((40000, [0x6E53, 0x5375])), Chain(None, (), NO_MARKER), [40000, 50000, 0]),
    ("nothing at all", {}, Chain(None, (), NO_MARKER), [40000, 50000, 0]),
    (
        "empty",
        laid((40000, SUNS), (40002, [0xFFFF, 0])),
        Chain(40000, (), "the SunSpec chain at 40000 is empty"),
        [40000, 40002],
    ),
    (
        "no end",
        laid((40000, SUNS), (40002, [1, 66])),
        Chain(
            40000,
            (COMMON,),
            "the SunSpec chain at 40000 is broken: the device refuses 40070, where a model or the end should be",
        ),
        [40000, 40002, 40070],
    ),
    (
        "half an end",
        laid((40000, SUNS), (40002, [1, 66]), (40070, [0xFFFF])),
        Chain(
            40000,
            (COMMON,),
            "the SunSpec chain at 40000 is broken: the device refuses 40070, where a model or the end should be",
        ),
        [40000, 40002, 40070],
    ),
    (
        "past the table",
        laid((40000, SUNS), (40002, [1, 66]), (40070, [103, 30000])),
        Chain(
            40000,
            (COMMON,),
            "the SunSpec chain at 40000 is broken: "
            "model 103 at 40070 would run past 65535 with its 30000 registers",
        ),
        [40000, 40002, 40070],
    ),
]


@pytest.mark.parametrize(("words", "chain", "asked"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_chain(words: dict[int, int], chain: Chain, asked: list[int]) -> None:
    assert walked(words) == (chain, asked)


def test_a_known_base_is_tried_first_and_the_others_after_it() -> None:
    words = laid((0, SUNS), (2, [1, 66]), (70, [0xFFFF, 0]))
    assert walked(words, 0) == (Chain(0, (Model(1, 2, 66),)), [0, 2, 70])
    assert walked(words, 50000)[1] == [50000, 40000, 0, 2, 70]


def test_a_chain_without_an_end_is_given_up() -> None:
    words = laid((0, SUNS), *((2 + 3 * k, [7, 1]) for k in range(20_000)))
    chain, asked = walked(words)
    assert chain.fault == f"the SunSpec chain at 0 is broken: more than {MOST_MODELS} models and no end"
    assert len(asked) == MOST_MODELS + 4


@given(
    base=st.sampled_from((40000, 50000, 0)),
    models=st.lists(st.tuples(st.integers(1, 65534), st.integers(1, 100)), min_size=1, max_size=MOST_MODELS),
)
def test_any_chain_comes_back_as_it_was_laid(base: int, models: list[tuple[int, int]]) -> None:
    made, address = [], base + 2
    for number, length in models:
        made.append(Model(number, address, length))
        address += 2 + length
    chain, asked = walked(marks(base, tuple(made)))
    assert chain == Chain(base, tuple(made))
    assert len(asked) <= 3 + len(models) + 1


@given(st.dictionaries(st.integers(0, 300), st.integers(0, 0xFFFF)))
def test_any_words_end_in_a_chain_or_in_words(words: dict[int, int]) -> None:
    chain, asked = walked({0: SUNS[0], 1: SUNS[1]} | words)
    assert len(asked) <= MOST_MODELS + 4
    assert chain.models or chain.fault


# -- where the tags are ---------------------------------------------------------------------------------------------


def device(*places: SunSpec, avoid: tuple[Avoid, ...] = (), count: str = "int16") -> Device:
    tags = {
        f"t{k}": Tag(f"t{k}", "holding", 0, type=count, sunspec=place) for k, place in enumerate(places)
    } | {"plain": Tag("plain", "holding", 7)}
    return Device("d", Url("tcp://h:502", "tcp", "h", 502), avoid=avoid, tags=at_usual_places(tags))


CHAIN = Chain(50000, (Model(1, 50002, 65), Model(101, 50069, 50), Model(103, 50121, 50)))


def test_tags_are_where_the_chain_says() -> None:
    made = placed(device(SunSpec(1, 1, 2), SunSpec(101, 103, 14), SunSpec(103, 103, 14)), CHAIN)
    assert made.absent == {}
    assert [tag.address for tag in made.device.tags.values()] == [50004, 50083, 50135, 7]
    assert made.readable is made.device


def test_the_usual_chain_is_what_the_configuration_has() -> None:
    asked = device(SunSpec(1, 1, 66), SunSpec(103, 103, 51))
    assert placed(asked, Chain(40000, (Model(1, 40002, 66), Model(103, 40070, 50)))).device == asked


@pytest.mark.parametrize(
    ("place", "chain", "words"),
    [
        (SunSpec(103, 103, 2), Chain(None, (), NO_MARKER), NO_MARKER),
        (SunSpec(160, 160, 2), CHAIN, "no model 160 in the SunSpec chain; there are 1, 101, 103"),
        (
            SunSpec(111, 113, 2),
            CHAIN,
            "no model 111-113 in the SunSpec chain; there are 1, 101, 103; profile sunspec has them",
        ),
        (
            SunSpec(101, 103, 2),
            Chain(0, (Model(1, 2, 66), Model(112, 70, 60)), "broken"),
            "no model 101-103 in the SunSpec chain; there are 1, 112; profile sunspec-float has them; broken",
        ),
        (SunSpec(103, 103, 52), CHAIN, "model 103 is only 50 registers long"),
    ],
)
def test_what_is_absent_and_why(place: SunSpec, chain: Chain, words: str) -> None:
    made = placed(device(place), chain)
    assert made.absent == {"t0": words}
    assert made.why() == [words]
    assert set(made.readable.tags) == {"plain"}
    assert set(made.device.tags) == {"t0", "plain"}


def test_a_tag_ends_within_its_model() -> None:
    assert placed(device(SunSpec(103, 103, 50), count="int32"), CHAIN).absent == {}
    assert set(placed(device(SunSpec(103, 103, 51), count="int32"), CHAIN).absent) == {"t0"}


def test_a_value_is_absent_with_its_power_of_ten() -> None:
    asked = device(SunSpec(103, 103, 51), SunSpec(103, 103, 52), SunSpec(103, 103, 2))
    tags = {
        **asked.tags,
        "t0": dataclasses.replace(asked.tags["t0"], scale_from="t1"),
        "t2": dataclasses.replace(asked.tags["t2"], scale_from="t0"),
    }
    assert set(placed(dataclasses.replace(asked, tags=tags), CHAIN).absent) == {"t0", "t1", "t2"}


def test_what_is_to_be_avoided_is_not_read() -> None:
    asked = device(SunSpec(103, 103, 14), SunSpec(103, 103, 16), avoid=(Avoid("holding", 50130, 50135),))
    assert placed(asked, CHAIN).absent == {"t0": "avoid holds what model 103 has at 50135"}


def test_the_profile_of_a_chain() -> None:
    assert profile_of(CHAIN) == "sunspec"
    assert profile_of(Chain(0, (Model(1, 2, 66), Model(113, 70, 60)))) == "sunspec-float"
    assert profile_of(Chain(0, (Model(1, 2, 66),))) is None


def test_the_plan_says_what_it_supposes() -> None:
    one = device(SunSpec(103, 103, 14))
    lines = text(Config("c.yaml", None, None, devices={"d": one, "e": dataclasses.replace(one, tags={})}))
    assert lines.count(SUPPOSED) == 1
    assert lines.index(SUPPOSED) == 1

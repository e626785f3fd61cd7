"""The planner: exact against brute force, and each rule a case."""

from __future__ import annotations

import dataclasses
import time
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.types import Avoid, Config, Device, Limits, Table, Tag, Url
from agent.modbus.plan import (
    Cost,
    Learnt,
    Request,
    cycle_ms,
    describe,
    least_cost,
    line_cost,
    plan_device,
    request_for,
    split,
    text,
    warnings,
)

TCP = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)
SERIAL = Url("rtu:///dev/ttyUSB0?baud=9600", "rtu", path="/dev/ttyUSB0", baud=9600)


def device(
    tags: list[Tag], *, url: Url = TCP, limits: Limits | None = None, avoid: tuple[Avoid, ...] = ()
) -> Device:
    return Device("d", url, tags={tag.name: tag for tag in tags}, limits=limits or Limits(), avoid=avoid)


def at(*addresses: int, type: str = "uint16", **more: object) -> list[Tag]:
    return [Tag(f"a{address}", "holding", address, type=type, **more) for address in addresses]  # type: ignore[arg-type]


def spans(requests: tuple[Request, ...]) -> list[tuple[int, int]]:
    return [(request.address, request.count) for request in requests]


def brute(
    atoms: list[tuple[int, int]], cost: Cost, limit: int, gap: int | None, forbidden: list[tuple[int, int]]
):  # type: ignore[no-untyped-def]
    """The least cost over all partitions of the atoms; None when there is none."""
    atoms = sorted(set(atoms))
    best: list[float] = []

    def fits(block: list[tuple[int, int]]) -> bool:
        first, after = min(s for s, _ in block), max(e for _, e in block)
        reach = first
        for start, end in sorted(block):
            if gap is not None and start - reach > gap:
                return False
            reach = max(reach, end)
        return after - first <= limit and not any(f < after and first < e for f, e in forbidden)

    def place(k: int, blocks: list[list[tuple[int, int]]]) -> None:
        if k == len(atoms):
            if all(fits(block) for block in blocks):
                best.append(
                    sum(cost.of("holding", max(e for _, e in b) - min(s for s, _ in b)) for b in blocks)
                )
            return
        for i in range(len(blocks)):
            place(k + 1, [*blocks[:i], [*blocks[i], atoms[k]], *blocks[i + 1 :]])
        place(k + 1, [*blocks, [atoms[k]]])

    place(0, [])
    return min(best, default=None)


ATOMS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 4)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(
    atoms=ATOMS,
    overhead=st.sampled_from([0.5, 3.0, 20.0]),
    limit=st.sampled_from([4, 10, 125]),
    gap=st.sampled_from([None, None, 0, 3]),
    hole=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=2),
)
def test_exact_against_brute_force(atoms, overhead, limit, gap, hole) -> None:  # type: ignore[no-untyped-def]
    cost = Cost(overhead, 1.0)
    covered = {address for start, end in atoms for address in range(start, end)}
    forbidden = sorted({(a, a + 1) for start, n in hole for a in range(start, start + n) if a not in covered})
    want = brute(atoms, cost, limit, gap, forbidden)
    got = least_cost(atoms, cost=cost, table="holding", limit=limit, gap=gap, forbidden=forbidden)
    total = sum(cost.of("holding", end - start) for start, end in got)
    assert total == pytest.approx(want)
    assert all(any(s <= start and end <= e for s, e in got) for start, end in atoms)


@settings(max_examples=100, deadline=None)
@given(
    places=st.lists(
        st.tuples(
            st.sampled_from(["holding", "input", "coil"]), st.integers(0, 300), st.sampled_from([1.0, 5.0])
        ),
        min_size=1,
        max_size=60,
        unique=True,
    )
)
def test_each_tag_is_whole_in_one_request_within_limits(places) -> None:  # type: ignore[no-untyped-def]
    tags = [
        Tag(f"t{i}", table, address, type="bool" if table == "coil" else "float32", every=every)
        for i, (table, address, every) in enumerate(places)
    ]
    requests = plan_device(device(tags, limits=Limits(registers=20, bits=30)))
    homes = [name for request in requests for name in request.tags]
    assert sorted(homes) == sorted(tag.name for tag in tags)
    by_name = {tag.name: tag for tag in tags}
    for request in requests:
        assert request.count <= (30 if request.table == "coil" else 20)
        for name in request.tags:
            tag = by_name[name]
            assert (tag.table, tag.every) == (request.table, request.every)
            assert (
                request.address <= tag.address and tag.address + tag.count <= request.address + request.count
            )


@pytest.mark.parametrize(
    ("tags", "options", "want"),
    [
        (at(0, 1, 2), {}, [(0, 3)]),
        (at(0, 100), {}, [(0, 101)]),  # over TCP a hole of 99 costs less than a request
        (at(0, 100), {"limits": Limits(gap=50)}, [(0, 1), (100, 1)]),
        (at(0, 100), {"limits": Limits(registers=60)}, [(0, 1), (100, 1)]),
        (at(0, 100), {"url": SERIAL}, [(0, 1), (100, 1)]),  # at 9,600 baud 99 registers cost 227 ms
        (at(0, 8), {"url": SERIAL}, [(0, 9)]),
        (at(0, 5), {"avoid": (Avoid("holding", 3, 3),)}, [(0, 1), (5, 1)]),
        (at(0, 5), {"avoid": (Avoid("input", 3, 3),)}, [(0, 6)]),
        (at(0, 2, type="float32"), {"limits": Limits(registers=3)}, [(0, 2), (2, 2)]),
        ([*at(0, 2), *at(1, alone=True)], {}, [(0, 3), (1, 1)]),
        (at(65534, type="uint32"), {}, [(65534, 2)]),
        ([Tag("s", "holding", 10, type="string", length=7), Tag("b", "holding", 12, bit=3)], {}, [(10, 4)]),
    ],
)
def test_rules(tags: list[Tag], options: dict[str, object], want: list[tuple[int, int]]) -> None:
    assert sorted(spans(plan_device(device(tags, **options)))) == sorted(want)  # type: ignore[arg-type]


def test_a_value_and_its_power_of_ten_come_in_one_reply() -> None:
    tags = [
        *at(0, 40),
        Tag("w", "holding", 20, type="int16", scale_from="sf"),
        Tag("sf", "holding", 60, type="int16"),
    ]
    [request] = [one for one in plan_device(device(tags, url=SERIAL)) if "w" in one.tags]
    assert "sf" in request.tags


@pytest.mark.parametrize(
    ("options", "learnt"),
    [
        ({"avoid": (Avoid("holding", 5, 5),)}, Learnt()),
        ({}, Learnt(illegal=(("holding", (5, 6)),))),
        ({"limits": Limits(gap=8)}, Learnt()),
        ({"limits": Limits(registers=10)}, Learnt()),
        ({}, Learnt(longest=10)),
    ],
)
def test_a_power_behind_what_may_not_be_read_is_read_apart(options, learnt) -> None:  # type: ignore[no-untyped-def]
    tags = [Tag("w", "holding", 0, type="int16", scale_from="sf"), Tag("sf", "holding", 10, type="int16")]
    assert spans(plan_device(device(tags, **options), learnt)) == [(0, 1), (10, 1)]


def test_a_hole_within_the_gap_is_bridged_for_a_power() -> None:
    tags = [Tag("w", "holding", 0, type="int16", scale_from="sf"), Tag("sf", "holding", 10, type="int16")]
    assert spans(plan_device(device(tags, url=SERIAL, limits=Limits(gap=9)))) == [(0, 11)]
    assert spans(plan_device(device([*tags, *at(5)], url=SERIAL, limits=Limits(gap=4)))) == [(0, 11)]


def test_a_tag_longer_than_what_was_learnt_stays_whole() -> None:
    assert spans(plan_device(device(at(0, 2, type="float32")), Learnt(longest=1))) == [(0, 2), (2, 2)]


@settings(max_examples=300, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(["int16", "float32"]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    power=st.integers(0, 60),
    hole=st.lists(st.integers(0, 60), max_size=4),
    gap=st.sampled_from([None, 0, 5]),
    longest=st.sampled_from([0, 1, 7]),
)
def test_any_device_that_check_lets_pass_is_planned(places, power, hole, gap, longest) -> None:  # type: ignore[no-untyped-def]
    tags = [
        Tag(f"t{i}", "holding", address, type=kind, scale_from="sf" if scaled else None)
        for i, (address, kind, scaled) in enumerate(places)
    ]
    tags.append(Tag("sf", "holding", power, type="int16"))
    covered = {address for tag in tags for address in range(tag.address, tag.address + tag.count)}
    illegal = tuple(("holding", (address, address + 1)) for address in sorted(set(hole) - covered))
    requests = plan_device(device(tags, limits=Limits(gap=gap)), Learnt(illegal=illegal, longest=longest))
    assert sorted(name for one in requests for name in one.tags) == sorted(tag.name for tag in tags)
    for one in requests:
        assert one.count <= max(longest, 2) or not longest
        assert not any(one.address <= first < one.address + one.count for _, (first, _) in illegal)


def test_power_out_of_reach_is_read_apart() -> None:
    tags = [Tag("w", "holding", 0, type="int16", scale_from="sf"), Tag("sf", "holding", 300, type="int16")]
    assert sorted(spans(plan_device(device(tags)))) == [(0, 1), (300, 1)]


def test_learnt_holes_limits_and_refusals() -> None:
    dev = device(at(0, 5, 9))
    assert spans(plan_device(dev, Learnt(illegal=(("holding", (3, 4)),)))) == [(0, 1), (5, 5)]
    assert spans(plan_device(dev, Learnt(longest=6))) in ([(0, 6), (9, 1)], [(0, 1), (5, 5)])
    assert sorted(spans(plan_device(dev, Learnt(refused=frozenset({"a5"}))))) == [(0, 10), (5, 1)]


def test_wanted_counts_each_word_once() -> None:
    [request] = plan_device(device([*at(0, type="float32"), *at(1), *at(4)]))
    assert (request.count, request.wanted) == (5, 3)


def test_split_cuts_at_the_widest_hole() -> None:
    dev = device(at(0, 1, 2, 9, 10, 11))
    [request] = plan_device(dev)
    assert [one.tags for one in split(request, dev)] == [("a0", "a1", "a2"), ("a9", "a10", "a11")]
    assert split(request_for(dev, ("a0",)), dev) == (request_for(dev, ("a0",)),)


@pytest.mark.parametrize(
    ("table", "kind", "step"), [("holding", "float32", 6), ("coil", "bool", 1), ("input", "uint16", 2)]
)
def test_ten_thousand_tags_under_a_second(table: Table, kind: str, step: int) -> None:
    tags = [Tag(f"t{i}", table, step * i, type=kind) for i in range(10_000)]
    started = time.process_time()
    requests = plan_device(device(tags))
    assert time.process_time() - started < 1.0
    assert sum(len(request.tags) for request in requests) == 10_000


def test_describe_and_text() -> None:
    config = Config("c.yaml", "gw", None, devices={"d": device(at(0, 1, 4))})
    plan = describe(config)["d"]
    assert plan["requests"] == [{"table": "holding", "address": 0, "count": 5, "wanted": 3, "every": "1s"}]
    assert plan["cycle_ms"] == pytest.approx(5.0, abs=0.1) and plan["period_ms"] == 1000
    assert text(config)[0].startswith("d  tcp://127.0.0.1:502 unit 1: 1 requests, 5 words read, 3 wanted")


def test_warns_where_periods_cannot_be_kept() -> None:
    tags = [Tag(f"t{i}", "holding", 200 * i, scale=Decimal(1), every=0.1) for i in range(10)]
    slow = device(tags, url=SERIAL)
    other = dataclasses.replace(slow, name="e", unit=2)
    [(where, words)] = warnings(Config("c.yaml", "gw", None, devices={"d": slow, "e": other}))
    assert where == "d" and "cannot be kept" in words
    assert warnings(Config("c.yaml", "gw", None, devices={"d": device(tags)})) == []


def test_serial_cost_follows_the_baud_rate() -> None:
    dev = device(at(0), url=SERIAL)
    [request] = plan_device(dev)
    character = 11 / 9600 * 1000
    assert cycle_ms(dev, [request]) == pytest.approx((13 + 7 + 2) * character + 10)
    fast = line_cost(dataclasses.replace(SERIAL, baud=115200))
    assert fast.overhead == pytest.approx(13 * 11 / 115.2 + 3.5 + 10)


@pytest.mark.parametrize(
    ("parity", "stopbits", "bits"), [("N", 1, 10), ("E", 1, 11), ("O", 1, 11), ("N", 2, 11), ("E", 2, 12)]
)
def test_serial_cost_follows_parity_and_stop_bits(
    parity: Literal["N", "E", "O"], stopbits: int, bits: int
) -> None:
    cost = line_cost(dataclasses.replace(SERIAL, parity=parity, stopbits=stopbits))
    assert cost.overhead == pytest.approx((13 + 7) * bits / 9.6 + 10)
    assert cost.register == pytest.approx(2 * bits / 9.6)

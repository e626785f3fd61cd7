"""The twin's columns: no value without quality, and snapshots that later writes do not touch."""

import math
from types import MappingProxyType

import numpy as np

from agent.config.types import Config, Device, Tag, Url
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.table import Twin


def make() -> Twin:
    url = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)
    tags = {"a": Tag("a", "holding", 0, every=1.0), "b": Tag("b", "holding", 1, every=10.0)}
    devices = {name: Device(name, url, unit, tags=tags) for unit, name in enumerate(("m1", "m2"), 1)}
    return Twin(build_layout(Config("x.yaml", "gw", None, devices=devices)))


def snapshot(twin: Twin, now: float):  # type: ignore[no-untyped-def]
    empty: MappingProxyType[str, object] = MappingProxyType({})
    return twin.snapshot(now, states={}, health={}, loops={}, loops_of=empty, forecasts=None)  # type: ignore[arg-type]


def fill(twin: Twin, t: float) -> None:
    rows = np.array([0, 1], dtype=np.int64)
    twin.apply(rows, np.array([1.5, 2.0]), np.zeros(2, dtype=np.uint8), [1.5, 2], t)


def test_layout_keeps_the_order_of_the_file() -> None:
    layout = make().layout
    assert layout.keys == (("m1", "a"), ("m1", "b"), ("m2", "a"), ("m2", "b"))
    assert layout.of_device["m2"] == range(2, 4)


def test_before_the_first_reply_there_is_no_value() -> None:
    sample = make().sample(("m1", "a"))
    assert math.isnan(sample.value) and sample.plain is None
    assert sample.quality is Quality.LINK


def test_failure_takes_the_value_away() -> None:
    twin = make()
    fill(twin, 10.0)
    twin.fail(np.array([0], dtype=np.int64), Quality.TIMEOUT, 11.0)
    assert twin.sample(("m1", "a")).plain is None
    assert twin.sample(("m1", "a")).quality is Quality.TIMEOUT
    assert twin.sample(("m1", "b")).plain == 2


def test_stale_after_three_of_its_own_periods() -> None:
    twin = make()
    fill(twin, 10.0)
    assert twin.expire(13.0).tolist() == []
    assert twin.expire(13.1).tolist() == [0]
    assert twin.sample(("m1", "a")).quality is Quality.STALE
    assert twin.sample(("m1", "b")).quality is Quality.GOOD
    assert twin.expire(40.1).tolist() == [1]


def test_snapshot_is_a_copy() -> None:
    twin = make()
    fill(twin, 10.0)
    before = snapshot(twin, 10.5)
    twin.fail(np.array([0, 1], dtype=np.int64), Quality.LINK, 11.0)
    assert before.plain[:2] == [1.5, 2]
    assert before.quality[:2].tolist() == [0, 0]
    assert before.value[0] == 1.5

"""What outlives a restart: counters, and what was learnt of devices."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from agent.config.types import Config, Device, Tag, Url
from agent.modbus.plan import Learnt
from agent.runtime import state

URL = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)


def config(**tags: Tag) -> Config:
    return Config("c.yaml", "gw", None, devices={"m": Device("m", URL, tags=tags)})


def test_counters_go_on_with_their_total(tmp_path: Path) -> None:
    one = config(e=Tag("e", "holding", 0, counter=True))
    counters = state.make_counters(one, {})
    counters[("m", "e")].advance(65_530)
    counters[("m", "e")].advance(4)
    state.save_json(tmp_path, state.COUNTERS, state.dump_counters(counters))
    again = state.make_counters(one, state.load_json(tmp_path, state.COUNTERS))
    assert again[("m", "e")].total == 65_540
    assert again[("m", "e")].advance(10) is None
    assert again[("m", "e")].total == 65_546


def test_a_counter_of_another_type_starts_anew(tmp_path: Path) -> None:
    counters = state.make_counters(config(e=Tag("e", "holding", 0, counter=True)), {})
    counters[("m", "e")].advance(7)
    saved = state.dump_counters(counters)
    other = state.make_counters(config(e=Tag("e", "holding", 0, type="uint32", counter=True)), saved)
    assert other[("m", "e")].last is None


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"'])
def test_a_damaged_file_is_no_reason_not_to_start(
    tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / state.LOOPS).write_bytes(body)
    with caplog.at_level(logging.WARNING):
        assert state.load_json(tmp_path, state.LOOPS) == {}
    assert len(caplog.records) == 1


def test_missing_file_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert state.load_json(tmp_path, state.LOOPS) == {}
    assert caplog.records == []


LEARNT = Learnt(
    illegal=(("holding", (3, 5)),),
    refused=frozenset({"b"}),
    longest=50,
    trusted=(("holding", (6, 9)),),
    silent=(("holding", (3, 5)),),
)


def test_what_was_learnt_is_known_again(tmp_path: Path) -> None:
    one = config(a=Tag("a", "holding", 0), b=Tag("b", "holding", 9))
    state.save_json(tmp_path, state.LEARNT, state.dump_learnt(one.devices, {"m": LEARNT}))
    assert state.load_learnt(one, state.load_json(tmp_path, state.LEARNT)) == {"m": LEARNT}


def test_of_another_device_nothing_is_known() -> None:
    one = config(a=Tag("a", "holding", 0), b=Tag("b", "holding", 9))
    saved = state.dump_learnt(one.devices, {"m": LEARNT})
    moved = {"m": dataclasses.replace(one.devices["m"], unit=2)}
    assert state.load_learnt(dataclasses.replace(one, devices=moved), saved) == {}


@pytest.mark.parametrize("change", [{"illegal": 7}, {"longest": "x"}, {"refused": None}])
def test_what_cannot_be_read_is_learnt_anew(change: dict[str, object]) -> None:
    one = config(a=Tag("a", "holding", 0), b=Tag("b", "holding", 9))
    saved = state.dump_learnt(one.devices, {"m": LEARNT})
    saved["m"] |= change
    assert state.load_learnt(one, saved) == {}

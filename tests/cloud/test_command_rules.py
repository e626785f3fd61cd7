"""The rules by which a command is judged before anything is done; pure."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.commands import Refused, judge, open_envelope, readable, resend_range, to_ask
from agent.config.types import CommandsConfig
from agent.twin.records import Ask
from tests.cloud.harness import (
    as_json,
    make_config,
    signed,
)

NOW = 1_800_000_000_000
CONFIG = CommandsConfig(enabled=True, skew=30.0)
KEY = b"a shared key"


def body(**changes: Any) -> dict[str, Any]:
    whole = {"id": "a-1", "ts": NOW, "exp": NOW + 60_000, "by": "mes"} | changes
    return {key: value for key, value in whole.items() if value is not ...}


def reason(
    op: str = "write", *, retained: bool = False, synced: bool = True, enabled: bool = True, **changes: Any
) -> str:
    with pytest.raises(Refused) as refused:
        config = CommandsConfig(enabled=enabled, skew=30.0)
        judge(op, body(**changes), retained=retained, config=config, now_ms=NOW, synced=synced)
    return refused.value.reason


def test_a_good_command_is_taken() -> None:
    command = judge("write", body(), retained=False, config=CONFIG, now_ms=NOW, synced=True)
    assert (command.id, command.op, command.exp, command.by) == ("a-1", "write", NOW + 60_000, "mes")


@pytest.mark.parametrize("id_", ["", "a b", "a/b", "a" * 65, "ä", "a\n", 7, None, ..., ["x"], "#", "+"])
def test_an_id_that_could_be_a_topic_is_refused(id_: object) -> None:
    assert reason(id=id_).startswith("id must be")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": NOW - 1}, "expired"),
        ({"exp": NOW + 600_001}, "exp is more than 10 min ahead"),
        ({"ts": NOW - 30_001}, "skew"),
        ({"ts": NOW + 30_001}, "skew"),
        ({"ts": "now"}, "ts and exp must be ms UTC"),
        ({"ts": ...}, "ts and exp must be ms UTC"),
        ({"exp": None}, "ts and exp must be ms UTC"),
        ({"exp": True}, "ts and exp must be ms UTC"),
        ({"exp": NOW + 0.5}, "ts and exp must be ms UTC"),
    ],
)
def test_ages_are_judged(changes: dict[str, Any], why: str) -> None:
    assert reason(**changes) == why


@pytest.mark.parametrize(
    "changes", [{"exp": NOW}, {"exp": NOW + 600_000}, {"ts": NOW - 30_000}, {"ts": NOW + 30_000}]
)
def test_the_limits_themselves_are_allowed(changes: dict[str, Any]) -> None:
    command = judge("write", body(**changes), retained=False, config=CONFIG, now_ms=NOW, synced=True)
    assert (command.op, command.exp) == ("write", body(**changes)["exp"])


def test_what_is_refused_whatever_it_says() -> None:
    assert reason(retained=True) == "retained"
    assert reason(op="reboot") == "unknown operation reboot"
    assert reason(enabled=False) == "commands are not enabled"
    assert reason(synced=False) == "clock"


def test_a_signature_covers_topic_and_text() -> None:
    good = as_json(signed("t/cmd/write", '{"id": "x"}', KEY))
    assert open_envelope("t/cmd/write", good, KEY) == {"id": "x"}
    upper = json.loads(good)
    assert open_envelope("t/cmd/write", as_json(upper | {"sig": upper["sig"].upper()}), KEY) == {"id": "x"}
    for topic, payload in [
        ("t/cmd/loop", good),
        ("t/cmd/write", as_json(signed("t/cmd/write", '{"id": "x"}', b"another key"))),
        ("t/cmd/write", as_json(upper | {"p": '{"id": "y"}'})),
        ("t/cmd/write", as_json(upper | {"sig": upper["sig"][:-1]})),
        ("t/cmd/write", b'{"p": "\\ud800", "sig": "00"}'),
    ]:
        with pytest.raises(Refused, match="wrong signature"):
            open_envelope(topic, payload, KEY)
    for payload in (
        as_json({"id": "x"}),
        as_json({"p": {"id": "x"}, "sig": "00"}),
        as_json({"p": "{}", "sig": 1}),
    ):
        with pytest.raises(Refused, match="not signed"):
            open_envelope("t/cmd/write", payload, KEY)
    with pytest.raises(Refused, match="no JSON object"):
        open_envelope("t/cmd/write", as_json(signed("t/cmd/write", "[1]", KEY)), KEY)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\x78\x9cgarbage",
        b'{"id":' + b"[" * 100_000,
        b"1" * 5000,
        b" " * 300_000,
    ],
)
def test_garbage_is_refused_in_words(payload: bytes) -> None:
    with pytest.raises(Refused):
        open_envelope("t", payload, None)


def test_a_small_body_that_unpacks_to_a_huge_one_is_refused() -> None:
    with pytest.raises(Refused, match="too large"):
        open_envelope("t", zlib.compress(b'{"id": "' + b"x" * 50_000_000 + b'"}'), None)


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda x: st.lists(x) | st.dictionaries(st.text(), x),
            max_leaves=5,
        ),
    )
)
def test_no_body_brings_the_judge_down(more: dict[str, Any]) -> None:
    config = make_config("mqtt://127.0.0.1")
    for op in ("write", "read", "loop", "whatif", "relearn", "status"):
        try:
            command = judge(op, {**body(), **more}, retained=False, config=CONFIG, now_ms=NOW, synced=True)
            ask = to_ask(command, config, 10.0)
        except Refused as refused:
            assert refused.reason
        else:
            assert ask.op == op and ask.source == "cmd" and ask.deadline == 10.0


def asked(op: str, **changes: Any) -> Ask:
    command = judge(op, body(**changes), retained=False, config=CONFIG, now_ms=NOW, synced=True)
    return to_ask(command, make_config("mqtt://127.0.0.1"), 12.0)


def test_each_operation_becomes_a_request() -> None:
    assert asked("write", tag="press1/target", value=5) == Ask(
        "write", "cmd", 12.0, "mes", key=("press1", "target"), value=5
    )
    assert asked("read", tags=["press1/count"]).keys == (("press1", "count"),)
    assert asked("read").keys == ()
    assert asked("loop", loop="oven", setpoint=180) == Ask(
        "loop", "cmd", 12.0, "mes", loop="oven", setpoint=180.0
    )
    assert asked("loop", loop="oven", mode="auto").mode == "auto"
    assert asked("whatif", loop="oven", setpoint=180, **{"for": "10m"}).extra == {"for": 600.0}
    assert asked("whatif", loop="oven", load=-3, **{"for": 90}).extra == {"for": 90.0, "load": -3.0}
    assert asked("loop", loop="oven", setpoint=180, **{"for": "10m"}).extra == {}
    assert asked("relearn", device="press1").extra == {"device": "press1"}
    assert asked("status").op == "status"


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        ("write", {}),
        ("write", {"tag": "target", "value": 1}),
        ("write", {"tag": "a/b/c", "value": 1}),
        ("write", {"tag": "press1/target", "value": [1]}),
        ("write", {"tag": "press1/target", "value": float("nan")}),
        ("write", {"tag": "press1/target", "value": float("inf")}),
        ("read", {"tags": "press1/count"}),
        ("read", {"tags": ["press1/nothing"]}),
        ("read", {"tags": ["press9/count"]}),
        ("loop", {"loop": "oven"}),
        ("loop", {"setpoint": 1}),
        ("loop", {"loop": "oven", "mode": 1}),
        ("loop", {"loop": "oven", "setpoint": "180"}),
        ("loop", {"loop": "oven", "setpoint": True}),
        ("loop", {"loop": "oven", "setpoint": float("nan")}),
        ("whatif", {"setpoint": 3}),
        ("whatif", {"loop": "oven", "for": "ten minutes"}),
        ("whatif", {"loop": "oven", "for": True}),
        ("whatif", {"loop": "oven", "load": "5"}),
        ("loop", {"loop": "oven", "setpoint": 10**400}),
        ("whatif", {"loop": "oven", "load": -(10**400)}),
        ("relearn", {}),
        ("relearn", {"device": ["press1"]}),
    ],
)
def test_what_makes_no_sense_is_refused(op: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        asked(op, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": ["press1"]},
        {"device": "nothing"},
        {"device": None},
        {"from": "1"},
        {"from": True},
        {"from": 0},
        {"from": 9},
        {"to": 1.5},
    ],
)
def test_a_range_to_resend_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    config = make_config("mqtt://127.0.0.1")
    good = {"device": "press1", "from": 2, "to": 5}
    assert resend_range(good, config) == ("press1", 2, 5)
    with pytest.raises(Refused):
        resend_range(good | changes, config)


def test_an_end_beyond_what_the_database_counts_is_the_end() -> None:
    asked_for = {"device": "press1", "from": 1, "to": 2**70}
    assert resend_range(asked_for, make_config("mqtt://127.0.0.1")) == ("press1", 1, 2**63 - 1)
    assert resend_range(asked_for | {"from": 2**69}, make_config("mqtt://127.0.0.1")) == (
        "press1",
        2**63 - 1,
        2**63 - 1,
    )


def test_what_a_stranger_wrote_is_one_short_printable_line() -> None:
    assert readable("there is no tag 'Ölstand' 温度") == "there is no tag 'Ölstand' 温度"
    assert readable("x\n<0>kernel: \x1b[31m\0\ud800") == "x\\n<0>kernel: \\x1b[31m\\x00\\ud800"
    assert readable("b" * 200_000) == "b" * 399 + "…"

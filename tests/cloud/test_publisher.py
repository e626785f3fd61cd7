"""What the publisher keeps on disk: the topics that may be retained at the broker, one fact each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.cloud.publisher import RETAINED, RETAINED_LIST, Publisher
from agent.cloud.topics import Topics
from agent.twin.layout import build_layout
from agent.twin.records import Event
from tests.cloud.harness import BASE, make_config
from tests.cloud.outboxes import make

OWN = {f"{BASE}/{kind}/press1" for kind in ("meta", "twin", "forecast")}
ALARM = f"{BASE}/alarm/press1/silent"
GONE = f"{BASE}/twin/gone"


def publisher(outbox: Outbox) -> Publisher:
    config = make_config("mqtt://127.0.0.1")
    stamp = Stamp("0badcafe", lambda t: round(1000 * t))
    topics = Topics(config.mqtt.root, "line4")
    made = Publisher(config, topics, build_layout(config), outbox, lambda: stamp, lambda: 0.0)
    made.connected(0.0, {})
    return made


def alarm(state: Any) -> Event:
    return Event("press1", "silent", "warning", state, "press1: no answer", 0.0, alarm=True)


def kept(outbox: Outbox) -> set[str]:
    return {key.removeprefix(RETAINED) for key in outbox.get_all(RETAINED)}


def cleared(made: Publisher) -> set[str]:
    return {out.topic for out in made.queue if out.retain and not out.body}


def test_a_new_alarm_writes_its_own_topic_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(tmp_path, ("press1",))
    made = publisher(outbox)
    assert kept(outbox) == OWN
    written: list[Mapping[str, Any]] = []
    put_all = outbox.put_all

    def noted(facts: Mapping[str, Any]) -> bool:
        written.append(facts)
        return put_all(facts)

    monkeypatch.setattr(outbox, "put_all", noted)
    made.add_event(alarm("raised"))
    assert written == [{RETAINED + ALARM: 1}]
    made.add_event(alarm("cleared"))
    made.add_event(alarm("raised"))
    assert len(written) == 1, "it is known already"
    assert kept(outbox) == {*OWN, ALARM}


def test_an_alarm_that_ended_leaves_the_disk_with_the_run(tmp_path: Path) -> None:
    outbox = make(tmp_path, ("press1",))
    made = publisher(outbox)
    made.add_event(alarm("raised"))
    made.add_event(alarm("cleared"))
    made.acked(made.queue[-1])
    made.close()
    assert kept(outbox) == OWN


def test_the_list_of_a_version_before_becomes_a_row_for_each_topic(tmp_path: Path) -> None:
    outbox = make(tmp_path, ("press1",))
    outbox.put(RETAINED_LIST, [GONE, ALARM, 5])
    made = publisher(outbox)
    assert cleared(made) == {GONE, ALARM}
    assert kept(outbox) == {*OWN, GONE, ALARM} and outbox.get(RETAINED_LIST) is None
    outbox.close()
    again = make(tmp_path, ("press1",))
    assert cleared(publisher(again)) == {GONE, ALARM}, "until the broker has taken it"


def test_what_a_full_disk_did_not_take_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = make(tmp_path, ("press1",))
    made = publisher(outbox)
    with monkeypatch.context() as full:
        full.setattr(outbox, "put_all", lambda facts: False)
        made.add_event(alarm("raised"))
    assert kept(outbox) == OWN
    made.connected(1.0, {})
    assert kept(outbox) == {*OWN, ALARM}

"""The cloud thread against a real broker: what a central system gets, through outages of every kind."""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import paho.mqtt.client as paho
import pytest

from agent.config.types import Config
from agent.twin.records import Event, Outcome, Row
from tests.brokers import Mosquitto, TcpProxy, needs_mosquitto
from tests.cloud.harness import BASE, Agent, Doors, Ear, make_config, wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.process, needs_mosquitto]


def test_a_late_joiner_knows_everything(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Agent(make_config(mosquitto.url), tmp_path) as agent:
        agent.wait_online()
        agent.read()
        agent.show(181.5)
        with Ear(mosquitto.url) as ear:
            ear.wait_for("twin/press1")
            ear.wait_for("forecast/press1")
        with Ear(mosquitto.url) as ear:
            ear.wait_for("forecast/press1")
            ear.wait_for("state")
            twin = ear.wait_for("twin/press1")
            meta = ear.wait_for("meta/press1")
        assert twin["meta"] == meta["meta"]
        assert twin["stream"] == agent.cloud.stream
        assert twin["reported"]["temperature"]["v"] == 181.5
        assert twin["reported"]["temperature"]["q"] == "good"
        assert meta["tags"]["target"]["write"] == {"range": [0, 300]}
        assert meta["horizon"] == [1, 5]
        assert all(one.retained for one in ear.heard if one.kind in ("state", "meta", "twin", "forecast"))


@pytest.mark.usefixtures("spills_soon")
def test_every_batch_of_an_outage_comes_once(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    with broker, TcpProxy(broker.port) as proxy:
        config = make_config(proxy.url, devices=("press1", "press2"))
        with Agent(config, tmp_path) as agent:
            with Ear(broker.url) as ear:
                agent.wait_online()
                agent.run_for(0.5)
                for device in config.devices:
                    ear.wait(lambda d=device: agent.counts[d] in ear.counts(d), "what was read before")
            heard = ear.heard
            proxy.refuse()
            broker.kill()
            agent.run_for(3.0)
            assert agent.cloud.status()["outbox"]["batches"] > 0
            broker.start()
            with Ear(broker.url) as ear:
                ear.sync()
                proxy.accept()
                agent.run_for(2.0)
                for device in config.devices:
                    ear.wait(lambda d=device: agent.counts[d] in ear.counts(d), "what was read last")
                ear.wait(lambda: agent.cloud.status()["outbox"]["batches"] == 0, "the backlog to end")
                ear.listen()
            heard += ear.heard
    batches = [one for one in heard if one.kind in ("data", "backfill")]
    by_key = {(one.device, one.body["seq"]): one.body["groups"] for one in batches if one.body}
    assert {one.kind for one in batches} == {"data", "backfill"}
    for device in config.devices:
        counts = [
            value
            for (name, _), groups in sorted(by_key.items())
            if name == device
            for group in groups
            for value in group["c"]["count"]
        ]
        assert counts == list(range(1, agent.counts[device] + 1))
        seqs = sorted(seq for name, seq in by_key if name == device)
        assert seqs == list(range(1, len(seqs) + 1))


def test_the_will_says_offline_with_the_boot_that_it_ends(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        TcpProxy(broker.port) as proxy,
        Agent(make_config(proxy.url), tmp_path, boot="12345678") as agent,
        Ear(broker.url) as ear,
    ):
        agent.wait_online()
        ear.wait(lambda: status_of(ear) == ("online", "12345678"), "online")
        proxy.refuse()
        ear.wait(lambda: status_of(ear) == ("offline", "12345678"), "the will")
        proxy.accept()
        ear.wait(lambda: status_of(ear) == ("online", "12345678"), "online again")


def test_the_end_delivers_everything_and_says_offline(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Ear(mosquitto.url) as ear:
        with Agent(make_config(mosquitto.url, batch=30.0), tmp_path) as agent:
            agent.wait_online()
            agent.read()
            agent.show(33.0)
            ear.wait_for("twin/press1")
            agent.read()
            agent.show(44.0)
        ear.wait(lambda: status_of(ear)[0] == "offline", "offline")
        assert ear.counts() == [1, 2]
        assert ear.wait_for("twin/press1")["reported"]["temperature"]["v"] == 44.0
    with Ear(mosquitto.url) as late:
        assert late.wait_for("state")["status"] == "offline"


def test_what_could_not_be_sent_is_sent_by_the_next_run(tmp_path: Path) -> None:
    port = free_port()
    with Agent(make_config(f"mqtt://127.0.0.1:{port}"), tmp_path) as first:
        first.read()
    with Mosquitto(tmp_path, port) as broker, Ear(broker.url) as ear:
        ear.sync()
        with Agent(make_config(broker.url), tmp_path, boot="22222222") as second:
            ear.wait(lambda: ear.counts() == [1], "the batch of the run before")
            second.read()
            ear.wait(lambda: ear.counts() == [1, 1], "a new batch")
        [old] = ear.of("backfill")
        [new] = ear.of("data")
        assert old.body and new.body
        assert (old.body["seq"], old.body["boot"]) == (1, "0badcafe")
        assert (new.body["seq"], new.body["boot"]) == (2, "22222222")
        assert old.body["stream"] == new.body["stream"] == second.cloud.stream
        assert ear.of("gap") == []


def test_a_killed_agent_leaves_no_hole_that_no_gap_names(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, TcpProxy(broker.port) as proxy, Ear(broker.url) as ear:
        ear.sync()
        for number in range(3):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cloud.agent", proxy.url, str(tmp_path), str(1000 * number)]
            )
            try:
                seen = len(ear.counts())
                ear.wait(lambda: len(ear.counts()) > seen + 20, "some readings")  # noqa: B023
                if number == 1:
                    proxy.refuse()
                    time.sleep(6.5)  # long enough that batches went to disk
            finally:
                process.kill()
                process.wait()
            proxy.accept()
        with Agent(make_config(broker.url), tmp_path) as agent:
            agent.wait_online()
            agent.read()
            ear.wait(lambda: 1 in ear.counts()[1:], "what was read after the kills")
            ear.wait(lambda: agent.cloud.status()["outbox"]["batches"] == 0, "the backlog to end")
            ear.listen()
        assert len({one.body["stream"] for one in ear.of("data") if one.body}) == 1
        assert {one.body["reason"] for one in ear.of("gap") if one.body} == {"restart"}
        assert ear.view.books.lost() == 0
        committed = [
            one for one in ear.of("backfill") if one.body and one.body["groups"][0]["c"]["count"][0] > 1000
        ]
        assert committed, "what was on disk at the kill is sent"


def test_refused_batches_wait_until_the_acl_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cloud.sender.HELD_FOR", 1.0)
    acl = tmp_path / "acl"
    acl.write_text(
        "topic read #\ntopic write edgetwin/v1/line4/state\ntopic write edgetwin/v1/line4/event/#\n"
    )
    acl.chmod(0o600)
    with (
        Mosquitto(tmp_path, config_lines=[f"acl_file {acl}"]) as broker,
        Ear(broker.url) as ear,
        Agent(make_config(broker.url), tmp_path) as agent,
    ):
        agent.wait_online()
        agent.read()
        event = agent.wait_event("publish_refused")
        assert "uthorized" in event.text and "ACL" in event.text
        ear.wait_for("event/_gateway")
        agent.run_for(1.0)
        wait_until(lambda: "the broker refuses" in agent.error, "the status to say so")
        acl.write_text("topic readwrite #\n")
        assert broker.process
        broker.process.send_signal(signal.SIGHUP)
        ear.wait(lambda: set(ear.counts()) == set(range(1, agent.counts["press1"] + 1)), "every reading")
        assert len(ear.counts()) == agent.counts["press1"]
        assert ear.of("gap") == []
        ear.wait_for("meta/press1")
        agent.read()
        wait_until(lambda: agent.error == "", "the status to take it back")


def wide(url: str, names: Sequence[str]) -> Config:
    """A configuration whose only device has these tags."""
    config = make_config(url)
    device = config.devices["press1"]
    tags = {
        name: dataclasses.replace(device.tags["count"], name=name, address=i) for i, name in enumerate(names)
    }
    return dataclasses.replace(
        config, devices={"press1": dataclasses.replace(device, tags=tags)}, predict=None
    )


def test_a_batch_is_kept_while_the_broker_refuses_any_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cloud.sender.HELD_FOR", 1.0)
    names = tuple(f"tag_with_a_long_name_{i:03}" for i in range(100))
    all_but_first = "topic read #\ntopic write edgetwin/v1/line4/+\ntopic write edgetwin/v1/line4/+/+/+\n"
    acl = tmp_path / "acl"
    acl.write_text(all_but_first + "topic write edgetwin/v1/line4/event/#\n")
    acl.chmod(0o600)
    lines = ["max_packet_size 3000", f"acl_file {acl}"]
    with (
        Mosquitto(tmp_path, config_lines=lines) as broker,
        Ear(broker.url) as ear,
        Agent(wide(broker.url, names), tmp_path) as agent,
    ):
        agent.wait_online()
        agent.cloud.put(Row("press1", names, agent.clock.mono(), list(range(100)), None))
        agent.wait_event("publish_refused")
        ear.wait(lambda: bool(ear.of("data") or ear.of("backfill")), "the parts that the broker takes")
        acl.write_text("topic readwrite #\n")
        assert broker.process
        broker.process.send_signal(signal.SIGHUP)
        ear.wait(lambda: ear.view.books.readings() == 100, "all parts")


def test_bodies_larger_than_the_broker_takes_are_split(tmp_path: Path) -> None:
    names = tuple(f"tag_with_a_long_name_{i:03}" for i in range(100))
    with Mosquitto(tmp_path, config_lines=["max_packet_size 3000"]) as broker, Ear(broker.url) as ear:
        with Agent(
            wide(broker.url, names),
            tmp_path,
            doors=Doors(lambda ask: Outcome(True, result={"x": "y" * 5000})),
        ) as agent:
            agent.wait_online()
            agent.cloud.put(Row("press1", names, agent.clock.mono(), list(range(100)), None))
            agent.show(7.0, forecast=False)
            ear.wait(lambda: ear.view.books.readings() == 100, "all parts of the batch")
            ear.wait(
                lambda: len(ear.view.twins[("line4", "press1")]["reported"]) == 100, "all parts of the twin"
            )
            ear.command("status", "big")
            answer = ear.wait_for("resp/big")
            assert answer["ok"] is False and "larger" in answer["error"]
            assert agent.error == "", "the link was never lost"
        assert len({one.topic for one in ear.of("data")}) > 1
        assert {len(one.body["part"]) for one in ear.of("data") if one.body} == {2}
        assert ear.view.books.doubled() == 0


def test_a_device_that_went_leaves_nothing_retained(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with (
        Agent(make_config(mosquitto.url, devices=("press1", "press2")), tmp_path) as agent,
        Ear(mosquitto.url) as ear,
    ):
        agent.wait_online()
        agent.show()
        ear.wait_for("forecast/press2")
        ear.wait_for("twin/press2")
    with Agent(make_config(mosquitto.url), tmp_path) as agent:
        agent.wait_online()
        agent.show()
        with Ear(mosquitto.url) as ear:
            ear.wait_for("forecast/press1")
            wait_until(lambda: agent.cloud.status()["uplink"]["unacked"] == 0, "all acknowledged")
    with Ear(mosquitto.url) as late:
        late.wait_for("meta/press1")
        late.sync()
        assert not [one for one in late.heard if one.device == "press2"]


def test_an_alarm_is_retained_while_it_is_raised(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Agent(make_config(mosquitto.url), tmp_path) as agent:
        agent.wait_online()
        agent.cloud.put(alarm("raised", agent.clock.mono()))
        agent.cloud.put(alarm("raised", agent.clock.mono(), name="overheat"))
        with Ear(mosquitto.url) as ear:
            ear.wait_for("alarm/press1/silent")
            ear.wait_for("alarm/press1/overheat")
            agent.cloud.put(alarm("cleared", agent.clock.mono()))
            ear.wait(lambda: cleared(ear, "alarm/press1/silent"), "the alarm to be cleared")
        states = [one.body["state"] for one in ear.of("event") if one.body]
        assert states[-1] == "cleared"  # those before the ear was there are not retained
    with Agent(make_config(mosquitto.url), tmp_path) as agent, Ear(mosquitto.url) as ear:
        # the other one is not raised any more after the start, and nobody will clear it but the start itself
        ear.wait(lambda: cleared(ear, "alarm/press1/overheat"), "the old alarm to be cleared")


def test_an_alarm_that_ends_during_an_outage_is_cleared(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        TcpProxy(broker.port) as proxy,
        Ear(broker.url) as ear,
        Agent(make_config(proxy.url), tmp_path) as agent,
    ):
        agent.wait_online()
        agent.cloud.put(alarm("raised", agent.clock.mono()))
        ear.wait_for("alarm/press1/silent")
        proxy.refuse()
        agent.wait_offline()
        agent.cloud.put(alarm("cleared", agent.clock.mono()))
        time.sleep(1.0)  # some failed connections
        proxy.accept()
        ear.wait(lambda: cleared(ear, "alarm/press1/silent"), "the alarm to be cleared")
        ear.wait(
            lambda: [one.body["state"] for one in ear.of("event") if one.body][-1] == "cleared",
            "its event",
        )


def test_a_link_that_goes_silent_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cloud.uplink.STALE_AFTER", 1.5)
    with Mosquitto(tmp_path) as broker, TcpProxy(broker.port) as proxy, Ear(broker.url) as ear:
        with Agent(make_config(proxy.url), tmp_path) as agent:
            agent.wait_online()
            before = proxy.connections
            proxy.stall()
            agent.read()
            wait_until(lambda: "acknowledgement" in agent.error, "the link to be found stale")
            proxy.cut()
            proxy.flow()
            ear.wait(lambda: ear.counts() == [1], "the reading")
            assert proxy.connections > before
        assert ear.of("backfill")


def test_two_gateways_with_one_name_are_told(mosquitto: Mosquitto, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with (
        Agent(make_config(mosquitto.url), folders[0]) as one,
        Agent(make_config(mosquitto.url), folders[1]) as two,
    ):
        wait_until(lambda: any(e.name == "name_taken" for e in one.events + two.events), "the event")
    [event, *_] = [e for e in one.events + two.events if e.name == "name_taken"]
    assert "line4" in event.text and event.severity == "alarm"


@pytest.mark.usefixtures("spills_soon")
def test_backfill_runs_beside_live_data_at_its_rate(tmp_path: Path) -> None:
    outbox = {"rate": 60, "batch": 0.2}
    port = free_port()
    with Agent(make_config(f"mqtt://127.0.0.1:{port}", outbox=outbox), tmp_path) as agent:
        agent.run_for(3.0, every=0.05)
        wait_until(lambda: agent.cloud.status()["outbox"]["batches"] > 0, "batches on disk")
        with Mosquitto(tmp_path, port) as broker, Ear(broker.url) as ear:
            agent.wait_online()
            agent.run_for(2.0, every=0.05)
            ear.wait(lambda: agent.cloud.status()["outbox"]["batches"] == 0, "the backlog to end")
            ear.listen()
        kinds = [one.kind for one in ear.heard if one.kind in ("data", "backfill")]
        first, last = kinds.index("data"), len(kinds) - 1 - kinds[::-1].index("backfill")
        assert first < last, "live data do not wait for the backlog"
        seqs = [one.body["seq"] for one in ear.of("backfill") if one.body]
        assert seqs == sorted(seqs), "oldest first"
        assert ear.view.books.out_of_order() == 0 and ear.view.books.doubled() == 0


def test_flat_and_compressed_bodies(mosquitto: Mosquitto, tmp_path: Path) -> None:
    raw: dict[str, bytes] = {}
    listener = paho.Client(paho.CallbackAPIVersion.VERSION2)
    listener.on_message = lambda _c, _u, message: raw.update({message.topic: message.payload})
    listener.connect("127.0.0.1", mosquitto.port)
    listener.subscribe(f"{BASE}/#", qos=1)
    listener.loop_start()
    with Agent(make_config(mosquitto.url, flat=True, compress="all", batch=0.5), tmp_path) as agent:
        agent.wait_online()
        for _ in range(100):
            agent.read()
        wait_until(lambda: {f"{BASE}/flat/press1", f"{BASE}/data/press1"} <= raw.keys(), "both")
    listener.disconnect()
    listener.loop_stop()
    flat = json.loads(raw[f"{BASE}/flat/press1"])
    assert flat["temperature"] == 20.5 and flat["count"] > 0 and flat["seq"] == 1
    assert raw[f"{BASE}/data/press1"][0] == 0x78
    assert raw[f"{BASE}/state"][:1] == b"{"


def test_put_never_waits_and_counts_what_it_drops(
    mosquitto: Mosquitto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.cloud.worker.QUEUE_BOUND", 10)
    agent = Agent(make_config(mosquitto.url), tmp_path)
    for _ in range(30):
        agent.read()  # the thread does not run yet: as if a disk had it stuck
    with agent:
        event = agent.wait_event("replies_dropped")
        assert event.text.startswith("19 replies")
        assert agent.cloud.status()["outbox"]["rows_dropped"] == 19


def test_kept_batches_are_sent_again_when_asked(mosquitto: Mosquitto, tmp_path: Path) -> None:
    config = make_config(mosquitto.url, outbox={"keep": 600.0})
    with Agent(config, tmp_path) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        for _ in range(3):
            count = agent.read()
            ear.wait(lambda n=count: n in ear.counts(), "the reading")
        last = max(one.body["seq"] for one in ear.of("data") if one.body)
        ear.command("resend", "again", device="press1", **{"from": 2, "to": 99})
        assert ear.wait_for("resp/again")["result"] == {"from": 2, "to": last}
        ear.wait(lambda: len(ear.of("backfill")) == last - 1, "the batches once more")
        ear.command("resend", "none", device="press1", **{"from": 90, "to": 99})
        assert ear.wait_for("resp/none")["ok"] is False


@pytest.mark.usefixtures("spills_soon")
def test_what_the_outbox_drops_is_named_at_once(tmp_path: Path) -> None:
    port = free_port()
    with Agent(
        make_config(f"mqtt://127.0.0.1:{port}", outbox={"max_size": 600, "rate": 1}), tmp_path
    ) as agent:
        end = time.monotonic() + 60.0
        while agent.cloud.status()["outbox"]["dropped"] == 0:
            assert time.monotonic() < end, "nothing is dropped"
            agent.run_for(0.5, every=0.01)
        with Mosquitto(tmp_path, port) as broker, Ear(broker.url) as ear:
            agent.wait_online()
            gap = ear.wait_for("gap/press1")
            assert gap["reason"] == "size" and gap["from"] == 1


def test_durable_batches_are_on_disk_before_they_are_sent(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        TcpProxy(broker.port) as proxy,
        Agent(make_config(proxy.url, outbox={"durable": True}), tmp_path) as agent,
    ):
        agent.wait_online()
        proxy.stall()
        agent.read()
        wait_until(lambda: agent.cloud.status()["uplink"]["unacked"] > 0, "the batch to be under way")
        with sqlite3.connect(tmp_path / "outbox.db") as db:
            assert db.execute("SELECT count(*) FROM batch").fetchone() == (1,)
        proxy.flow()
        wait_until(lambda: agent.cloud.status()["outbox"]["batches"] == 0, "its acknowledgement")


def status_of(ear: Ear) -> tuple[str, str]:
    state = ear.last("state")
    return (state.body["status"], state.body["boot"]) if state and state.body else ("", "")


def alarm(state: Literal["raised", "cleared"], t: float, name: str = "silent") -> Event:
    return Event("press1", name, "alarm", state, f"press1 is {name}", t, alarm=True)


def cleared(ear: Ear, topic: str) -> bool:
    newest = ear.last(topic)
    return newest is not None and newest.body is None

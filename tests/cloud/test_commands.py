"""Commands over a broker: answered always, never done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.publish import single

from agent.cloud.worker import Cloud
from agent.config.types import Secret
from agent.runtime.clock import SystemClock
from agent.twin.records import Outcome
from tests.brokers import Mosquitto, TcpProxy, needs_mosquitto
from tests.cloud.harness import (
    BASE,
    Agent,
    Doors,
    Ear,
    as_json,
    make_config,
    signed,
    wait_until,
    with_commands,
)


@needs_mosquitto
@pytest.mark.process
def test_a_write_is_asked_once_and_answered_always(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Agent(make_config(mosquitto.url), tmp_path) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.command("write", "w1", tag="press1/target", value=7)
        answer = ear.wait_for("resp/w1")
        assert (answer["ok"], answer["applied"], answer["readback"], answer["error"]) == (True, 7, 7, None)
        [ask] = agent.doors.asked
        assert (ask.op, ask.source, ask.key, ask.value, ask.by) == (
            "write",
            "cmd",
            ("press1", "target"),
            7,
            "test",
        )
        assert 20 < ask.deadline - agent.clock.mono() <= 30
        ear.command("write", "w1", tag="press1/target", value=7)
        ear.wait(lambda: len(answers(ear, "w1")) == 2, "the same answer again")
        assert answers(ear, "w1") == [answer, answer]
        assert len(agent.doors.asked) == 1
        event = agent.wait_event("command")
        assert "press1/target" in event.text and "test" in event.text
        ear.wait(
            lambda: any("press1/target" in e.body["text"] for e in ear.of("event") if e.body), "its event"
        )


@needs_mosquitto
@pytest.mark.process
def test_answers_outlive_a_restart(mosquitto: Mosquitto, tmp_path: Path) -> None:
    now = round(time.time() * 1000)
    command = {"id": "w1", "ts": now, "exp": now + 60_000, "tag": "press1/target", "value": 7}
    with Agent(make_config(mosquitto.url), tmp_path) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.say("cmd/write", command)
        first = ear.wait_for("resp/w1")
        agent.doors.silent = True
        ear.say("cmd/write", command | {"id": "w2"})
        wait_until(lambda: len(agent.doors.asked) == 2, "the second to be asked")
    with Agent(make_config(mosquitto.url), tmp_path, boot="22222222") as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.say("cmd/write", command)
        ear.say("cmd/write", command | {"id": "w2"})
        assert ear.wait_for("resp/w1") == first
        interrupted = ear.wait_for("resp/w2")
        assert interrupted["ok"] is False and "not known" in interrupted["error"]
        assert agent.doors.asked == []


@needs_mosquitto
@pytest.mark.process
def test_every_refusal_is_answered_and_an_event(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Agent(make_config(mosquitto.url), tmp_path) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.command("write", "old", valid=-1.0, tag="press1/target", value=7)
        ear.command("write", "skewed", age=60.0, valid=120.0, tag="press1/target", value=7)
        ear.command("format", "strange")
        ear.command("read", "unknown", tags=["press1/nothing"])
        ear.command("read", "long", tags=["press1/" + 50_000 * "\n"])
        assert len(ear.wait_for("resp/long")["error"]) < 2000
        said = {id_: ear.wait_for(f"resp/{id_}")["error"] for id_ in ("old", "skewed", "strange", "unknown")}
        assert said["old"] == "expired" and said["skewed"] == "skew"
        assert "format" in said["strange"] and "press1/nothing" in said["unknown"]
        assert agent.doors.asked == []
        wait_until(lambda: [e.name for e in agent.events].count("command_refused") == 5, "the events")
        assert all(len(event.text) < 2000 and event.text.isprintable() for event in agent.events)


@needs_mosquitto
@pytest.mark.process
def test_a_retained_command_is_refused(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with Ear(mosquitto.url) as ear:
        now = round(time.time() * 1000)
        body = {"id": "r1", "ts": now, "exp": now + 60_000, "tag": "press1/target", "value": 7}
        ear.say("cmd/write", body, retain=True)
        ear.sync()
        with Agent(make_config(mosquitto.url), tmp_path) as agent:
            assert ear.wait_for("resp/r1")["error"] == "retained"
            ear.say(
                "cmd/write", body | {"id": "r2"}, retain=True
            )  # told as one, though it comes as it is published
            assert ear.wait_for("resp/r2")["error"] == "retained"
            assert agent.doors.asked == []
            wait_until(lambda: [e.name for e in agent.events].count("command_refused") == 2, "the events")
            single(
                f"{BASE}/cmd/write", b"", 1, True, hostname="127.0.0.1", port=mosquitto.port
            )  # takes it back: that is no command
            ear.say("cmd/read", body | {"id": "r3"})
            ear.wait_for("resp/r3")
            assert [e.name for e in agent.events].count("command_refused") == 2


@needs_mosquitto
@pytest.mark.process
def test_commands_are_off_by_default(mosquitto: Mosquitto, tmp_path: Path) -> None:
    config = with_commands(make_config(mosquitto.url), enabled=False)
    with Agent(config, tmp_path) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.command("write", "w1", tag="press1/target", value=7)
        assert ear.wait_for("resp/w1")["error"] == "commands are not enabled"
        assert agent.doors.asked == []


@needs_mosquitto
@pytest.mark.process
def test_only_signed_commands_are_taken_with_a_key(mosquitto: Mosquitto, tmp_path: Path) -> None:
    config = with_commands(make_config(mosquitto.url), hmac=Secret("plain", "a shared key"))
    with Agent(config, tmp_path) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.command("write", "plain", tag="press1/target", value=7)
        agent.wait_event("command_refused")
        now = round(time.time() * 1000)
        text = json.dumps({"id": "s1", "ts": now, "exp": now + 9000, "tag": "press1/target", "value": 8})
        ear.say("cmd/write", signed(f"{BASE}/cmd/write", text, b"a shared key"))
        assert ear.wait_for("resp/s1")["ok"] is True
        assert [ask.value for ask in agent.doors.asked] == [8]


@needs_mosquitto
@pytest.mark.process
def test_read_status_and_rebirth(mosquitto: Mosquitto, tmp_path: Path) -> None:
    results: Mapping[str, Any] = {
        "read": {"press1/count": {"v": 2**60, "q": "good", "t": 1}},
        "status": {"v": 1, "healthy": True, "odd": float("nan")},
    }
    doors = Doors(lambda ask: Outcome(True, result=results[ask.op]))
    with Agent(make_config(mosquitto.url), tmp_path, doors=doors) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        agent.show()
        ear.wait_for("twin/press1")
        ear.command("read", "q1", tags=["press1/count"])
        assert ear.wait_for("resp/q1")["result"]["press1/count"]["v"] == str(2**60)
        ear.command("status", "q2")
        assert ear.wait_for("resp/q2")["result"] == {"v": 1, "healthy": True, "odd": None}
        born = len(ear.of("meta"))
        ear.command("rebirth", "q3")
        assert ear.wait_for("resp/q3")["ok"] is True
        ear.wait(lambda: len(ear.of("meta")) > born and len(ear.of("twin")) > 1, "everything once more")
        wait_until(lambda: [e.name for e in agent.events].count("command") == 3, "an event for each")


@needs_mosquitto
@pytest.mark.process
@pytest.mark.parametrize(
    ("wanted", "given"), [(f"{BASE}/resp/mine", f"{BASE}/resp/mine"), ("elsewhere", f"{BASE}/resp/p1")]
)
def test_a_response_topic_under_resp_is_honoured(
    mosquitto: Mosquitto, tmp_path: Path, wanted: str, given: str
) -> None:
    got: dict[str, Any] = {}
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _c, _u, message: got.update({message.topic: message.properties})
    client.connect("127.0.0.1", mosquitto.port)
    client.subscribe([(f"{BASE}/resp/#", 1), ("elsewhere", 1)])
    client.loop_start()
    with Agent(make_config(mosquitto.url), tmp_path) as agent:
        agent.wait_online()
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = wanted, b"\x00corr"
        now = round(time.time() * 1000)
        body = {"id": "p1", "ts": now, "exp": now + 9000, "tag": "press1/target", "value": 1}
        client.publish(f"{BASE}/cmd/write", as_json(body), qos=1, properties=properties)
        wait_until(lambda: bool(got), "the answer")
    client.disconnect()
    client.loop_stop()
    assert list(got) == [given]
    assert got[given].CorrelationData == b"\x00corr"


@needs_mosquitto
@pytest.mark.process
def test_a_main_loop_that_does_not_answer_is_answered_for(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cloud.inbox.GRACE", 0.2)
    doors = Doors()
    doors.silent = True
    with Agent(make_config(mosquitto.url), tmp_path, doors=doors) as agent, Ear(mosquitto.url) as ear:
        agent.wait_online()
        ear.command("write", "w1", valid=1.0, tag="press1/target", value=7)
        answer = ear.wait_for("resp/w1")
        assert answer["ok"] is False and "in time" in answer["error"]


@needs_mosquitto
@pytest.mark.process
def test_a_command_sent_while_the_link_is_down_is_answered(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        TcpProxy(broker.port) as proxy,
        Ear(broker.url) as ear,
        Agent(make_config(proxy.url), tmp_path) as agent,
    ):
        agent.wait_online()
        ear.command("status", "w0")
        ear.wait_for("resp/w0")  # it has subscribed: its session keeps what comes for it from now on
        proxy.refuse()
        agent.wait_offline()
        ear.command("write", "w1", tag="press1/target", value=7)
        ear.sync()
        proxy.accept()
        assert ear.wait_for("resp/w1")["ok"] is True
        assert [ask.op for ask in agent.doors.asked] == ["status", "write"]


def answers(ear: Ear, id_: str) -> list[dict[str, Any]]:
    return [one.body for one in ear.heard if one.topic == f"{BASE}/resp/{id_}" and one.body is not None]


def test_the_number_of_kept_answers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.cloud.uplink import Message
    from agent.twin.layout import build_layout

    monkeypatch.setattr("agent.cloud.inbox.ANSWERS_KEPT", 20)
    config = make_config("mqtt://127.0.0.1:9")
    doors = Doors()
    cloud = Cloud(
        config,
        state_dir=tmp_path,
        layout=build_layout(config),
        boot="0badcafe",
        clock=SystemClock(),
        ask=doors.ask,
    )
    inbox = cloud._inbox
    now = round(time.time() * 1000)
    for op, count in (("write", 15), ("status", 40)):
        for number in range(count):
            body = {"id": f"{op}{number}", "ts": now, "exp": now + 60_000, "tag": "press1/target", "value": 1}
            inbox.take(Message(f"{BASE}/cmd/{op}", as_json(body), False))
    asked = len(doors.asked)
    for number in range(15):
        body = {"id": f"write{number}", "ts": now, "exp": now + 60_000, "tag": "press1/target", "value": 1}
        inbox.take(Message(f"{BASE}/cmd/write", as_json(body), False))
    assert len(doors.asked) == asked == 55, "a flood of harmless commands makes no write be done twice"
    cloud.stop(0.0)

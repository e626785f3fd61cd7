"""`desired`: read at every connect, applied once per version, acknowledged name by name."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent import RELEASED_MS
from agent.cloud.commands import Refused, desired_ask, read_desired
from agent.cloud.worker import Superseded
from agent.config.types import Secret
from agent.twin.records import Ask, Outcome
from tests.brokers import Mosquitto, TcpProxy, needs_mosquitto
from tests.cloud.harness import BASE, Agent, Doors, Ear, make_config, signed, wait_until, with_commands

# -- the rules, without a broker ------------------------------------------------------------------------------------


def test_each_name_becomes_a_request() -> None:
    assert desired_ask("press1/target", 185, "mes", 9.0) == Ask(
        "write", "desired", 9.0, "mes", key=("press1", "target"), value=185
    )
    assert desired_ask("loop/oven/setpoint", 185, None, 9.0).setpoint == 185.0
    assert desired_ask("loop/oven/mode", "auto", None, 9.0).mode == "auto"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", 1),
        ("a/b/c", 1),
        ("loop/oven/gain", 1),
        ("loop/oven/mode", 3),
        ("loop/oven/setpoint", "hot"),
        ("loop/oven/setpoint", None),
        ("loop/oven/setpoint", float("nan")),
        ("press1/target", [1]),
        ("press1/target", {"v": 1}),
        ("press1/target", float("inf")),
    ],
)
def test_names_and_values_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(Refused):
        desired_ask(name, value, None, 9.0)


@pytest.mark.parametrize(
    "body",
    [{}, {"ver": 1}, {"set": {}}, {"ver": "1", "set": {}}, {"ver": 1, "set": []}, {"ver": True, "set": {}},
     {"ver": 1.5, "set": {}}, {"ver": 1, "set": {}, "exp": "later"}],
)  # fmt: skip
def test_what_is_no_desired_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        read_desired(body)


# -- over a broker --------------------------------------------------------------------------------------------------

broker_test = [needs_mosquitto, pytest.mark.process]


def desired(ear: Ear, ver: int, /, **wanted: Any) -> None:
    exp = wanted.pop("exp", None)
    names = {name.replace("__", "/"): value for name, value in wanted.items()}
    body: dict[str, Any] = {"ver": ver, "set": names, "by": "mes", "ts": round(time.time() * 1000)}
    ear.say("desired", body if exp is None else body | {"exp": exp}, retain=True)


def acked(ear: Ear, ver: int) -> dict[str, Any]:
    def newest() -> Any:
        ack = ear.last("desired/ack")
        return ack and ack.body and ack.body["ver"] == ver

    ear.wait(lambda: bool(newest()), f"the acknowledgement of {ver}")
    return ear.wait_for("desired/ack")


class Test:
    pytestmark = broker_test

    def test_it_is_applied_once_and_acknowledged_by_name(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        doors = Doors(
            lambda ask: Outcome(ask.loop is None, error=None if ask.loop is None else "loop oven is off")
        )
        with Ear(mosquitto.url) as ear:
            desired(ear, 3, press1__target=185, loop__oven__setpoint=185, loop__oven__gain=1)
            ear.sync()
            with Agent(make_config(mosquitto.url), tmp_path, doors=doors) as agent:
                ack = acked(ear, 3)
                assert ack["applied"] == ["press1/target"]
                assert ack["rejected"]["loop/oven/setpoint"] == "loop oven is off"
                assert "setpoint and mode" in ack["rejected"]["loop/oven/gain"]
                assert [ask.source for ask in doors.asked] == ["desired", "desired"]
                wait_until(lambda: "command" in {e.name for e in agent.events}, "an event of what was done")
                assert sum(e.name == "command_refused" for e in agent.events) == 2
                desired(ear, 4, press1__target=190)
                assert acked(ear, 4)["applied"] == ["press1/target"]
            assert len(doors.asked) == 3
        with Ear(mosquitto.url) as late:
            assert acked(late, 4)["applied"] == ["press1/target"], "the acknowledgement is retained"

    def test_a_broker_that_forgot_it_gets_the_acknowledgement_again(self, tmp_path: Path) -> None:
        with (
            Mosquitto(tmp_path) as broker,
            TcpProxy(broker.port) as proxy,
            Agent(make_config(proxy.url), tmp_path) as agent,
        ):
            with Ear(broker.url) as ear:
                agent.wait_online()
                desired(ear, 5, press1__target=1)
                acked(ear, 5)
            broker.kill()
            broker.start()
            with Ear(broker.url) as ear:
                assert acked(ear, 5)["applied"] == ["press1/target"]
                assert ear.of("desired") == [ear.last("desired/ack")]  # what was wished is forgotten

    def test_a_version_that_was_handled_is_never_applied_again(self, tmp_path: Path) -> None:
        with Mosquitto(tmp_path) as broker, TcpProxy(broker.port) as proxy, Ear(broker.url) as ear:
            desired(ear, 5, press1__target=1)
            with Agent(make_config(proxy.url), tmp_path) as agent:
                acked(ear, 5)
                proxy.cut()
                acks = len(ear.of("desired"))
                ear.wait(lambda: len(ear.of("desired")) > acks, "the acknowledgement after the reconnect")
                assert len(agent.doors.asked) == 1
            with Agent(make_config(proxy.url), tmp_path, boot="22222222") as agent:
                agent.wait_online()
                ear.wait(
                    lambda: ear.wait_for("desired/ack")["boot"] == "22222222",
                    "the acknowledgement after a restart",
                )
                assert acked(ear, 5)["applied"] == ["press1/target"]
                desired(ear, 4, press1__target=2)
                acks = len(ear.of("desired"))
                ear.wait(lambda: len(ear.of("desired")) >= acks + 2, "an answer to the older version")
                assert ear.wait_for("desired/ack")["ver"] == 5
                assert agent.doors.asked == []

    def test_a_desired_of_an_outage_is_applied_at_the_reconnect(self, tmp_path: Path) -> None:
        with (
            Mosquitto(tmp_path) as broker,
            TcpProxy(broker.port) as proxy,
            Ear(broker.url) as ear,
            Agent(make_config(proxy.url), tmp_path) as agent,
        ):
            agent.wait_online()
            proxy.refuse()
            agent.wait_offline()
            desired(ear, 1, press1__target=1)
            ear.sync()
            proxy.accept()
            assert acked(ear, 1)["applied"] == ["press1/target"]

    def test_past_its_expiry_each_name_is_rejected(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        with Agent(make_config(mosquitto.url), tmp_path) as agent, Ear(mosquitto.url) as ear:
            agent.wait_online()
            desired(ear, 1, press1__target=1, loop__oven__setpoint=2, exp=round(time.time() * 1000) - 1)
            ack = acked(ear, 1)
            assert ack["rejected"] == {"press1/target": "expired", "loop/oven/setpoint": "expired"}
            desired(ear, 2, press1__target=1, exp=10**400)  # a whole number, though no float
            assert acked(ear, 2)["applied"] == ["press1/target"]
            assert len(agent.doors.asked) == 1

    def test_it_needs_commands_enabled(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        with Ear(mosquitto.url) as ear:
            desired(ear, 1, press1__target=1)
            with Agent(with_commands(make_config(mosquitto.url), enabled=False), tmp_path) as agent:
                assert acked(ear, 1)["rejected"] == {"press1/target": "commands are not enabled"}
                assert agent.doors.asked == []
            with Agent(make_config(mosquitto.url), tmp_path) as agent:
                ear.wait(
                    lambda: acked(ear, 1)["applied"] == ["press1/target"], "it to be applied when enabled"
                )

    def test_only_a_signed_one_is_taken_with_a_key(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        config = with_commands(make_config(mosquitto.url), hmac=Secret("plain", "key"))
        with Agent(config, tmp_path) as agent, Ear(mosquitto.url) as ear:
            agent.wait_online()
            desired(ear, 9, press1__target=1)
            agent.wait_event("command_refused")
            text = json.dumps({"ver": 1, "set": {"press1/target": 2}})
            ear.say("desired", signed(f"{BASE}/desired", text, b"key"), retain=True)
            assert acked(ear, 1)["applied"] == ["press1/target"]
            assert [ask.value for ask in agent.doors.asked] == [2]

    def test_a_local_change_wins_and_is_named(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        with Agent(make_config(mosquitto.url), tmp_path) as agent, Ear(mosquitto.url) as ear:
            agent.wait_online()
            desired(ear, 1, press1__target=1, loop__oven__setpoint=2)
            acked(ear, 1)
            agent.cloud.put(Superseded("press1/count"))
            agent.cloud.put(Superseded("press1/target"))
            ear.wait(lambda: acked(ear, 1)["superseded"] != [], "it to be named")
            assert acked(ear, 1)["superseded"] == ["press1/target"]
        with Agent(make_config(mosquitto.url), tmp_path, boot="22222222"), Ear(mosquitto.url) as ear:
            ear.wait(lambda: ear.wait_for("desired/ack")["boot"] == "22222222", "the next run")
            assert acked(ear, 1)["superseded"] == ["press1/target"]

    def test_until_the_clock_is_set_nothing_is_applied(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        clock = SetClock()
        with Ear(mosquitto.url) as ear:
            desired(ear, 1, press1__target=1)
            with Agent(make_config(mosquitto.url), tmp_path, clock=clock) as agent:
                assert acked(ear, 1)["rejected"] == {"press1/target": "clock"}
                now = round(clock.wall() * 1000)
                ear.say(
                    "cmd/write",
                    {"id": "w1", "ts": now, "exp": now + 9000, "tag": "press1/target", "value": 1},
                )
                assert ear.wait_for("resp/w1")["error"] == "clock"
                assert agent.doors.asked == []
                assert ear.wait_for("state")["clock"] == "unsynced" and "mono" in ear.wait_for("state")
                agent.read()
                ear.wait(lambda: ear.counts() == [1], "a reading")
                [data] = ear.of("data")
                assert data.body and data.body["groups"][0]["mono"][0] == pytest.approx(clock.mono(), abs=30)
                clock.set(time.time())
                ear.wait(lambda: acked(ear, 1)["applied"] == ["press1/target"], "it to be applied")

    @pytest.mark.usefixtures("spills_soon")
    def test_what_waits_is_put_right_when_the_clock_comes(self, tmp_path: Path) -> None:
        clock = SetClock()
        with (
            Mosquitto(tmp_path) as broker,
            TcpProxy(broker.port) as proxy,
            Ear(broker.url) as ear,
            Agent(make_config(proxy.url), tmp_path, clock=clock) as agent,
        ):
            agent.wait_online()
            proxy.refuse()
            agent.wait_offline()
            agent.read()
            wait_until(lambda: agent.cloud.status()["outbox"]["batches"] == 1, "the batch to be closed")
            time.sleep(1.5)  # it goes to disk
            agent.read()
            before = time.time()
            clock.set(before)
            proxy.accept()
            ear.wait(lambda: sorted(ear.counts()) == [1, 2], "both readings")
        for one in ear.of("backfill"):
            assert one.body is not None
            [t] = one.body["groups"][0]["t"]
            assert "mono" not in one.body and "mono" not in one.body["groups"][0]
            assert before - 30 < t / 1000 < before + 5


@dataclass
class SetClock:
    """A board's clock that begins in 1970 and is set later; monotonic time is the machine's."""

    offset: float = field(default_factory=lambda: 100.0 - time.monotonic())

    def mono(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.monotonic() + self.offset

    def set(self, wall: float) -> None:
        assert wall * 1000 > RELEASED_MS
        self.offset = wall - time.monotonic()

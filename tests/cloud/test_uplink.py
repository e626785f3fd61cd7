"""The link: versions, transports, TLS, reasons in words, back-off."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cloud import uplink as module
from agent.cloud.reasons import words
from agent.cloud.uplink import Acked, Connected, Disconnected, Message, Uplink
from agent.config.types import MqttConfig, Secret
from agent.runtime.clock import Clock, FakeClock, SystemClock
from tests.brokers import Mosquitto, needs_mosquitto
from tests.cloud.harness import Agent, Ear, make_config, wait_until
from tests.cloud.transports import TlsFront, rumqttd, tls_broker
from tests.ports import free_port

WILL = ("edgetwin/v1/line4/state", b"{}")


class Link:
    """An Uplink with the queue that the worker has for it."""

    def __init__(self, config: MqttConfig, clock: Clock | None = None, **more: Any) -> None:
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.got: list[Any] = []
        self.clock = clock or SystemClock()
        self.uplink = Uplink(
            config,
            client_id="line4",
            will=WILL,
            filters=["edgetwin/v1/line4/cmd/+"],
            post=self.got.append,
            wake=self.queue.put,
            clock=self.clock,
            rng=random.Random(1),
            **more,
        )

    def turn(self, timeout: float = 0.02) -> None:
        self.uplink.tick(self.clock.mono())
        with contextlib.suppress(queue.Empty):
            self.uplink.handle(self.queue.get(timeout=timeout))

    def until(self, kind: type, patience: float = 20.0) -> Any:
        """Turns until something of this kind was posted; returns the newest of it."""
        before = len(self.got)

        def there() -> bool:
            self.turn()
            return any(isinstance(one, kind) for one in self.got[before:])

        wait_until(there, kind.__name__, patience)
        return next(one for one in reversed(self.got) if isinstance(one, kind))

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.uplink.close(politely=True)


def tls(broker: Mosquitto, **more: Any) -> MqttConfig:
    return MqttConfig(url=f"mqtts://127.0.0.1:{broker.port}", **more)


broker_test = [needs_mosquitto, pytest.mark.process]


class TestConnecting:
    pytestmark = broker_test

    def test_mqtt_5_first(self, mosquitto: Mosquitto) -> None:
        with Link(MqttConfig(url=mosquitto.url)) as link:
            link.until(Connected)
            assert link.uplink.protocol == 5 and link.uplink.state == "online" and link.uplink.error is None
            link.uplink.publish("edgetwin/v1/line4/cmd/read", b"{}", retain=False, token="mine")
            assert link.uplink.unacked == 1
            assert link.until(Acked) == Acked("mine", None)
            assert Message("edgetwin/v1/line4/cmd/read", b"{}", False) in link.got or link.until(Message)

    def test_a_unix_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "broker.sock"
        port = free_port()
        listener = f"listener {port} 127.0.0.1\nlistener 0 {path}"
        with Mosquitto(tmp_path, port, listener=listener), Link(MqttConfig(url=f"unix://{path}")) as link:
            link.until(Connected)

    def test_user_and_password(self, tmp_path: Path) -> None:
        passwords = tmp_path / "passwords"
        subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line4", "secret"], check=True)
        passwords.chmod(0o600)
        config_lines = [f"password_file {passwords}"]
        with Mosquitto(tmp_path, config_lines=config_lines, anonymous=False) as broker:
            good = MqttConfig(url=broker.url, username="line4", password=Secret("plain", "secret"))
            with Link(good) as link:
                link.until(Connected)
            for wrong in (
                dataclasses.replace(good, password=Secret("plain", "wrong")),
                dataclasses.replace(good, username=None, password=None),
            ):
                with Link(wrong) as link:
                    assert "user name" in link.until(Disconnected).reason
                    assert link.uplink.protocol == 5, "that is no reason to try another version"

    def test_a_password_that_is_not_there_is_told_by_its_place(self, mosquitto: Mosquitto) -> None:
        config = MqttConfig(url=mosquitto.url, password=Secret("env", "EDGETWIN_TEST_NO_SUCH"))
        with Link(config) as link:
            assert "EDGETWIN_TEST_NO_SUCH" in link.until(Disconnected).reason


class TestTls:
    pytestmark = broker_test

    def test_with_a_ca_and_a_client_certificate(self, tmp_path: Path, pki: Path) -> None:
        with tls_broker(tmp_path, pki, client=True) as broker:
            config = tls(broker, ca=pki / "ca.pem", cert=pki / "client.pem", key=pki / "client.key")
            with Link(config) as link:
                link.until(Connected)

    @pytest.mark.parametrize(
        ("server", "ca", "said"),
        [
            ("server", "other.pem", "is mqtt.ca the certificate that signed it?"),
            ("stranger", "ca.pem", "mqtt.url must name the broker as its certificate does"),
            ("expired", "ca.pem", "expired"),
        ],
    )
    def test_why_a_certificate_is_not_accepted(
        self, tmp_path: Path, pki: Path, server: str, ca: str, said: str
    ) -> None:
        with tls_broker(tmp_path, pki, server=server) as broker, Link(tls(broker, ca=pki / ca)) as link:
            reason = link.until(Disconnected).reason
            assert said in reason and "certificate" in reason
            assert link.uplink.protocol == 5

    def test_a_client_certificate_that_is_missing(self, tmp_path: Path, pki: Path) -> None:
        with tls_broker(tmp_path, pki, client=True) as broker, Link(tls(broker, ca=pki / "ca.pem")) as link:
            assert "client certificate" in link.until(Disconnected).reason
            wait_until(
                lambda: link.until(Disconnected).reason.find("mqtt.cert and mqtt.key") > 0, "the TLS alert"
            )

    def test_a_client_certificate_that_has_expired(self, tmp_path: Path, pki: Path) -> None:
        with tls_broker(tmp_path, pki, client=True) as broker:
            config = tls(broker, ca=pki / "ca.pem", cert=pki / "expired.pem", key=pki / "expired.key")
            with Link(config) as link:
                wait_until(lambda: "expired" in link.until(Disconnected).reason, "the TLS alert")
                assert not link.uplink.online

    def test_a_key_of_another_certificate(self, tmp_path: Path, pki: Path) -> None:
        with tls_broker(tmp_path, pki, client=True) as broker:
            config = tls(broker, ca=pki / "ca.pem", cert=pki / "client.pem", key=pki / "expired.key")
            with Link(config) as link:
                assert "mqtt.key is not the key of mqtt.cert" in link.until(Disconnected).reason

    def test_a_ca_file_that_is_missing(self, tmp_path: Path, pki: Path) -> None:
        with tls_broker(tmp_path, pki) as broker, Link(tls(broker, ca=pki / "nothing.pem")) as link:
            assert link.until(Disconnected).reason.endswith("nothing.pem: No such file or directory")

    def test_a_plain_client_at_a_tls_port_and_the_other_way_round(
        self, tmp_path: Path, pki: Path, mosquitto: Mosquitto
    ) -> None:
        folder = tmp_path / "tls"
        folder.mkdir()
        with tls_broker(folder, pki) as broker, Link(MqttConfig(url=broker.url)) as link:
            assert "is it a TLS port" in link.until(Disconnected).reason
        with Link(MqttConfig(url=f"mqtts://127.0.0.1:{mosquitto.port}", ca=pki / "ca.pem")) as link:
            assert "no TLS with" in link.until(Disconnected).reason


class TestVersion311:
    """Against rumqttd's listener for 3.1.1, which only closes the connection at MQTT 5."""

    pytestmark = pytest.mark.process

    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[str]:
        with rumqttd(tmp_path, "v4") as port:
            yield f"mqtt://127.0.0.1:{port}"

    def test_it_is_tried_at_once(self, broker: str) -> None:
        with Link(MqttConfig(url=broker)) as link:
            link.until(Connected)
            assert link.uplink.protocol == "3.1.1"
            [failure] = [one for one in link.got if isinstance(one, Disconnected)]
            assert "before it was accepted" in failure.reason

    def test_bodies_too_large_for_it_are_made_smaller(self, broker: str, tmp_path: Path) -> None:
        """3.1.1 tells no limit: the broker closes the link at a large message, again and again."""
        config = make_config(broker, compress="never", batch=3.0)
        with Ear(broker) as ear, Agent(config, tmp_path) as agent:
            agent.wait_online()
            for _ in range(1700):
                agent.read()
            ear.wait(lambda: set(ear.counts()) == set(range(1, 1701)), "all readings", patience=40.0)
            assert ear.of("gap") == []


@pytest.mark.process
def test_websockets(tmp_path: Path) -> None:
    with rumqttd(tmp_path, "ws") as port, Link(MqttConfig(url=f"ws://127.0.0.1:{port}/mqtt")) as link:
        link.until(Connected)


@pytest.mark.process
class TestSecureWebsockets:
    """wss://, as brokers of clouds offer it at port 443: TLS ends in a front that passes the websocket on."""

    @contextlib.contextmanager
    def front(self, folder: Path, pki: Path, server: str = "server") -> Iterator[str]:
        with (
            rumqttd(folder, "ws") as port,
            TlsFront(port, pki / f"{server}.pem", pki / f"{server}.key") as front,
        ):
            yield f"wss://127.0.0.1:{front.port}/mqtt"

    def test_messages_pass_both_ways(self, tmp_path: Path, pki: Path) -> None:
        with self.front(tmp_path, pki) as url, Link(MqttConfig(url=url, ca=pki / "ca.pem")) as link:
            link.until(Connected)
            body = b"x" * 15_000
            link.uplink.publish("edgetwin/v1/line4/cmd/read", body, retain=False, token="mine")
            wait_until(lambda: link.turn() or {Acked, Message} <= set(map(type, link.got)), "both")
            assert Acked("mine", None) in link.got
            assert Message("edgetwin/v1/line4/cmd/read", body, False) in link.got

    @pytest.mark.parametrize(("server", "ca"), [("expired", "ca.pem"), ("server", "other.pem")])
    def test_a_certificate_that_is_not_accepted(
        self, tmp_path: Path, pki: Path, server: str, ca: str
    ) -> None:
        with (
            self.front(tmp_path, pki, server) as url,
            Link(MqttConfig(url=url, ca=pki / ca)) as link,
        ):
            assert "certificate" in link.until(Disconnected).reason
            assert not link.uplink.online


def test_a_broker_that_is_away_is_not_taken_for_an_old_one() -> None:
    """A port that accepts and closes (a load balancer whose broker restarts): 5 and 3.1.1 in turn, 5 in the end."""
    tried: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server, Link(MqttConfig(url=url_of(server))) as link:
        for _ in range(4):
            server.settimeout(0.01)
            while True:
                link.turn()
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    break
            with connection:
                hello = connection.recv(100)
                tried.append(hello[hello.index(b"MQTT") + 4])
            link.until(Disconnected)
    assert tried == [5, 4, 5, 4]


def test_tries_come_soon_for_a_minute_and_then_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    link = Link(MqttConfig(url="mqtt://127.0.0.1:1"), clock)
    dials: list[float] = []

    def dial(now: float) -> None:
        dials.append(now)
        link.uplink._tries += 1
        link.uplink._lost("nothing listens")

    monkeypatch.setattr(link.uplink, "_dial", dial)
    start = clock.mono()
    while clock.mono() < start + 3600:
        link.uplink.tick(clock.mono())
        clock.advance(0.05)
    waits = [(dials[i] - start, dials[i + 1] - dials[i]) for i in range(len(dials) - 1)]
    assert dials[0] == start
    assert all(wait <= 2.1 for at, wait in waits if at < 60), waits
    assert all(wait >= 0.2 for _, wait in waits), "never hammers"
    late = [wait for at, wait in waits if at > 200]
    assert all(55 <= wait <= 120.1 for wait in late) and len({round(wait) for wait in late}) > 3, (
        "with jitter"
    )


def test_a_link_that_is_cut_again_and_again_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    link = Link(MqttConfig(url="mqtt://127.0.0.1:1"), clock)
    dials: list[float] = []

    def dial(now: float) -> None:
        dials.append(now)
        link.uplink._tries += 1
        link.uplink.online, link.uplink._up_since = True, now
        clock.advance(1.0)
        link.uplink._lost("taken over", taken_over=True)

    monkeypatch.setattr(link.uplink, "_dial", dial)
    start = clock.mono()
    while clock.mono() < start + 1800:
        link.uplink.tick(clock.mono())
        clock.advance(0.05)
    assert len(dials) < 80
    assert dials[-1] - dials[-2] > 50


def test_notes_of_an_old_connection_are_ignored() -> None:
    link = Link(MqttConfig(url="mqtt://127.0.0.1:1"), FakeClock())
    link.uplink.handle(module.Note(-1, "closed", "old", 0))
    link.uplink.handle(module.Note(7, "message", Message("t", b"", False)))
    assert link.got == []


def test_a_refused_subscription_is_told(tmp_path: Path) -> None:
    link = Link(MqttConfig(url="mqtt://127.0.0.1:1"), FakeClock())
    link.uplink.handle(module.Note(0, "subscribed", "Not authorized"))
    assert link.got == [module.Deaf("Not authorized")]
    agent = Agent(make_config("mqtt://127.0.0.1:1"), tmp_path)
    agent.cloud._from_uplink(module.Deaf("Not authorized"))
    [event] = agent.events
    assert event.name == "subscribe_refused" and "Not authorized" in event.text
    agent.cloud.stop(0.0)


def test_a_link_that_ends_twice_at_large_messages_gets_smaller_ones() -> None:
    clock = FakeClock()
    link = Link(MqttConfig(url="mqtt://127.0.0.1:1"), clock)
    uplink = link.uplink

    def cut_at(size: int, *, after: float = 1.0, code: int = 0x80) -> int | None:
        uplink._up_since = clock.mono()
        clock.advance(after)
        uplink._inflight = {
            1: module._Sent(None, clock.mono(), 10),
            2: module._Sent(None, clock.mono(), size),
        }
        uplink._learn_limit(code)
        return uplink.max_packet

    assert cut_at(100_000) is None, "once may be chance"
    assert cut_at(90_000, after=60.0) is None, "a link that was steady"
    assert cut_at(100_000) is None
    assert cut_at(80_000) == 40_000
    assert cut_at(40_000) == 20_000
    assert cut_at(9_000) == module.LEAST_PACKET, "not down to nothing"
    assert cut_at(3_000) == module.LEAST_PACKET
    uplink._learnt_limit = None
    assert cut_at(50_000, code=module.PACKET_TOO_LARGE) == 25_000, "the broker says why"


def test_reasons_are_plain_words() -> None:
    port = free_port()
    with Link(MqttConfig(url=f"mqtt://127.0.0.1:{port}")) as link:
        assert link.until(Disconnected).reason == f"nothing listens on 127.0.0.1:{port}"
    url = "mqtt://broker.example:1883"
    assert words(socket.gaierror(-2, "x"), url) == "the name broker.example:1883 cannot be resolved"
    assert words(TimeoutError(), url) == "broker.example:1883 does not answer"
    assert words(OSError(113, "No route to host"), url) == "broker.example:1883: No route to host"
    missing = FileNotFoundError(2, "No such file or directory")
    assert words(missing, "unix:///run/none.sock") == "/run/none.sock: No such file or directory"


def url_of(server: socket.socket) -> str:
    return f"mqtt://127.0.0.1:{server.getsockname()[1]}"

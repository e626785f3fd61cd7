"""Keys of mqtt and commands: what they change in the bytes to the broker, in the bodies and in what is taken."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.cloud import commands
from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.cloud.publisher import Publisher
from agent.cloud.store import Store
from agent.cloud.topics import Topics
from agent.config.secrets import reveal
from agent.config.types import Config
from agent.runtime.clock import SystemClock
from agent.twin.layout import build_layout
from tests.brokers import Mosquitto, free_port
from tests.cloud.harness import Agent, Ear, snapshot, wait_until
from tests.keys.table import configured, effect

PRESS = {
    "url": "tcp://127.0.0.1:502",
    "tags": {
        "temperature": {"holding": 0, "type": "float32"},
        "count": {"holding": 2, "type": "uint32"},
    },
}


def plant(mqtt: dict[str, Any], *, predict: Any = "off", **sections: Any) -> Config:
    """One device, press1, with these keys of mqtt."""
    tree = {"devices": {"press1": PRESS}, "mqtt": mqtt, "predict": predict, **sections}
    return configured(tree, without=("loops",))


# -- the first packet -----------------------------------------------------------------------------------------------


class Broker:
    """Takes one connection, through TLS where there is a context, and keeps what its CONNECT packet says."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(20.0)
        self._context = context
        self.port: int = self._server.getsockname()[1]
        self.peer: Any = None
        self.fault: str | None = None
        self.keepalive = 0
        self.fields: list[str] = []  # client id, topic of the will, user name, password: those there are
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        try:
            with connection:
                connection.settimeout(20.0)
                if self._context is not None:
                    with self._context.wrap_socket(connection, server_side=True) as wrapped:
                        self.peer = wrapped.getpeercert()
                        self._take(wrapped)
                else:
                    self._take(connection)
        except OSError as error:
            self.fault = str(error)
        finally:
            self._server.close()

    def _take(self, connection: socket.socket) -> None:
        data = connection.recv(65536)
        assert data[0] == 0x10
        at, _ = _number(data, 1)
        name, at = _text(data, at)
        assert name == b"MQTT" and data[at] == 5
        flags = data[at + 1]
        (self.keepalive,) = struct.unpack_from(">H", data, at + 2)
        size = _number(data, at + 4)
        at = size[0] + size[1]
        client, at = _text(data, at)
        found = [client]
        if flags & 4:
            at, size_of_properties = _number(data, at)
            topic, at = _text(data, at + size_of_properties)
            _, at = _text(data, at)
            found.append(topic)
        for _ in range((flags >> 7) + (flags >> 6 & 1)):
            text, at = _text(data, at)
            found.append(text)
        self.fields = [text.decode() for text in found]

    def wait(self) -> Broker:
        self._thread.join(30.0)
        assert not self._thread.is_alive()
        return self


def _number(data: bytes, at: int) -> tuple[int, int]:
    """(place after it, value) of a variable byte integer."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return at, value


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from(">H", data, at)
    return data[at + 2 : at + 2 + size], at + 2 + size


def dialled(folder: Path, context: ssl.SSLContext | None = None, **keys: Any) -> Broker:
    """What a broker sees of the first connection of an agent with these keys of mqtt."""
    broker = Broker(context)
    scheme = "mqtt" if context is None else "mqtts"
    folder.mkdir(exist_ok=True)
    more = {key: keys.pop(key) for key in ("gateway",) if key in keys}
    config = plant({"url": f"{scheme}://127.0.0.1:{broker.port}", **keys}, **more)
    with Agent(config, folder):
        return broker.wait()


@effect("mqtt.url", "mqtt.root", "mqtt.client_id", "gateway")
def test_first_packet(tmp_path: Path) -> None:
    assert dialled(tmp_path / "a").fields == ["line4", "edgetwin/v1/line4/state"]
    assert dialled(tmp_path / "b", gateway="line5").fields == ["line5", "edgetwin/v1/line5/state"]
    assert dialled(tmp_path / "c", root="plant").fields == ["line4", "plant/v1/line4/state"]
    assert dialled(tmp_path / "d", client_id="me").fields == ["me", "edgetwin/v1/line4/state"]


@effect("mqtt.username", "mqtt.password")
def test_user(tmp_path: Path) -> None:
    got = dialled(tmp_path / "a", username="u", password="p").fields
    assert got == ["line4", "edgetwin/v1/line4/state", "u", "p"]
    assert dialled(tmp_path / "b", username="u").fields[2:] == ["u"]


@effect("mqtt.keepalive")
def test_keepalive(tmp_path: Path) -> None:
    assert dialled(tmp_path / "a").keepalive == 15
    assert dialled(tmp_path / "b", keepalive="40s").keepalive == 40


SECRETS = [
    f"{owner}.{kind}"
    for owner in ("mqtt.password", "commands.hmac", "page.token")
    for kind in ("credential", "env", "file")
]


@effect(*SECRETS)
def test_places_of_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "name").write_text("from a credential\n")
    (tmp_path / "file").write_text("from a file\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("EDGETWIN_TEST_SECRET", "from the environment")
    places = {"credential": "name", "env": "EDGETWIN_TEST_SECRET", "file": str(tmp_path / "file")}
    texts = {"credential": "from a credential", "env": "from the environment", "file": "from a file"}
    for kind, place in places.items():
        secret = {kind: place}
        config = configured({"mqtt.password": secret, "commands.hmac": secret, "page": {"token": secret}})
        assert config.page is not None
        for found in (config.mqtt.password, config.commands.hmac, config.page.token):
            assert found is not None and reveal(found) == texts[kind]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two self-signed certificates for 127.0.0.1: server and client, each its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}",
                "-addext", "subjectAltName=IP:127.0.0.1",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )  # fmt: skip
    return folder


@effect("mqtt.ca", "mqtt.cert", "mqtt.key")
def test_certificates(certificates: Path, tmp_path: Path) -> None:
    def server() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.load_verify_locations(certificates / "client.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    ca = {"ca": str(certificates / "server.pem")}
    own = {"cert": str(certificates / "client.pem"), "key": str(certificates / "client.key")}
    assert dialled(tmp_path / "a", server()).fields == [], "nobody known signed the broker's certificate"
    trusted = dialled(tmp_path / "b", server(), **ca)
    assert trusted.fields and not trusted.peer
    shown = dialled(tmp_path / "c", server(), **ca, **own)
    assert shown.fields and shown.peer["subject"] == ((("commonName", "client"),),)


# -- retained bodies ------------------------------------------------------------------------------------------------


class Published:
    """The publisher on a time of the test's own, `seconds` long, with the twin's value rising by 1 each second."""

    def __init__(self, folder: Path, seconds: int, *, rising: float = 1.0, **keys: Any) -> None:
        tag = {"holding": 0, "type": "float32", "deadband": keys.pop("deadband", 0)}
        self.config = configured(
            {
                "devices": {"press1": {"url": PRESS["url"], "tags": {"temperature": tag}}},
                "mqtt": keys,
                "predict": {"horizon": [1, 5]},
            },
            without=("loops",),
        )
        folder.mkdir(exist_ok=True)
        self.topics = Topics(self.config.mqtt.root, "line4")
        outbox = Outbox(folder, self.config.mqtt.outbox, ("press1",), wall_ms=lambda: 1_800_000_000_000)
        self.now = 0.0
        layout = build_layout(self.config)
        stamp = Stamp("0badcafe", lambda t: round(1000 * t))
        publisher = Publisher(self.config, self.topics, layout, outbox, lambda: stamp, lambda: self.now)
        self.sent: list[tuple[float, str, bytes]] = []
        publisher.connected(0.0, {})
        for second in range(seconds):
            self.now = float(second)
            shown = snapshot(layout, self.now, 20.0 + rising * second)
            publisher.snapshot = dataclasses.replace(shown, loops={}, loops_of={})
            publisher.due(self.now, dict, lambda device: 0)
            self.sent += [(self.now, out.topic, out.body) for out in publisher.queue]
            publisher.queue.clear()
        outbox.close()

    def times(self, kind: str) -> list[float]:
        topic = self.topics.state if kind == "state" else self.topics.of(kind, "press1")
        return [at for at, name, _ in self.sent if name == topic]

    def first(self, kind: str) -> bytes:
        return next(body for _, name, body in self.sent if name == self.topics.of(kind, "press1"))


@effect("mqtt.twin_every")
def test_twin_every(tmp_path: Path) -> None:
    assert Published(tmp_path / "a", 21).times("twin") == [0, 5, 10, 15, 20]
    assert Published(tmp_path / "b", 21, twin_every="10s").times("twin") == [0, 10, 20]


@effect("mqtt.forecast_every")
def test_forecast_every(tmp_path: Path) -> None:
    assert Published(tmp_path / "a", 61).times("forecast") == [0, 30, 60]
    assert Published(tmp_path / "b", 61, forecast_every="20s").times("forecast") == [0, 20, 40, 60]


@effect("mqtt.full_every")
def test_full_every(tmp_path: Path) -> None:
    usual = Published(tmp_path / "a", 61, rising=0.0)
    assert usual.times("twin") == usual.times("state") == [0, 60]
    often = Published(tmp_path / "b", 61, rising=0.0, full_every="30s")
    assert often.times("twin") == often.times("state") == [0, 30, 60]


@effect("devices.*.tags.*.deadband")
def test_deadband(tmp_path: Path) -> None:
    assert Published(tmp_path / "a", 31).times("twin") == [0, 5, 10, 15, 20, 25, 30]
    assert Published(tmp_path / "b", 31, deadband=12).times("twin") == [0, 13, 26]


# -- data -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(folder: Path, **keys: Any) -> Iterator[tuple[Agent, Ear]]:
    """An agent on a broker of its own, and a central side that hears it."""
    folder.mkdir(exist_ok=True)
    with Mosquitto(folder) as broker, Ear(broker.url) as ear:
        config = plant({"url": broker.url, "outbox": {"min_free": "1B"}, **keys})
        ear.sync()
        with Agent(config, folder) as agent:
            agent.wait_online()
            yield agent, ear


@effect("mqtt.batch")
def test_batch(tmp_path: Path) -> None:
    def readings_per_message(batch: str) -> float:
        with reading(tmp_path / batch, batch=batch) as (agent, ear):
            agent.run_for(2.5, every=0.05)
            ear.wait(lambda: len(ear.of("data")) > 1, "two batches")
            return len(ear.counts()) / len(ear.of("data"))

    assert readings_per_message("1s") > 2 * readings_per_message("200ms")


@effect("mqtt.flat")
def test_flat(tmp_path: Path) -> None:
    with reading(tmp_path / "flat", flat=True, batch="100ms") as (agent, ear):
        agent.read()
        assert ear.wait_for("flat/press1")["temperature"] == 20.5
    with reading(tmp_path / "not", batch="100ms") as (agent, ear):
        agent.read()
        ear.wait(lambda: bool(ear.of("data")), "the batch")
        ear.listen(0.3)
        assert ear.of("flat") == []


@effect("mqtt.compress")
@pytest.mark.parametrize(
    ("compress", "packed"), [("never", set()), ("backfill", {"backfill"}), ("all", {"data", "backfill"})]
)
def test_compress(compress: str, packed: set[str], tmp_path: Path) -> None:
    """Of a batch that waited for the broker and one that came live."""
    port, raw = free_port(), dict[str, bytes]()
    more = {"batch": "500ms", "compress": compress, "outbox": {"min_free": "1B", "batch": "500ms"}}
    with Agent(plant({"url": f"mqtt://127.0.0.1:{port}", **more}), tmp_path) as agent:
        for _ in range(60):
            agent.read()
        wait_until(lambda: agent.cloud.status()["outbox"]["batches"] > 0, "a batch that waits")
        with Mosquitto(tmp_path, port):
            listener = paho.Client(CallbackAPIVersion.VERSION2)
            listener.on_message = lambda _c, _u, message: raw.update({message.topic: bytes(message.payload)})
            listener.connect("127.0.0.1", port)
            for kind in ("data", "backfill"):
                listener.subscribe(f"edgetwin/v1/line4/{kind}/press1", qos=1)
            listener.loop_start()
            agent.wait_online()
            end = time.monotonic() + 30
            while len(raw) < 2 and time.monotonic() < end:
                for _ in range(60):
                    agent.read()
                time.sleep(0.2)
            listener.disconnect()
            listener.loop_stop()
    bodies = {topic.split("/")[3]: body for topic, body in raw.items()}
    assert bodies.keys() == {"data", "backfill"}
    assert {kind for kind, body in bodies.items() if body[0] == 0x78} == packed


# -- outbox ---------------------------------------------------------------------------------------------------------


class Kept:
    """An outbox on a time of the test's own (ms UTC), and what it holds."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.config = plant({"outbox": {"min_free": "1B", **keys}}).mqtt.outbox
        folder.mkdir(exist_ok=True)
        self.ms = 1_800_000_000_000
        self.outbox = Outbox(folder, self.config, ("press1",), wall_ms=lambda: self.ms)
        self.store = Store(self.outbox, self.config)

    def batch(self, readings: int = 1) -> Batch:
        """One more: 1,000 bytes that no compression makes smaller."""
        body = json.dumps(os.urandom(500).hex()).encode()
        return Batch("press1", self.outbox.next_seq("press1"), self.ms, readings, body, "0badcafe", True)

    def spill(self, count: int) -> Kept:
        for _ in range(count):
            assert self.outbox.spill([self.batch()])
        return self

    def seqs(self) -> list[int]:
        return [one.seq for _, one in self.outbox.oldest(1000)]


@effect("mqtt.outbox.max_size")
def test_max_size(tmp_path: Path) -> None:
    assert len(Kept(tmp_path / "a").spill(40).seqs()) == 40
    small = Kept(tmp_path / "b", max_size="10KiB").spill(40)
    assert 5 < len(small.seqs()) < 25 and small.seqs()[-1] == 40
    assert {gap.reason for gap in small.outbox.gaps()} == {"size"}


@effect("mqtt.outbox.max_age")
def test_max_age(tmp_path: Path) -> None:
    def left(folder: Path, **keys: Any) -> list[int]:
        kept = Kept(folder, **keys).spill(1)
        kept.ms += 3_600_000
        return kept.spill(1).seqs()

    assert left(tmp_path / "a") == [1, 2]
    assert left(tmp_path / "b", max_age="30m") == [2]


@effect("mqtt.outbox.min_free")
def test_min_free(tmp_path: Path) -> None:
    assert Kept(tmp_path / "a").spill(3).seqs() == [1, 2, 3]
    greedy = Kept(tmp_path / "b", min_free="100000GiB").spill(3)
    assert greedy.seqs() == [] and {gap.reason for gap in greedy.outbox.gaps()} == {"disk"}


@effect("mqtt.outbox.durable")
def test_durable(tmp_path: Path) -> None:
    for durable, on_disk in ((False, []), (True, [1])):
        kept = Kept(tmp_path / str(durable), durable=durable)
        kept.store.add([kept.batch()], online=True, now=0.0)
        assert kept.seqs() == on_disk


@effect("mqtt.outbox.keep")
def test_keep(tmp_path: Path) -> None:
    for keep, span in (("0s", None), ("1h", (1, 1))):
        kept = Kept(tmp_path / keep, keep=keep).spill(1)
        kept.outbox.ack([("press1", 1)])
        assert kept.seqs() == [] and kept.outbox.span("press1", 1, 9) == span


@effect("mqtt.outbox.rate")
def test_rate(tmp_path: Path) -> None:
    for rate, first_second in ((20_000, 30), (100, 10)):
        kept = Kept(tmp_path / str(rate), rate=rate)
        for _ in range(30):
            assert kept.outbox.spill([kept.batch(readings=10)])
        sent = 0
        while kept.store.next_disk(0.0) is not None:
            sent += 1
        assert sent == first_second


@effect("mqtt.outbox.batch")
def test_outbox_batch(tmp_path: Path) -> None:
    """Without a broker; the time of the agent runs thirty times as fast as ours."""

    class Fast(SystemClock):
        def mono(self) -> float:
            return 30 * super().mono()

    def batches(batch: str) -> int:
        folder = tmp_path / batch
        folder.mkdir()
        url = f"mqtt://127.0.0.1:{free_port()}"
        config = plant({"url": url, "outbox": {"min_free": "1B", "batch": batch}})
        with Agent(config, folder, clock=Fast()) as agent:
            agent.run_for(4.0, every=0.02)
            found: int = agent.cloud.status()["outbox"]["batches"]
            return found

    assert batches("5s") > 2 * max(1, batches("40s"))


# -- commands -------------------------------------------------------------------------------------------------------


def judged(config: Config, *, age: float = 0.0) -> str:
    """What becomes of a command that is so many seconds old."""
    now = 1_800_000_000_000
    body = {"id": "one", "ts": now - round(1000 * age), "exp": now + 60_000}
    try:
        commands.judge("status", body, retained=False, config=config.commands, now_ms=now, synced=True)
    except commands.Refused as refused:
        return refused.reason
    return "taken"


@effect("commands.enabled")
def test_enabled() -> None:
    assert judged(configured()) == "commands are not enabled"
    assert judged(configured({"commands.enabled": True})) == "taken"


@effect("commands.skew")
def test_skew() -> None:
    on = {"commands.enabled": True}
    assert judged(configured(on), age=31.0) == "skew"
    assert judged(configured(on | {"commands.skew": "60s"}), age=31.0) == "taken"


@effect("commands.hmac")
def test_hmac(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    keys = {"enabled": True, "hmac": {"file": str(tmp_path / "key")}}

    def answer(sections: dict[str, Any], folder: Path, *, signed: bool) -> bool:
        folder.mkdir()
        with Mosquitto(folder) as broker, Ear(broker.url) as ear:
            config = plant({"url": broker.url, "outbox": {"min_free": "1B"}}, commands=sections)
            ear.sync()
            with Agent(config, folder) as agent:
                agent.wait_online()
                now = round(1000 * time.time())
                body: dict[str, Any] = {"id": "one", "ts": now, "exp": now + 60_000}
                topic = "edgetwin/v1/line4/cmd/status"
                if signed:
                    text = json.dumps(body)
                    sig = hmac.new(b"secret", f"{topic}\n{text}".encode(), hashlib.sha256).hexdigest()
                    body = {"p": text, "sig": sig}
                ear.say("cmd/status", body)
                ear.wait(lambda: bool(ear.of("event")), "its audit")
                ear.listen(0.3)
                answers = [one.body for one in ear.of("resp") if one.body and one.body["id"] == "one"]
                return any(one["ok"] for one in answers)

    assert answer({"enabled": True}, tmp_path / "a", signed=False)
    assert not answer(keys, tmp_path / "b", signed=False)
    assert answer(keys, tmp_path / "c", signed=True)

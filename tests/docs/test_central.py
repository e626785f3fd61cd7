"""What docs/central.md shows, done: its broker configuration, its bridge, its signed command."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.cloud.commands import Refused, judge, open_envelope, to_ask
from agent.cloud.payload import Stamp, flat_body
from agent.cloud.topics import Topics
from agent.config.types import CommandsConfig
from tests.brokers import PROGRAM, needs_mosquitto, wait_for_port
from tests.cloud.harness import Agent, make_config
from tests.docs.documents import DOCS, block
from tests.ports import free_port

pytestmark = [pytest.mark.process, needs_mosquitto]
PATIENCE = 20.0
CONSUMER = DOCS / "examples" / "consumer.py"


@contextlib.contextmanager
def running(config: str, folder: Path, port: int) -> Iterator[None]:
    """A mosquitto with this configuration."""
    path = folder / f"mosquitto-{port}.conf"
    path.write_text(config + ("user root\n" if os.geteuid() == 0 else ""), encoding="utf-8")
    assert PROGRAM is not None
    log = folder / f"log-{port}"
    with log.open("wb") as sink:
        process = subprocess.Popen([PROGRAM, "-c", str(path)], stdout=sink, stderr=sink)
    try:
        wait_for_port(port)
        yield
    except TimeoutError:
        pytest.fail(log.read_text(encoding="utf-8"))
    finally:
        process.kill()
        process.wait()


@dataclass
class Party:
    """A client with a certificate; `got` is what its subscriptions brought."""

    client: paho.Client
    got: list[tuple[str, bytes]] = field(default_factory=list)

    def publish(self, topic: str, *, retain: bool = False) -> str:
        """The broker's word: Success, No matching subscribers, Not authorized."""
        words: dict[int, str] = {}
        self.client.on_publish = lambda _c, _u, mid, code, _p: words.__setitem__(mid, str(code))
        info = self.client.publish(topic, b"{}", qos=1, retain=retain)
        end = time.monotonic() + PATIENCE
        while info.mid not in words and time.monotonic() < end:
            time.sleep(0.005)
        return words[info.mid]

    def may_write(self, topic: str) -> bool:
        return self.publish(topic) != "Not authorized"

    def wait_for(self, topic: str) -> None:
        end = time.monotonic() + PATIENCE
        while topic not in [one for one, _ in self.got]:
            assert time.monotonic() < end, f"{topic} does not come: {self.got}"
            time.sleep(0.005)


PARTIES: list[Party] = []


def connect(port: int, subscribe: str, name: str = "", pki: Path | None = None) -> Party:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
    if pki is not None:
        context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
        client.tls_set_context(context)
    party = Party(client)
    PARTIES.append(party)
    ready: list[int] = []
    client.on_message = lambda _c, _u, message: party.got.append((message.topic, message.payload))
    client.on_connect = lambda *_: client.subscribe(subscribe, options=SubscribeOptions(qos=1))
    client.on_subscribe = lambda *_: ready.append(1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    end = time.monotonic() + PATIENCE
    while not ready:
        assert time.monotonic() < end, f"{name} cannot connect"
        time.sleep(0.005)
    return party


@pytest.fixture(autouse=True)
def _all_leave() -> Iterator[None]:
    """A client that stays would push off the next one of its name."""
    yield
    while PARTIES:
        client = PARTIES.pop().client
        client.disconnect()
        client.loop_stop()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates, made by the document's own commands."""
    folder = tmp_path_factory.mktemp("pki")
    commands = block("central.md", "openssl ecparam")
    ca, one = commands.split("openssl ecparam -name prime256v1 -genkey -noout -out line4.key")
    one = "openssl ecparam -name prime256v1 -genkey -noout -out line4.key" + one
    scripts = [ca] + [one.replace("line4", name) for name in ("line4", "line5", "consumer", "operator")]
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    scripts.append(one.replace("line4", "broker").rstrip() + " -extfile names\n")
    for script in scripts:
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=folder, check=True, capture_output=True
        )
    return folder


@pytest.fixture(scope="module")
def ports(pki: Path) -> Iterator[tuple[int, int]]:
    """The document's broker: the port of the gateways, and that of the central side."""
    gateways, central = free_port(), free_port()
    acl = pki / "edgetwin.acl"
    acl.write_text(block("central.md", "# /etc/mosquitto/edgetwin.acl"), encoding="utf-8")
    config = block("central.md", "# /etc/mosquitto/mosquitto.conf")
    for old, new in {
        "listener 8883": f"listener {gateways} 127.0.0.1",
        "listener 8884": f"listener {central} 127.0.0.1",
        "/etc/mosquitto/certs": str(pki),
        "/etc/mosquitto/edgetwin.acl": str(acl),
        "/var/lib/mosquitto/": f"{pki}/",
    }.items():
        assert old in config
        config = config.replace(old, new)
    with running(config, pki, gateways):
        yield gateways, central


OWN = ("state", "meta/press1", "twin/press1", "forecast/press1", "data/press1", "data/press1/2", "backfill/press1",
       "gap/press1", "event/_gateway", "alarm/press1/silent", "flat/press1", "desired/ack", "resp/w-1")  # fmt: skip


def test_a_gateway_writes_its_own_topics_alone(pki: Path, ports: tuple[int, int]) -> None:
    gateway = connect(ports[0], "edgetwin/v1/line4/#", "line4", pki)
    consumer = connect(ports[1], "edgetwin/v1/#", "consumer", pki)
    assert [topic for topic in OWN if not gateway.may_write(f"edgetwin/v1/line4/{topic}")] == []
    assert [topic for topic in OWN if gateway.may_write(f"edgetwin/v1/line5/{topic}")] == []
    for topic in (
        "edgetwin/v1/line4/desired",
        "edgetwin/v1/line4/cmd/write",
        "edgetwin/v1/line4x/state",
        "other",
    ):
        assert not gateway.may_write(topic)
    consumer.wait_for("edgetwin/v1/line4/resp/w-1")
    assert [topic for topic, _ in consumer.got] == [f"edgetwin/v1/line4/{topic}" for topic in OWN]


def test_only_the_operator_gives_orders_and_only_its_gateway_hears_them(
    pki: Path, ports: tuple[int, int]
) -> None:
    line4 = connect(ports[0], "edgetwin/v1/#", "line4", pki)
    line5 = connect(ports[0], "edgetwin/v1/#", "line5", pki)
    consumer = connect(ports[1], "edgetwin/v1/#", "consumer", pki)
    operator = connect(ports[1], "edgetwin/v1/#", "operator", pki)
    for topic in ("edgetwin/v1/line4/desired", "edgetwin/v1/line4/cmd/write"):
        assert not consumer.may_write(topic)
        assert operator.may_write(topic)
    assert not operator.may_write("edgetwin/v1/line4/data/press1")
    assert operator.may_write("edgetwin/v1/line5/desired")
    line4.wait_for("edgetwin/v1/line4/cmd/write")
    line5.wait_for("edgetwin/v1/line5/desired")
    assert {topic for topic, _ in line4.got} == {"edgetwin/v1/line4/desired", "edgetwin/v1/line4/cmd/write"}
    assert {topic for topic, _ in line5.got} == {"edgetwin/v1/line5/desired"}


def test_the_product_and_the_consumer_have_all_they_need(
    pki: Path, ports: tuple[int, int], tmp_path: Path
) -> None:
    """Nothing that they publish or subscribe to is refused; a command comes through and is answered."""
    files = {name: pki / f"line4.{end}" for name, end in (("cert", "pem"), ("key", "key"))}
    config = make_config(f"mqtts://127.0.0.1:{ports[0]}", ca=pki / "ca.pem", flat=True, **files)
    database = tmp_path / "readings.db"
    environment = {"CA": pki / "ca.pem", "CERT": pki / "consumer.pem", "KEY": pki / "consumer.key"}
    log = (tmp_path / "log").open("wb")
    consumer = subprocess.Popen(
        [sys.executable, CONSUMER, f"mqtts://127.0.0.1:{ports[1]}", database, "db"],
        env={**os.environ, **{name: str(path) for name, path in environment.items()}},
        stdout=log,
        stderr=log,
    )
    operator = connect(ports[1], "edgetwin/v1/+/resp/#", "operator", pki)
    try:
        with Agent(config, tmp_path) as agent:
            agent.wait_online()
            agent.show()
            now = round(time.time() * 1000)
            command = {"id": "w-1", "ts": now, "exp": now + 60_000, "tag": "press1/target", "value": 7}
            operator.client.publish("edgetwin/v1/line4/cmd/write", json.dumps(command), qos=1)
            operator.wait_for("edgetwin/v1/line4/resp/w-1")
            end = time.monotonic() + PATIENCE
            written: list[Any] = []
            while not written:
                assert time.monotonic() < end and consumer.poll() is None, (tmp_path / "log").read_text()
                agent.run_for(0.2)
                with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(database) as db:
                    written = db.execute("SELECT * FROM reading, gateway WHERE status = 'online'").fetchall()
            assert agent.doors.asked[0].value == 7
            refused = [event for event in agent.events if "refused" in event.name]
            assert refused == []
    finally:
        consumer.kill()
        consumer.wait()
        log.close()


def test_without_a_certificate_nobody_comes_in(pki: Path, ports: tuple[int, int]) -> None:
    for port in ports:
        context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, "line4", protocol=paho.MQTTv5)
        client.tls_set_context(context)
        connected: list[int] = []
        client.on_connect = lambda *_, connected=connected: connected.append(1)
        with contextlib.suppress(OSError):
            client.connect("127.0.0.1", port)
            end = time.monotonic() + PATIENCE
            while client.loop(timeout=0.1) == paho.MQTT_ERR_SUCCESS and time.monotonic() < end:
                pass
        assert connected == [] and not client.is_connected()


def test_a_bridge_passes_readings_up_and_orders_down(tmp_path: Path) -> None:
    plant, centre = free_port(), free_port()
    plain = "listener {} 127.0.0.1\nallow_anonymous true\n"
    lines = block("central.md", "# bridge to the central broker").splitlines()
    bridge = "\n".join(
        line for line in lines if not line.startswith(("bridge_cafile", "bridge_cert", "bridge_key"))
    )
    assert "address central.example:8883" in bridge
    bridge = bridge.replace("central.example:8883", f"127.0.0.1:{centre}")
    with running(plain.format(centre), tmp_path, centre):
        above = connect(centre, "edgetwin/v1/#", "above")
        with running(f"{plain.format(plant)}{bridge}\n", tmp_path, plant):
            below = connect(plant, "edgetwin/v1/#", "below")
            end = time.monotonic() + PATIENCE
            while "edgetwin/v1/line4/state" not in [topic for topic, _ in above.got]:
                below.publish("edgetwin/v1/line4/state", retain=True)  # again until the bridge stands
                assert time.monotonic() < end
            for topic in OWN:
                if not topic.startswith(("flat", "forecast")):  # for those who look at the plant's broker
                    below.publish(f"edgetwin/v1/line4/{topic}")
                    above.wait_for(f"edgetwin/v1/line4/{topic}")
            above.publish("edgetwin/v1/line4/desired", retain=True)
            above.publish("edgetwin/v1/line4/cmd/write")
            below.wait_for("edgetwin/v1/line4/desired")
            below.wait_for("edgetwin/v1/line4/cmd/write")
            below.publish("edgetwin/v1/line4/resp/last")
            above.wait_for("edgetwin/v1/line4/resp/last")
            for party in (above, below):  # once each: nothing goes round in circles
                assert [topic for topic, _ in party.got].count("edgetwin/v1/line4/cmd/write") == 1


def test_the_signed_command_is_taken() -> None:
    names: dict[str, Any] = {}
    exec(block("central.md", "import hashlib, hmac, json"), names)
    key, topic, body = names["key"].encode(), names["topic"], names["body"].encode()
    inner = open_envelope(topic, body, key)
    command = judge(
        Topics("edgetwin", "line4").operation(topic) or "",
        inner,
        retained=False,
        config=CommandsConfig(enabled=True),
        now_ms=inner["ts"] + 1000,
        synced=True,
    )
    ask = to_ask(command, make_config("mqtt://127.0.0.1"), 0.0)
    assert (ask.key, ask.value, ask.by) == (("press1", "target"), 185, "mes")
    with pytest.raises(Refused, match="wrong signature"):
        open_envelope(topic.replace("line4", "line5"), body, key)
    shell = block("central.md", "openssl dgst -sha256 -hmac")
    environment = {**os.environ, **{name: names[name] for name in ("topic", "p", "key")}}
    said = subprocess.run(["bash", "-c", shell], env=environment, check=True, capture_output=True, text=True)
    assert said.stdout.split()[0] == names["sig"]


def test_telegraf_is_told_of_keys_that_the_flat_body_has() -> None:
    config = tomllib.loads(block("central.md", "inputs.mqtt_consumer"))["inputs"]["mqtt_consumer"][0]
    body = flat_body(Stamp("0badcafe", round), [], t=1.0, seq=1)
    assert body[config["json_time_key"]] == 1
    assert "v" in config["fieldexclude"]
    parsing = config["topic_parsing"][0]
    names = dict(zip(parsing["tags"].split("/"), Topics("edgetwin", "line4").of("flat", "press1").split("/")))
    assert (names["gateway"], names["device"]) == ("line4", "press1")

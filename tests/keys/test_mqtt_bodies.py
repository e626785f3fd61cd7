"""Keys of mqtt: what they change in the bodies, and how often these come."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.cloud.publisher import Publisher
from agent.cloud.topics import Topics
from agent.twin.layout import build_layout
from tests.brokers import Mosquitto
from tests.cloud.harness import Agent, Ear, snapshot, wait_until
from tests.keys.press import PRESS, plant
from tests.keys.table import configured, effect
from tests.ports import free_port


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

"""A small plant's configuration, records as the main loop makes them, and a central side that checks every body."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import jsonschema
import numpy as np

from agent.cloud.schema import mqtt_schemas
from agent.cloud.watch import Received, Subscriber, View
from agent.cloud.worker import Cloud
from agent.config.types import (
    CommandsConfig,
    Config,
    Device,
    MqttConfig,
    OutboxConfig,
    PredictConfig,
    Tag,
    Url,
    Write,
)
from agent.runtime.clock import Clock, SystemClock
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Ask, Event, Forecasts, HealthView, Layout, LoopView, Outcome, Row, Snapshot

PATIENCE = 20.0
BASE = "edgetwin/v1/line4"
TAGS = ("temperature", "count")


def make_config(url: str, *, devices: tuple[str, ...] = ("press1",), **mqtt: Any) -> Config:
    """Gateway line4 with devices of three tags each. `outbox` and others replace keys of `mqtt`."""
    outbox = {"batch": 0.2, "min_free": 0} | mqtt.pop("outbox", {})
    defaults = {"batch": 0.1, "twin_every": 0.2, "full_every": 60.0, "forecast_every": 0.5}
    return Config(
        path="config.yaml",
        gateway="line4",
        state_dir=None,
        mqtt=MqttConfig(url=url, outbox=OutboxConfig(**outbox), **(defaults | mqtt)),
        commands=CommandsConfig(enabled=True),
        devices={name: make_device(name) for name in devices},
        predict=PredictConfig(tags=tuple((name, "temperature") for name in devices), horizon=(1, 5)),
    )


def make_device(name: str) -> Device:
    return Device(
        name,
        Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502),
        tags={
            "temperature": Tag("temperature", "holding", 0, type="float32", unit="°C", range=(-40.0, 400.0)),
            "count": Tag("count", "holding", 2, type="uint32"),
            "target": Tag(
                "target", "holding", 4, type="int16", scale=Decimal("0.1"), write=Write(range=(0, 300))
            ),
        },
    )


def row(device: str, t: float, count: int, quality: bytes | None = None) -> Row:
    """One reply with a temperature and a counter."""
    values: list[Any] = [20.5, count] if quality is None else [None, None]
    return Row(device, TAGS, t, values, quality)


def snapshot(
    layout: Layout, t: float, value: float = 20.5, *, forecast: bool = True, mode: str = "auto"
) -> Snapshot:
    """A twin in which every tag has the same good value."""
    count = len(layout.keys)
    rows = np.array([i for i, key in enumerate(layout.keys) if key[1] == "temperature"])
    n = len(rows)
    return Snapshot(
        layout=layout,
        t=t,
        plain=[value] * count,
        value=np.full(count, value),
        quality=np.full(count, Quality.GOOD, dtype=np.uint8),
        stamps=np.full(count, t),
        total={},
        states=dict.fromkeys(layout.devices, "ok"),
        health={device: HealthView(0.9, {"temperature": 0.9}, ()) for device in layout.devices},
        loops={"oven": LoopView(mode, 180.0, value, 40.0, False, None)},
        loops_of={layout.devices[0]: ("oven",)},
        forecasts=Forecasts(
            h=(1, 5),
            rows=rows,
            t=np.full(n, t),
            y=np.full((n, 2), value),
            lo=np.full((n, 2), value - 1),
            hi=np.full((n, 2), value + 1),
            a=np.zeros((n, 3)),
            b=np.zeros(n),
        )
        if forecast
        else None,
    )


class Doors:
    """Stands for the main loop: keeps what it was asked and answers at once with `answer`."""

    def __init__(self, answer: Callable[[Ask], Outcome] | None = None) -> None:
        self.asked: list[Ask] = []
        self.silent = False
        self._answer = answer or (lambda ask: Outcome(True, applied=ask.value, readback=ask.value))

    def ask(self, ask: Ask) -> concurrent.futures.Future[Outcome]:
        self.asked.append(ask)
        future: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        if not self.silent:
            future.set_result(self._answer(ask))
        return future


class Agent:
    """A Cloud with what surrounds it in the daemon. Ends itself at the end of `with`."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        doors: Doors | None = None,
        clock: Clock | None = None,
        boot: str = "0badcafe",
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.layout = build_layout(config)
        self.doors = doors or Doors()
        self.events: list[Event] = []
        self.counts = dict.fromkeys(config.devices, 0)
        self.cloud = Cloud(
            config,
            state_dir=folder,
            layout=self.layout,
            boot=boot,
            clock=self.clock,
            ask=self.doors.ask,
            on_event=self.events.append,
        )

    def read(self, device: str = "press1") -> int:
        """One more reply of a device: its counter goes on by one. Returns it."""
        self.counts[device] += 1
        self.cloud.put(row(device, self.clock.mono(), self.counts[device]))
        return self.counts[device]

    def show(self, value: float = 20.5, **more: Any) -> None:
        """One more picture of the twin."""
        self.cloud.put(snapshot(self.layout, self.clock.mono(), value, **more))

    def run_for(self, seconds: float, every: float = 0.02) -> None:
        """Reads all devices at a steady pace for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for device in self.config.devices:
                self.read(device)
            time.sleep(every)

    def wait_online(self) -> None:
        wait_until(lambda: self.cloud.status()["uplink"]["state"] == "online", "online")

    def wait_offline(self) -> None:
        wait_until(lambda: self.cloud.status()["uplink"]["state"] != "online", "offline")

    def wait_event(self, name: str) -> Event:
        wait_until(lambda: any(event.name == name for event in self.events), f"event {name}")
        return next(event for event in self.events if event.name == name)

    @property
    def error(self) -> str:
        return self.cloud.status()["uplink"]["error"] or ""

    def __enter__(self) -> Agent:
        self.cloud.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cloud.stop(5.0)


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Returns once the condition holds; fails after `patience` seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"waited {patience:.0f} s in vain for: {what}"
        time.sleep(0.01)


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(mqtt_schemas()[kind])


def check(message: Received) -> None:
    """Fails for a body that is not as its schema says."""
    assert message.fault is None, message
    if message.body is None or message.kind == "cmd" or message.topic.endswith("/desired"):
        return  # not of the agent
    kind = "desired_ack" if message.topic.endswith("/desired/ack") else message.kind
    _validator(kind).validate(message.body)


class Ear:
    """A central system: every message it gets is checked against its schema and booked."""

    def __init__(self, url: str, **options: Any) -> None:
        self.subscriber = Subscriber(url, **options)
        self.view = View()
        self.heard: list[Received] = []

    def listen(self, timeout: float = 0.05) -> None:
        """Takes what has come."""
        for message in self.subscriber.messages(timeout):
            check(message)
            self.view.take(message)
            self.heard.append(message)

    def wait(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Listens until the condition holds."""
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, (
                f"waited {patience:.0f} s in vain for: {what}; heard {self.topics()}"
            )
            self.listen()

    def of(self, kind: str, device: str | None = None) -> list[Received]:
        return [one for one in self.heard if one.kind == kind and device in (None, one.device)]

    def last(self, topic: str) -> Received | None:
        """The newest message of a topic, below the gateway."""
        return next((one for one in reversed(self.heard) if one.topic == f"{BASE}/{topic}"), None)

    def wait_for(self, topic: str, patience: float = PATIENCE) -> dict[str, Any]:
        """The newest body of a topic, waiting for the first."""
        self.wait(lambda: self.last(topic) is not None, topic, patience)
        body = self.last(topic)
        assert body is not None and body.body is not None
        return body.body

    def topics(self) -> list[str]:
        return sorted({one.topic for one in self.heard})

    def counts(self, device: str = "press1") -> list[int]:
        """The counter values of a device's batches as they came in, doubled ones too."""
        return [
            value
            for one in self.heard
            if one.kind in ("data", "backfill") and one.device == device and one.body is not None
            for group in one.body["groups"]
            for value in group["c"].get("count", ())
        ]

    def sync(self) -> None:
        """Returns once the subscription holds: a body of its own has come back to it."""
        id_ = f"sync{len(self.heard)}"
        head = {"v": 1, "boot": "00000000", "ts": 0}
        nothing = {"applied": None, "readback": None, "error": None, "result": None}
        self.say(f"resp/{id_}", head | {"id": id_, "ok": True} | nothing)
        self.wait_for(f"resp/{id_}")

    def say(self, topic: str, body: Mapping[str, Any], *, retain: bool = False) -> None:
        self.subscriber.publish(f"{BASE}/{topic}", body, retain=retain)

    def command(self, op: str, id_: str, *, age: float = 0.0, valid: float = 30.0, **body: Any) -> None:
        now = round((time.time() - age) * 1000)
        self.say(f"cmd/{op}", {"id": id_, "ts": now, "exp": now + round(valid * 1000), "by": "test", **body})

    def __enter__(self) -> Ear:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.subscriber.close()


def with_commands(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, commands=dataclasses.replace(config.commands, **changes))


def as_json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def signed(topic: str, text: str, key: bytes) -> dict[str, str]:
    """The body that carries `text` to this topic with its signature."""
    return {"p": text, "sig": hmac.new(key, f"{topic}\n{text}".encode(), hashlib.sha256).hexdigest()}

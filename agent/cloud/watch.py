"""The central side: a subscriber that keeps the books of every gateway, and what `edgetwin watch` shows."""

from __future__ import annotations

import contextlib
import queue
import ssl
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.cloud import payload
from agent.cloud.books import Books
from agent.cloud.topics import parse

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


class NoBroker(Exception):
    """The broker cannot be reached or refuses; one line of plain words."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message: where it came from and its body (None for an emptied retained topic), or why it is none."""

    topic: str
    kind: str
    gateway: str
    device: str
    body: dict[str, Any] | None
    retained: bool
    fault: str | None = None


class Subscriber:
    """Subscribes to <root>/v1/<gateway or +>/#. Messages come out of `messages()` in the order of arrival.

    url: mqtt://[user:password@]host[:port], mqtts, ws, wss or unix. `share` names a shared subscription group (MQTT 5).
    Raises NoBroker when it cannot connect.
    """

    def __init__(
        self, url: str, *, root: str = "edgetwin", gateway: str | None = None, share: str | None = None
    ) -> None:
        self._root = root
        self._queue: queue.SimpleQueue[Received | str] = queue.SimpleQueue()
        filter_ = f"{root}/v1/{gateway or '+'}/#"
        self._filter = f"$share/{share}/{filter_}" if share else filter_
        self._client = self._connect(url)

    def _connect(self, url: str) -> paho.Client:
        failed: Exception | None = None
        for protocol in (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311):
            client, answers = self._make(url, protocol)
            parts = urlsplit(url)
            host, port = (
                (parts.path, 1883)
                if parts.scheme == "unix"
                else (parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORTS.get(parts.scheme, 1883))
            )
            try:
                client.connect(host, port, keepalive=15)
                client.loop_start()
                refused = answers.get(timeout=10)
            except (OSError, ValueError, queue.Empty) as error:
                with contextlib.suppress(Exception):
                    client.loop_stop()
                if not isinstance(error, queue.Empty):
                    raise NoBroker(f"{host}:{port}: {error}") from None
                failed = error
                continue
            if refused is None:
                return client
            client.loop_stop()
            failed = NoBroker(f"{host}:{port}: {refused}")
        raise NoBroker(str(failed) or f"{url} does not answer as an MQTT broker")

    def _make(
        self, url: str, protocol: MQTTProtocolVersion
    ) -> tuple[paho.Client, queue.SimpleQueue[str | None]]:
        parts = urlsplit(url)
        if parts.scheme not in (*DEFAULT_PORTS, "unix"):
            raise NoBroker(f"{url}: a broker's URL begins with mqtt://, mqtts://, ws://, wss:// or unix://")
        five = protocol == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"edgetwin-watch-{uuid.uuid4().hex[:8]}",
            protocol=protocol,
            clean_session=None if five else True,
            transport="unix"
            if parts.scheme == "unix"
            else "websockets"
            if parts.scheme in ("ws", "wss")
            else "tcp",
        )
        if parts.scheme in ("mqtts", "wss"):
            client.tls_set_context(ssl.create_default_context())
        if parts.username:
            client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        client.reconnect_delay_set(1, 1)  # back before a gateway sends what waited for the broker
        answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        client.on_connect = lambda _c, _u, _f, code, _p: self._on_connect(client, code, answers)
        client.on_message = lambda _c, _u, message: self._on_message(message)
        return client, answers

    def _on_connect(self, client: paho.Client, code: Any, answers: queue.SimpleQueue[str | None]) -> None:
        if not code.is_failure:
            client.subscribe(self._filter, qos=1)
        answers.put(str(code) if code.is_failure else None)

    def _on_message(self, message: Any) -> None:
        self._queue.put(read_message(message.topic, bytes(message.payload), bool(message.retain), self._root))

    def messages(self, timeout: float) -> Iterator[Received]:
        """What has come, waiting up to `timeout` seconds for the first one."""
        wait: float | None = timeout
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
                wait = None
                if isinstance(item, Received):
                    yield item

    def publish(self, topic: str, body: Mapping[str, Any], *, retain: bool = False) -> None:
        """Publishes one body at QoS 1."""
        self._client.publish(topic, payload.encode(body), qos=1, retain=retain)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.disconnect()
            self._client.loop_stop()


def read_message(topic: str, data: bytes, retained: bool, root: str) -> Received:
    """A message taken apart; what is no body of ours has a `fault`."""
    address = parse(topic, root)
    if address is None:
        return Received(topic, "", "", "", None, retained, "a foreign topic")
    device = address.rest[0] if address.rest else ""
    if not data:
        return Received(topic, address.kind, address.gateway, device, None, retained)
    try:
        body = payload.decode(data)
    except ValueError as error:
        return Received(topic, address.kind, address.gateway, device, None, retained, str(error))
    return Received(topic, address.kind, address.gateway, device, body, retained)


@dataclass
class View:
    """What is known of the gateways: the newest state and twins, and the books."""

    books: Books = field(default_factory=Books)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    boots: dict[str, str] = field(default_factory=dict)
    twins: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    faults: int = 0

    def take(self, message: Received) -> str | None:
        """Books one message; returns "doubled" for a batch that was there already, else None."""
        if message.fault is not None:
            self.faults += 1
            return None
        key = (message.gateway, message.device)
        if message.body is None:
            if message.kind == "twin":
                self.twins.pop(key, None)
            return None
        fresh = self.books.feed(message.kind, message.gateway, message.device, message.body)
        if message.kind == "state":
            self._take_state(message.gateway, message.body)
        elif message.kind == "twin":
            part = self.twins.get(key) if message.body.get("part", [1])[0] > 1 else None
            reported = {**(part or {}).get("reported", {}), **message.body["reported"]}
            self.twins[key] = {**message.body, "reported": reported}
        return None if fresh else "doubled"

    def _take_state(self, gateway: str, body: dict[str, Any]) -> None:
        """An `offline` of another boot than the one that is online is an old will: ignored."""
        if body["status"] == "online":
            self.boots[gateway] = body["boot"]
        elif self.boots.get(gateway, body["boot"]) != body["boot"]:
            return
        self.states[gateway] = body

    def lines(self) -> list[str]:
        """The live twins as text."""
        shown = []
        for gateway in sorted({*self.states, *(name for name, _ in self.twins)}):
            state = self.states.get(gateway, {})
            books = self.books
            shown.append(
                f"{gateway}  {state.get('status', 'unknown')}  {books.readings(gateway)} readings, "
                f"{books.lost(gateway)} lost, {books.doubled(gateway)} doubled, "
                f"{books.out_of_order(gateway)} out of order"
            )
            for (name, device), twin in sorted(self.twins.items()):
                if name == gateway:
                    shown += _device_lines(device, twin)
        return shown


def _device_lines(device: str, twin: Mapping[str, Any]) -> list[str]:
    score = twin["health"]["score"]
    health = "learning" if score is None else f"{score:.2f}"
    lines = [f"  {device}  {twin['state']}  health {health}"]
    width = max((len(tag) for tag in twin["reported"]), default=0)
    for tag, one in twin["reported"].items():
        value = "-" if one["v"] is None else one["v"]
        mark = "" if one["q"] == "good" else f"  [{one['q']}]"
        lines.append(f"    {tag:<{width}}  {value}{mark}")
    for name, loop in twin["loops"].items():
        lines.append(f"    loop {name}: {loop['mode']} sp {loop['sp']} pv {loop['pv']} out {loop['out']}")
    return lines

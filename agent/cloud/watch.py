"""The central side: a subscriber that keeps the books of every gateway, and what `edgetwin watch` shows."""

from __future__ import annotations

import contextlib
import queue
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.cloud import payload
from agent.cloud.books import Books
from agent.cloud.reasons import DEFAULT_PORTS, DIAL_TIMEOUT, address, connack_words, tls_context, words
from agent.cloud.topics import parse
from agent.config.types import MqttConfig

EVENTS_SHOWN = 5
DRAIN = 2.0
"""Seconds that closing waits for the acknowledgement of what was published."""


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
    `tls`: ca, cert and key of an `mqtt:` section. Raises NoBroker when it cannot connect. `trouble` says why the link
    is down when it was lost later; it comes back by itself, without what was published meanwhile.
    """

    def __init__(
        self,
        url: str,
        *,
        root: str = "edgetwin",
        gateway: str | None = None,
        share: str | None = None,
        tls: MqttConfig | None = None,
    ) -> None:
        self._root = root
        self._tls = tls or MqttConfig()
        self._queue: queue.SimpleQueue[Received] = queue.SimpleQueue()
        filter_ = f"{root}/v1/{gateway or '+'}/#"
        self._filter = f"$share/{share}/{filter_}" if share else filter_
        self.trouble: str | None = None
        self._published: paho.MQTTMessageInfo | None = None
        self._client = self._connect(url)

    def _connect(self, url: str) -> paho.Client:
        if urlsplit(url).scheme not in (*DEFAULT_PORTS, "unix"):
            raise NoBroker(f"{url}: a broker's URL begins with mqtt://, mqtts://, ws://, wss:// or unix://")
        try:
            host, port = address(url)
        except ValueError as error:
            raise NoBroker(f"{url}: {error}") from None
        reason = ""
        for protocol in (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311):
            answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
            try:
                client = self._make(url, protocol, answers)
                client.connect(host, port, keepalive=15)
                client.loop_start()
                code = answers.get(timeout=2 * DIAL_TIMEOUT)
            except queue.Empty:
                reason = reason or f"{url} does not answer as an MQTT broker"
            except (OSError, ValueError) as error:
                raise NoBroker(words(error, url)) from None
            else:
                if code is not None and not code.is_failure:
                    return client
                if code is not None or not reason:
                    reason = "the broker closed the connection" if code is None else connack_words(code)
            with contextlib.suppress(Exception):
                client.disconnect()
                client.loop_stop()
        raise NoBroker(f"{host}: {reason}")

    def _make(self, url: str, protocol: MQTTProtocolVersion, answers: queue.SimpleQueue[Any]) -> paho.Client:
        parts = urlsplit(url)
        websockets = parts.scheme in ("ws", "wss")
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"edgetwin-watch-{uuid.uuid4().hex[:8]}",
            protocol=protocol,
            clean_session=None if protocol == MQTTProtocolVersion.MQTTv5 else True,
            transport="unix" if parts.scheme == "unix" else "websockets" if websockets else "tcp",
        )
        client.connect_timeout = DIAL_TIMEOUT
        if websockets:
            client.ws_set_options(path=parts.path or "/mqtt")
        if parts.scheme in ("mqtts", "wss"):
            client.tls_set_context(tls_context(self._tls))
        if parts.username:
            client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        client.reconnect_delay_set(1, 1)  # back before a gateway sends what waited for the broker
        client.on_connect = lambda _c, _u, _f, code, _p: self._on_connect(client, code, answers)
        client.on_disconnect = lambda _c, _u, _f, code, _p: self._on_disconnect(code, answers)
        client.on_message = lambda _c, _u, message: self._on_message(message)
        return client

    def _on_connect(self, client: paho.Client, code: Any, answers: queue.SimpleQueue[Any]) -> None:
        if not code.is_failure:
            self.trouble = None
            client.subscribe(self._filter, qos=1)
        answers.put(code)

    def _on_disconnect(self, code: Any, answers: queue.SimpleQueue[Any]) -> None:
        self.trouble = f"no connection to the broker ({code})"
        answers.put(None)

    def _on_message(self, message: Any) -> None:
        # an exception here would end paho's thread while it still says connected
        with contextlib.suppress(Exception):
            self._queue.put(
                read_message(message.topic, bytes(message.payload), bool(message.retain), self._root)
            )

    def messages(self, timeout: float) -> Iterator[Received]:
        """What has come, waiting up to `timeout` seconds for the first one."""
        wait: float | None = timeout
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
                wait = None
                yield item

    def publish(self, topic: str, body: Mapping[str, Any], *, retain: bool = False) -> None:
        """Publishes one body at QoS 1."""
        self._published = self._client.publish(topic, payload.encode(body), qos=1, retain=retain)

    def close(self) -> None:
        """Ends the link once the broker has what was published: a disconnect alone would throw it away."""
        if self._published is not None:
            with contextlib.suppress(RuntimeError, ValueError):
                self._published.wait_for_publish(DRAIN)
        with contextlib.suppress(Exception):
            self._client.disconnect()
            self._client.loop_stop()


def read_message(topic: str, data: bytes, retained: bool, root: str) -> Received:
    """A message taken apart; what is no body of ours has a `fault`."""
    place = parse(topic, root)
    if place is None:
        return Received(topic, "", "", "", None, retained, "a foreign topic")
    device = place.rest[0] if place.rest else ""
    if not data:
        return Received(topic, place.kind, place.gateway, device, None, retained)
    try:
        body = payload.decode(data)
    except (ValueError, RecursionError) as error:
        return Received(topic, place.kind, place.gateway, device, None, retained, f"no JSON object: {error}")
    return Received(topic, place.kind, place.gateway, device, body, retained)


@dataclass
class View:
    """What is known of the gateways: the newest state, twins and alarms, and the books.

    `shared`: others of a group get part of the messages, so that nothing can be told missing.
    """

    shared: bool = False
    books: Books = field(default_factory=Books)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    twins: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    units: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_SHOWN))
    faults: int = 0

    def take(self, message: Received) -> str | None:
        """Books one message; says what is wrong with it: "doubled", "out of order", "malformed: …", else None."""
        if message.fault is not None:
            self.faults += 1
            return f"malformed: {message.fault}"
        try:
            return self._take(message)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self.faults += 1  # anybody may publish; a subscriber goes on
            return f"malformed: {type(error).__name__} {error}"

    def _take(self, message: Received) -> str | None:
        key, body = (message.gateway, message.device), message.body
        if body is None:
            self.alarms.pop(message.topic, None)
            if message.kind == "twin":
                self.twins.pop(key, None)
            return None
        late = self.books.out_of_order(message.gateway)
        fresh = self.books.feed(message.kind, message.gateway, message.device, body)
        match message.kind:
            case "state":
                self._take_state(message.gateway, body)
            case "meta":
                units = {tag: one["unit"] or "" for tag, one in body["tags"].items()}
                self.units[key] = self.units.get(key, {}) | units
            case "twin":
                part = self.twins.get(key) if body.get("part", [1])[0] > 1 else None
                reported = {**(part or {}).get("reported", {}), **body["reported"]}
                whole = {**body, "reported": reported}
                _device_lines(message.device, whole, {}, 0)  # what cannot be shown is not taken
                self.twins[key] = whole
            case "alarm":
                self.alarms[message.topic] = f"{message.gateway}: {body['text']}"
            case "event":
                mark = "" if body["state"] == "raised" else "cleared: "
                self.events.append(f"{message.gateway}: {body['severity']}: {mark}{body['text']}")
        if not fresh:
            return "doubled"
        return "out of order" if self.books.out_of_order(message.gateway) > late else None

    def _take_state(self, gateway: str, body: dict[str, Any]) -> None:
        """An `offline` of another boot than the newest one is an old will: ignored."""
        known, boot, held = self.states.get(gateway), body["boot"], int(body["backlog"]["batches"])
        if body["status"] == "online" or known is None or known["boot"] == boot:
            self.states[gateway], self.held[gateway] = body, held

    def missing(self, gateway: str) -> tuple[int, int]:
        """(lost, awaited) batches: a gateway that holds some back may still send what is missing."""
        missing = 0 if self.shared else self.books.lost(gateway)
        return (0, missing) if self.held.get(gateway) else (missing, 0)

    def lines(self, now_ms: int | None = None) -> list[str]:
        """The live twins as text. `now_ms`: present UTC time in ms, to show how old each value is."""
        shown: list[str] = []
        for gateway in sorted({*self.states, *(name for name, _ in self.twins)}):
            shown.append(self._gateway_line(gateway))
            for (name, device), twin in sorted(self.twins.items()):
                if name == gateway:
                    shown += _device_lines(device, twin, self.units.get((name, device), {}), now_ms)
        shown += [f"! {text}" for text in self.alarms.values()]
        return shown + [f"· {text}" for text in self.events]

    def _gateway_line(self, gateway: str) -> str:
        state, books = self.states.get(gateway, {}), self.books
        lost, awaited = self.missing(gateway)
        counts = [f"{books.readings(gateway)} readings", f"{lost} lost"]
        if awaited:
            counts.append(f"{awaited} awaited")
        counts += [f"{books.doubled(gateway)} doubled", f"{books.out_of_order(gateway)} out of order"]
        clock = "  clock not set" if state.get("clock") == "unsynced" else ""
        return f"{gateway}  {state.get('status', 'unknown')}{clock}  {', '.join(counts)}"


def _device_lines(
    device: str, twin: Mapping[str, Any], units: Mapping[str, str], now_ms: int | None
) -> list[str]:
    score = twin["health"]["score"]
    health = "learning" if score is None else f"{score:.2f}"
    lines = [f"  {device}  {twin['state']}  health {health}"]
    width = max((len(tag) for tag in twin["reported"]), default=0)
    for tag, one in twin["reported"].items():
        value = "-" if one["v"] is None else f"{_shown(one['v'])} {units.get(tag, '')}".rstrip()
        mark = "" if one["q"] == "good" else f"  [{one['q']}]"
        age = "" if now_ms is None or one["t"] is None or "mono" in twin else f"  {_age(now_ms - one['t'])}"
        lines.append(f"    {tag:<{width}}  {value}{mark}{age}")
    for name, loop in twin["loops"].items():
        parts = " ".join(f"{what} {_shown(loop[what])}" for what in ("sp", "pv", "out"))
        lines.append(f"    loop {name}: {loop['mode']} {parts}")
    return lines


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


def _age(ms: int) -> str:
    seconds = max(0, ms) / 1000
    if seconds < 60:
        return f"{seconds:.1f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 3600 else f"{seconds / 3600:.0f} h ago"

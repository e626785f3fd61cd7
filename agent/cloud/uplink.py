"""The connection to the broker: the only file of the daemon that knows paho.

Each connection is a new paho client, so that no queue of an old one can overtake or double anything: what was not
acknowledged is the worker's to send again. Callbacks only post; dialling happens in a thread of its own, where a
blocking connect tells the reason of a failure (paho's background connect hides it).
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.config.secrets import SecretProblem, reveal
from agent.config.types import MqttConfig
from agent.runtime.clock import Clock

log = logging.getLogger("edgetwin.cloud")

WINDOW = 20
"""Unacknowledged messages at once; more is slower, since paho scans them all for each acknowledgement."""
DIAL_TIMEOUT = 5.0
CONNACK_TIMEOUT = 10.0
STALE_AFTER = 10.0
"""Seconds without an acknowledgement after which the link is opened anew (keepalive alone takes twice its length)."""
FIRST_DELAY, SOON_DELAY, LATE_DELAY = 0.25, 2.0, 120.0
SOON = 60.0
"""Seconds of an outage in which the next try is at most SOON_DELAY away."""
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
UNSUPPORTED_VERSION = 0x84
SESSION_TAKEN_OVER = 0x8E


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has accepted the connection."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link is gone, or a try to open it failed; `reason` in words."""

    reason: str
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker has answered a message. `refused` in words where it does not want it (an ACL), else None."""

    token: Any
    refused: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """Something a subscription brought."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None


Post = Callable[[Connected | Disconnected | Acked | Message], None]


@dataclass(frozen=True, slots=True)
class Note:
    """What paho's thread tells, with the number of the connection that it belongs to."""

    generation: int
    kind: str
    value: Any = None
    extra: Any = None


class Uplink:
    """One link at a time. Every method is called from the worker's thread; `wake` is called from paho's.

    will: (topic, body) left as last will, retained. `tick` must be called at least each second.
    """

    def __init__(
        self,
        config: MqttConfig,
        *,
        client_id: str,
        will: tuple[str, bytes],
        filters: list[str],
        post: Post,
        wake: Callable[[Note], None],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._will = will
        self._filters = filters
        self._post = post
        self._wake = wake
        self._clock = clock
        self._rng = rng
        self._client: paho.Client | None = None
        self._generation = 0
        self._protocol = MQTTProtocolVersion.MQTTv5
        self._inflight: dict[int, tuple[Any, float]] = {}
        self._returned: list[Any] = []
        self._next_try = clock.mono()
        self._down_since = clock.mono()
        self._tries = 0
        self._dial_started: float | None = None
        self._window = WINDOW
        self.online = False
        self.error: str | None = None
        self.max_packet: int | None = None
        self._closing = False

    # -- state --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """online, connecting or offline."""
        if self.online:
            return "online"
        return "connecting" if self._dial_started is not None else "offline"

    @property
    def protocol(self) -> int | str:
        return 5 if self._protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"

    @property
    def unacked(self) -> int:
        return len(self._inflight)

    @property
    def has_room(self) -> bool:
        """True when another message may be published."""
        return self.online and len(self._inflight) < self._window

    def offline_for(self, now: float) -> float:
        """Seconds since the link was lost; 0.0 while it is up."""
        return 0.0 if self.online else now - self._down_since

    # -- work ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Dials when it is time to, and gives up on a link that has gone silent."""
        if self._closing:
            return
        if self._dial_started is not None:
            if now - self._dial_started > DIAL_TIMEOUT + CONNACK_TIMEOUT:
                self._lost("the broker does not answer the connection")
        elif self.online:
            oldest = min((sent for _, sent in self._inflight.values()), default=now)
            if now - oldest > STALE_AFTER:
                self._lost(f"no acknowledgement for {STALE_AFTER:.0f} s; the link is opened anew")
        elif now >= self._next_try:
            self._dial(now)

    def publish(
        self, topic: str, body: bytes, *, retain: bool, token: Any, correlation: bytes | None = None
    ) -> bool:
        """Hands one message to the broker at QoS 1; `Acked(token)` follows. False when the link is down.

        Callers look at `has_room` first; the parts of one body may go a little beyond it.
        """
        if not self.online or self._client is None:
            return False
        properties = None
        if correlation is not None and self._protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        info = self._client.publish(topic, body, qos=1, retain=retain, properties=properties)
        # whatever paho's code says, it keeps a QoS 1 message and sends it; only on_publish tells the outcome
        self._inflight[info.mid] = (token, self._clock.mono())
        return True

    def returned(self) -> list[Any]:
        """Tokens of what was under way when the link was lost, in the order of sending; each is returned once."""
        tokens, self._returned = self._returned, []
        return tokens

    def handle(self, note: Note) -> None:
        """Takes a note that `wake` passed on from paho's thread or the dialler."""
        if note.generation != self._generation:
            return
        match note.kind:
            case "failed":
                self._lost(note.value)
            case "connack":
                self._on_connack(note.value, note.extra)
            case "closed":
                self._on_closed(note.value, note.extra)
            case "published":
                known = self._inflight.pop(note.value, None)
                if known is not None:
                    self._post(Acked(known[0], note.extra))
            case "message":
                self._post(note.value)

    def close(self) -> None:
        """Ends the link politely: everything was acknowledged before, or is not waited for."""
        self._closing = True
        client, self._client = self._client, None
        self.online = False
        if client is not None:
            with contextlib.suppress(Exception):
                client.disconnect()
            _stop_loop(client)

    # -- connecting ---------------------------------------------------------------------------------------------

    def _dial(self, now: float) -> None:
        self._generation += 1
        self._dial_started = now
        self._tries += 1
        try:
            client = self._make_client(self._generation)
        except (OSError, ssl.SSLError, SecretProblem, ValueError) as error:
            self._lost(words(error, self._config.url))
            return
        self._client = client
        generation = self._generation
        threading.Thread(target=self._connect, args=(client, generation), name="dial", daemon=True).start()

    def _connect(self, client: paho.Client, generation: int) -> None:
        """In a thread of its own: a blocking connect that may take seconds, and tells why it fails."""
        host, port = _address(self._config.url)
        try:
            if self._protocol == MQTTProtocolVersion.MQTTv5:
                client.connect(host, port, keepalive=round(self._config.keepalive), clean_start=True)
            else:
                client.connect(host, port, keepalive=round(self._config.keepalive))
        except Exception as error:
            self._wake(Note(generation, "failed", words(error, self._config.url)))
            return
        if generation != self._generation:
            _abandon(client)  # it came through after it was given up
            return
        client.loop_start()

    def _make_client(self, generation: int) -> paho.Client:
        config, five = self._config, self._protocol == MQTTProtocolVersion.MQTTv5
        scheme = urlsplit(config.url).scheme
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._protocol,
            clean_session=None if five else True,
            transport="unix" if scheme == "unix" else "websockets" if scheme in ("ws", "wss") else "tcp",
            reconnect_on_failure=False,
        )
        client.connect_timeout = DIAL_TIMEOUT
        client.max_inflight_messages_set(WINDOW)
        client.max_queued_messages_set(10 * WINDOW)
        if scheme in ("ws", "wss"):
            client.ws_set_options(path=urlsplit(config.url).path or "/mqtt")
        if scheme in ("mqtts", "wss"):
            client.tls_set_context(_tls_context(config))
        if config.username is not None or config.password is not None:
            password = None if config.password is None else reveal(config.password)
            client.username_pw_set(config.username or self._client_id, password)
        client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        self._bind(client, generation)
        return client

    def _bind(self, client: paho.Client, generation: int) -> None:
        """Callbacks that only post: an exception in one would end paho's thread while it still says connected."""
        wake = self._wake

        def connected(_c: Any, _u: Any, _flags: Any, code: Any, properties: Any) -> None:
            wake(Note(generation, "connack", code, properties))

        def closed(_c: Any, _u: Any, _flags: Any, code: Any, _properties: Any) -> None:
            wake(Note(generation, "closed", str(code), getattr(code, "value", 0)))

        def published(_c: Any, _u: Any, mid: int, code: Any, _properties: Any) -> None:
            refused = getattr(code, "value", 0) >= 0x80
            wake(Note(generation, "published", mid, str(code) if refused else None))

        def message(_c: Any, _u: Any, one: Any) -> None:
            given = getattr(one, "properties", None)
            wake(
                Note(
                    generation,
                    "message",
                    Message(
                        one.topic,
                        bytes(one.payload),
                        bool(one.retain),
                        getattr(given, "ResponseTopic", None),
                        getattr(given, "CorrelationData", None),
                    ),
                )
            )

        client.on_connect = connected
        client.on_disconnect = closed
        client.on_publish = published
        client.on_message = message

    def _on_connack(self, code: Any, properties: Any) -> None:
        if code.is_failure:
            if getattr(code, "value", 0) in (1, UNSUPPORTED_VERSION):
                self._change_protocol()
            self._lost(_connack_words(code))
            return
        assert self._client is not None
        self._dial_started = None
        self.online = True
        self.error = None
        self._tries = 0
        self.max_packet = getattr(properties, "MaximumPacketSize", None)
        self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        for filter_ in self._filters:
            self._client.subscribe(filter_, qos=1)
        self._post(Connected())

    def _on_closed(self, reason: str, code: int) -> None:
        if self._dial_started is not None:
            # some 3.1.1 brokers close at a version they do not know; the next try is with the other one
            self._change_protocol()
            reason = f"closed before it was accepted ({reason})"
        self._lost(reason, taken_over=code == SESSION_TAKEN_OVER)

    def _change_protocol(self) -> None:
        five = self._protocol == MQTTProtocolVersion.MQTTv5
        self._protocol = MQTTProtocolVersion.MQTTv311 if five else MQTTProtocolVersion.MQTTv5

    def _lost(self, reason: str, *, taken_over: bool = False) -> None:
        now = self._clock.mono()
        self._generation += 1  # notes of the old client are not ours any more
        client, self._client = self._client, None
        if client is not None:
            threading.Thread(target=_abandon, args=(client,), name="hang-up", daemon=True).start()
        if self.online:
            self._down_since = now
        self.online = False
        self._dial_started = None
        self._returned += [token for token, _ in self._inflight.values()]
        self._inflight.clear()
        self.error = reason
        longest = SOON_DELAY if now - self._down_since < SOON else LATE_DELAY
        delay = min(longest, FIRST_DELAY * 2 ** min(self._tries, 12))
        self._next_try = now + delay * self._rng.uniform(0.5, 1.0)
        self._post(Disconnected(reason, taken_over))


def _abandon(client: paho.Client) -> None:
    """Cuts a client off without waiting for a broker that may not answer."""
    with contextlib.suppress(Exception):
        sock: Any = client.socket()
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
    _stop_loop(client)


def _stop_loop(client: paho.Client) -> None:
    with contextlib.suppress(Exception):
        client.loop_stop()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path, 1883
    return parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORTS[parts.scheme]


def _tls_context(config: MqttConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if config.ca is None else str(config.ca))
    if config.cert is not None:
        context.load_cert_chain(str(config.cert), None if config.key is None else str(config.key))
    return context


def _connack_words(code: Any) -> str:
    known = {
        0x86: "the broker refuses the user name or password",
        0x87: "the broker refuses this client (not authorized: user name, password or ACL)",
        4: "the broker refuses the user name or password",
        5: "the broker refuses this client (not authorized: user name, password or ACL)",
        UNSUPPORTED_VERSION: "the broker does not speak this version of MQTT; trying the other one",
        1: "the broker does not speak this version of MQTT; trying the other one",
        0x85: "the broker refuses the client id",
        2: "the broker refuses the client id",
        0x88: "the broker is not available",
        3: "the broker is not available",
    }
    return known.get(getattr(code, "value", -1), f"the broker refuses the connection: {code}")


def words(error: BaseException, url: str) -> str:
    """Why a connection cannot be opened, in words for a person."""
    where = "{}:{}".format(*_address(url)) if not url.startswith("unix") else _address(url)[0]
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message or str(error)
        hint = "; is this machine's clock set?" if "not yet valid" in reason else ""
        return f"the certificate of {where} is not accepted: {reason}{hint}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {where}: {error.reason or error}"
    if isinstance(error, SecretProblem):
        return str(error)
    if isinstance(error, socket.gaierror):
        return f"the name {where} cannot be resolved"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on {where}"
    if isinstance(error, TimeoutError):
        return f"{where} does not answer"
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or where} does not exist"
    if isinstance(error, OSError):
        return f"{where}: {error.strerror or error}"
    return f"{where}: {error}"

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
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.cloud.reasons import (
    DIAL_TIMEOUT,
    UNSUPPORTED_VERSION,
    address,
    connack_words,
    early_hint,
    tell_tls_alert,
    tls_context,
    words,
)
from agent.config.secrets import SecretProblem, reveal
from agent.config.types import MqttConfig
from agent.runtime.clock import Clock

log = logging.getLogger("edgetwin.cloud")

WINDOW = 20
"""Unacknowledged messages at once; more is slower, since paho scans them all for each acknowledgement."""
CONNACK_TIMEOUT = 10.0
STALE_AFTER = 10.0
"""Seconds without an acknowledgement after which the link is opened anew (keepalive alone takes twice its length)."""
FIRST_DELAY, SOON_DELAY, LATE_DELAY = 0.25, 2.0, 120.0
SOON = 60.0
"""Seconds of trouble in which the next try is at most SOON_DELAY away."""
STEADY = 20.0
"""Seconds that a link must have lasted to end a time of trouble: one that is cut again and again is not hammered."""
SESSION_EXPIRY = 600
"""Seconds that an MQTT 5 broker keeps commands for us while the link is down: none is valid for longer."""
LEAST_PACKET = 8192
"""Bytes to which packets may be cut down at a broker that closes the link without a word."""
SESSION_TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95
NEVER = frozenset({0x90, PACKET_TOO_LARGE, 0x99})
"""Reason codes of a message that will never be taken: topic name, packet size, payload format."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has accepted the connection."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link is gone, or a try to open it failed; `reason` in words.

    `taken_over`: the broker said that another client came with our name. `cut`: it ended without a word.
    """

    reason: str
    taken_over: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker has answered a message. `refused` in words where it does not want it (an ACL), else None.

    `never`: nor will it ever want it.
    """

    token: Any
    refused: str | None
    never: bool = False


@dataclass(frozen=True, slots=True)
class Deaf:
    """The broker refuses a subscription: commands and desired values will not come. `reason` in words."""

    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    """Something a subscription brought."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None


Post = Callable[[Connected | Disconnected | Acked | Deaf | Message], None]


@dataclass(slots=True)
class _Sent:
    token: Any
    at: float
    size: int


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
        self._inflight: dict[int, _Sent] = {}
        self._returned: list[Any] = []
        self._next_try = clock.mono()
        self._down_since = clock.mono()
        self._up_since = clock.mono()
        self._trouble_since = clock.mono()
        self._closed_early = False
        self._knows_five = False
        self._context: ssl.SSLContext | None = None
        self._cut_at: int | None = None
        self._last_ack = clock.mono()
        self._tries = 0
        self._dial_started: float | None = None
        self._window = WINDOW
        self.online = False
        self.error: str | None = None
        self._broker_limit: int | None = None
        self._learnt_limit: int | None = None
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
    def max_packet(self) -> int | None:
        """Bytes of the largest packet that the broker takes, as it said or as was learnt; None: no limit is known."""
        return min((one for one in (self._broker_limit, self._learnt_limit) if one is not None), default=None)

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
            oldest = next((sent.at for sent in self._inflight.values()), now)
            if now - max(oldest, self._last_ack) > STALE_AFTER:  # a slow link that moves on is not stale
                self._learn_limit(0)
                self._lost(f"no acknowledgement for {STALE_AFTER:.0f} s; the link is opened anew")
        elif now >= self._next_try:
            self._dial(now)

    def publish(
        self, topic: str, body: bytes, *, retain: bool, token: Any, correlation: bytes | None = None
    ) -> bool:
        """Hands one message to the broker at QoS 1; `Acked(token)` follows. False when the link is down.

        Callers look at `has_room` first: paho heeds neither the broker's receive maximum nor its packet size.
        """
        if not self.online or self._client is None:
            return False
        properties = None
        if correlation is not None and self._protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        info = self._client.publish(topic, body, qos=1, retain=retain, properties=properties)
        # whatever paho's code says, it keeps a QoS 1 message and sends it; only on_publish tells the outcome
        self._inflight[info.mid] = _Sent(token, self._clock.mono(), len(body))
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
                    self._last_ack = self._clock.mono()
                    code, text = note.extra
                    self._post(Acked(known.token, text if code >= 0x80 else None, code in NEVER))
            case "subscribed":
                self._post(Deaf(note.value))
            case "message":
                self._post(note.value)

    def close(self, *, politely: bool) -> None:
        """Ends the link. Not politely: cut, so that the broker publishes the last will."""
        self._closing = True
        self._generation += 1
        client, self._client = self._client, None
        self.online = False
        if client is None:
            return
        if politely:
            with contextlib.suppress(Exception):
                client.disconnect()
            _stop_loop(client)
        else:
            _abandon(client)

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
        host, port = address(self._config.url)
        keepalive = max(1, round(self._config.keepalive))
        try:
            if self._closed_early and self._context is not None:
                tell_tls_alert(host, port, self._context)
            if client.protocol == MQTTProtocolVersion.MQTTv5:
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = SESSION_EXPIRY
                client.connect(host, port, keepalive=keepalive, clean_start=False, properties=properties)
            else:
                client.connect(host, port, keepalive=keepalive)
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
        client.max_queued_messages_set(0)  # no limit: what is beyond one would vanish; `has_room` is ours
        if scheme in ("ws", "wss"):
            client.ws_set_options(path=urlsplit(config.url).path or "/mqtt")
        if scheme in ("mqtts", "wss"):
            self._context = tls_context(config)
            client.tls_set_context(self._context)
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
            reason = "the broker closed the connection" if str(code) == "Unspecified error" else str(code)
            wake(Note(generation, "closed", reason, getattr(code, "value", 0)))

        def published(_c: Any, _u: Any, mid: int, code: Any, _properties: Any) -> None:
            wake(Note(generation, "published", mid, (getattr(code, "value", 0), str(code))))

        def subscribed(_c: Any, _u: Any, _mid: int, codes: Any, _properties: Any) -> None:
            refused = [str(code) for code in codes if getattr(code, "value", 0) >= 0x80]
            if refused:
                wake(Note(generation, "subscribed", refused[0]))

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
        client.on_subscribe = subscribed
        client.on_message = message

    def _on_connack(self, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._lost(connack_words(code))
            if getattr(code, "value", 0) in (1, UNSUPPORTED_VERSION):
                self._try_other_protocol()
            return
        assert self._client is not None
        self._dial_started = None
        self._closed_early = False
        self._up_since = self._clock.mono()
        self.online = True
        # it only was away for a moment when it closes early later: 3.1.1 would end the session that keeps our commands
        self._knows_five = self._knows_five or self._protocol == MQTTProtocolVersion.MQTTv5
        self.error = None
        self._broker_limit = getattr(properties, "MaximumPacketSize", None)
        self._window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        for filter_ in self._filters:
            # as published: a broker tells MQTT 3.1.1 that a message is retained only when it comes from its store
            if self._protocol == MQTTProtocolVersion.MQTTv5:
                self._client.subscribe(filter_, options=SubscribeOptions(qos=1, retainAsPublished=True))
            else:
                self._client.subscribe(filter_, qos=1)
        self._post(Connected())

    def _on_closed(self, reason: str, code: int) -> None:
        early = self._dial_started is not None
        if early:
            self._closed_early = True
            reason = f"{reason} before it was accepted{early_hint(self._config)}"
        else:
            self._learn_limit(code)
        self._lost(
            reason, taken_over=code == SESSION_TAKEN_OVER, cut=not early and code != SESSION_TAKEN_OVER
        )
        if early and not self._knows_five:
            self._try_other_protocol()

    def _try_other_protocol(self) -> None:
        """After a refusal of 5 (some brokers only close at it) 3.1.1 at once; after one of 3.1.1 again 5, later."""
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            self._protocol = MQTTProtocolVersion.MQTTv311
            self._next_try = self._clock.mono()
        else:
            self._protocol = MQTTProtocolVersion.MQTTv5

    def _learn_limit(self, code: int) -> None:
        """A link that ends twice in a row at large messages gets smaller ones: only MQTT 5 tells the broker's limit."""
        largest = max((sent.size for sent in self._inflight.values()), default=0)
        if self._clock.mono() - self._up_since > STEADY or largest <= LEAST_PACKET:
            self._cut_at = None
            return
        if code == PACKET_TOO_LARGE or self._cut_at is not None:
            self._learnt_limit = max(LEAST_PACKET, min(largest, self._cut_at or largest) // 2)
        self._cut_at = largest

    def _lost(self, reason: str, *, taken_over: bool = False, cut: bool = False) -> None:
        now = self._clock.mono()
        self._generation += 1  # notes of the old client are not ours any more
        client, self._client = self._client, None
        if client is not None:
            threading.Thread(target=_abandon, args=(client,), name="hang-up", daemon=True).start()
        if self.online:
            self._down_since = now
            self._protocol = MQTTProtocolVersion.MQTTv5
            if now - self._up_since >= STEADY:
                self._trouble_since, self._tries = now, 0
        self.online = False
        self._dial_started = None
        self._returned += [sent.token for sent in self._inflight.values()]
        self._inflight.clear()
        self.error = reason
        longest = SOON_DELAY if now - self._trouble_since < SOON else LATE_DELAY
        delay = min(longest, FIRST_DELAY * 2 ** min(self._tries, 12))
        self._next_try = now + delay * self._rng.uniform(0.5, 1.0)
        self._post(Disconnected(reason, taken_over, cut))


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

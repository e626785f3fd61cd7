"""What goes to the broker next, and what its answers mean. Worker's thread only."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.cloud import payload
from agent.cloud.batch import Batch
from agent.cloud.publisher import Out, Publisher
from agent.cloud.store import PAGE, Store, Waiting
from agent.cloud.topics import Topics
from agent.cloud.uplink import WINDOW, Acked, Uplink
from agent.config.types import MqttConfig
from agent.twin.records import Event

HELD_FOR = 60.0
"""Seconds until what the broker refused (an ACL, a quota) is tried again: batches, what is retained, gaps."""
REST = 2.0
"""Seconds in which batches wait after a connection that was lost before, or could not be opened: a broker that was away
has lost its subscribers too, and without a persistent session what is sent before they are back never reaches them."""
RANGES_KEPT = 100
"""Resends that may wait; more are refused."""


@dataclass(slots=True, eq=False)
class _Range:
    """Batches `next` to `last` of a device that a central system wants once more."""

    device: str
    next: int
    last: int


@dataclass(frozen=True, slots=True)
class _Resent:
    of: _Range
    seq: int


@dataclass(frozen=True, slots=True)
class _Part:
    """All packets of a batch but the last, which has the batch's own token."""

    of: Any


@dataclass
class Sender:
    """Fills the uplink's window: answers, events and twins first, then live batches, then what waited.

    `retimed` puts a batch's times right where it was made before the clock was set; returns its body.
    """

    config: MqttConfig
    topics: Topics
    store: Store
    publisher: Publisher
    uplink: Uplink
    retimed: Callable[[Batch], bytes]
    on_event: Callable[[Event], None]
    mono: Callable[[], float]
    _resends: deque[_Range] = field(default_factory=deque)
    _page: deque[Batch] = field(default_factory=deque)
    _parts: deque[tuple[str, bytes, Any]] = field(default_factory=deque)
    _told: set[str] = field(default_factory=set)
    _refusals: dict[str, str] = field(default_factory=dict)
    _spoiled: dict[Any, Acked] = field(default_factory=dict)
    _retell_at: float | None = None
    _was_away: bool = False
    _rest_until: float = 0.0

    def connected(self) -> None:
        """A new connection: refusals are told anew, and what waited leaves oldest first."""
        self._told.clear()
        self._refusals.clear()
        self._retell_at = None
        self.store.line_up()
        if self._was_away:
            self._rest_until = self.mono() + REST

    def lost(self, tokens: list[Any], now: float) -> None:
        """The link is gone, or could not be opened; `tokens` were under way."""
        self._was_away = True
        self.store.disconnected(now)
        self.publisher.disconnected([token for token in tokens if isinstance(token, Out)])
        self._page.clear()
        for token in (*tokens, *(token for _, _, token in self._parts)):
            if isinstance(token, _Resent):
                token.of.next = min(token.of.next, token.seq)
                if token.of not in self._resends:
                    self._resends.append(token.of)
        self._parts.clear()
        self._spoiled.clear()

    def pump(self, now: float, *, ending: bool) -> None:
        """Sends what may be sent. At the end nothing is begun that lies safely on disk."""
        if self._retell_at is not None and now >= self._retell_at:
            self._retell_at = None
            self.publisher.retell(now)
        while self.uplink.has_room:
            if self._parts:
                topic, body, token = self._parts.popleft()
                self.uplink.publish(topic, body, retain=False, token=token)
            elif self.publisher.queue:
                self._send_out(self.publisher.queue.popleft())
            elif now < self._rest_until and not ending:
                return
            elif (waiting := self.store.next_memory()) is not None:
                waiting.sent = True
                self._send_batch(waiting.batch, live=waiting.live, token=waiting)
            elif ending or not self._pump_disk(now):
                return

    def _pump_disk(self, now: float) -> bool:
        """One batch from disk: half of the window at most, so that live ones find room."""
        if self.uplink.unacked >= max(1, WINDOW // 2):
            return False
        batch = self._next_resend(now)
        if batch is not None:
            of = self._resends[0]
            self._send_batch(batch, live=False, token=_Resent(of, batch.seq))
            of.next = batch.seq + 1
            return True
        batch = self.store.next_disk(now)
        if batch is None:
            return False
        self._send_batch(batch, live=False, token=(batch.device, batch.seq))
        return True

    # -- one message --------------------------------------------------------------------------------------------

    def _send_out(self, out: Out) -> None:
        if len(out.body) > self.publisher.room(out.topic):
            self.oversize(out.topic)
            if out.answer_to is None:
                return
            out.body = self.publisher.too_large(out.answer_to)
        self.uplink.publish(out.topic, out.body, retain=out.retain, token=out, correlation=out.correlation)

    def _send_batch(self, batch: Batch, *, live: bool, token: Any) -> None:
        kind = "data" if live else "backfill"
        packets = self._packets(
            self.retimed(batch), self.publisher.room(self.topics.of(kind, batch.device)), live
        )
        if packets is None:
            self._set_aside(batch, self.topics.of(kind, batch.device))
            return
        for number, packet in enumerate(packets, 1):
            topic = self.topics.of(kind, batch.device, number)
            self._parts.append((topic, packet, token if number == len(packets) else _Part(token)))

    def _packets(self, body: bytes, room: int, live: bool) -> list[bytes] | None:
        """A body as the packets that it is sent in; None where even its single tags are larger than `room`."""
        when = self.config.compress
        compress = when == "all" or (when == "backfill" and not live)
        whole = payload.compressed(body) if compress else body
        if len(whole) <= room:
            return [whole]
        try:
            parts = payload.split(json.loads(body), room)
            return [payload.compressed(part) for part in parts] if compress else parts
        except ValueError:
            whole = payload.compressed(body)  # few tags, but many readings of each
            return [whole] if len(whole) <= room else None

    def _set_aside(self, batch: Batch, topic: str) -> None:
        """A batch that can never be sent: named by a gap, so that it blocks nothing behind it."""
        self.store.refused((batch.device, batch.seq), "unsendable")
        limit = self.uplink.max_packet
        text = f"batch {batch.seq} of {batch.device} cannot be sent: the broker takes {limit} bytes at most"
        self._refuse(topic, text)
        self.on_event(Event(batch.device, "batch_refused", "warning", "raised", text, self.mono()))
        self.publisher.queue_gaps(self.mono())

    # -- resend -------------------------------------------------------------------------------------------------

    def resend(self, device: str, first: int, last: int) -> tuple[int, int] | None:
        """Sends again what is kept of first..last; returns the lowest and highest number of it, None: nothing is."""
        span = self.store.outbox.span(device, first, last)
        if span is None or len(self._resends) >= RANGES_KEPT:
            return None
        self._resends.append(_Range(device, *span))
        return span

    def _next_resend(self, now: float) -> Batch | None:
        while self._resends:
            of = self._resends[0]
            if not self._page:
                found = (
                    self.store.outbox.find(of.device, of.next, of.last, PAGE) if of.next <= of.last else []
                )
                self._page.extend(batch for _, batch in found)
            if self._page:
                return self._page.popleft() if self.store.may_send(self._page[0].readings, now) else None
            self._resends.popleft()
        return None

    # -- answers ------------------------------------------------------------------------------------------------

    def acked(self, acked: Acked) -> None:
        """The broker has a message, or does not want it: then it waits (an ACL can be put right) or is set aside."""
        token = acked.token
        if isinstance(token, _Part):
            if acked.refused is not None:  # and so is the batch, whatever becomes of its other parts
                self._spoiled[_key(token.of)] = acked
            return
        acked = self._spoiled.pop(_key(token), acked)
        topic = self._topic(token)
        if topic is None:
            return
        if acked.refused is None:
            self._taken(topic)
        else:
            self.refused(topic, acked.refused)
        if isinstance(token, Out):
            if acked.refused is None:
                self.publisher.acked(token)
            elif self._retell_at is None and (token.retain or token.gap is not None):
                self._retell_at = self.mono() + HELD_FOR
        elif not isinstance(token, _Resent):
            self._batch_acked(_key(token), acked)

    def _batch_acked(self, key: tuple[str, int], acked: Acked) -> None:
        if acked.refused is None:
            self.store.acked(key)
        elif acked.never:
            self.store.refused(key, "refused")
            self.publisher.queue_gaps(self.mono())
        else:
            self.store.hold(key, self.mono() + HELD_FOR)

    def _topic(self, token: Any) -> str | None:
        if isinstance(token, Out):
            return token.topic
        if isinstance(token, _Resent):
            return self.topics.of("backfill", token.of.device)
        if isinstance(token, Waiting):
            return self.topics.of("data" if token.live else "backfill", token.batch.device)
        return self.topics.of("backfill", token[0]) if isinstance(token, tuple) else None

    def refused(self, topic: str, reason: str) -> None:
        """Told once per topic and connection; shown in the status until the broker takes something there."""
        text = f"the broker refuses {topic}: {reason}"
        if "uthorized" in reason:
            text += "; does its ACL allow it?"
        if not topic.startswith(self.topics.response("")):  # each answer has a topic of its own
            self._refuse(topic, text)
        if topic in self._told:
            return
        self._told.add(topic)
        self.on_event(Event(None, "publish_refused", "warning", "raised", text, self.mono()))

    def _refuse(self, topic: str, text: str) -> None:
        self._refusals[topic] = self.uplink.error = text

    def _taken(self, topic: str) -> None:
        if self._refusals.pop(topic, None) is not None:
            self.uplink.error = next(reversed(self._refusals.values()), None)

    def oversize(self, topic: str) -> None:
        self.refused(topic, f"larger than a packet may be ({self.uplink.max_packet} bytes)")


def _key(token: Any) -> Any:
    """What tells a batch that is under way from others: (device, seq), or the token of a resend."""
    return (token.batch.device, token.batch.seq) if isinstance(token, Waiting) else token

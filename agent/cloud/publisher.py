"""What is published beside the batches: state, meta, twins, forecasts, events, alarms. Worker's thread only.

Retained bodies are made when there is room to send them, from the newest snapshot, so that a slow link skips old ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent import __version__
from agent.cloud import payload
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Body, Stamp
from agent.cloud.topics import Topics
from agent.config.types import Config
from agent.twin.records import Event, Layout, Snapshot

EVENTS_KEPT = 1000
"""Events that wait for the link; the oldest go first."""
RETAINED_FACT = "retained"


@dataclass(slots=True, eq=False)
class Out:
    """One message to send. `again`: to be sent again when the link went before its acknowledgement."""

    topic: str
    body: bytes
    retain: bool = False
    again: bool = False
    correlation: bytes | None = None
    gap: int | None = None


@dataclass
class Publisher:
    """Decides what is due. `next()` hands out one message at a time, alarms and answers before twins."""

    config: Config
    topics: Topics
    layout: Layout
    outbox: Outbox
    stamp: Callable[[], Stamp]
    since: int
    queue: deque[Out] = field(default_factory=deque)
    snapshot: Snapshot | None = None
    _alarms: dict[str, bytes] = field(default_factory=dict)
    _shown: dict[str, Snapshot] = field(default_factory=dict)
    _twin_at: dict[str, float] = field(default_factory=dict)
    _forecast_at: dict[str, float] = field(default_factory=dict)
    _state_at: float | None = None
    _events: int = 0
    max_packet: int | None = None
    on_oversize: Callable[[str], None] = lambda topic: None

    def __post_init__(self) -> None:
        horizon = () if self.config.predict is None else self.config.predict.horizon
        self.metas = {device: payload.meta_of(self.config, device, horizon) for device in self.config.devices}
        self.meta_hash = {device: str(meta["meta"]) for device, meta in self.metas.items()}
        self._deadband = np.array([tag.deadband for tag in self.layout.tags])

    # -- on connect ---------------------------------------------------------------------------------------------

    def connected(self, now: float, backlog: Mapping[str, Any]) -> None:
        """Everything that a late joiner needs, and the end of retained topics that are not ours any more."""
        self._shown.clear()
        self._forecast_at.clear()
        self._twin_at.clear()
        self.queue_state(now, backlog)
        stamp = self.stamp()
        for device, meta in self.metas.items():
            self._queue(self.topics.of("meta", device), stamp.head(now) | meta, retain=True)
        for topic, body in self._alarms.items():
            self.queue.append(Out(topic, body, retain=True))
        self._clear_strangers()
        self.queue_gaps(now)

    def disconnected(self, unacked: list[Out]) -> None:
        """Messages that count are sent again in their order; the others are made anew at the next connect."""
        kept = [out for out in [*unacked, *self.queue] if out.again]
        self.queue = deque(kept)

    def queue_state(self, now: float, backlog: Mapping[str, Any], status: str = "online") -> None:
        self._state_at = now
        self.queue.append(Out(self.topics.state, self.state_body(now, backlog, status), retain=True))

    def state_body(self, now: float, backlog: Mapping[str, Any], status: str) -> bytes:
        body = payload.state_body(
            self.stamp(),
            now,
            status="online" if status == "online" else "offline",
            since=self.since,
            version=__version__,
            backlog=backlog,
        )
        return payload.encode(body)

    def queue_gaps(self, now: float) -> None:
        """Every gap that was not acknowledged yet and is not under way."""
        under_way = {out.gap for out in self.queue}
        for gap in self.outbox.gaps():
            if gap.id in under_way:
                continue
            body = payload.gap_body(
                self.stamp(),
                now,
                stream=self.outbox.stream,
                first=gap.first,
                last=gap.last,
                reason=gap.reason,
            )
            self.queue.append(Out(self.topics.of("gap", gap.device), payload.encode(body), gap=gap.id))

    # -- events -------------------------------------------------------------------------------------------------

    def add_event(self, event: Event) -> None:
        """An event is kept until the broker has it; an alarm stays retained while it is raised."""
        self._events += 1
        stamp = self.stamp()
        body = payload.encode(payload.event_body(stamp, event, f"{stamp.boot}-{self._events}"))
        waiting = [out for out in self.queue if out.again]
        if len(waiting) >= EVENTS_KEPT:
            self.queue.remove(waiting[0])
        self.queue.append(Out(self.topics.event(event.device), body, again=True))
        if not event.alarm:
            return
        topic = self.topics.alarm(event.device, event.name)
        if event.state == "raised":
            self._alarms[topic] = body
            self.queue.append(Out(topic, body, retain=True))
        elif self._alarms.pop(topic, None) is not None:
            self.queue.append(Out(topic, b"", retain=True))
        self._remember_owned()

    # -- what is due --------------------------------------------------------------------------------------------

    def due(self, now: float, backlog: Mapping[str, Any], seq_of: Callable[[str], int]) -> None:
        """Queues state, twins and forecasts whose time has come."""
        mqtt = self.config.mqtt
        if self._state_at is None or now - self._state_at >= mqtt.full_every:
            self.queue_state(now, backlog)
        snapshot = self.snapshot
        if snapshot is None:
            return
        for device in snapshot.layout.devices:
            at = self._twin_at.get(device)
            old = at is None or now - at >= mqtt.full_every
            if old or (now - (at or 0.0) >= mqtt.twin_every and self._changed(device, snapshot)):
                self._twin_at[device] = now
                self._shown[device] = snapshot
                body = payload.twin_body(
                    self.stamp(),
                    snapshot,
                    device,
                    stream=self.outbox.stream,
                    seq=seq_of(device),
                    meta=self.meta_hash[device],
                )
                self._queue(self.topics.of("twin", device), body, retain=True)
            last = self._forecast_at.get(device)
            if last is None or now - last >= mqtt.forecast_every:
                forecast = payload.forecast_body(self.stamp(), snapshot, device)
                if forecast is not None:
                    self._forecast_at[device] = now
                    self._queue(self.topics.of("forecast", device), forecast, retain=True)

    def _changed(self, device: str, new: Snapshot) -> bool:
        """Whether a device's twin differs from the published one by more than its tags' deadbands."""
        old = self._shown.get(device)
        if old is None:
            return True
        rows = new.layout.of_device[device]
        part = slice(rows.start, rows.stop)
        if new.states.get(device) != old.states.get(device) or not np.array_equal(
            new.quality[part], old.quality[part]
        ):
            return True
        with np.errstate(invalid="ignore"):
            if bool(np.any(np.abs(new.value[part] - old.value[part]) > self._deadband[part])):
                return True
        if any(
            new.plain[row] != old.plain[row]
            for row in rows
            if not isinstance(new.plain[row], float | int | None)
        ):
            return True
        names = new.loops_of.get(device, ())
        if any(new.loops.get(name) != old.loops.get(name) for name in names):
            return True
        return _score(new, device) != _score(old, device)

    def _queue(self, topic: str, body: Body, *, retain: bool) -> None:
        """Queues a body, in parts where it is larger than the broker takes, in place of an older one of that topic."""
        try:
            parts = payload.split(body, self.room(topic))
        except ValueError:
            self.on_oversize(topic)
            return
        for i, part in enumerate(parts):
            name = topic if i == 0 else f"{topic}/{i + 1}"
            for waiting in self.queue:
                if waiting.topic == name and waiting.retain:
                    waiting.body = self._compressed(part)
                    break
            else:
                self.queue.append(Out(name, self._compressed(part), retain=retain))

    def room(self, topic: str) -> int:
        """Bytes of a body that fit into the broker's largest packet with this topic."""
        return (self.max_packet or 256 << 20) - len(topic.encode()) - 64

    def _compressed(self, body: bytes) -> bytes:
        return payload.compressed(body) if self.config.mqtt.compress == "all" else body

    # -- ownership ----------------------------------------------------------------------------------------------

    def _owned(self) -> list[str]:
        kinds = ("meta", "twin", "forecast")
        return [self.topics.of(kind, device) for device in self.config.devices for kind in kinds] + list(
            self._alarms
        )

    def _clear_strangers(self) -> None:
        """Empties what an earlier run retained and this one does not own: a device that went, an alarm that ended."""
        owned = set(self._owned())
        for topic in self.outbox.get(RETAINED_FACT) or []:
            if isinstance(topic, str) and topic not in owned and topic.startswith(self.topics.base + "/"):
                self.queue.append(Out(topic, b"", retain=True))
        self._remember_owned()

    def _remember_owned(self) -> None:
        owned = self._owned()
        if self.outbox.get(RETAINED_FACT) != owned:
            self.outbox.put(RETAINED_FACT, owned)


def _score(snapshot: Snapshot, device: str) -> tuple[float | None, tuple[str, ...]] | None:
    """Health to two digits: its noise is no change."""
    view = snapshot.health.get(device)
    if view is None:
        return None
    return (None if view.score is None else round(view.score, 2)), view.causes

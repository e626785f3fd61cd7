"""What is published beside the batches: state, meta, twins, forecasts, events, alarms. Worker's thread only.

Retained bodies are made when there is room to send them, from the newest snapshot, so that a slow link skips old ones.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
RETAINED = "retained "
"""Before a topic it is the key of a fact: one each, so that an alarm costs its own row on disk and no other."""
RETAINED_LIST = "retained"
"""The fact that held them all in versions before."""


@dataclass(slots=True, eq=False)
class Out:
    """One message to send. `again`: to be sent again when the link went before its acknowledgement."""

    topic: str
    body: bytes
    retain: bool = False
    again: bool = False
    correlation: bytes | None = None
    gap: int | None = None
    event: bool = False
    answer_to: str | None = None


@dataclass
class Publisher:
    """Decides what is due. `next()` hands out one message at a time, alarms and answers before twins."""

    config: Config
    topics: Topics
    layout: Layout
    outbox: Outbox
    stamp: Callable[[], Stamp]
    mono: Callable[[], float]
    queue: deque[Out] = field(default_factory=deque)
    snapshot: Snapshot | None = None
    _alarms: dict[str, bytes] = field(default_factory=dict)
    _shown: dict[str, Snapshot] = field(default_factory=dict)
    _twin_at: dict[str, float] = field(default_factory=dict)
    _forecast_at: dict[str, float] = field(default_factory=dict)
    _state_at: float | None = None
    _looked_at: Snapshot | None = None
    _look_again: float = 0.0
    _events: int = 0
    _gaps_told: set[int] = field(default_factory=set)
    _parts: dict[str, int] = field(default_factory=dict)
    max_packet: int | None = None
    on_oversize: Callable[[str], None] = lambda topic: None

    def __post_init__(self) -> None:
        self._started = self.mono()
        self._on_disk = {key.removeprefix(RETAINED) for key in self.outbox.get_all(RETAINED)}
        self._at_broker = set(self._on_disk)
        self._take_list()
        self._describe()

    def _describe(self) -> None:
        """What follows from configuration and layout."""
        horizon = () if self.config.predict is None else self.config.predict.horizon
        self.metas = {device: payload.meta_of(self.config, device, horizon) for device in self.config.devices}
        self.meta_hash = {device: str(meta["meta"]) for device, meta in self.metas.items()}
        predicted = () if self.config.predict is None else self.config.predict.tags
        self._foretold = {device for device, _ in predicted}
        self._deadband = np.array([tag.deadband for tag in self.layout.tags])

    # -- on connect ---------------------------------------------------------------------------------------------

    def connected(self, now: float, backlog: Mapping[str, Any]) -> None:
        """Everything that a late joiner needs, and the end of retained topics that are not ours any more."""
        self._show_anew()
        self.queue_state(now, backlog)
        self.queue.rotate(1)  # before the events that waited
        self.retell(now)

    def retell(self, now: float) -> None:
        """What nothing else brings again: the broker is another one, or has refused some of it."""
        self._gaps_told.clear()
        self.introduce(now)
        for topic, body in self._alarms.items():
            self.queue.append(Out(topic, body, retain=True))
        self.queue_gaps(now)

    def _show_anew(self) -> None:
        self._shown.clear()
        self._twin_at.clear()
        self._forecast_at.clear()
        self._looked_at = None

    def introduce(self, now: float) -> None:
        """What the devices are, and the end of retained topics that are not ours any more."""
        self._clear_strangers()
        stamp = self.stamp()
        for device, meta in self.metas.items():
            self._queue(self.topics.of("meta", device), stamp.head(now) | meta, retain=True)

    def reconfigure(self, config: Config, layout: Layout) -> None:
        """Another configuration under the same link; twins and forecasts are shown anew from the next snapshot on."""
        self.config, self.layout = config, layout
        self._describe()
        self.snapshot = None
        self._show_anew()
        whole = {
            self.topics.of(kind, device) for kind in ("meta", "twin", "forecast") for device in config.devices
        }
        of_devices = tuple(f"{self.topics.base}/{kind}/" for kind in ("meta", "twin", "forecast"))
        self.queue = deque(
            out
            for out in self.queue
            if not out.retain or not out.topic.startswith(of_devices) or out.topic in whole
        )

    def go_on(self, before: Publisher) -> None:
        """Raised alarms, events that were not acknowledged and their count, from the publisher of another link.

        Under another name of the gateway the topics are others.
        """
        self._events = before._events
        old, new = before.topics.base, self.topics.base
        self._alarms = {new + topic.removeprefix(old): body for topic, body in before._alarms.items()}
        for out in before.queue:
            if out.event:
                self.queue.append(replace(out, topic=new + out.topic.removeprefix(old)))
        self._remember(self._alarms)

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
            since=self.stamp().ms(self._started),
            version=__version__,
            backlog=backlog,
        )
        return payload.encode(body)

    def queue_gaps(self, now: float) -> None:
        """Every gap that was not acknowledged yet and is not under way."""
        for gap in self.outbox.gaps():
            if gap.id in self._gaps_told:
                continue
            self._gaps_told.add(gap.id)
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
        waiting = [out for out in self.queue if out.event]
        if len(waiting) >= EVENTS_KEPT:
            self.queue.remove(waiting[0])
        self.queue.append(Out(self.topics.event(event.device), body, again=True, event=True))
        if not event.alarm:
            return
        topic = self.topics.alarm(event.device, event.name)
        if event.state == "raised":
            self._alarms[topic] = body
            self._remember([topic])
            self.queue.append(Out(topic, body, retain=True))
        elif self._alarms.pop(topic, None) is not None:
            self.queue.append(Out(topic, b"", retain=True))

    def acked(self, out: Out) -> None:
        """The broker has one of ours."""
        if out.gap is not None:
            self.outbox.ack_gap(out.gap)
        if out.retain and not out.body and out.topic not in self._owned():
            self._at_broker.discard(out.topic)

    # -- what is due --------------------------------------------------------------------------------------------

    def due(
        self,
        now: float,
        backlog: Callable[[], Mapping[str, Any]],
        seq_of: Callable[[str], int],
        *,
        last: bool = False,
    ) -> None:
        """Queues state, twins and forecasts whose time has come; the `last` time every twin that has changed."""
        mqtt = self.config.mqtt
        if self._state_at is None or now - self._state_at >= mqtt.full_every:
            self.queue_state(now, backlog())
        snapshot = self.snapshot
        if snapshot is None or (snapshot is self._looked_at and now < self._look_again and not last):
            return
        self._looked_at = snapshot
        for device in snapshot.layout.devices:
            at = self._twin_at.get(device)
            old = at is None or now - at >= mqtt.full_every
            ripe = at is None or last or now - at >= mqtt.twin_every
            if old or (ripe and self._changed(device, snapshot)):
                self._twin_at[device] = now
                self._show_twin(device, snapshot, seq_of(device))
            foretold = self._forecast_at.get(device)
            if foretold is None or now - foretold >= mqtt.forecast_every:
                forecast = payload.forecast_body(self.stamp(), snapshot, device)
                if forecast is not None:
                    self._forecast_at[device] = now
                    self._queue(self.topics.of("forecast", device), forecast, retain=True)
        self._look_again = self._next_ripe(now)

    def _next_ripe(self, now: float) -> float:
        """When the same snapshot may be due once more: what is ripe already waits for another one."""
        mqtt = self.config.mqtt
        times = [at + wait for at in self._twin_at.values() for wait in (mqtt.twin_every, mqtt.full_every)]
        times += [at + mqtt.forecast_every for at in self._forecast_at.values()]
        return min((at for at in times if at > now), default=math.inf)

    def _show_twin(self, device: str, snapshot: Snapshot, seq: int) -> None:
        self._shown[device] = snapshot
        body = payload.twin_body(
            self.stamp(),
            snapshot,
            device,
            stream=self.outbox.stream,
            seq=seq,
            meta=self.meta_hash[device],
        )
        self._queue(self.topics.of("twin", device), body, retain=True)

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
        names = [topic if i == 0 else f"{topic}/{i + 1}" for i in range(len(parts))]
        self._remember(names[1:])
        for name, part in zip(names, parts):
            for waiting in self.queue:
                if waiting.topic == name and waiting.retain:
                    waiting.body = self._compressed(part)
                    break
            else:
                self.queue.append(Out(name, self._compressed(part), retain=retain))
        for number in range(len(parts) + 1, self._parts.get(topic, 0) + 1):
            self.queue.append(Out(f"{topic}/{number}", b"", retain=True))
        self._parts[topic] = len(parts)

    def too_large(self, id_: str) -> bytes:
        """The answer to a command whose true answer the broker would not take."""
        head = self.stamp().head(self.mono())
        nothing = {"applied": None, "readback": None, "result": None}
        return payload.encode(
            head | {"id": id_, "ok": False, **nothing, "error": "the answer is larger than the broker takes"}
        )

    def room(self, topic: str) -> int:
        """Bytes of a body that fit into the broker's largest packet with this topic."""
        return (self.max_packet or 256 << 20) - len(topic.encode()) - 64

    def _compressed(self, body: bytes) -> bytes:
        return payload.compressed(body) if self.config.mqtt.compress == "all" else body

    # -- ownership ----------------------------------------------------------------------------------------------

    def _owned(self) -> set[str]:
        """Topics (but for `state`) that hold a retained body of ours now."""
        whole = [
            self.topics.of(kind, device)
            for device in self.config.devices
            for kind in ("meta", "twin", "forecast")
            if kind != "forecast" or device in self._foretold
        ]
        parts = [f"{topic}/{n}" for topic, count in self._parts.items() for n in range(2, count + 1)]
        return {*whole, *parts, *self._alarms}

    def _clear_strangers(self) -> None:
        """Empties what is retained and not ours any more: of a device that went, an alarm that ended meanwhile."""
        owned = self._owned()
        for topic in sorted(self._at_broker - owned):
            if topic.startswith(self.topics.base + "/"):
                self.queue.append(Out(topic, b"", retain=True))
        self._remember(owned)

    def close(self) -> None:
        """Keeps what is retained at the broker for the next run."""
        if self._at_broker != self._on_disk:
            gone = dict.fromkeys((RETAINED + topic for topic in self._on_disk - self._at_broker), None)
            self.outbox.put_all(gone | self._unwritten())

    def _take_list(self) -> None:
        """Makes the list of versions before into a row for each topic."""
        kept = self.outbox.get(RETAINED_LIST)
        if isinstance(kept, list):
            self._remember(topic for topic in kept if isinstance(topic, str))
            if self._at_broker <= self._on_disk:
                self.outbox.put_all({RETAINED_LIST: None})

    def _unwritten(self) -> dict[str, int]:
        return {RETAINED + topic: 1 for topic in sorted(self._at_broker - self._on_disk)}

    def _remember(self, topics: Iterable[str]) -> None:
        """Keeps on disk which topics may be retained at the broker, before they are: too many do no harm."""
        self._at_broker |= set(topics)
        new = self._unwritten()
        if new and self.outbox.put_all(new):
            self._on_disk |= self._at_broker


def _score(snapshot: Snapshot, device: str) -> tuple[float | None, tuple[str, ...]] | None:
    """Health to two digits: its noise is no change."""
    view = snapshot.health.get(device)
    if view is None:
        return None
    return (None if view.score is None else round(view.score, 2)), view.causes

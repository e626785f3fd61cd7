"""The accounts that must hold between what an agent closed, as its journal says, and what a subscriber has.

    with Reader(broker.port) as reader:         # a persistent session: what comes while it is cut off comes later
        ... faults, kills ...
        reader.listen(1.0)
    audit = compare(list(entries(journal)), reader.books)
    assert audit.faults() == []

Written without the product's own books, so that a mistake in those shows. A batch is known by (device, stream, seq).
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.cloud.journal import Entry
from agent.cloud.payload import decode

Key = tuple[str, str, int]
"""(device, stream, seq)"""


@dataclass(frozen=True, slots=True)
class Gap:
    device: str
    stream: str
    first: int
    last: int
    reason: str

    def __contains__(self, key: Key) -> bool:
        return key[:2] == (self.device, self.stream) and self.first <= key[2] <= self.last


@dataclass
class SubscriberBooks:
    """What one subscriber of a gateway has. `again`: deliveries of a batch that was there, which MQTT allows.
    `alarms`: name -> text of those that are raised.

    `content`: per batch the columns of `identity`, a tag whose good values are all different. `changed`: batches that
    came again with other readings.
    """

    identity: str | None = None
    have: dict[Key, int] = field(default_factory=dict)
    content: dict[Key, tuple[Any, ...]] = field(default_factory=dict)
    gaps: set[Gap] = field(default_factory=set)
    state: dict[str, Any] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    again: int = 0
    changed: list[Key] = field(default_factory=list)
    _parts: dict[tuple[Key, int], dict[int, int]] = field(default_factory=dict)

    def feed(self, topic: str, body: dict[str, Any]) -> None:
        """Books one message of <root>/v1/<gateway>/…"""
        kind, *rest = topic.split("/")[3:]
        if kind == "state":
            self.state = body
        elif kind == "alarm":
            self.alarms[rest[1]] = body["text"]
        elif kind == "gap":
            self.gaps.add(Gap(rest[0], body["stream"], body["from"], body["to"], body["reason"]))
        elif kind in ("data", "backfill"):
            self._take((rest[0], body["stream"], body["seq"]), body)

    def _take(self, key: Key, body: dict[str, Any]) -> None:
        readings = sum(len(column) for group in body["groups"] for column in group["c"].values())
        if "part" in body:
            part, of = body["part"]
            parts = self._parts.setdefault((key, of), {})
            parts[part] = readings
            if len(parts) < of:
                return
            readings = sum(parts.values())
        elif self.identity is not None:
            content = tuple(value for group in body["groups"] for value in group["c"].get(self.identity, ()))
            if self.content.setdefault(key, content) != content:
                self.changed.append(key)
        if key in self.have:
            self.again += 1
            if self.have[key] != readings:
                self.changed.append(key)
        self.have[key] = readings

    def excused(self, key: Key) -> bool:
        """Whether a gap names it."""
        return any(key in gap for gap in self.gaps)

    def values(self) -> list[Any]:
        """All values of `identity`, each batch once; None where a reading was not good."""
        return [value for content in self.content.values() for value in content]


@dataclass(frozen=True)
class Audit:
    """What comparing gave. All lists are empty where the accounts hold, but for `excused`.

    `missing`: closed, neither here nor named by a gap. `holes`: numbers up to the newest that are neither.
    `invented`: here, but never closed. `differing`: here with another number of readings, or with two contents.
    `doubled`: values of the identity under two batches. `excused`: closed, not here, named by a gap.
    """

    missing: list[Key]
    holes: list[Key]
    invented: list[Key]
    differing: list[Key]
    doubled: list[Any]
    excused: list[Key]
    readings: dict[Key, int]

    def faults(self) -> list[str]:
        """One line for each account that does not hold."""
        found = {
            name: getattr(self, name) for name in ("missing", "holes", "invented", "differing", "doubled")
        }
        return [f"{name}: {len(keys)}, first {keys[:5]}" for name, keys in found.items() if keys]

    def excused_of(self, entries: Sequence[Entry]) -> int:
        """Readings of these entries of the journal that a gap names."""
        lost = set(self.excused)
        return sum(readings for *key, readings in entries if tuple(key) in lost)


def compare(journal: Sequence[Entry], books: SubscriberBooks) -> Audit:
    """Holds a subscriber's books against the journal of the agent that it listened to."""
    closed = {(device, stream, seq): readings for device, stream, seq, readings in journal}
    assert len(closed) == len(journal), "a number was given out twice"
    newest: dict[tuple[str, str], int] = {}
    for device, stream, seq in (*closed, *books.have):
        newest[device, stream] = max(seq, newest.get((device, stream), 0))
    named = {
        (gap.device, gap.stream, seq)
        for gap in books.gaps
        for seq in range(gap.first, min(gap.last, newest.get((gap.device, gap.stream), 0)) + 1)
    }
    absent = [key for key in closed if key not in books.have]
    values = [value for value in books.values() if value is not None]
    seen: set[Any] = set()
    return Audit(
        missing=[key for key in absent if key not in named],
        holes=[
            (*place, seq)
            for place, last in newest.items()
            for seq in range(1, last + 1)
            if (*place, seq) not in books.have and (*place, seq) not in named
        ],
        invented=[key for key in books.have if key not in closed],
        differing=books.changed + [key for key, n in closed.items() if books.have.get(key, n) != n],
        doubled=[value for value in values if value in seen or seen.add(value)],  # type: ignore[func-returns-value]
        excused=[key for key in absent if key in named],
        readings=closed,
    )


class Reader:
    """A subscriber with a persistent session, so that it has every message that the broker took for it."""

    def __init__(self, port: int, *, root: str = "edgetwin", identity: str | None = None) -> None:
        self.books = SubscriberBooks(identity)
        self.messages = 0
        self._queue: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, f"books-{uuid.uuid4().hex[:8]}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{root}/v1/+/#", qos=1)
        self._client.on_message = lambda _c, _u, one: self._queue.put((one.topic, bytes(one.payload)))
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, keepalive=15, clean_start=False, properties=properties)
        self._client.loop_start()

    def listen(self, seconds: float) -> None:
        """Books what comes for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                topic, data = self._queue.get(timeout=left)
            except queue.Empty:
                return
            self.messages += 1
            if data:
                self.books.feed(topic, decode(data))
            else:
                self.books.alarms.pop(topic.rsplit("/", 1)[1], None)  # an emptied retained topic

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Listens until the condition holds; fails after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
            self.listen(0.1)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

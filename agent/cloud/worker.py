"""The cloud thread: takes records from the main loop, batches them, keeps the outbox, publishes, answers.

The main loop only puts into its queue and never waits for it. paho's threads post into the same queue.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.cloud import payload
from agent.cloud.batch import Batch, Batcher
from agent.cloud.calendar import Calendar
from agent.cloud.inbox import Answered, Future, Inbox
from agent.cloud.journal import Journal
from agent.cloud.mailbox import Mailbox
from agent.cloud.publisher import Out, Publisher
from agent.cloud.rivals import Rivals
from agent.cloud.sender import Sender
from agent.cloud.store import SPILL_AFTER, Store, open_store
from agent.cloud.topics import Topics
from agent.cloud.uplink import Acked, Connected, Deaf, Disconnected, Message, Note, Uplink
from agent.config.secrets import reveal
from agent.config.types import Config
from agent.runtime.clock import Clock
from agent.twin.records import Ask, Ended, Event, Layout, Row, Snapshot

log = logging.getLogger("edgetwin.cloud")

QUEUE_BOUND = 200_000
"""Records that may wait for the thread; above it rows are dropped and counted (the disk has been stuck for minutes)."""
LONGEST_WAIT = 0.5
"""Seconds between two turns; rows and acknowledgements wait for the next one."""
AT_ONCE = 2000
"""Records taken in one turn before anything is sent."""
ALIVE_WITHIN = 60.0
STATUS_EVERY = 0.5
SAID_EVERY = 3600.0
"""Seconds until the same reason of a lost link is logged again."""
TRY_DISK_EVERY = 5.0
CLOCK_SET_BY = 60.0
"""Seconds: smaller steps of the wall clock matter to no age."""
STUMBLE_EVERY = 60.0
"""Seconds between two tracebacks of one kind."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Somebody on the spot changed this name (as in `desired.set`)."""

    name: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """Other devices, tags, loops or forecasts from here on; the link and the outbox stay as they are."""

    config: Config
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Stop:
    deadline: float
    leave: bool


def _can_wait(item: Any) -> bool:
    return isinstance(item, Row) or (isinstance(item, Note) and item.kind == "published")


class Cloud:
    """What the service sees of the cloud side. `put` may be called from any thread and never blocks.

    `left`: what a link that was stopped leaves to the one that takes its place.
    """

    def __init__(
        self,
        config: Config,
        *,
        state_dir: Path,
        layout: Layout,
        boot: str,
        clock: Clock,
        ask: Callable[[Ask], Future],
        on_event: Callable[[Event], None] | None = None,
        left: Store | None = None,
    ) -> None:
        assert config.gateway is not None
        self._config = config
        self._clock = clock
        self._calendar = Calendar(clock, boot)
        self._on_event = on_event or (lambda event: None)
        self._queue = Mailbox(_can_wait)
        self._rows_dropped = 0
        self._beat = clock.mono()
        self._stopping: _Stop | None = None
        self._stopped = threading.Event()
        self.left: Store | None = None
        self._thread: threading.Thread | None = None
        self._topics = Topics(config.mqtt.root, config.gateway)
        self._store = open_store(
            state_dir, config.mqtt.outbox, config.devices, wall_ms=self._calendar.wall_ms, left=left
        )
        self._outbox = self._store.outbox
        self._calendar.open(self._outbox)
        self._journal = Journal.from_environment()
        self._batcher = Batcher()
        self._rivals = Rivals(config.mqtt.client_id or self._topics.gateway)
        self._said: tuple[str, float] | None = None
        self._offline_sent = False
        self._dropped_told = 0
        self._second = 0.0
        self._stumbled: dict[str, float] = {}
        self._trouble: str | None = None
        self._disk_tried = 0.0
        self._build(layout, ask)
        self._status = self._make_status()

    def _build(self, layout: Layout, ask: Callable[[Ask], Future]) -> None:
        """What publishes, what takes commands, the link, and what feeds it."""
        config, clock = self._config, self._clock
        self._publisher = Publisher(
            config,
            self._topics,
            layout,
            self._outbox,
            self._calendar.stamp,
            clock.mono,
            on_oversize=lambda topic: self._sender.oversize(topic),
        )
        key = None if config.commands.hmac is None else reveal(config.commands.hmac).encode()
        self._inbox = Inbox(
            config,
            self._topics,
            self._outbox,
            key,
            ask=ask,
            post=self._queue.put,
            send=lambda out: self._publisher.queue.append(out),
            on_event=self._own_event,
            stamp=self._calendar.stamp,
            mono=clock.mono,
            rebirth=self._birth,
            resend=lambda device, first, last: self._sender.resend(device, first, last),
        )
        self._uplink = Uplink(
            config.mqtt,
            client_id=config.mqtt.client_id or self._topics.gateway,
            will=(self._topics.state, self._publisher.state_body(clock.mono(), self._backlog(), "offline")),
            filters=[self._topics.desired, self._topics.commands],
            post=self._from_uplink,
            wake=self._queue.put,
            clock=clock,
            rng=random.Random(),
        )
        self._sender = Sender(
            config.mqtt,
            self._topics,
            self._store,
            self._publisher,
            self._uplink,
            retimed=self._retimed,
            on_event=self._own_event,
            mono=clock.mono,
        )

    # -- for other threads --------------------------------------------------------------------------------------

    @property
    def stream(self) -> str:
        return self._outbox.stream

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="cloud", daemon=True)
        self._thread.start()

    def go_on(self, before: Cloud) -> None:
        """Takes what a link that was stopped has told, before `start`: alarms, and the count of events."""
        self._publisher.go_on(before._publisher)
        self._trouble = before._trouble

    def put(self, item: Row | Ended | Snapshot | Event | Superseded | Reconfigured) -> None:
        """Hands one record over."""
        if len(self._queue) > QUEUE_BOUND and isinstance(item, Row):
            self._rows_dropped += 1
            return
        self._queue.put(item)

    def stop(self, timeout: float, *, leave: bool = False) -> None:
        """Publishes what it can, says `offline`, puts the rest on disk. The outbox is closed or `left` to the next."""
        end = _Stop(self._clock.mono() + timeout, leave)
        if self._thread is None:
            return self._put_away(end)
        self._queue.put(end)
        self._stopped.wait(timeout + 5.0)

    def status(self) -> dict[str, Any]:
        """The parts `outbox` and `uplink` of `status --json`."""
        return self._status

    def alive(self, now: float) -> bool:
        """True while the thread turns."""
        return now - self._beat < ALIVE_WITHIN

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if text := self._outbox.repaired:
            self._own_event(Event(None, "outbox_damaged", "warning", "raised", text, self._clock.mono()))
        try:
            while not self._turn():
                pass
        finally:
            self._stopped.set()

    def _turn(self) -> bool:
        """One turn; True when the end is reached. A fault in one record is told and costs that record alone."""
        self._queue.wait(self._wait(), eager=self._eager())
        for item in self._queue.take(AT_ONCE):
            self._guarded(self._handle, item)
        now = self._clock.mono()
        self._beat = now
        self._guarded(self._work, now)
        if now - self._second >= STATUS_EVERY:
            self._second = now
            self._guarded(self._each_second, now)
        return self._stopping is not None and self._ended(now)

    def _guarded(self, action: Callable[[Any], None], argument: Any) -> None:
        try:
            action(argument)
        except Exception as error:
            now, what = self._clock.mono(), f"{type(argument).__name__}: {type(error).__name__}"
            if now - self._stumbled.get(what, -STUMBLE_EVERY) >= STUMBLE_EVERY:
                self._stumbled[what] = now
                log.exception("the cloud side stumbled over %s; this is a fault of the program", what)

    def _wait(self) -> float:
        span = self._span()
        due = self._batcher.next_due(span)
        wait = min(LONGEST_WAIT, span)
        return max(0.001, wait if due is None else min(wait, due - self._clock.mono()))

    def _eager(self) -> bool:
        """Whether an acknowledgement makes room for something that waits, or ends everything."""
        waits = self._publisher.queue or self._outbox.waiting or self._store.next_memory() is not None
        return self._uplink.online and bool(self._stopping or waits)

    def _handle(self, item: Any) -> None:
        match item:
            case Row():
                now = self._clock.mono()
                self._batcher.add(item, min(now, max(item.t, now - LONGEST_WAIT)))
            case Ended():
                if not self._spans_long(self._clock.mono()):
                    self._batcher.end(item.devices)
            case Snapshot():
                self._publisher.snapshot = item
            case Event():
                self._publisher.add_event(item)
            case Note():
                self._uplink.handle(item)
            case Answered():
                self._inbox.answered(item)
            case Superseded():
                self._inbox.superseded(item.name)
            case Reconfigured():
                self._reconfigure(item)
            case _Stop():
                self._stopping = item
                self._close(self._batcher.take_all())
                if self._uplink.online:
                    self._publisher.due(self._clock.mono(), self._backlog, self._outbox.last_seq, last=True)

    def _work(self, now: float) -> None:
        self._watch_clock()
        self._uplink.tick(now)
        if self._spans_long(now) and (self._batcher.next_due(self._span()) or now + 1) <= now:
            self._close(self._batcher.take_all())  # of all devices together: one commit
        else:
            self._close(self._batcher.take_due(now, self._span()))
        self._store.tick(now, self._uplink.offline_for(now))
        if self._uplink.online and self._stopping is None:
            self._publisher.due(now, self._backlog, self._outbox.last_seq)
        self._sender.pump(now, ending=self._stopping is not None)

    def _reconfigure(self, new: Reconfigured) -> None:
        """Open batches are closed as what they are; what is read from now on is described by the new `meta`."""
        self._close(self._batcher.take_all())
        self._config = self._inbox.config = new.config
        self._outbox.know(new.config.devices)
        self._publisher.reconfigure(new.config, new.layout)
        if self._uplink.online:
            self._publisher.introduce(self._clock.mono())

    def _each_second(self, now: float) -> None:
        self._status = self._make_status()
        self._inbox.tick(now)
        if self._uplink.online:
            self._publisher.queue_gaps(now)
        if self._rows_dropped > self._dropped_told:
            self._dropped_told = self._rows_dropped
            text = f"{self._rows_dropped} replies were dropped: the cloud side cannot keep up"
            self._own_event(Event(None, "replies_dropped", "warning", "raised", text, now))
        self._tell_trouble(now)

    def _tell_trouble(self, now: float) -> None:
        """A disk that does not take the outbox is an alarm until it does again."""
        if self._outbox.trouble is not None and now - self._disk_tried >= TRY_DISK_EVERY:
            self._disk_tried = now
            self._outbox.try_again()
        trouble = self._outbox.trouble
        if (trouble is None) == (self._trouble is None):
            return
        self._trouble = trouble
        state: Literal["raised", "cleared"] = "cleared" if trouble is None else "raised"
        text = trouble or "the outbox can be written again"
        self._own_event(Event(None, "outbox_unwritable", "alarm", state, text, now, alarm=True))

    def _spans_long(self, now: float) -> bool:
        return self._uplink.offline_for(now) >= SPILL_AFTER

    def _span(self) -> float:
        """Seconds that a batch covers: longer while nobody listens, for each costs a commit, unless durable."""
        long = self._spans_long(self._clock.mono()) and not self._config.mqtt.outbox.durable
        return self._config.mqtt.outbox.batch if long else self._config.mqtt.batch

    def _close(self, closed: Iterable[tuple[str, list[Row]]]) -> None:
        now, batches = self._clock.mono(), []
        since = now  # when the oldest would have been closed online: a long one counts as waiting since then
        for device, rows in closed:
            since = min(since, rows[0].t + self._config.mqtt.batch)
            seq = self._outbox.next_seq(device)
            try:
                batches.append(self._make_batch(device, seq, rows, now))
            except Exception:
                self._outbox.lost(device, seq, "fault")
                log.exception("batch %d of %s cannot be made; this is a fault of the program", seq, device)
        if batches and self._journal is not None:
            self._journal.note(self._outbox.stream, batches)
        if batches:
            self._store.add(batches, online=self._uplink.online, since=since)

    def _make_batch(self, device: str, seq: int, rows: list[Row], now: float) -> Batch:
        stamp = self._calendar.stamp()
        body = payload.data_body(
            stamp, rows, t=now, stream=self._outbox.stream, seq=seq, meta=self._publisher.meta_hash[device]
        )
        batch = Batch(
            device,
            seq,
            stamp.ms(rows[0].t),
            sum(len(row.tags) for row in rows),
            payload.encode(body),
            self._calendar.boot,
            stamp.synced,
        )
        if self._config.mqtt.flat and self._uplink.online:
            flat = payload.encode(payload.flat_body(stamp, rows, t=now, seq=seq))
            self._publisher.queue.append(Out(self._topics.of("flat", device), flat))
        return batch

    def _retimed(self, batch: Batch) -> bytes:
        """A batch's body, its times put right where it was made before the clock was set, in this boot."""
        if batch.synced or batch.boot != self._calendar.boot or not self._calendar.synced:
            return batch.body
        return payload.encode(payload.retimed(json.loads(batch.body), self._calendar.ms))

    # -- what the link tells ------------------------------------------------------------------------------------

    def _from_uplink(self, item: Connected | Disconnected | Acked | Deaf | Message) -> None:
        match item:
            case Connected():
                log.info("connected to the broker by MQTT %s", self._uplink.protocol)
                self._sender.connected()
                self._publisher.max_packet = self._uplink.max_packet
                self._birth()
            case Disconnected():
                self._on_lost(item)
            case Acked():
                self._sender.acked(item)
            case Deaf():
                text = (
                    f"the broker refuses the subscription to commands: {item.reason}; does its ACL allow it?"
                )
                self._own_event(
                    Event(None, "subscribe_refused", "warning", "raised", text, self._clock.mono())
                )
            case Message():
                self._inbox.take(item)

    def _birth(self) -> None:
        self._publisher.connected(self._clock.mono(), self._backlog())
        self._inbox.retell()

    def _on_lost(self, lost: Disconnected) -> None:
        now = self._clock.mono()
        if self._said is None or self._said[0] != lost.reason or now - self._said[1] > SAID_EVERY:
            self._said = (lost.reason, now)
            log.warning("no broker: %s", lost.reason)
        self._sender.lost(self._uplink.returned(), now)
        suspicion = self._rivals.lost(lost, now)
        if suspicion is not None:
            self._own_event(Event(None, "name_taken", "alarm", "raised", suspicion, now))

    def _own_event(self, event: Event) -> None:
        """An event of this thread: published, and shown on the page."""
        if event.severity != "info":
            log.warning("%s", event.text)
        self._publisher.add_event(event)
        self._on_event(event)

    def _watch_clock(self) -> None:
        synced, change = self._calendar.synced, self._calendar.look()
        if synced and abs(change.moved) >= CLOCK_SET_BY:
            self._store.clock_moved(self._calendar.boot, round(1000 * change.moved))
        if change.set:
            self._inbox.clock_set()

    # -- the end ------------------------------------------------------------------------------------------------

    def _ended(self, now: float) -> bool:
        """Whether everything is sent and acknowledged, or there is no use in waiting any longer."""
        assert self._stopping is not None
        idle = not self._publisher.queue and not self._store.to_send and self._uplink.unacked == 0
        if self._uplink.online and now < self._stopping.deadline:
            if not idle:
                return False
            if not self._offline_sent:
                self._offline_sent = True
                self._publisher.queue_state(now, self._backlog(), "offline")
                return False
        self._uplink.close(politely=self._offline_sent and idle)  # or else the last will says it
        self._guarded(self._put_away, self._stopping)
        return True

    def _put_away(self, stop: _Stop) -> None:
        """What was not acknowledged goes to disk, and the outbox is closed or left."""
        self._store.disconnected(self._clock.mono())
        self._store.spill()
        self._publisher.close()
        self._calendar.keep()
        if not stop.leave:
            for key in self._store.memory:  # the disk does not take them: named, so that no hole is silent
                self._outbox.lost(*key, "shutdown")
            self._outbox.close()
        else:
            self.left = self._store
        if self._journal is not None:
            self._journal.close()

    # -- status -------------------------------------------------------------------------------------------------

    def _backlog(self) -> dict[str, Any]:
        stats = self._outbox.stats()
        oldest = [ms for ms in (stats["oldest"], self._store.oldest_ms()) if ms is not None]
        return {
            "batches": (stats["batches"] or 0) + len(self._store.memory),
            "bytes": (stats["bytes"] or 0) + self._store.memory_bytes,
            "oldest": min(oldest, default=None),
        }

    def _make_status(self) -> dict[str, Any]:
        dropped = self._outbox.dropped
        return {
            "outbox": {**self._backlog(), "dropped": dropped, "rows_dropped": self._rows_dropped},
            "uplink": {
                "state": self._uplink.state,
                "protocol": self._uplink.protocol,
                "unacked": self._uplink.unacked,
                "error": self._uplink.error,
            },
        }

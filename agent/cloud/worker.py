"""The cloud thread: takes records from the main loop, batches them, keeps the outbox, publishes, answers.

The main loop only puts into its queue and never waits for it. paho's threads post into the same queue.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import RELEASED_MS
from agent.cloud import payload
from agent.cloud.batch import Batch, Batcher
from agent.cloud.inbox import Answered, Future, Inbox
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.cloud.publisher import Out, Publisher
from agent.cloud.store import SPILL_AFTER, Store, Waiting
from agent.cloud.topics import Topics
from agent.cloud.uplink import WINDOW, Acked, Connected, Disconnected, Message, Note, Uplink
from agent.config.secrets import reveal
from agent.config.types import Config
from agent.runtime.clock import Anchor, Clock
from agent.twin.records import Ask, Event, Layout, Row, Snapshot

log = logging.getLogger("edgetwin.cloud")

QUEUE_BOUND = 200_000
"""Records that may wait for the thread; above it rows are dropped and counted (the disk has been stuck for minutes)."""
LONGEST_WAIT = 0.2
AT_ONCE = 2000
"""Records taken in one turn before anything is sent."""
ALIVE_WITHIN = 60.0
TAKEN_OVER_WINDOW = 60.0
LATEST_FACT = "latest_ms"
KEEP_LATEST_EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class Superseded:
    """Somebody on the spot changed this name (as in `desired.set`)."""

    name: str


@dataclass(frozen=True, slots=True)
class _Stop:
    deadline: float


class Cloud:
    """What the service sees of the cloud side. `put` may be called from any thread and never blocks."""

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
    ) -> None:
        assert config.gateway is not None
        self._config = config
        self._boot = boot
        self._clock = clock
        self._anchor = Anchor(clock)
        self._on_event = on_event or (lambda event: None)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._rows_dropped = 0
        self._beat = clock.mono()
        self._stopping: _Stop | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._topics = Topics(config.mqtt.root, config.gateway)
        self._outbox = Outbox(state_dir, config.mqtt.outbox, tuple(config.devices), wall_ms=self._wall_ms)
        self._latest_kept = int(self._outbox.get(LATEST_FACT) or 0)
        self._synced = self._is_synced()
        self._store = Store(self._outbox, config.mqtt.outbox)
        self._batcher = Batcher()
        self._resends: deque[Batch] = deque()
        self._taken_over: deque[float] = deque(maxlen=2)
        self._refused_topics: set[str] = set()
        self._said: str | None = None
        self._offline_sent = False
        self._publisher = Publisher(
            config,
            self._topics,
            layout,
            self._outbox,
            self._stamp,
            since=self._wall_ms(),
            on_oversize=self._on_oversize,
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
            stamp=self._stamp,
            mono=clock.mono,
            rebirth=self._birth,
            resend=self._resend,
        )
        self._uplink = Uplink(
            config.mqtt,
            client_id=config.mqtt.client_id or config.gateway,
            will=(self._topics.state, self._publisher.state_body(clock.mono(), self._backlog(), "offline")),
            filters=[self._topics.desired, self._topics.commands],
            post=self._from_uplink,
            wake=self._queue.put,
            clock=clock,
            rng=random.Random(),
        )
        self._status = self._make_status()

    # -- for other threads --------------------------------------------------------------------------------------

    @property
    def stream(self) -> str:
        return self._outbox.stream

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="cloud", daemon=True)
        self._thread.start()

    def put(self, item: Row | Snapshot | Event | Superseded) -> None:
        """Hands one record over."""
        if self._queue.qsize() > QUEUE_BOUND and isinstance(item, Row):
            self._rows_dropped += 1
            return
        self._queue.put(item)

    def stop(self, timeout: float) -> None:
        """Publishes what is left, says `offline`, closes the outbox; what is not acknowledged in time goes to disk."""
        if self._thread is None:
            self._outbox.close()
            return
        self._queue.put(_Stop(self._clock.mono() + timeout))
        self._stopped.wait(timeout + 5.0)

    def status(self) -> dict[str, Any]:
        """The parts `outbox` and `uplink` of `status --json`."""
        return self._status

    def alive(self, now: float) -> bool:
        """True while the thread turns."""
        return now - self._beat < ALIVE_WITHIN

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._outbox.repaired:
            self._own_event(
                Event(None, "outbox_damaged", "warning", "raised", self._outbox.repaired, self._clock.mono())
            )
        try:
            while not self._turn():
                pass
        finally:
            self._stopped.set()

    def _turn(self) -> bool:
        """One turn; True when the end is reached. A fault in one record is told and costs that record alone."""
        with contextlib.suppress(queue.Empty):
            self._guarded(self._handle, self._queue.get(timeout=self._wait()))
            for _ in range(AT_ONCE):
                self._guarded(self._handle, self._queue.get_nowait())
        now = self._clock.mono()
        self._beat = now
        self._guarded(self._work, now)
        self._status = self._make_status()
        return self._stopping is not None and self._ended(now)

    def _guarded(self, action: Callable[[Any], None], argument: Any) -> None:
        try:
            action(argument)
        except Exception:
            log.exception(
                "the cloud side stumbled over %s; this is a fault of the program", type(argument).__name__
            )

    def _wait(self) -> float:
        due = self._batcher.next_due(self._span())
        wait = LONGEST_WAIT if due is None else min(LONGEST_WAIT, due - self._clock.mono())
        return max(0.001, wait)

    def _handle(self, item: Any) -> None:
        match item:
            case Row():
                self._batcher.add(item, self._clock.mono())
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
            case _Stop():
                self._stopping = item
                self._close(self._batcher.take_all())

    def _work(self, now: float) -> None:
        self._watch_clock(now)
        self._uplink.tick(now)
        self._close(self._batcher.take_due(now, self._span()))
        self._store.tick(now, self._uplink.offline_for(now))
        if self._uplink.online and self._stopping is None:
            self._publisher.due(now, self._backlog(), self._outbox.last_seq)
        self._pump(now)

    def _span(self) -> float:
        """Seconds that a batch covers: longer while nobody listens, since each costs a commit."""
        long = self._uplink.offline_for(self._clock.mono()) >= SPILL_AFTER
        return self._config.mqtt.outbox.batch if long else self._config.mqtt.batch

    def _close(self, closed: Any) -> None:
        now = self._clock.mono()
        for device, rows in closed:
            seq = self._outbox.next_seq(device)
            stamp = self._stamp()
            body = payload.data_body(
                stamp,
                rows,
                t=now,
                stream=self._outbox.stream,
                seq=seq,
                meta=self._publisher.meta_hash[device],
            )
            batch = Batch(
                device,
                seq,
                stamp.ms(rows[0].t),
                sum(len(row.tags) for row in rows),
                payload.encode(body),
                self._boot,
                stamp.synced,
            )
            self._store.add(batch, online=self._uplink.online, offline_for=self._uplink.offline_for(now))
            if self._config.mqtt.flat and self._uplink.online:
                flat = payload.encode(payload.flat_body(stamp, rows, t=now, seq=seq))
                self._publisher.queue.append(Out(self._topics.of("flat", device), flat))

    # -- sending ------------------------------------------------------------------------------------------------

    def _pump(self, now: float) -> None:
        """Fills the window: answers, events and twins first, then live batches, then what waited."""
        while self._uplink.has_room:
            if self._publisher.queue:
                out = self._publisher.queue.popleft()
                self._uplink.publish(
                    out.topic, out.body, retain=out.retain, token=out, correlation=out.correlation
                )
            elif (waiting := self._store.next_memory()) is not None:
                waiting.sent = True
                self._send_batch(waiting.batch, live=waiting.live, token=waiting)
            elif self._resends:
                self._send_batch(self._resends.popleft(), live=False, token=None)
            elif (
                self._store.disk_inflight < WINDOW // 2 and (batch := self._store.next_disk(now)) is not None
            ):
                self._send_batch(batch, live=False, token=(batch.device, batch.seq))
            else:
                return

    def _send_batch(self, batch: Batch, *, live: bool, token: Any) -> None:
        body = batch.body
        if not batch.synced and batch.boot == self._boot and self._synced:
            body = payload.encode(payload.retimed(json.loads(body), self._anchor.ms))
        kind = "data" if live else "backfill"
        topic = self._topics.of(kind, batch.device)
        room = self._publisher.room(topic)
        parts = [body]
        if len(body) > room:
            try:
                parts = payload.split(json.loads(body), room)
            except ValueError as error:
                self._set_aside(batch, str(error))
                return
        compress = self._config.mqtt.compress == "all" or (
            not live and self._config.mqtt.compress == "backfill"
        )
        for i, part in enumerate(parts):
            self._uplink.publish(
                topic if i == 0 else f"{topic}/{i + 1}",
                payload.compressed(part) if compress else part,
                retain=False,
                token=token if i == len(parts) - 1 else None,
            )

    def _set_aside(self, batch: Batch, reason: str) -> None:
        key = (batch.device, batch.seq)
        self._store.refused(key, "refused")
        text = f"batch {batch.seq} of {batch.device} will not be sent: {reason}"
        self._own_event(Event(batch.device, "batch_refused", "warning", "raised", text, self._clock.mono()))
        self._publisher.queue_gaps(self._clock.mono())

    def _resend(self, device: str, first: int, last: int) -> tuple[int, int] | None:
        found = [batch for _, batch in self._outbox.find(device, first, last)]
        self._resends.extend(found)
        return (found[0].seq, found[-1].seq) if found else None

    # -- what the link tells ------------------------------------------------------------------------------------

    def _from_uplink(self, item: Connected | Disconnected | Acked | Message) -> None:
        match item:
            case Connected():
                log.info("connected to the broker by MQTT %s", self._uplink.protocol)
                self._said = None
                self._refused_topics.clear()
                self._publisher.max_packet = self._uplink.max_packet
                self._birth()
            case Disconnected():
                self._on_lost(item)
            case Acked():
                self._on_acked(item)
            case Message():
                self._inbox.take(item)

    def _birth(self) -> None:
        self._publisher.connected(self._clock.mono(), self._backlog())

    def _on_lost(self, lost: Disconnected) -> None:
        now = self._clock.mono()
        if lost.reason != self._said:
            log.warning("no broker: %s", lost.reason)
            self._said = lost.reason
        self._store.disconnected()
        self._publisher.disconnected([token for token in self._uplink.returned() if isinstance(token, Out)])
        if lost.taken_over:
            self._taken_over.append(now)
            if len(self._taken_over) == 2 and now - self._taken_over[0] < TAKEN_OVER_WINDOW:
                text = f"another client connects as {self._config.gateway}: two gateways with one name?"
                self._own_event(Event(None, "name_taken", "alarm", "raised", text, now))

    def _on_acked(self, acked: Acked) -> None:
        token = acked.token
        if isinstance(token, Waiting):
            key = (token.batch.device, token.batch.seq)
        elif isinstance(token, tuple):
            key = token
        else:
            if isinstance(token, Out):
                self._on_out_acked(token, acked.refused)
            return
        if acked.refused is None:
            self._store.acked(key)
            return
        self._store.refused(key, "refused")
        self._refusal(self._topics.of("data", key[0]), acked.refused)
        self._publisher.queue_gaps(self._clock.mono())

    def _on_out_acked(self, out: Out, refused: str | None) -> None:
        if refused is not None:
            self._refusal(out.topic, refused)
        elif out.gap is not None:
            self._outbox.ack_gap(out.gap)

    def _refusal(self, topic: str, reason: str) -> None:
        """The broker does not take messages of this topic: told once per topic and connection."""
        if topic in self._refused_topics:
            return
        self._refused_topics.add(topic)
        text = f"the broker refuses {topic}: {reason}; does its ACL allow it?"
        self._own_event(Event(None, "publish_refused", "warning", "raised", text, self._clock.mono()))

    def _on_oversize(self, topic: str) -> None:
        self._refusal(topic, "larger than its maximum packet size")

    def _own_event(self, event: Event) -> None:
        """An event of this thread: published, and shown on the page."""
        if event.severity != "info":
            log.warning("%s", event.text)
        self._publisher.add_event(event)
        self._on_event(event)

    # -- clock --------------------------------------------------------------------------------------------------

    def _wall_ms(self) -> int:
        return round(self._clock.wall() * 1000)

    def _is_synced(self) -> bool:
        """The clock is not set while it shows a time before this version or before the newest that was kept."""
        return self._wall_ms() >= max(RELEASED_MS, self._latest_kept)

    def _stamp(self) -> Stamp:
        return Stamp(self._boot, self._anchor.ms, self._synced)

    def _watch_clock(self, now: float) -> None:
        self._anchor.refresh()
        synced = self._synced or self._is_synced()
        if synced and not self._synced:
            self._synced = True
            self._inbox.clock_set()
        if self._synced and self._wall_ms() - self._latest_kept > 1000 * KEEP_LATEST_EVERY:
            self._latest_kept = self._wall_ms()
            self._outbox.put(LATEST_FACT, self._latest_kept)

    # -- the end ------------------------------------------------------------------------------------------------

    def _ended(self, now: float) -> bool:
        """Whether everything is sent and acknowledged, or there is no use in waiting any longer."""
        assert self._stopping is not None
        idle = not self._publisher.queue and not self._store.memory and self._uplink.unacked == 0
        if self._uplink.online and now < self._stopping.deadline:
            if not idle:
                return False
            if not self._offline_sent:
                self._offline_sent = True
                self._publisher.queue_state(now, self._backlog(), "offline")
                return False
        self._store.flush_acks(now)
        for waiting in self._store.memory.values():
            waiting.sent = False
        self._store.spill()
        self._uplink.close()
        if self._synced:
            self._outbox.put(LATEST_FACT, self._wall_ms())
        self._outbox.close()
        return True

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

"""Batches on their way: in memory while the broker acknowledges them, else on disk. Worker's thread only."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.config.types import OutboxConfig

SPILL_AFTER = 5.0
"""Seconds without a link after which what waits goes to disk."""
MEMORY_BOUND = 16 << 20
"""Bytes of batches in memory; above it they go to disk at once."""
ACK_EVERY = 1.0
PAGE = 16
"""Batches read from disk at a time."""

Key = tuple[str, int]


@dataclass(slots=True)
class Waiting:
    """A batch in memory. `live`: closed while the link was up and never sent, so it belongs on `data`."""

    batch: Batch
    live: bool
    on_disk: bool = False
    sent: bool = False


@dataclass
class Store:
    """The order in which batches leave, and what happens to them when the link goes or comes."""

    outbox: Outbox
    config: OutboxConfig
    memory: OrderedDict[Key, Waiting] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _acked: list[Key] = field(default_factory=list)
    _last_ack: float = 0.0
    _page: list[tuple[int, Batch]] = field(default_factory=list)
    _beyond: int = 0
    _disk_inflight: dict[Key, int] = field(default_factory=dict)
    _allowance: float = 0.0
    _allowed_at: float | None = None

    @property
    def commits_first(self) -> bool:
        """True where each batch goes to disk before it is sent: `durable`, or `keep` for a resend."""
        return self.config.durable or self.config.keep > 0

    def add(self, batch: Batch, *, online: bool, offline_for: float) -> None:
        """Takes a closed batch."""
        one = Waiting(batch, live=online)
        if self.commits_first:
            one.on_disk = self.outbox.spill([batch])
        if one.on_disk and not online:
            return  # it comes back from disk
        self.memory[(batch.device, batch.seq)] = one
        self._bytes += len(batch.body)
        if offline_for >= SPILL_AFTER or self._bytes > MEMORY_BOUND:
            self.spill()

    def spill(self) -> None:
        """Moves to disk what is not under way. What does not fit there stays, the oldest going when memory is full."""
        chosen = [one for one in self.memory.values() if not one.sent]
        if self.outbox.spill(one.batch for one in chosen if not one.on_disk):
            for one in chosen:
                self._forget((one.batch.device, one.batch.seq))
            return
        for key, one in list(self.memory.items()):
            if self._bytes <= MEMORY_BOUND:
                return
            if not one.sent:
                self._forget(key)
                if not one.on_disk:
                    self.outbox.lost(*key, "memory")

    def disconnected(self) -> None:
        """The link is gone: what was under way is sent again, under the same number, as backfill."""
        for one in self.memory.values():
            one.sent = False
            one.live = False
        self._disk_inflight.clear()
        self._page.clear()
        self._beyond = 0

    def next_memory(self) -> Waiting | None:
        """The oldest batch in memory that is not under way."""
        return next((one for one in self.memory.values() if not one.sent), None)

    def next_disk(self, now: float) -> Batch | None:
        """The oldest batch on disk that is not under way, as fast as `rate` allows; None when there is none now."""
        if not self.outbox.waiting:
            return None
        if not self._page:
            self._page = [
                (number, batch)
                for number, batch in self.outbox.oldest(PAGE, self._beyond)
                if (batch.device, batch.seq) not in self.memory
            ]
            if not self._page:
                return None
        number, batch = self._page[0]
        if not self._may_send(batch.readings, now):
            return None
        self._page.pop(0)
        self._beyond = max(self._beyond, number)
        self._disk_inflight[(batch.device, batch.seq)] = number
        return batch

    def _may_send(self, readings: int, now: float) -> bool:
        """A token bucket of one second's readings; 0 is no limit."""
        rate = self.config.rate
        if rate <= 0:
            return True
        if self._allowed_at is None:
            self._allowed_at, self._allowance = now, float(rate)
        self._allowance = min(float(rate), self._allowance + rate * (now - self._allowed_at))
        self._allowed_at = now
        if self._allowance < min(readings, rate):
            return False
        self._allowance -= readings
        return True

    @property
    def disk_inflight(self) -> int:
        return len(self._disk_inflight)

    def acked(self, key: Key) -> None:
        """The broker has a batch; only this takes it out."""
        one = self.memory.get(key)
        if one is not None:
            self._forget(key)
        if one is None or one.on_disk:
            self._disk_inflight.pop(key, None)
            self._acked.append(key)

    def refused(self, key: Key, reason: str) -> None:
        """The broker will never take it: set aside, so that it blocks nothing behind it."""
        one = self.memory.pop(key, None)
        if one is not None:
            self._bytes -= len(one.batch.body)
            if not one.on_disk:
                self.outbox.lost(*key, reason)
                return
        number = self._disk_inflight.pop(key, None)
        numbers = [number] if number is not None else [found for found, _ in self.outbox.find(*key, key[1])]
        self.outbox.drop(numbers, reason)

    def tick(self, now: float, offline_for: float) -> None:
        """Commits acknowledgements in groups; spills when the link has been down for long."""
        if self._acked and now - self._last_ack >= ACK_EVERY:
            self.flush_acks(now)
        if offline_for >= SPILL_AFTER and self.memory:
            self.spill()

    def flush_acks(self, now: float) -> None:
        acked, self._acked = self._acked, []
        self._last_ack = now
        self.outbox.ack(acked)

    def oldest_ms(self) -> int | None:
        """UTC time of the oldest reading in memory."""
        return min((one.batch.ms for one in self.memory.values()), default=None)

    @property
    def memory_bytes(self) -> int:
        return self._bytes

    def _forget(self, key: Key) -> None:
        one = self.memory.pop(key)
        self._bytes -= len(one.batch.body)

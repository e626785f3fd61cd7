"""Batches on their way: in memory while the broker acknowledges them, else on disk. Worker's thread only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.config.types import OutboxConfig

SPILL_AFTER = 5.0
"""Seconds without a link after which what waits goes to disk."""
MEMORY_BOUND = 16 << 20
"""Bytes of batches in memory; above it they go to disk at once."""
ACK_EVERY = 1.0
KEPT_AFTER = 0.5
"""Of `outbox.batch`: what the broker has not acknowledged by then is put on disk too, whatever the link seems to be, so
that a kill costs one `outbox.batch` at most. A link that works acknowledges long before."""
TRIED_EVERY = 1.0
PAGE = 16
"""Batches read from disk at a time."""

Key = tuple[str, int]


@dataclass(slots=True)
class Waiting:
    """A batch in memory. `live`: closed while the link was up and never sent, so it belongs on `data`.

    `since`: monotonic time at which it was closed.
    """

    batch: Batch
    live: bool
    since: float
    on_disk: bool = False
    sent: bool = False


@dataclass
class Store:
    """The order in which batches leave, and what happens to them when the link goes or comes."""

    outbox: Outbox
    config: OutboxConfig
    memory: OrderedDict[Key, Waiting] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _acked: set[Key] = field(default_factory=set)
    _last_ack: float = 0.0
    _last_spill: float = 0.0
    _next_keep: float = 0.0
    _page: list[tuple[int, Batch]] = field(default_factory=list)
    _beyond: int = 0
    _disk_inflight: dict[Key, int] = field(default_factory=dict)
    _held: dict[str, float] = field(default_factory=dict)
    _allowance: float = 0.0
    _allowed_at: float | None = None

    @property
    def commits_first(self) -> bool:
        """True where each batch goes to disk before it is sent: `durable`, or `keep` for a resend."""
        return self.config.durable or self.config.keep > 0

    def add(self, batches: Sequence[Batch], *, online: bool, since: float) -> None:
        """Takes batches that were closed together; `since`: from when on the broker might have had them (monotonic)."""
        on_disk = self.commits_first and self.outbox.spill(batches)
        if on_disk and not online:
            return  # they come back from disk
        for batch in batches:
            self.memory[(batch.device, batch.seq)] = Waiting(batch, live=online, since=since, on_disk=on_disk)
            self._bytes += len(batch.body)
        if self._bytes > MEMORY_BOUND:
            self.spill()

    def spill(self, devices: Collection[str] | None = None) -> None:
        """Moves to disk, in one commit, what is not under way (of some devices, or all).

        What does not fit there stays, the oldest going when memory is full.
        """
        chosen = [
            one
            for one in self.memory.values()
            if not one.sent and (devices is None or one.batch.device in devices)
        ]
        if self.outbox.spill(one.batch for one in chosen if not one.on_disk):
            for one in chosen:
                self._forget((one.batch.device, one.batch.seq))
            self._from_the_oldest()  # some may have been on disk already, and have been passed over
            return
        for key, one in list(self.memory.items()):
            if self._bytes <= MEMORY_BOUND:
                return
            if not one.sent:
                self._forget(key)
                if not one.on_disk:
                    self.outbox.lost(*key, "memory")

    def line_up(self, devices: Collection[str] | None = None) -> None:
        """Puts what is to be sent again behind the older ones on disk, so that all of it leaves oldest first."""
        if self.outbox.waiting > sum(one.on_disk for one in self.memory.values()):
            self.spill(devices)

    def _keep_late(self, now: float) -> None:
        """Puts on disk what should have been acknowledged by now; it stays in memory as well."""
        late = now - KEPT_AFTER * self.config.batch
        rest = [one for one in self.memory.values() if not one.on_disk]
        if now < self._next_keep or not rest or min(one.since for one in rest) > late:
            return
        self._next_keep = now + TRIED_EVERY
        if self.outbox.spill(one.batch for one in rest):
            self._next_keep = now
            for one in rest:
                one.on_disk = True

    def _from_the_oldest(self) -> None:
        """Reads what lies on disk from the beginning again."""
        self._page.clear()
        self._beyond = 0

    def disconnected(self, now: float) -> None:
        """The link is gone: what was under way is sent again, under the same number, as backfill."""
        self.flush_acks(now)  # or what was just acknowledged would be read from disk once more
        self._held.clear()
        for one in self.memory.values():
            one.sent = False
            one.live = False
        self._disk_inflight.clear()
        self._from_the_oldest()

    def clock_moved(self, boot: str, ms: int) -> None:
        """The wall clock was set by so many ms: what waits must not count as so much older (`max_age`), or younger."""
        for one in self.memory.values():
            if one.batch.synced:
                one.batch = replace(one.batch, ms=one.batch.ms + ms)
        self.outbox.clock_moved(boot, ms)

    def next_memory(self) -> Waiting | None:
        """The oldest batch in memory that is not under way, nor held."""
        return next(
            (one for one in self.memory.values() if not one.sent and one.batch.device not in self._held), None
        )

    def next_disk(self, now: float) -> Batch | None:
        """The oldest batch on disk that is not under way, as fast as `rate` allows; None when there is none now."""
        if not self.outbox.waiting:
            return None
        if not self._page:
            self._page = [
                (number, batch)
                for number, batch in self.outbox.oldest(PAGE, self._beyond, self._held)
                if not self._under_way((batch.device, batch.seq))
            ]
            if not self._page:
                return None
        number, batch = self._page[0]
        if not self.may_send(batch.readings, now):
            return None
        self._page.pop(0)
        self._beyond = max(self._beyond, number)
        self._disk_inflight[(batch.device, batch.seq)] = number
        return batch

    def _under_way(self, key: Key) -> bool:
        """Whether a batch on disk is sent from memory, or was sent, or is acknowledged but not yet taken out."""
        return key in self.memory or key in self._disk_inflight or key in self._acked

    def may_send(self, readings: int, now: float) -> bool:
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

    def acked(self, key: Key) -> None:
        """The broker has a batch; only this takes it out."""
        one = self.memory.get(key)
        if one is not None:
            self._forget(key)
        if one is None or one.on_disk:
            self._disk_inflight.pop(key, None)
            self._acked.add(key)

    def hold(self, key: Key, until: float) -> None:
        """The broker does not take this batch now: its device's wait, as backfill then; the other devices' go on."""
        device = key[0]
        self._held[device] = until
        if key in self.memory:
            self.memory[key].sent = False
        self._page.clear()
        for one in self.memory.values():
            if one.batch.device == device:
                one.live = False
        self._disk_inflight.pop(key, None)

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
        elif self._held and now - self._last_spill >= self.config.batch:
            self._last_spill = now
            self.spill(self._held)
        self._keep_late(now)
        over = [device for device, until in self._held.items() if now >= until]
        for device in over:
            del self._held[device]
        if over:
            self.flush_acks(now)
            self.line_up(over)
            self._from_the_oldest()

    def flush_acks(self, now: float) -> None:
        acked, self._acked = self._acked, set()
        self._last_ack = now
        self.outbox.ack(acked)

    @property
    def to_send(self) -> bool:
        """True while memory holds what no device's hold keeps back."""
        return any(one.batch.device not in self._held for one in self.memory.values())

    def oldest_ms(self) -> int | None:
        """UTC time of the oldest reading in memory."""
        return min((one.batch.ms for one in self.memory.values()), default=None)

    @property
    def memory_bytes(self) -> int:
        return self._bytes

    def _forget(self, key: Key) -> None:
        one = self.memory.pop(key)
        self._bytes -= len(one.batch.body)


def open_store(
    folder: Path,
    config: OutboxConfig,
    devices: Collection[str],
    *,
    wall_ms: Callable[[], int],
    left: Store | None = None,
) -> Store:
    """A state folder's; or the one that another link `left`, since batches and gaps that a full disk does not take are
    only there."""
    if left is None:
        return Store(Outbox(folder, config, tuple(devices), wall_ms=wall_ms), config)
    left.outbox.go_on(config, devices, wall_ms=wall_ms)
    left.config = config
    return left

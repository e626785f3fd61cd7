"""What waits for the broker, on disk: batches, gaps, sequence numbers, and the cloud side's few facts.

SQLite with a write-ahead log and full syncs: a commit outlives a power cut. Online nothing is written but a new block
of sequence numbers now and then. Only the cloud thread uses it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cloud.batch import Batch
from agent.config.types import OutboxConfig

log = logging.getLogger("edgetwin.cloud")

FILE = "outbox.db"
BLOCK = 1000
"""Sequence numbers reserved at once: one commit for that many batches of each device."""
MACHINE_ID = Path("/etc/machine-id")

SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
  id INTEGER PRIMARY KEY, device TEXT NOT NULL, seq INTEGER NOT NULL, ms INTEGER NOT NULL, readings INTEGER NOT NULL,
  boot TEXT NOT NULL, synced INTEGER NOT NULL, size INTEGER NOT NULL, acked INTEGER, body BLOB NOT NULL,
  UNIQUE (device, seq));
CREATE TABLE IF NOT EXISTS gap (
  id INTEGER PRIMARY KEY, device TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Gap:
    """Batches `first` to `last` of a device: of these, what nobody has by now will not come."""

    id: int
    device: str
    first: int
    last: int
    reason: str


class Outbox:
    """The state folder's outbox. `wall_ms` gives the present UTC time in ms.

    Opening never fails for what the file holds: a damaged one is set aside and a new one begun, told by `repaired`.
    Raises OSError only where the folder itself cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        config: OutboxConfig,
        devices: Sequence[str],
        *,
        wall_ms: Callable[[], int],
        machine: str | None = None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._wall_ms = wall_ms
        self._next: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self.repaired: str | None = None
        self.full = False
        self.dropped = 0
        self._db = self._open(folder / FILE)
        self.stream = self._begin(machine if machine is not None else _machine(), devices)
        self._count, self._bytes = self._db.execute("SELECT count(*), total(size) FROM batch").fetchone()
        self._waiting = self._scalar("SELECT count(*) FROM batch WHERE acked IS NULL")

    # -- opening ------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return self._connect(path)
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{path.name}.damaged-{self._wall_ms()}")
            for suffix in ("", "-wal", "-shm"):
                part = path.with_name(path.name + suffix)
                if part.exists():
                    part.replace(aside.with_name(aside.name + suffix))
            self.repaired = (
                f"the outbox was damaged ({error}); it is kept as {aside.name} and a new one was begun"
            )
            log.error("%s", self.repaired)
            return self._connect(path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            db.executescript(SCHEMA)
            [[verdict]] = db.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            for table in ("fact", "batch", "gap"):
                db.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _begin(self, machine: str, devices: Sequence[str]) -> str:
        """The stream id; goes on where the last run ended, or names what may have been lost with it."""
        stream = self.get("stream")
        with self._transaction():
            if stream is None or self.get("machine") != machine:
                # a copied state folder belongs to another gateway: its batches are that one's to send
                self._db.execute("DELETE FROM batch")
                self._db.execute("DELETE FROM gap")
                self._db.execute("DELETE FROM fact")
                stream = secrets.token_hex(4)
                self._put("stream", stream)
                self._put("machine", machine)
            reserved: dict[str, int] = self.get("reserved") or {}
            clean: dict[str, int] | None = self.get("clean")
            for device, last in reserved.items():
                if clean is not None and device in clean:
                    self._next[device] = clean[device]
                else:
                    self._name_lost(device, max(1, last - 2 * BLOCK + 1), last)
                    self._next[device] = last + 1
            self._reserved = reserved
            self._db.execute("DELETE FROM fact WHERE key = 'clean'")
        for device in devices:
            self._next.setdefault(device, 1)
        assert isinstance(stream, str)
        return stream

    def _name_lost(self, device: str, first: int, last: int) -> None:
        """Gaps for first..last but for what still lies here to be sent."""
        kept = self._db.execute(
            "SELECT seq FROM batch WHERE device = ? AND seq BETWEEN ? AND ? AND acked IS NULL ORDER BY seq",
            (device, first, last),
        )
        for (seq,) in [*kept, (last + 1,)]:
            if seq > first:
                self._add_gap(device, first, seq - 1, "restart")
            first = seq + 1

    # -- sequence numbers ---------------------------------------------------------------------------------------

    def next_seq(self, device: str) -> int:
        """The next number of a device, from 1 on. Reserves a block on disk for all devices when one runs out."""
        seq = self._next.setdefault(device, 1)
        if seq > self._reserved.get(device, 0):
            self._reserve()
        self._next[device] = seq + 1
        return seq

    def last_seq(self, device: str) -> int:
        """The newest number given out; 0 before the first."""
        return self._next.get(device, 1) - 1

    def _reserve(self) -> None:
        self._reserved = self._reserved | {device: seq + BLOCK - 1 for device, seq in self._next.items()}
        try:
            self._put("reserved", self._reserved)
            self.full = False
        except sqlite3.OperationalError as error:
            # numbers must go on; a restart before the disk has room again would use them twice, so say it loudly
            self._tell_full(error)

    # -- batches ------------------------------------------------------------------------------------------------

    def spill(self, batches: Iterable[Batch]) -> bool:
        """Puts batches on disk in one commit. False when the disk does not take them: they stay the caller's."""
        rows = [
            (one.device, one.seq, one.ms, one.readings, one.boot, one.synced, zlib.compress(one.body, 6))
            for one in batches
        ]
        if not rows:
            return True
        try:
            with self._transaction():
                self._db.executemany(
                    "INSERT OR IGNORE INTO batch (device, seq, ms, readings, boot, synced, size, body)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(*row[:6], len(row[6]), row[6]) for row in rows],
                )
                self._bound()
        except sqlite3.OperationalError as error:
            self._tell_full(error)
            return False
        self.full = False
        self._recount()
        return True

    def oldest(self, limit: int, beyond: int = 0, without: Collection[str] = ()) -> list[tuple[int, Batch]]:
        """Up to `limit` batches that wait, oldest first, with ids above `beyond`: (id, batch). `without`: devices."""
        marks = ",".join("?" * len(without))
        found = self._db.execute(
            "SELECT id, device, seq, ms, readings, boot, synced, body FROM batch"
            f" WHERE acked IS NULL AND id > ? AND device NOT IN ({marks}) ORDER BY id LIMIT ?",
            (beyond, *without, limit),
        )
        return [self._batch(row) for row in found if self._whole(row)]

    def span(self, device: str, first: int, last: int) -> tuple[int, int] | None:
        """The lowest and the highest of first..last that are still here, acknowledged or not; None: none is."""
        low, high = self._db.execute(
            "SELECT min(seq), max(seq) FROM batch WHERE device = ? AND seq BETWEEN ? AND ?",
            (device, first, last),
        ).fetchone()
        return None if low is None else (low, high)

    def find(self, device: str, first: int, last: int, limit: int = -1) -> list[tuple[int, Batch]]:
        """Batches first..last of a device that are still here, acknowledged or not; at most `limit`, -1 for all."""
        found = self._db.execute(
            "SELECT id, device, seq, ms, readings, boot, synced, body FROM batch"
            " WHERE device = ? AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
            (device, first, last, limit),
        )
        return [self._batch(row) for row in found if self._whole(row)]

    def _whole(self, row: tuple[Any, ...]) -> bool:
        """False for a blob that cannot be unpacked: it is dropped and named, so that it blocks nothing behind it."""
        try:
            zlib.decompress(row[7])
        except (zlib.error, TypeError):
            self.drop([row[0]], "damaged")
            return False
        return True

    @staticmethod
    def _batch(row: tuple[Any, ...]) -> tuple[int, Batch]:
        number, device, seq, ms, readings, boot, synced, body = row
        return number, Batch(device, seq, ms, readings, zlib.decompress(body), boot, bool(synced))

    def ack(self, keys: Iterable[tuple[str, int]]) -> None:
        """The broker has them: (device, seq). They go, or stay for `keep` seconds for a resend."""
        pairs = list(keys)
        if not pairs or not self._count:
            return
        with self._transaction():
            if self._config.keep > 0:
                now = self._wall_ms()
                self._db.executemany(
                    "UPDATE batch SET acked = ? WHERE device = ? AND seq = ?",
                    [(now, *pair) for pair in pairs],
                )
                self._db.execute(
                    "DELETE FROM batch WHERE acked < ?", (now - round(1000 * self._config.keep),)
                )
            else:
                self._db.executemany("DELETE FROM batch WHERE device = ? AND seq = ?", pairs)
            self._db.execute("PRAGMA incremental_vacuum(200)")
        self._recount()

    def drop(self, numbers: Iterable[int], reason: str) -> None:
        """Takes batches out for good and names the gap."""
        chosen = list(numbers)
        with self._transaction():
            for number in chosen:
                row = self._db.execute("SELECT device, seq FROM batch WHERE id = ?", (number,)).fetchone()
                if row is not None:
                    self._db.execute("DELETE FROM batch WHERE id = ?", (number,))
                    self._add_gap(row[0], row[1], row[1], reason)
                    self.dropped += 1
        self._recount()

    def lost(self, device: str, seq: int, reason: str) -> None:
        """Names a batch that never reached the disk."""
        self.dropped += 1
        try:
            self._add_gap(device, seq, seq, reason)
        except sqlite3.OperationalError as error:
            self._tell_full(error)

    def _bound(self) -> None:
        """Oldest go first when the outbox is too large, too old, or leaves too little free space."""
        config = self._config
        oldest_ms = self._wall_ms() - round(1000 * config.max_age)
        self._drop_where("ms < ? AND synced = 1", (oldest_ms,), "age")
        size = self._scalar("SELECT total(size) FROM batch")
        status = os.statvfs(self._folder)
        room = status.f_bavail * status.f_frsize - config.min_free
        excess = max(size - config.max_size, -room if size else 0)
        if excess <= 0:
            return
        freed, last = 0, 0
        for number, bytes_ in self._db.execute("SELECT id, size FROM batch ORDER BY id"):
            freed, last = freed + bytes_, number
            if freed >= excess:
                break
        self._drop_where("id <= ?", (last,), "size" if size > config.max_size else "disk")

    def _drop_where(self, condition: str, values: tuple[Any, ...], reason: str) -> None:
        rows = self._db.execute(
            f"SELECT device, seq, acked FROM batch WHERE {condition} ORDER BY id", values
        ).fetchall()
        for device, seq, acked in rows:
            if acked is None:
                self._add_gap(device, seq, seq, reason)
                self.dropped += 1
        if rows:
            self._db.execute(f"DELETE FROM batch WHERE {condition}", values)

    # -- gaps ---------------------------------------------------------------------------------------------------

    def gaps(self) -> list[Gap]:
        """What must be told and was not acknowledged yet."""
        return [
            Gap(*row)
            for row in self._db.execute("SELECT id, device, first, last, reason FROM gap ORDER BY id")
        ]

    def ack_gap(self, number: int) -> None:
        self._db.execute("DELETE FROM gap WHERE id = ?", (number,))

    def _add_gap(self, device: str, first: int, last: int, reason: str) -> None:
        """Adds a gap, or lengthens the newest one of the device that it follows."""
        before = self._db.execute(
            "SELECT id, first FROM gap WHERE device = ? AND reason = ? AND last = ?",
            (device, reason, first - 1),
        ).fetchone()
        if before is not None:
            # under a new id: whoever is just publishing the shorter one acknowledges that one, not this
            self._db.execute("DELETE FROM gap WHERE id = ?", (before[0],))
            first = before[1]
        self._db.execute(
            "INSERT INTO gap (device, first, last, reason) VALUES (?, ?, ?, ?)", (device, first, last, reason)
        )

    # -- facts --------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """A fact that was put, or None."""
        row = self._db.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except ValueError:
            return None

    def put(self, key: str, value: Any) -> None:
        """Keeps a fact (JSON) durably; a full disk is told, not raised."""
        try:
            self._put(key, value)
        except sqlite3.OperationalError as error:
            self._tell_full(error)

    def _put(self, key: str, value: Any) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, json.dumps(value, separators=(",", ":")))
        )

    # -- the rest -----------------------------------------------------------------------------------------------

    def stats(self) -> Mapping[str, int | None]:
        """For `state.backlog` and `status`: batches and bytes that wait, ms UTC of the oldest, dropped since start."""
        oldest = self._scalar("SELECT min(ms) FROM batch WHERE acked IS NULL") if self._waiting else None
        return {
            "batches": self._waiting,
            "bytes": int(self._bytes),
            "oldest": oldest,
            "dropped": self.dropped,
        }

    @property
    def waiting(self) -> int:
        """Batches on disk that nobody acknowledged."""
        return int(self._waiting)

    def close(self) -> None:
        """A clean end: the rest of the reserved numbers stays usable, nothing is named lost."""
        try:
            self._put("clean", self._next)
        except sqlite3.OperationalError as error:
            self._tell_full(error)
        self._db.close()

    def _recount(self) -> None:
        self._count, self._bytes = self._db.execute("SELECT count(*), total(size) FROM batch").fetchone()
        self._waiting = self._scalar("SELECT count(*) FROM batch WHERE acked IS NULL")

    def _scalar(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    def _tell_full(self, error: sqlite3.Error) -> None:
        if not self.full:
            self.full = True
            log.error("the outbox cannot be written (%s); what waits stays in memory", error)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, rolled back on an error."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _machine() -> str:
    try:
        return MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""

"""The outbox's tables and what is done to them within a transaction. Any connection with `execute` will do."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.cloud.batch import Batch
from agent.config.types import OutboxConfig

# The index is by seq first: the batches of one commit, of all devices, then stand side by side in it, on a page or two
# instead of one for each device.
SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
  id INTEGER PRIMARY KEY, device TEXT NOT NULL, seq INTEGER NOT NULL, ms INTEGER NOT NULL, readings INTEGER NOT NULL,
  boot TEXT NOT NULL, synced INTEGER NOT NULL, size INTEGER NOT NULL, acked INTEGER, body BLOB NOT NULL,
  UNIQUE (seq, device));
CREATE INDEX IF NOT EXISTS waiting ON batch (acked) WHERE acked IS NULL;
CREATE TABLE IF NOT EXISTS gap (
  id INTEGER PRIMARY KEY, device TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL);
"""
LONGEST = 1 << 40
"""Bytes: a header that tells of more is wrong itself."""
EMPTY_PAGES = 8
"""What the file takes before the first batch."""
COLUMNS = "id, device, seq, ms, readings, boot, synced, body"
INSERT = f"INSERT OR IGNORE INTO batch ({COLUMNS}, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

NUMBERS_FACT = "numbers"
"""A copy of the numbers, which tells when the database is older than they are."""

Key = tuple[str, int]
"""(device, seq)"""
NewId = Callable[[], int]
Gone = tuple[str, int, int]
"""(device, seq, bytes) of a batch that was given up while it waited."""


class Cursor(Protocol):
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Database(Protocol):
    """As much of an SQLite connection as is used here."""

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...


@dataclass(frozen=True, slots=True)
class Gap:
    """Batches `first` to `last` of a device: of these, what nobody has by now will not come."""

    id: int
    device: str
    first: int
    last: int
    reason: str


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT, rolled back on an error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def facts_of(db: Database, start: str) -> dict[str, Any]:
    """The facts whose keys begin with `start`; one that is no JSON is none."""
    facts: dict[str, Any] = {}
    rows = db.execute("SELECT key, value FROM fact WHERE key >= ? AND key < ?", (start, start + "\U0010ffff"))
    for key, value in rows.fetchall():
        with suppress(ValueError):
            facts[key] = json.loads(value)
    return facts


def put_facts(db: Database, facts: Mapping[str, Any]) -> None:
    """Keeps facts in one commit; None takes one out."""
    with transaction(db):
        for key, value in facts.items():
            if value is None:
                db.execute("DELETE FROM fact WHERE key = ?", (key,))
            else:
                text = json.dumps(value, separators=(",", ":"))
                db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, text))


def copy_facts(source: Database, target: Database) -> None:
    """What was put while the target could not be used."""
    put_facts(target, facts_of(source, ""))


def scalar(db: Database, query: str, values: Sequence[Any] = ()) -> int:
    """The one number that a query gives; 0 for NULL."""
    return int(db.execute(query, values).fetchone()[0] or 0)


def last_id(db: Database) -> int:
    """The highest id of all batches and gaps."""
    return max(scalar(db, "SELECT max(id) FROM batch"), scalar(db, "SELECT max(id) FROM gap"))


def set_aside(path: Path, ms: int) -> Path:
    """Renames the database with its log; only the newest damaged one is kept."""
    for old in path.parent.glob(f"{path.name}.damaged-*"):
        old.unlink()
    aside = path.with_name(f"{path.name}.damaged-{ms}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside


def lengthen(path: Path) -> None:
    """Zeros in place of what was cut off: SQLite reads nothing of a file that is shorter than its header says.

    Of the header: page size at byte 16, pages at byte 28 (SQLite file format, 1.3).
    """
    with path.open("r+b") as file:
        header = file.read(100)
        if len(header) < 100:
            return
        page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
        size = (65536 if page == 1 else page) * pages
        if path.stat().st_size < size <= LONGEST:
            file.truncate(size)


def text(data: bytes) -> str:
    """For text_factory: a flipped bit in a name must not make every query fail."""
    return data.decode("utf-8", "replace")


# -- batches ----------------------------------------------------------------------------------------------------


def to_row(batch: Batch) -> tuple[Any, ...]:
    """What INSERT takes after the id."""
    body = zlib.compress(batch.body, 6)
    return (
        batch.device,
        batch.seq,
        batch.ms,
        batch.readings,
        batch.boot,
        batch.synced,
        body,
        len(body),
    )


def to_batch(row: Sequence[Any]) -> Batch | None:
    """A row of COLUMNS; None where it is damaged."""
    _, device, seq, ms, readings, boot, synced, body = row
    if not isinstance(device, str) or not all(isinstance(number, int) for number in (seq, ms, readings)):
        return None
    try:
        return Batch(device, seq, ms, readings, zlib.decompress(body), str(boot), bool(synced))
    except (zlib.error, TypeError):
        return None


def belongs(batch: Batch, stream: str | None) -> bool:
    """Whether the body bears the stream and the number of its row."""
    return f'"stream":"{stream}","seq":{batch.seq},'.encode() in batch.body[:300]


def take_acked(db: Database, keys: Sequence[Key], *, now_ms: int, keep_ms: int) -> tuple[int, int]:
    """Takes acknowledged batches out, or marks them as kept for a resend: (batches, bytes) that wait no more."""
    if keep_ms > 0:
        query, stamp = "UPDATE batch SET acked = ? WHERE device = ? AND seq = ? AND acked IS NULL", [now_ms]
    else:
        query, stamp = "DELETE FROM batch WHERE device = ? AND seq = ? AND acked IS NULL", []
    sizes = [
        size for key in keys for (size,) in db.execute(f"{query} RETURNING size", [*stamp, *key]).fetchall()
    ]
    if keep_ms > 0:
        db.execute("DELETE FROM batch WHERE acked < ?", (now_ms - keep_ms,))
    return len(sizes), sum(sizes)


def take_out(db: Database, number: int, reason: str, new_id: NewId) -> list[Gone]:
    """Deletes one batch for good; names its gap when it still waited."""
    gone = db.execute(
        "DELETE FROM batch WHERE id = ? RETURNING device, seq, size, acked", (number,)
    ).fetchall()
    waited = [
        (device, seq, size) for device, seq, size, acked in gone if acked is None and isinstance(seq, int)
    ]
    for device, seq, _ in waited:
        insert_gap(db, device, seq, seq, reason, new_id)
    return waited


def bound(db: Database, config: OutboxConfig, folder: Path, now_ms: int, new_id: NewId) -> list[Gone]:
    """Oldest go first, and before all what is kept only for a resend, when they take too much or are too old."""
    gone: list[Gone] = []
    limit = now_ms - round(1000 * config.max_age)
    while True:
        # batches made before the clock was set have no age
        row = db.execute(
            "SELECT id, ms FROM batch WHERE acked IS NULL AND synced = 1 ORDER BY id LIMIT 1"
        ).fetchone()
        if row is None or row[1] >= limit:
            break
        gone += take_out(db, row[0], "age", new_id)
    while (reason := excess(db, config, folder)) is not None:
        row = None
        if config.keep > 0:
            row = db.execute("SELECT id FROM batch WHERE acked IS NOT NULL ORDER BY id LIMIT 1").fetchone()
        row = row or db.execute("SELECT id FROM batch ORDER BY id LIMIT 1").fetchone()
        if row is None:
            break
        gone += take_out(db, row[0], reason, new_id)
    return gone


def excess(db: Database, config: OutboxConfig, folder: Path) -> str | None:
    """Why it is too much: "size", or "disk" where too little is left free for others; None: it is not."""
    page, free = scalar(db, "PRAGMA page_size"), scalar(db, "PRAGMA freelist_count")
    if (scalar(db, "PRAGMA page_count") - free - EMPTY_PAGES) * page > config.max_size:
        return "size"
    status = os.statvfs(folder)
    return "disk" if status.f_bavail * status.f_frsize + free * page < config.min_free else None


# -- gaps -------------------------------------------------------------------------------------------------------


def missing(db: Database, device: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Ranges of first..last without what still lies here to be sent."""
    kept = db.execute(
        "SELECT seq FROM batch WHERE device = ? AND seq BETWEEN ? AND ? AND acked IS NULL ORDER BY seq",
        (device, first, last),
    ).fetchall()
    for (seq,) in [*kept, (last + 1,)]:
        if seq > first:
            yield first, seq - 1
        first = seq + 1


def insert_gap(db: Database, device: str, first: int, last: int, reason: str, new_id: NewId) -> None:
    """Adds a gap in place of those inside it, or lengthens the one that it follows.

    The longer one gets a new id: whoever is just publishing the shorter one acknowledges that one, not this.
    """
    db.execute("DELETE FROM gap WHERE device = ? AND first >= ? AND last <= ?", (device, first, last))
    before = db.execute(
        "DELETE FROM gap WHERE device = ? AND reason = ? AND last = ? RETURNING first",
        (device, reason, first - 1),
    ).fetchall()
    first = min([first, *(row[0] for row in before)])
    db.execute("INSERT INTO gap VALUES (?, ?, ?, ?, ?)", (new_id(), device, first, last, reason))


def add_gap(gaps: dict[int, Gap], device: str, first: int, last: int, reason: str, number: int) -> None:
    """The same among gaps in memory, by id; `number` is the new id."""
    for one in reversed(gaps.values()):
        if one.device == device and one.reason == reason and one.last == first - 1:
            first = gaps.pop(one.id).first
            break
    gaps[number] = Gap(number, device, first, last, reason)

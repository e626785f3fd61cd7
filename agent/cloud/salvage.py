"""The outbox's database is opened; what is whole in a damaged one goes into a new one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from agent.cloud import numbers
from agent.cloud.tables import (
    COLUMNS,
    INSERT,
    NUMBERS_FACT,
    SCHEMA,
    belongs,
    lengthen,
    scalar,
    text,
    to_batch,
    transaction,
)

LOG_LIMIT = 4 << 20


def connect(path: Path | str) -> sqlite3.Connection:
    """A database with the tables and full syncs. Raises sqlite3.Error."""
    db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    db.text_factory = text
    try:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has an effect only before the first page is written
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA journal_size_limit={LOG_LIMIT}")
        db.executescript(SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


def take_over(aside: Path, db: sqlite3.Connection, stream: str | None) -> int:
    """Copies facts and whole batches out of a damaged database, as far as it can be read; the count of batches."""
    lengthen(aside)
    with suppress(sqlite3.Error), closing(sqlite3.connect(aside, isolation_level=None)) as old:
        old.text_factory = text
        with suppress(sqlite3.Error), transaction(db):
            for fact in old.execute("SELECT key, value FROM fact"):
                db.execute("INSERT OR IGNORE INTO fact VALUES (?, ?)", fact)
        if stream is None:
            [copy] = db.execute("SELECT value FROM fact WHERE key = ?", (NUMBERS_FACT,)).fetchone() or [None]
            with suppress(ValueError, TypeError):
                stream = numbers.from_text(json.loads(copy)).stream
        rows = _whole_rows(old, stream)
        while chunk := list(islice(rows, 200)):
            with suppress(sqlite3.Error), transaction(db):
                db.executemany(INSERT, [(*row, len(row[-1])) for row in chunk])
    return scalar(db, "SELECT count(*) FROM batch")


def _whole_rows(old: sqlite3.Connection, stream: str | None) -> Iterator[tuple[Any, ...]]:
    """From the oldest on to the first unreadable page, then from the newest back to the last."""
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error):
            for row in old.execute(
                f"SELECT {COLUMNS} FROM batch NOT INDEXED WHERE acked IS NULL ORDER BY id {order}"
            ):
                batch = to_batch(row)
                if batch is not None and belongs(batch, stream):
                    yield row
            return

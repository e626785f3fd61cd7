"""What waits for the broker, on disk: batches, gaps, and the cloud side's few facts.

SQLite with a write-ahead log and full syncs: a commit outlives a power cut. Online nothing is written but a new block
of sequence numbers now and then. Only the cloud thread uses it. No method raises for what the disk does: a full one
leaves batches with the caller and gaps in memory, a damaged file is set aside at the next start and what is whole in
it is taken over.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.cloud import numbers
from agent.cloud.batch import Batch
from agent.cloud.numbers import Numbers
from agent.cloud.salvage import connect, take_over
from agent.cloud.tables import (
    COLUMNS,
    INSERT,
    NUMBERS_FACT,
    Gap,
    Gone,
    Key,
    add_gap,
    bound,
    copy_facts,
    facts_of,
    insert_gap,
    last_id,
    missing,
    put_facts,
    scalar,
    set_aside,
    take_acked,
    take_out,
    to_batch,
    to_row,
    transaction,
)
from agent.config.types import OutboxConfig

log = logging.getLogger("edgetwin.cloud")

FILE = "outbox.db"
BLOCK = 1000
"""Sequence numbers reserved at once: one write for that many batches of each device."""
CHECKED_UP_TO = 32 << 20
"""Bytes: a larger file is not read through at the start, which would delay it; damage shows when it is read."""
SHRINK_FROM = 1024
"""Free pages: fewer are left for the next batches."""
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
TRIED_FACT = "tried_ms"


class Outbox:
    """The state folder's outbox. `wall_ms` gives the present UTC time in ms. Opening never fails.

    `stream`: 8 hex digits. `repaired`: what was found damaged at the start, in words, or None. `trouble`: why the disk
    takes nothing now, or None. `dropped`: batches given up since the start.
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
        self._acks: set[Key] = set()  # acknowledged, not yet told to the disk
        self._gaps: dict[int, Gap] = {}  # not yet on disk, under negative ids
        self._last_id = 0
        self._waiting = self._bytes = 0
        self._volatile = False  # the database cannot be opened: nothing is kept beyond this run
        self._numbered = False  # and yet the numbers can be written
        self._first: dict[str, int] = {}  # with it, the first number of this run
        self._damaged = False  # found while running: nothing more is written until the next start repairs it
        self.repaired: str | None = None
        self.trouble: str | None = None
        self.dropped = 0
        self._numbers = Numbers(
            secrets.token_hex(4), machine if machine is not None else numbers.this_machine()
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = self._open(folder / FILE)
            self._last_id = last_id(self._db)
            self._begin(numbers.load(folder), self._numbers)
        except (OSError, sqlite3.Error) as error:
            # readings are still published; what the folder holds is left as it is
            self._volatile = True
            self._tell(error)
            self._db = connect(":memory:")
            self._next.clear()
            self._gaps.clear()
            alone = numbers.go_on_alone(folder, self._numbers.machine, BLOCK)
            self._numbered = alone is not None
            self._numbers, self._first = alone or (Numbers(secrets.token_hex(4), self._numbers.machine), {})
            self._next.update(self._first)
        self.know(devices)
        self._recount()

    @property
    def stream(self) -> str:
        return self._numbers.stream

    def know(self, devices: Iterable[str]) -> None:
        """Devices that may ask for numbers; what was counted of others is kept."""
        for device in devices:
            self._next.setdefault(device, 1)

    def go_on(self, config: OutboxConfig, devices: Iterable[str], *, wall_ms: Callable[[], int]) -> None:
        """Other bounds and devices from here on; what was found at the start has been told."""
        self._config, self._wall_ms, self.repaired = config, wall_ms, None
        self.know(devices)

    # -- opening ------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> sqlite3.Connection:
        """The database; a damaged one is set aside, and what is whole in it goes into a new one."""
        db = None
        try:
            db = connect(path)
            if path.stat().st_size <= CHECKED_UP_TO:
                [verdict] = db.execute("PRAGMA integrity_check(1)").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict.splitlines()[-1])
            for table, columns in (("fact", "key"), ("batch", f"{COLUMNS}, size, acked"), ("gap", "reason")):
                db.execute(f"SELECT {columns} FROM {table} LIMIT 1").fetchall()
        except sqlite3.DatabaseError as error:
            if db is not None:
                db.close()
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in DAMAGE:
                raise  # a full disk or a lock is no damage
            aside = set_aside(path, self._wall_ms())
            db = connect(path)
            found = numbers.load(self._folder)
            kept = take_over(aside, db, None if found is None else found[0].stream)
            self.repaired = (
                f"the outbox was damaged ({error}); {kept} batches in it are whole and will be sent,"
                f" the file is kept as {aside.name}"
            )
            log.error("%s", self.repaired)
        return db

    def _begin(self, found: tuple[Numbers, bool] | None, fresh: Numbers) -> None:
        """Goes on where the last run ended, or names what may have been lost with it."""
        copy = self._copy()
        known = found[0] if found is not None else copy
        if known is None or known.machine != fresh.machine:
            # a copied state folder belongs to another machine: its batches are that one's to send
            self._wipe()
            known, copy = fresh, None
        elif copy is not None and copy.stream != known.stream:
            log.warning("the outbox belongs to another stream than the numbers beside it; it is begun anew")
            self._wipe()
            copy = None
        if known is not fresh and found is not None and not found[1]:
            # the newest block may have been told by the damaged half
            ahead = {device: last + BLOCK for device, last in known.reserved.items()}
            known = replace(known, reserved=ahead, clean=None, doubt=True)
        told = copy.reserved if copy is not None else {}
        behind = any(told.get(device, 0) < last for device, last in known.reserved.items())
        everything = behind or known.doubt or self.repaired is not None
        self._numbers = known
        for device, last in known.reserved.items():
            if known.clean is not None and device in known.clean:
                self._next[device] = known.clean[device]
                if everything:
                    self._name_lost(device, 1, known.clean[device] - 1)
            else:
                self._next[device] = last + 1
                self._name_lost(device, 1 if everything else max(1, last - 2 * BLOCK + 1), last)
        self._write_gaps()
        self._remember(replace(known, clean=None, doubt=bool(self._gaps)))

    def _reopen(self) -> None:
        """The database, when the disk takes it again: what waited in it is sent, this run's batches can go there."""
        db = None
        try:
            db = self._open(self._folder / FILE)
            copy = db.execute("SELECT value FROM fact WHERE key = ?", (NUMBERS_FACT,)).fetchone()
            if copy is not None and self._numbers.stream not in copy[0]:
                raise OSError("the outbox belongs to another stream")
            copy_facts(self._db, db)
        except (OSError, sqlite3.Error):
            if db is not None:
                db.close()
            return
        self._db.close()
        self._db, self._volatile = db, False
        self._last_id = max(self._last_id, last_id(db))
        for device, first in self._first.items():
            self._name_lost(device, 1, first - 1)
        self._recount()

    def _copy(self) -> Numbers | None:
        kept = self.get(NUMBERS_FACT)
        try:
            return None if kept is None else numbers.from_text(kept)
        except (ValueError, TypeError):
            return None

    def _wipe(self) -> None:
        with transaction(self._db):
            for table in ("batch", "gap", "fact"):
                self._db.execute(f"DELETE FROM {table}")

    def _remember(self, new: Numbers) -> None:
        """Raises OSError when the file cannot be written. The copy may lag behind: that only widens a gap."""
        numbers.save(self._folder, new)
        self._numbers = new
        self.put(NUMBERS_FACT, numbers.to_text(replace(new, clean=None)))

    def _name_lost(self, device: str, first: int, last: int) -> None:
        reason = "restart" if self.repaired is None else "damaged"
        for low, high in missing(self._db, device, first, last):
            self._add_gap(device, low, high, reason)

    # -- sequence numbers ---------------------------------------------------------------------------------------

    def next_seq(self, device: str) -> int:
        """The next number of a device, from 1 on. Reserves a block on disk for all devices when one runs out."""
        seq = self._next.setdefault(device, 1)
        if seq > self._numbers.reserved.get(device, 0) and (self._numbered or not self._volatile):
            ahead = {name: number + BLOCK - 1 for name, number in self._next.items()}
            try:
                self._remember(replace(self._numbers, reserved={**self._numbers.reserved, **ahead}))
            except OSError as error:
                # numbers must go on; a restart before it succeeds would use them twice, so it is tried each time
                self._tell(error)
        self._next[device] = seq + 1
        return seq

    def last_seq(self, device: str) -> int:
        """The newest number given out; 0 before the first."""
        return self._next.get(device, 1) - 1

    # -- batches ------------------------------------------------------------------------------------------------

    def spill(self, batches: Iterable[Batch]) -> bool:
        """Puts batches on disk in one commit. False when the disk does not take them: they stay the caller's."""
        rows = [to_row(one) for one in batches]
        if not rows:
            return True
        if not self._writable:
            return False
        stored = False
        with self._careful():
            with transaction(self._db):
                self._store_gaps()
                inserted = self._db.executemany(INSERT, [(self._new_id(), *row) for row in rows]).rowcount
                dropped = bound(self._db, self._config, self._folder, self._wall_ms(), self._new_id)
            self._written()
            self._waiting += inserted
            self._bytes += sum(row[-1] for row in rows)
            self._gone(dropped)
            if inserted < len(rows):
                self._recount()
            stored = True
        return stored

    def oldest(self, limit: int, beyond: int = 0, without: Collection[str] = ()) -> list[tuple[int, Batch]]:
        """Up to `limit` batches that wait, oldest first, with ids above `beyond`: (id, batch). `without`: devices."""
        marks = ",".join("?" * len(without))
        return self._read(
            f"WHERE acked IS NULL AND id > ? AND device NOT IN ({marks}) ORDER BY id LIMIT ?",
            (beyond, *without, limit),
        )

    def span(self, device: str, first: int, last: int) -> tuple[int, int] | None:
        """The lowest and the highest of first..last that are still here, acknowledged or not; None: none is."""
        low = high = None
        with self._careful():
            low, high = self._db.execute(
                "SELECT min(seq), max(seq) FROM batch WHERE device = ? AND seq BETWEEN ? AND ?",
                (device, first, last),
            ).fetchone()
        return None if low is None or high is None else (low, high)

    def find(self, device: str, first: int, last: int, limit: int = -1) -> list[tuple[int, Batch]]:
        """Batches first..last of a device that are still here, acknowledged or not; at most `limit`, -1 for all."""
        return self._read(
            "WHERE device = ? AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?", (device, first, last, limit)
        )

    def _read(self, where: str, values: tuple[Any, ...]) -> list[tuple[int, Batch]]:
        """Batches with their ids. One that cannot be unpacked is dropped and named, so that it blocks nothing."""
        rows: list[tuple[Any, ...]] = []
        with self._careful():
            rows = self._db.execute(f"SELECT {COLUMNS} FROM batch {where}", values).fetchall()
        found = [(row[0], to_batch(row)) for row in rows]
        torn = [number for number, batch in found if batch is None]
        if torn:
            self.drop(torn, "damaged")
        return [(number, batch) for number, batch in found if batch is not None]

    def ack(self, keys: Iterable[tuple[str, int]]) -> None:
        """The broker has them: (device, seq). They go, or stay for `keep` seconds for a resend.

        What a full disk does not take is kept in mind, and told to it with the next ones.
        """
        self._acks.update(keys)
        if not self._waiting:
            self._acks.clear()
        if not self._acks or not self._writable:
            return
        keep_ms = round(1000 * self._config.keep)
        with self._careful():
            with transaction(self._db):
                self._store_gaps()
                count, size = take_acked(self._db, list(self._acks), now_ms=self._wall_ms(), keep_ms=keep_ms)
            self._written()
            self._acks.clear()
            self._waiting -= count
            self._bytes -= size
            if not self._waiting and not keep_ms and scalar(self._db, "PRAGMA freelist_count") > SHRINK_FROM:
                # cheap now: nothing has to be moved; as a script, since `execute` would give one page back
                self._db.executescript("PRAGMA incremental_vacuum")

    def clock_moved(self, boot: str, ms: int) -> None:
        """The wall clock was set by so many ms: batches of this boot stay as old as they are."""
        if not self._waiting or not self._writable:
            return
        with self._careful():
            self._db.execute("UPDATE batch SET ms = ms + ? WHERE boot = ? AND synced = 1", (ms, boot))

    def drop(self, ids: Iterable[int], reason: str) -> None:
        """Takes batches out for good and names the gap."""
        gone: list[Gone] = []
        if not self._writable:
            return
        with self._careful():
            with transaction(self._db):
                self._store_gaps()
                for number in ids:
                    gone += take_out(self._db, number, reason, self._new_id)
            self._written()
            self._gone(gone)

    def lost(self, device: str, seq: int, reason: str) -> None:
        """Names a batch that never reached the disk."""
        self.dropped += 1
        self._add_gap(device, seq, seq, reason)
        self._write_gaps()

    # -- gaps ---------------------------------------------------------------------------------------------------

    def gaps(self) -> list[Gap]:
        """What must be told and was not acknowledged yet."""
        found: list[Gap] = []
        with self._careful():
            found = [Gap(*row) for row in self._db.execute("SELECT * FROM gap ORDER BY id").fetchall()]
        return found + list(self._gaps.values())

    def ack_gap(self, number: int) -> None:
        """The broker has it."""
        if self._gaps.pop(number, None) is None and self._writable:
            with self._careful():
                self._db.execute("DELETE FROM gap WHERE id = ?", (number,))

    def _add_gap(self, device: str, first: int, last: int, reason: str) -> None:
        add_gap(self._gaps, device, first, last, reason, -self._new_id())

    def _write_gaps(self) -> None:
        if self._gaps and self._writable:
            with self._careful():
                with transaction(self._db):
                    self._store_gaps()
                self._written()

    def _store_gaps(self) -> None:
        """Within a transaction. They leave memory when it is committed."""
        for one in self._gaps.values():
            insert_gap(self._db, one.device, one.first, one.last, one.reason, self._new_id)

    # -- facts --------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """A fact that was put, or None."""
        return self.get_all(key).get(key)

    def get_all(self, start: str) -> dict[str, Any]:
        """The facts whose keys begin so, ASCII alone in `start`."""
        found: dict[str, Any] = {}
        with self._careful():
            found = facts_of(self._db, start)
        return found

    def put(self, key: str, value: Any) -> bool:
        """Keeps a fact (JSON, not null) durably; a full disk is told, not raised."""
        return self.put_all({key: value})

    def put_all(self, facts: Mapping[str, Any]) -> bool:
        """Keeps facts in one commit; None takes one out. False when the disk does not take them."""
        with self._careful():
            if not self._damaged:
                put_facts(self._db, facts)
                return True
        return False

    # -- the rest -----------------------------------------------------------------------------------------------

    def try_again(self) -> None:
        """Ends `trouble` where the disk takes something again, though nothing waits to be written."""
        if self._volatile and self._numbered:
            self._reopen()
        if self.trouble is None or not self._writable:
            return
        with self._careful():
            with transaction(self._db):
                self._store_gaps()
            put_facts(self._db, {TRIED_FACT: self._wall_ms()})
            self._written()

    def stats(self) -> Mapping[str, int | None]:
        """For `state.backlog` and `status`: batches and bytes that wait, ms UTC of the oldest, dropped since start."""
        oldest = None
        with self._careful():
            row = self._db.execute("SELECT ms FROM batch WHERE acked IS NULL ORDER BY id LIMIT 1").fetchone()
            oldest = None if row is None else row[0]
        return {"batches": self._waiting, "bytes": self._bytes, "oldest": oldest, "dropped": self.dropped}

    @property
    def waiting(self) -> int:
        """Batches on disk that nobody acknowledged."""
        return self._waiting

    def close(self) -> None:
        """A clean end: the rest of the reserved numbers stays usable, nothing is named lost.

        What the caller could not `spill` it must have named `lost` before.
        """
        self._write_gaps()
        if not self._volatile and not self._gaps and not self._damaged:
            try:
                self._remember(replace(self._numbers, clean=dict(self._next), doubt=False))
            except OSError as error:
                self._tell(error)
        self._db.close()

    @property
    def _writable(self) -> bool:
        return not self._volatile and not self._damaged

    @contextmanager
    def _careful(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Once until something is written again. From now on more may be lost with the process than a block."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        self._damaged = self._damaged or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        if self.trouble is not None:
            return
        self.trouble = f"the outbox cannot be written ({error}); what waits stays in memory"
        log.error("%s", self.trouble)
        if not self._volatile:
            self._numbers = replace(self._numbers, doubt=True)
            with suppress(OSError):
                numbers.save(self._folder, self._numbers)

    def _written(self) -> None:
        """After a commit."""
        self._gaps.clear()
        if self.trouble is not None:
            self.trouble = None
            log.info("the outbox can be written again")

    def _gone(self, dropped: Sequence[Gone]) -> None:
        self.dropped += len(dropped)
        self._waiting -= len(dropped)
        self._bytes -= sum(size for _, _, size in dropped)

    def _recount(self) -> None:
        with self._careful():
            self._waiting, total = self._db.execute(
                "SELECT count(*), total(size) FROM batch WHERE acked IS NULL"
            ).fetchone()
            self._bytes = int(total)

    def _new_id(self) -> int:
        """Never one that was used in this run: others remember ids of what they are just sending."""
        self._last_id += 1
        return self._last_id

"""Commissioning: what one unit lets one read, in which lengths, and how fast. Reads only, and takes its time."""

from __future__ import annotations

import asyncio
import statistics
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from agent.config.sunspec import MARKER
from agent.config.types import Table
from agent.modbus.discover import Asks, Avoided, silent
from agent.modbus.faults import ABSENT, BUSY, LinkFault, exception_words
from agent.modbus.framers import Answer
from agent.modbus.guesses import Shape, pairs, runs, span_text
from agent.modbus.plan import READ_FUNCTION, REGISTER_TABLES
from agent.modbus.sunspec import Chain, profile_of, walk

MOST = {"holding": 125, "input": 125, "coil": 2000, "discrete": 2000}
"""The longest read that the standard allows (application protocol V1.1b3, 6.1 to 6.4)."""
ILLEGAL_FUNCTION = 1
TRIES = 3
BUSY_WAIT = 0.3
MOST_SILENT = 8
"""Blocks in a row that may stay without an answer before the rest of a range is left alone."""


class Stop(Exception):
    """There is nothing more to learn; str() says why."""


class Survey:
    """What is known so far of one unit; `run` adds to it, and what it has holds at any time.

    `ranges` are inclusive spans of addresses by table.
    """

    def __init__(self, asker: Asks, unit: int, ranges: Mapping[Table, Sequence[tuple[int, int]]]) -> None:
        self.values: dict[Table, dict[int, int]] = {table: {} for table in ranges}
        self.refused: dict[Table, set[int]] = {table: set() for table in ranges}
        self.why: dict[str, int] = {}  # words of each refusal -> how often
        self.notes: list[str] = []
        self.rtts: list[float] = []
        self.longest: dict[Table, int] = {}  # the longest request that was answered
        self.too_long: dict[Table, int] = {}  # the shortest that was refused for its length
        self._asker = asker
        self._unit = unit
        self._ranges = ranges
        self._silent = 0
        self.chain: Chain | None = (
            None  # of SunSpec models; None where it was not looked for, or is not there
        )

    async def run(self) -> None:
        """Reads every range. Raises discover.Unreachable when there is no connection (any more)."""
        for table, spans in self._ranges.items():
            self._silent = 0
            try:
                for first, last in spans:
                    await self._range(table, first, last + 1)
                await self._longest(table)
            except Stop as stop:
                self.notes.append(f"{table}: {stop}")
                if not self.rtts:
                    return  # nobody is there

    # -- reading ------------------------------------------------------------------------------------------------

    async def walk(self) -> None:
        """Looks for a SunSpec chain, where the unit answers at all. Raises discover.Unreachable."""
        steps = walk()
        try:
            address = next(steps)
            while self.rtts:
                answer = await self._ask("holding", address, len(MARKER))
                data = None if answer is None else answer.payload
                address = steps.send(None if data is None else struct.unpack(">HH", data))
        except StopIteration as end:
            chain: Chain = end.value
            if chain.models:
                self.chain = chain
                models = ", ".join(str(one.id) for one in chain.models)
                self.notes.append(f"SunSpec models from {chain.base}: {models}")
                self.notes += [chain.fault] if chain.fault else []
        except Stop as stop:
            self.notes.append(f"SunSpec: {stop}")

    async def _range(self, table: Table, first: int, after: int) -> None:
        while first < after:
            end = min(after, first + self._most(table))
            await self._block(table, first, end)
            first = end

    def _most(self, table: Table) -> int:
        return min(MOST[table], self.too_long.get(table, MOST[table] + 1) - 1)

    async def _block(self, table: Table, first: int, after: int) -> bool:
        """Reads [first, after), in halves where it is refused; True when nothing but its length can have been wrong.

        Halves begin at an even distance from the start, so that two registers that the device gives only together
        are asked for together before each is asked for alone.
        """
        if await self._read(table, first, after):
            return True
        count = after - first
        if count == 1:
            self.refused[table].add(first)
            return False
        half = count // 2 if count < 4 else count // 4 * 2
        parts = [await self._block(table, first, first + half), await self._block(table, first + half, after)]
        if not all(parts):
            return False
        return await self._search(table, first, after)

    async def _read(self, table: Table, first: int, after: int) -> bool:
        """One read; its words are kept. False when the device refuses it or stays silent. Raises Stop."""
        answer = await self._ask(table, first, after - first)
        if answer is None:
            return False
        if answer.payload is None:
            code = answer.exception or 0
            self.why[exception_words(code)] = self.why.get(exception_words(code), 0) + 1
            if code == ILLEGAL_FUNCTION and not self.values[table]:
                raise Stop(f"the device does not know function {READ_FUNCTION[table]}")
            if code in ABSENT:
                raise Stop(exception_words(code))
            return False
        self.longest[table] = max(after - first, self.longest.get(table, 0))
        for address, value in zip(range(first, after), _values(table, answer.payload, after - first)):
            self.values[table][address] = value
        return True

    async def _ask(self, table: Table, first: int, count: int) -> Answer | None:
        """An answer, None where nothing came in time. A busy device is asked again, a silent one once."""
        body = struct.pack(">HH", first, count)
        for left in range(TRIES - 1, -1, -1):
            try:
                answer = await self._asker.ask(self._unit, READ_FUNCTION[table], body)
            except Avoided as avoided:
                self.why[str(avoided)] = self.why.get(str(avoided), 0) + 1
                return None
            except LinkFault as fault:
                if left > 1:
                    continue
                words = "no answer" if silent(fault) else "the connection was ended"
                self.why[words] = self.why.get(words, 0) + 1
                self._silent += 1
                if self._silent >= MOST_SILENT:
                    raise Stop(
                        f"no answer to {self._silent} requests in a row: the rest was left alone"
                    ) from None
                return None
            self._silent = 0
            self.rtts.append(answer.rtt)
            if answer.exception not in BUSY or not left:
                return answer
            await asyncio.sleep(BUSY_WAIT)
        return None

    # -- the longest request ------------------------------------------------------------------------------------

    async def _longest(self, table: Table) -> None:
        """Tries the longest span that can be read in one request, where that was not asked for yet."""
        spans = runs(self.values[table])
        if not spans or table in self.too_long:
            return
        first, last = max(spans, key=lambda span: span[1] - span[0])
        count = min(last - first + 1, MOST[table])
        if count > self.longest[table] and not await self._read(table, first, first + count):
            await self._search(table, first, first + count)

    async def _search(self, table: Table, first: int, after: int) -> bool:
        """[first, after) was refused although each of its addresses can be read: True when it is too long, False when
        nothing may be read across some place in it. Halves what is not known; a request of the length that was
        refused and is answered elsewhere tells the two apart."""
        low, high = 1, after - first
        while high - low > 1:
            trial = (low + high) // 2
            if await self._read(table, first, first + trial):
                low = trial
            else:
                high = trial
        elsewhere = self.longest.get(table, 0) >= high
        if elsewhere or (high < after - first and await self._read(table, after - high, after)):
            place = first + high - 1
            self.notes.append(f"{table}: no request across {place - 1} and {place}")
            return False
        self.too_long[table] = min(high, self.too_long.get(table, high))
        return True

    # -- what is known ------------------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """The part that a device block is made of."""

        def most(tables: Sequence[Table]) -> int | None:
            known = [self.too_long[table] - 1 for table in tables if table in self.too_long]
            return min(known, default=None)

        values = self.values
        if (
            self.chain is not None and profile_of(self.chain) is not None
        ):  # the profile reads what is in the chain
            inside = range(self.chain.base or 0, self.chain.after)
            values = {
                table: {a: word for a, word in found.items() if table != "holding" or a not in inside}
                for table, found in values.items()
            }
        return Shape(
            values=values,
            refused={table: runs(addresses) for table, addresses in self.refused.items() if addresses},
            registers=most(["holding", "input"]),
            bits=most(["coil", "discrete"]),
        )

    def as_json(self) -> dict[str, Any]:
        """What `probe --json` tells of the unit."""
        return {
            "tables": {table: self._table(table) for table in self._ranges},
            "rtt_ms": times(self.rtts),
            "refusals": self.why,
            "notes": self.notes,
        }

    def _table(self, table: Table) -> dict[str, Any]:
        values = self.values[table]
        body: dict[str, Any] = {
            "readable": [span_text(span) for span in runs(values)],
            "refused": [span_text(span) for span in runs(self.refused[table])],
            "longest": self.longest.get(table),
            "longest_is_limit": table in self.too_long or self.longest.get(table) == MOST[table],
        }
        if table in REGISTER_TABLES:
            return body | {
                "words": {str(a): f"0x{values[a]:04X}" for a in sorted(values)},
                "pairs": pairs(values),
            }
        return body | {"bits": {str(a): values[a] for a in sorted(values)}}


def _values(table: Table, payload: bytes, count: int) -> Sequence[int]:
    """Words, or bits (the lowest of the first byte first)."""
    if table in REGISTER_TABLES:
        return struct.unpack(f">{count}H", payload)
    return [payload[k // 8] >> k % 8 & 1 for k in range(count)]


def times(rtts: Sequence[float]) -> dict[str, float | int | None]:
    """Number, median and longest of response times, in milliseconds."""
    if not rtts:
        return {"n": 0, "p50": None, "max": None}
    return {
        "n": len(rtts),
        "p50": round(1000 * statistics.median(rtts), 1),
        "max": round(1000 * max(rtts), 1),
    }

"""What the words that a device let us read may mean: plausible readings, and a device block to start from. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.config.types import Table
from agent.modbus.orders import ORDERS, readings
from agent.twin.records import Plain

SMALLEST, LARGEST = 1e-3, 1e7
"""Magnitudes that a measurement in its usual unit has."""
NOT_AVAILABLE = frozenset({0x7FFF, 0x8000, 0xFFFF})
"""Words that mean "no value" far more often than a number."""
WIDTH = {"int16": 1, "uint16": 1, "bcd16": 1}
"""Registers of the types that do not take both of a pair."""
LONGEST_TEXT = 32
"""Registers of one text; what is longer is mostly several."""
LETTERS = 4
"""Printable bytes in a row that are taken for text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What was found of one device: readable words (or bits) by table and address, refused spans (first, last),
    and the longest request of registers and of bits (None: the standard's limit holds)."""

    values: Mapping[Table, Mapping[int, int]]
    refused: Mapping[Table, Sequence[tuple[int, int]]]
    registers: int | None = None
    bits: int | None = None


def plausible(kind: str, value: Plain, words: Sequence[int]) -> bool:
    """True where a reading of the first of `words` looks like something that a device would tell.

    Zero is never marked: it is plausible as anything, and so says nothing.
    """
    if isinstance(value, str):
        return all(map(_lettered, words)) and bool(value.strip())
    if value is None or isinstance(value, bool) or value == 0 or not math.isfinite(value):
        return False
    if kind in WIDTH:
        return words[0] not in NOT_AVAILABLE and (kind != "bcd16" or words[0] > 9)
    if set(words[:2]) <= NOT_AVAILABLE | {0}:
        return False
    return (SMALLEST if kind.startswith("float") else 1) <= abs(value) <= LARGEST


def pairs(words: Mapping[int, int]) -> list[dict[str, Any]]:
    """Each pair of neighbouring registers: address, raw words, readings by type and order, those that are plausible."""
    found = []
    for address in sorted(words):
        if address + 1 not in words:
            continue
        pair = (words[address], words[address + 1])
        values = readings(pair)
        marked = [
            f"{kind} {order}"
            for kind, by_order in values.items()
            for order, value in by_order.items()
            if plausible(kind, value, pair)
        ]
        found.append(
            {
                "address": address,
                "raw": [f"0x{word:04X}" for word in pair],
                "values": {kind: {k: finite(v) for k, v in by.items()} for kind, by in values.items()},
                "plausible": marked,
            }
        )
    return found


def finite(value: Plain) -> Plain:
    """A value that JSON can hold: NaN and infinity become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def runs(addresses: Iterable[int]) -> list[tuple[int, int]]:
    """Spans (first, last) of addresses that follow one another."""
    spans: list[tuple[int, int]] = []
    for address in sorted(addresses):
        if spans and spans[-1][1] == address - 1:
            spans[-1] = (spans[-1][0], address)
        else:
            spans.append((address, address))
    return spans


def span_text(span: tuple[int, int]) -> str:
    """60-69, or 60 alone."""
    return f"{span[0]}-{span[1]}" if span[0] != span[1] else str(span[0])


# -- a device block to start from -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guess:
    """One tag of the block: its keys as the file would write them, and what it reads at present."""

    table: Table
    address: int
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    now: str = ""


def guesses(words: Mapping[int, int], table: Table, most: int = 125) -> list[Guess]:
    """Every register in one tag of at most `most` registers: text where four letters or more stand, floats where most
    of a run are floats in one order, else one uint16 each."""
    found: list[Guess] = []
    for first, last in runs(words):
        texts, rest = _texts(words, table, first, last, min(most, LONGEST_TEXT))
        found += texts
        for start, end in rest:
            found += _numbers(words, table, start, end, floats=most > 1)
    return sorted(found, key=lambda guess: guess.address)


def _texts(
    words: Mapping[int, int], table: Table, first: int, last: int, most: int
) -> tuple[list[Guess], list[tuple[int, int]]]:
    """Texts in a run of registers, and the spans between them."""
    texts: list[Guess] = []
    letters: set[int] = set()
    for start, end in runs(a for a in range(first, last + 1) if _lettered(words[a])):
        data = b"".join(words[a].to_bytes(2, "big") for a in range(start, end + 1))
        if len(data) >= 2 * LETTERS or (len(data) >= LETTERS and data.isalnum()):
            letters.update(range(start, end + 1))
            for at in range(start, end + 1, most):
                part = data[2 * (at - start) : 2 * (at - start + most)]
                keys = {"type": "string", "length": str(len(part))}
                texts.append(Guess(table, at, keys, ascii(part.decode("ascii"))))
    return texts, runs(a for a in range(first, last + 1) if a not in letters)


def _lettered(word: int) -> bool:
    return all(0x20 <= byte < 0x7F for byte in word.to_bytes(2, "big"))


def _numbers(words: Mapping[int, int], table: Table, first: int, last: int, *, floats: bool) -> list[Guess]:
    order, start = _float_order(words, first, last) if floats else (None, first)
    found: list[Guess] = []
    address = first
    while address <= last:
        if order is not None and address >= start and address < last:
            value = readings((words[address], words[address + 1]))["float32"][order]
            keys = {"type": "float32"} | ({"order": order} if order != "ABCD" else {})
            found.append(Guess(table, address, keys, "missing" if value is None else f"{value:.7g}"))
            address += 2
        else:
            found.append(Guess(table, address, {}, str(words[address])))
            address += 1
    return found


def _float_order(words: Mapping[int, int], first: int, last: int) -> tuple[str | None, int]:
    """The order and first address at which at least half of a run's pairs that are not zero read as floats do."""
    best: tuple[int, str | None, int] = (0, None, first)
    for start in (first, first + 1):
        filled = [a for a in range(start, last, 2) if words[a] or words[a + 1]]
        for order in ORDERS:
            fitting = sum(
                plausible("float32", readings(pair)["float32"][order], pair)
                for a in filled
                if (pair := (words[a], words[a + 1]))
            )
            if 2 * fitting >= max(2, len(filled)) and fitting > best[0]:
                best = fitting, order, start
    return best[1], best[2]


def device_block(name: str, url: str, unit: int, shape: Shape, *, profile: str | None = None) -> str:
    """A configuration with one device, as YAML that `edgetwin check` passes; comments say what stood there.

    `profile` is one that reads the device; what it reads is not in `shape`.
    """
    lines = ["devices:", f"  {name}:", f'    url: "{url}"', f"    unit: {unit}"]
    if profile is not None:
        lines.append(f"    profile: {profile}")
    limits = [
        f"{key}: {most}" for key, most in (("registers", shape.registers), ("bits", shape.bits)) if most
    ]
    if limits:
        lines.append(f"    limits: {{{', '.join(limits)}}}")
    avoid = [f"{table} {span_text(span)}" for table, spans in shape.refused.items() for span in spans]
    if avoid:
        lines.append(f"    avoid: [{', '.join(avoid)}]")
    lines.append("    tags:")
    for table, values in shape.values.items():
        if table in ("coil", "discrete"):
            found = [Guess(table, a, {}, "on" if values[a] else "off") for a in sorted(values)]
        else:
            found = guesses(values, table, shape.registers or 125)
        for guess in found:
            keys = {table: str(guess.address), **guess.keys}
            body = ", ".join(f"{key}: {text}" for key, text in keys.items())
            lines.append(f"      {table}_{guess.address}: {{{body}}}  # {guess.now}")
    if not any(shape.values.values()):
        if profile is not None:
            return "\n".join(lines[:-1]) + "\n"
        lines[-1] = "    tags: {}  # nothing could be read"
    return "\n".join(lines) + "\n"

"""A block of the file -> a Tag, with everything told that does not go together."""

from __future__ import annotations

from decimal import Decimal
from types import MappingProxyType
from typing import Any

from agent.config import scalars, sunspec
from agent.config.fields import PLACES
from agent.config.kinds import Block
from agent.config.scalars import Wrong
from agent.config.types import REGISTERS, SunSpec, Table, Tag, Write
from agent.config.walker import Findings

INTEGERS = ("int16", "uint16", "int32", "uint32", "int64", "uint64")
BCD_DIGITS = {"bcd16": 4, "bcd32": 8}
MODICON: dict[str, Table] = {"0": "coil", "1": "discrete", "3": "input", "4": "holding"}
WRITABLE = ("holding", "coil")
NUMBERS_ONLY = ("scale", "offset", "scale_from", "range", "deadband", "counter", "loop_current")
AS_THEY_STAND = (*NUMBERS_ONLY, "unit", "bit", "bits", "length", "alone")


def place_of(block: Block, found: Findings) -> tuple[Table, int | SunSpec] | None:
    """Table and wire address of a tag, or its place in a SunSpec model; None where that is wrong, and told."""
    keys = [key for key in PLACES if key in block.keys_at]
    if not keys:
        found.add(
            block.here, block.path, "no address", f"give one of {', '.join(PLACES[:-1])} or {PLACES[-1]}"
        )
        return None
    if len(keys) > 1:
        words = " and ".join(keys)
        found.add(block.keys_at[keys[1]], block.path, f"{words} exclude each other", "keep one of them")
        return None
    key = keys[0]
    if key in block.bad:
        return None
    try:
        if key == "modicon":
            return modicon(block[key])
        if key == "sunspec":
            return "holding", sunspec.place(block[key])
    except Wrong as wrong:
        found.add(block.at[key], f"{block.path}.{key}", str(wrong), wrong.hint)
        return None
    return key, block[key]  # type: ignore[return-value]  # one of the four tables


def modicon(text: str) -> tuple[Table, int]:
    """Table and wire address of a printed 1-based number of 5 or 6 digits: 40131 is holding 130, 00131 coil 130."""
    table = MODICON.get(text[0])
    number = int(text[1:])
    if table is None:
        raise Wrong(
            f"{text} begins with {text[0]}", "0 is a coil, 1 a discrete, 3 an input, 4 a holding register"
        )
    if not 1 <= number <= 65536:
        raise Wrong(f"{text} names number {number} of its table", "printed numbers count from 1 to 65536")
    return table, number - 1


def build(name: str, block: Block, device: Block, found: Findings) -> Tag | None:
    """The tag of a block; what it does not say, it has from its device. None where an address or a type is wrong."""
    place = place_of(block, found)
    if place is None or "type" in block.bad:
        return None
    table, address = place
    coils = table in ("coil", "discrete")
    kind: str = block.get("type", "bool" if coils else "uint16")
    given = {key: block[key] for key in AS_THEY_STAND if key in block}
    tag = Tag(
        name=name,
        table=table,
        address=address.offset if isinstance(address, SunSpec) else address,
        sunspec=address if isinstance(address, SunSpec) else None,
        type=kind,
        order=block.get("order", device.get("order", "ABCD")),
        every=block.get("every", device.get("every", 1.0)),
        missing=tuple(value for value, _ in block.get("missing", ())),
        states=_states(block, found),
        write=_write(block),
        **given,
    )
    before = len(found.problems)
    _check_type(tag, block, found)
    if len(found.problems) == before:
        _check_raw(tag, block, found)
        _check_write(tag, block, found)
    return tag


def article(kind: str) -> str:
    """A type or a table with its article, for a message."""
    return f"an {kind}" if kind.startswith("in") else f"a {kind}"


def _states(block: Block, found: Findings) -> MappingProxyType[int, str]:
    states: dict[int, str] = {}
    given: Block = block.get("states", Block("", (0, 0)))
    for key, text in given.items():
        if key in given.bad:
            continue
        number = scalars.integer(key)
        if number in states:
            found.add(
                given.keys_at[key], f"{given.path}.{key}", f"{number} has a name already", "keep one of them"
            )
        states[number] = text
    return MappingProxyType(states)


def _write(block: Block) -> Write | None:
    given = block.get("write", False)
    if isinstance(given, Block):
        return Write(**given)
    return Write() if given else None


class _Told:
    """Tells problems of one tag, each at the key that it is about."""

    def __init__(self, block: Block, found: Findings) -> None:
        self.block = block
        self.found = found

    def __call__(self, key: str, what: str, hint: str | None = None, *, value: bool = False) -> None:
        places = self.block.at if value else self.block.keys_at
        where = places.get(key, self.block.here)
        self.found.add(where, f"{self.block.path}.{key}", what, hint)

    def refuse(self, keys: tuple[str, ...], why: str) -> None:
        """Tells each of the keys that stands there and means nothing here."""
        for key in keys:
            given = self.block.get(key)
            if key in self.block and given is not False and given != ():
                self(key, f"{key} has no meaning for {why}", "leave it out")


def _check_type(tag: Tag, block: Block, found: Findings) -> None:
    """What the type of a tag allows beside it, and whether it lies within the table."""
    told = _Told(block, found)
    if tag.table in ("coil", "discrete"):
        if tag.type != "bool":
            told(
                "type",
                f"a {tag.table} is a bool, never {tag.type}",
                "leave type out, or use a register",
                value=True,
            )
            return
        told.refuse(("bit", "bits", "length", "missing", "order", *NUMBERS_ONLY), f"a {tag.table}")
    elif tag.type == "bool":
        told.refuse(("bit", "bits", "length", "missing", *NUMBERS_ONLY), "a bool")
    elif tag.type == "string":
        told.refuse(("bit", "bits", "missing", "states", *NUMBERS_ONLY), "a string")
        if "length" not in block and "length" not in block.bad:
            told("type", "a string needs its length in bytes", "add length: 16", value=True)
            return
    else:
        told.refuse(("length",), tag.type)
    if tag.bit is not None and tag.bits is not None:
        told("bits", "bit and bits exclude each other", "keep one of them")
    elif tag.type not in ("bool", "string") and (tag.bit is not None or tag.bits is not None):
        _check_bits(tag, told)
    if tag.states and tag.type.startswith("float"):
        told("states", f"{article(tag.type)} has no states", "use an integer type")
    if tag.counter and tag.type not in INTEGERS:
        told("counter", f"a counter is an integer, not {tag.type}", f"use one of {', '.join(INTEGERS)}")
    if tag.address + tag.count > 65536:
        key = next(key for key in PLACES if key in block)
        told(
            key,
            f"{article(tag.type)} takes {tag.count} registers, and from {tag.address} they run past 65535",
            f"the last address for it is {65536 - tag.count}",
            value=True,
        )


def _check_bits(tag: Tag, told: _Told) -> None:
    key = "bit" if tag.bit is not None else "bits"
    highest = tag.bit if tag.bit is not None else (tag.bits or (0, 0))[1]
    if tag.type not in INTEGERS:
        told(
            key, f"{key} has a meaning for integers alone, not for {tag.type}", f"leave out {key} or the type"
        )
        return
    if highest >= 16 * REGISTERS[tag.type]:
        width = 16 * REGISTERS[tag.type]
        told(key, f"{article(tag.type)} has no bit {highest}", f"its bits are 0 to {width - 1}", value=True)
    told.refuse(("counter", "loop_current"), "a part of a register")
    if tag.bit is not None:
        told.refuse(("scale", "offset", "scale_from", "range", "deadband"), "a single bit")
    elif tag.write is not None:
        told.refuse(("scale", "offset", "scale_from"), "a bit field that is written")


def raw_range(tag: Tag) -> tuple[int, int] | None:
    """Least and greatest raw value of an integer, BCD or bool tag, or of its bits; None for the others."""
    if tag.bit is not None or tag.type == "bool":
        return 0, 1
    if tag.bits is not None:
        return 0, (1 << tag.bits[1] - tag.bits[0] + 1) - 1
    if tag.type in BCD_DIGITS:
        return 0, int(10 ** BCD_DIGITS[tag.type]) - 1
    if tag.type in INTEGERS:
        width = 16 * REGISTERS[tag.type]
        return (
            (-(1 << width - 1), (1 << width - 1) - 1) if tag.type.startswith("int") else (0, (1 << width) - 1)
        )
    return None


def _check_raw(tag: Tag, block: Block, found: Findings) -> None:
    """Raw values that the type cannot hold, and a scale that says nothing."""
    told = _Told(block, found)
    if "scale" in block and tag.scale == 0:
        told("scale", "a scale of 0 makes every value the same", "write another number", value=True)
    width = 16 * tag.count
    least = -(1 << width - 1) if tag.type.startswith("int") else 0
    for value, place in block.get("missing", ()):
        # 0x8000 of an int16 is meant as it stands in the register; as a number it would be -32768: both are fine.
        if not least <= value < 1 << width:
            hint = f"it holds {least} to {(1 << width) - 1}"
            found.add(place, f"{block.path}.missing", f"{value} is no raw value of {tag.type}", hint)
    bounds = raw_range(tag)
    given: Block = block.get("states", Block("", (0, 0)))
    for key in given:
        number = scalars.integer(key) if key not in given.bad else 0
        if bounds is not None and not bounds[0] <= number <= bounds[1]:
            hint = f"it holds {bounds[0]} to {bounds[1]}"
            found.add(
                given.keys_at[key], f"{given.path}.{key}", f"{number} is no raw value of this tag", hint
            )


def _check_write(tag: Tag, block: Block, found: Findings) -> None:
    if tag.write is None:
        return
    told = _Told(block, found)
    if tag.table not in WRITABLE:
        told("write", f"{article(tag.table)} cannot be written", "write works for holding and coil")
        return
    if tag.bits is not None and tag.bits[0] // 16 != tag.bits[1] // 16:
        told("bits", "a bit field in two registers cannot be written at once", "leave write out, or split it")
    given = block["write"]
    if not isinstance(given, Block):
        return
    inner = _Told(given, found)
    allowed = functions(tag)
    if tag.write.function is not None and tag.write.function not in allowed:
        words = ", ".join(map(str, allowed))
        inner(
            "function", f"function {tag.write.function} cannot write this tag", f"write {words}", value=True
        )
    if tag.write.range is not None:
        _check_range(tag, inner)


def functions(tag: Tag) -> tuple[int, ...]:
    """The function codes that can write a tag."""
    if tag.table == "coil":
        return (5, 15)
    if tag.bit is not None or tag.bits is not None:
        return (6, 16, 22)
    return (6, 16) if tag.count == 1 else (16,)


def holds(tag: Tag) -> tuple[Decimal, Decimal] | None:
    """The scaled values, lowest and highest, that fit into a numeric tag's register; None where nothing bounds them."""
    bounds: Any = raw_range(tag)
    if bounds is None or tag.scale_from is not None or tag.scale == 0:
        return None
    low, high = sorted(raw * tag.scale + tag.offset for raw in map(Decimal, bounds))
    return low, high


def more_than_held(tag: Tag, low: float, high: float) -> tuple[str, str] | None:
    """What is wrong with writing low to high to a tag, and what would be right; None where the register holds them."""
    ends = holds(tag)
    if ends is None or (Decimal(repr(low)) >= ends[0] and Decimal(repr(high)) <= ends[1]):
        return None
    what = f"{low:g} to {high:g} is more than the register can hold"
    return what, f"with type {tag.type} and this scale it holds {ends[0]:f} to {ends[1]:f}"


def _check_range(tag: Tag, told: _Told) -> None:
    """The bounds of `write` must be values that the register can hold."""
    if tag.boolean or tag.type == "string":
        told("range", "a range has a meaning for numbers alone", "leave it out")
        return
    if tag.write is not None and tag.write.range is not None:
        wrong = more_than_held(tag, *tag.write.range)
        if wrong is not None:
            told("range", *wrong, value=True)

"""A device, its tags and a broker given on one command line -> the text of a configuration, and problems back in words
of that line. Pure; what the values may be is left to the checker that every configuration goes through.

A tag is `NAME: TABLE ADDRESS [TYPE] [ORDER] [KEY=VALUE …] [UNIT]`. ADDRESS may be a range: a tag begins at its first
address, and behind each tag the next, for as long as one begins within the range; the address is put behind the name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from agent.config import scalars
from agent.config.fields import ORDERS, PLACES, TYPES
from agent.config.printable import printable
from agent.config.scalars import Wrong, shown
from agent.config.types import REGISTERS, Problem
from agent.config.walker import nearest

TAG_FORM = "write 'NAME: holding 100 float32 °C'"
KEYS = (
    *("type", "order", "scale", "offset", "scale_from", "unit", "bit", "bits", "length", "every"),
    *("counter", "loop_current", "deadband", "alone"),
)
"""Keys of a tag that may stand as KEY=VALUE."""
TEXTS = ("unit", "scale_from")
MOST_TAGS = 2000

_PLAIN = re.compile(r"[A-Za-z0-9°µ/-]?[A-Za-z0-9°µ][A-Za-z0-9°µ²³_/.%+-]*")
_TYPE_LIKE = re.compile(r"[A-Za-z_]+(8|16|32|64)")
_RANGE = re.compile(r"[^-]+-[^-]+")
_KEY_IN_HINT = re.compile(rf"\b({'|'.join(KEYS)}): (?=\S)")
_OPTIONS = {
    "gateway": "--gateway",
    "state_dir": "--state-dir",
    "mqtt.url": "--mqtt",
    "mqtt.username": "--username",
    "mqtt.password": "--password-file",
    "mqtt.ca": "--ca",
    "page": "--page",
    "page.listen": "--page",
}
"""Path of a key -> the option that gives it."""

Entries = dict[str, str]
"""Keys of a tag, each with the raw text of its value."""


@dataclass(frozen=True, slots=True)
class OneLine:
    """What the command line says; every value is raw text, None where it says nothing."""

    url: str
    mqtt: str
    gateway: str
    state_dir: str
    device: str = "device"
    tags: tuple[str, ...] = ()
    profile: str | None = None
    unit: str | None = None
    every: str | None = None
    order: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca: str | None = None
    page: str | None = None  # HOST:PORT or off


def text(line: OneLine) -> str:
    """The configuration as YAML. Raises Wrong, in words of the command line, where a tag cannot be understood."""
    tags = _all_tags(line)
    lines = [
        "# Made by `edgetwin try`, which only reads. After a change `edgetwin check` tells what is wrong.",
        f"gateway: {_word(line.gateway)}",
        f"state_dir: {_word(line.state_dir)}",
        "mqtt:",
        f"  url: {_quoted(line.mqtt)}",
    ]
    if line.username is not None:
        lines.append(f"  username: {_word(line.username)}")
    if line.password_file is not None:
        lines.append(f"  password: {{file: {_quoted(line.password_file)}}}")
    if line.ca is not None:
        lines.append(f"  ca: {_word(line.ca)}")
    if line.page is not None:
        lines.append("page: off" if line.page == "off" else f"page: {{listen: {_quoted(line.page)}}}")
    lines += ["devices:", f"  {_word(line.device)}:", f"    url: {_quoted(line.url)}"]
    for key in ("unit", "every", "order", "profile"):
        value = getattr(line, key)
        if value is not None:
            lines.append(f"    {key}: {_value(value)}")
    if tags:
        lines.append("    tags:")
        lines += [f"      {_word(name)}: {_flow(entries)}" for name, (entries, _) in tags.items()]
    return "\n".join(lines) + "\n"


def in_words(problem: Problem, line: OneLine) -> str:
    """One problem that the checker found in `text(line)`, as a person who typed the line understands it."""
    hint = problem.hint
    if problem.path == "mqtt.url" and hint == "use username: and password:":
        hint = "use --username and --password-file"
    where = _where(problem.path, line)
    if hint and where.startswith("--tag"):
        hint = _KEY_IN_HINT.sub(r"\1=", hint)
    return f"{where}: {problem.what}" + (f"; {hint}" if hint else "")


def tag(words: str) -> dict[str, Entries]:
    """Name -> keys of each tag that one --tag gives. Raises Wrong."""
    name, colon, rest = words.partition(":")
    name = name.strip()
    given = rest.split()
    if not colon or len(given) < 2:
        raise Wrong(f"{shown(words)} is no tag", TAG_FORM)
    scalars.name(name, plain=False)
    table, address = given[:2]
    if table not in PLACES:
        guess = nearest(table, PLACES)
        raise Wrong(
            f"{shown(table)} is no table",
            f"did you mean {guess}?" if guess else f"use one of {', '.join(PLACES)}",
        )
    entries = _entries(given[2:])
    if table == "sunspec" or not _RANGE.fullmatch(address):
        return {name: {table: address} | entries}
    return _run_of_tags(name, table, address, entries)


def _entries(words: list[str]) -> dict[str, str]:
    """Type, order, unit and KEY=VALUE of what stands behind the address."""
    entries: dict[str, str] = {}
    unit: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            _known(key)
        elif word in TYPES:
            key, value = "type", word
        elif word in ORDERS:
            key, value = "order", word
        else:
            _no_misspelt_type(word)
            unit.append(word)
            continue
        if not value:
            raise Wrong(f"{key}= has no value", f"write {key}=VALUE")
        if key in entries:
            raise Wrong(f"{key} is given twice", "keep one of them")
        entries[key] = value
    if unit and "unit" in entries:
        raise Wrong("unit is given twice", "keep one of them")
    return entries | ({"unit": " ".join(unit)} if unit else {})


def _known(key: str) -> None:
    if key == "write":
        raise Wrong("nothing is written here", "leave out write=, and see `write:` of a configuration file")
    if key not in KEYS:
        guess = nearest(key, KEYS)
        hint = f"did you mean {guess}=?" if guess else f"known: {', '.join(KEYS)}"
        raise Wrong(f"{shown(key)} is not known here", hint)


def _no_misspelt_type(word: str) -> None:
    """A word that is no type would be taken as the unit; one that looks like a type is none."""
    guess = nearest(word, (*TYPES, *ORDERS))
    if guess is not None or _TYPE_LIKE.fullmatch(word):
        hint = f"did you mean {guess}?" if guess else f"types: {', '.join(TYPES)}"
        raise Wrong(f"{shown(word)} is no type", f"{hint}; a unit of that name is unit={word}")


def _run_of_tags(name: str, table: str, address: str, entries: Entries) -> dict[str, Entries]:
    first_text, _, last_text = address.partition("-")
    if table == "modicon":  # read as text: 00131 is a coil
        if not (first_text.isdecimal() and last_text.isdecimal() and len(first_text) == len(last_text)):
            raise Wrong(
                f"{shown(address)} is no range of printed numbers", "write first-last, as 40001-40099"
            )
        first, last, digits = int(first_text), int(last_text), len(first_text)
        if last < first:
            raise Wrong(f"{shown(address)} ends before it begins", f"write {last_text}-{first_text}")
    else:
        first, last = scalars.span(address)
        digits = 0
    begins = range(first, last + 1, _step(table, entries))
    if len(begins) > MOST_TAGS:
        raise Wrong(f"{shown(address)} is {len(begins)} tags", f"name {MOST_TAGS} at most")
    return {f"{name}{one:0{digits}d}": {table: f"{one:0{digits}d}"} | entries for one in begins}


def _step(table: str, entries: Entries) -> int:
    """Addresses that each tag of a range takes."""
    if table in ("coil", "discrete"):
        return 1
    kind = entries.get("type", "uint16")
    if kind == "string":
        try:
            return max(1, (scalars.integer(entries["length"]) + 1) // 2)
        except (KeyError, Wrong):
            return 1  # the checker tells what is wrong with its length
    return REGISTERS.get(kind, 1)


def _all_tags(line: OneLine) -> dict[str, tuple[Entries, str]]:
    """Name -> keys, and the --tag that gave them."""
    if not line.tags and line.profile is None:
        raise Wrong("there is nothing to read", "add --tag 'NAME: holding 100 float32', or --profile NAME")
    found: dict[str, tuple[Entries, str]] = {}
    for words in line.tags:
        try:
            tags = tag(words)
        except Wrong as wrong:
            raise Wrong(f"{_tag_option(words)}: {wrong}", wrong.hint) from None
        for name, entries in tags.items():
            if name in found:
                raise Wrong(f"{_tag_option(words)}: {name} is there already", "give another name")
            found[name] = entries, words
    if len(found) > MOST_TAGS:
        raise Wrong(f"--tag: {len(found)} tags are more than one line takes", f"name {MOST_TAGS} at most")
    return found


def _where(path: str, line: OneLine) -> str:
    """The option that a path of the configuration came from."""
    if path in _OPTIONS:
        return _OPTIONS[path]
    device = f"devices.{line.device}"
    if path == device:
        return "--device"
    key, _, rest = path.removeprefix(f"{device}.").partition(".")
    if key == "url":
        return line.url
    if key == "tags":
        given = _all_tags(line).get(rest.split(".")[0])
        return _tag_option(given[1]) if given else path
    return f"--{key}" if key in ("unit", "every", "order", "profile") else path or "this line"


def _tag_option(words: str) -> str:
    return f"--tag '{printable(words)}'"


def _flow(entries: Entries) -> str:
    shown_as = ((key, (_word if key in TEXTS else _value)(value)) for key, value in entries.items())
    return "{" + ", ".join(f"{key}: {value}" for key, value in shown_as) + "}"


def _value(value: str) -> str:
    """Text of a number, a duration or one of a few words."""
    return value if _PLAIN.fullmatch(value) else _quoted(value)


def _word(value: str) -> str:
    """Text that YAML must not read as anything else."""
    return value if _PLAIN.fullmatch(value) and scalars.read_otherwise(value) is None else _quoted(value)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)

"""What a value of the configuration can be. The table in `agent.config.fields` is made of these.

The reader (`agent.config.walker`) and the JSON Schema (`agent.config.schema`) both follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text, not empty. `pattern` is a whole match; `form` says in words what is expected."""

    form: str = "text"
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, as raw text."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bool:
    """true or false (yes, no, on, off too)."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within inclusive bounds."""

    least: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number within inclusive bounds; `above` excludes its bound. `exact` keeps it as written (Decimal)."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, written with a unit. `zero`: 0 is a meaning of its own."""

    zero: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, written with a unit."""


@dataclass(frozen=True, slots=True)
class Span:
    """An inclusive range of whole numbers as text, `8-11`."""

    most: int


@dataclass(frozen=True, slots=True)
class AvoidText:
    """A table and a range of addresses, `holding 60-69`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two numbers [low, high], low below high."""


@dataclass(frozen=True, slots=True)
class Items:
    """A list; `one`: a single value stands for a list of one."""

    of: Kind
    least: int = 0
    one: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """A mapping from names of the user's own to values of one kind. `what` a name stands for."""

    of: Kind
    what: str
    key: str = "name"  # name: checked as a name; reference: taken as raw text; whole: a whole number


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping with known keys."""

    fields: Mapping[str, Field]
    what: str = "a mapping"


@dataclass(frozen=True, slots=True)
class Either:
    """A scalar of one kind or a mapping of another."""

    scalar: Kind
    mapping: Section


Kind = (
    Text
    | Choice
    | Bool
    | Whole
    | Number
    | Duration
    | Size
    | Span
    | AvoidText
    | Pair
    | Items
    | Names
    | Section
    | Either
)


@dataclass(frozen=True, slots=True)
class Field:
    """One key: what it takes, what holds without it (as the file would write it), and what it is for."""

    kind: Kind
    default: Any
    doc: str
    required: bool = False


class Block(dict[str, Any]):
    """A mapping that was read: values by key, and the place of each key and value.

    `at[key]` is the place of the value, `keys_at[key]` of the key itself, `here` of the mapping: (line, column).
    Keys that were wrong are in `bad` and not among the values.
    """

    def __init__(self, path: str, here: tuple[int, int]) -> None:
        super().__init__()
        self.path = path
        self.here = here
        self.at: dict[str, tuple[int, int]] = {}
        self.keys_at: dict[str, tuple[int, int]] = {}
        self.bad: set[str] = set()

    def place(self, key: str) -> tuple[int, int]:
        """Where the value of a key stands; the mapping itself where it does not."""
        return self.at.get(key, self.here)

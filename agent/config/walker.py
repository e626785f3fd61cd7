"""Reads a tree of nodes as the table of fields says; collects every problem instead of stopping at the first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

from agent.config import scalars
from agent.config.kinds import (
    AvoidText,
    Block,
    Bool,
    Choice,
    Duration,
    Either,
    Field,
    Items,
    Kind,
    Names,
    Number,
    Pair,
    Section,
    Size,
    Span,
    Text,
    Whole,
)
from agent.config.nodes import Node
from agent.config.printable import printable
from agent.config.scalars import Wrong, shown
from agent.config.types import Avoid, Problem

MOST_PROBLEMS = 500
"""Told at once; a file with more is hardly a configuration."""

Place = tuple[int, int]


class ElsewhereIn(tuple[int, int]):
    """A place in another file than the configuration's own."""

    file: str

    @classmethod
    def of(cls, place: Place, file: str) -> ElsewhereIn:
        """`place` in `file`."""
        made = cls(place)
        made.file = file
        return made


class _Missing:
    """What stands for a value that was wrong."""


MISSING = _Missing()


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant, if one is near enough."""
    import difflib  # only a wrong configuration pays for it

    known = list(words)
    lower = {known_word.lower(): known_word for known_word in known}
    if word.lower() in lower:
        return lower[word.lower()]
    close = difflib.get_close_matches(word[:64], known, n=1, cutoff=0.6)
    return close[0] if close else None


class Findings:
    """The problems of one configuration, in the order in which they were found."""

    def __init__(self, file: str, *, exposed: bool = False) -> None:
        self.file = file
        self.exposed = exposed  # every user of the machine may read the file
        self.problems: list[Problem] = []
        self.more = 0

    def add(
        self,
        place: Place,
        path: str,
        what: str,
        hint: str | None = None,
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        """Notes one problem at (line, column), both from 1."""
        if len(self.problems) >= MOST_PROBLEMS:
            self.more += 1
            return
        file = place.file if isinstance(place, ElsewhereIn) else self.file
        self.problems.append(Problem(file, *place, path, what, hint, severity))

    def _order(self, problem: Problem) -> tuple[bool, str, int, int]:
        return problem.file != self.file, problem.file, problem.line, problem.column

    @property
    def full(self) -> bool:
        return self.more > 0

    @property
    def errors(self) -> bool:
        return self.full or any(problem.severity == "error" for problem in self.problems)

    def sorted(self) -> list[Problem]:
        """By place, the configuration's own first; with a last line where there were more than are told.

        What is wrong with another file is told once, however many devices use it.
        """
        problems = []
        told = set()
        for problem in sorted(self.problems, key=self._order):
            key = (problem.file, problem.line, problem.column, problem.what)
            if problem.file == self.file or key not in told:
                problems.append(problem)
            told.add(key)
        if self.more:
            words = f"{self.more:,} more problems that are not shown"
            problems.append(Problem(self.file, 1, 1, "", words, "mend these first"))
        return problems


def read(kind: Kind, node: Node, path: str, found: Findings, *, optional: bool = False) -> Any:
    """The value of a node; MISSING where it is wrong (and told). Mappings become Blocks, lists tuples.

    optional: it belongs to a key that may be left out, which is said where nothing stands.
    """
    if isinstance(kind, Section):
        return _section(kind, node, path, found)
    if isinstance(kind, Names):
        return _names(kind, node, path, found)
    if isinstance(kind, Items):
        return _items(kind, node, path, found)
    if isinstance(kind, Pair):
        return _pair(node, path, found)
    if isinstance(kind, Either):
        if node.kind == "mapping":
            return _section(kind.mapping, node, path, found)
        if node.kind == "list" or node.empty:
            return _told(found, node, path, f"{_stands(node)} stands here", f"write {_expected(kind)}")
        return read(kind.scalar, node, path, found, optional=optional)
    if node.kind != "scalar":
        return _told(found, node, path, f"{_stands(node)} stands here", f"write {_expected(kind)}")
    left_out = ", or leave the key out" if optional else ""
    if not node.text or (node.empty and not isinstance(kind, Text | Choice)):
        return _told(found, node, path, "no value", f"write {_expected(kind)}{left_out}")
    if node.empty and isinstance(kind, Text):
        what = f"{node.text} is nothing to YAML unless it stands in quotes"
        meant = f'"{node.text}" in quotes' if kind.form == "text" else _expected(kind)
        return _told(found, node, path, what, f"write {meant}{left_out}")
    try:
        return _scalar(kind, node.text)
    except Wrong as wrong:
        return _told(found, node, path, str(wrong), wrong.hint or f"write {_expected(kind)}")


def _told(found: Findings, node: Node, path: str, what: str, hint: str | None = None) -> _Missing:
    found.add((node.line, node.column), path, what, hint)
    return MISSING


def _stands(node: Node) -> str:
    if node.kind == "scalar":
        return "nothing" if node.empty else shown(node.text)
    return f"a {node.kind}"


_EXPECTED: dict[type, str] = {
    Bool: "true or false",
    Whole: "a whole number",
    Number: "a number",
    Duration: "a duration, as 500ms or 5m",
    Size: "a size, as 64MiB",
    Span: "a range, as 8-11",
    AvoidText: "a table and a range, as holding 60-69",
    Pair: "two numbers, as [0, 100]",
    Items: "a list, as [one, two]",
    Names: "a mapping of names",
}


def _expected(kind: Kind) -> str:
    if isinstance(kind, Text):
        return kind.form
    if isinstance(kind, Choice):
        return ", ".join(kind.words[:-1]) + " or " + kind.words[-1] if len(kind.words) > 1 else kind.words[0]
    if isinstance(kind, Either):
        return kind.mapping.what
    if isinstance(kind, Section):
        return kind.what
    if isinstance(kind, Whole) and not (kind.least is None and kind.most is None):
        return f"a whole number, {_bounds(kind.least, kind.most)}"
    return _EXPECTED[type(kind)]


def _scalar(kind: Kind, text: str) -> Any:
    return _READERS[type(kind)](kind, text)


def _text(kind: Text, text: str) -> str:
    if kind.pattern is not None and not re.fullmatch(kind.pattern, text):
        raise Wrong(f"{shown(text)} does not fit", f"write {kind.form}")
    return text


def _choice(kind: Choice, text: str) -> str:
    if text in kind.words:
        return text
    if set(kind.words) & {"off", "false", "on"} and text in scalars.TRUE | scalars.FALSE:
        known = kind.words  # page: no, hmac: off
        for word in known:
            if (word in scalars.TRUE) == (text in scalars.TRUE) and word in scalars.TRUE | scalars.FALSE:
                return word
    guess = nearest(text, kind.words)
    raise Wrong(
        f"{shown(text)} is not known here", f"did you mean {guess}?" if guess else f"write {_expected(kind)}"
    )


def _whole(kind: Whole, text: str) -> int:
    value = scalars.integer(text)
    if (kind.least is not None and value < kind.least) or (kind.most is not None and value > kind.most):
        raise Wrong(f"{shown(text)} is out of range", f"write {_bounds(kind.least, kind.most)}")
    return value


def _bounds(least: float | None, most: float | None) -> str:
    if most is None:
        return f"{least} or more"
    if least is None:
        return f"{most} or less"
    return f"{least} to {most}"


def _number(kind: Number, text: str) -> Any:
    exact = scalars.decimal(text)
    value = float(exact)
    if (kind.least is not None and value < kind.least) or (kind.most is not None and value > kind.most):
        raise Wrong(f"{shown(text)} is out of range", f"write {_bounds(kind.least, kind.most)}")
    if (kind.above is not None and value <= kind.above) or (kind.below is not None and value >= kind.below):
        between = f"a number above {kind.above:g}" + (
            f" and below {kind.below:g}" if kind.below is not None else ""
        )
        raise Wrong(f"{shown(text)} is out of range", f"write {between}")
    return exact if kind.exact else value


def _duration(kind: Duration, text: str) -> float:
    seconds = scalars.duration(text)
    if seconds < 0:
        raise Wrong(f"{shown(text)} is negative", "write 0s or more" if kind.zero else "write more than 0s")
    if seconds == 0 and not kind.zero:
        raise Wrong(f"{shown(text)} is no time at all", "write more than 0s")
    return seconds


def _size(kind: Size, text: str) -> int:
    value = scalars.size(text)
    if value < 0:
        raise Wrong(f"{shown(text)} is negative", "write a size, as 64MiB")
    return value


def _span(kind: Span, text: str) -> tuple[int, int]:
    low, high = scalars.span(text)
    if low < 0 or high > kind.most:
        raise Wrong(f"{shown(text)} is out of range", f"write numbers from 0 to {kind.most}")
    return low, high


def _avoid(kind: AvoidText, text: str) -> Avoid:
    words = text.split()
    if len(words) != 2 or words[0] not in ("holding", "input", "coil", "discrete"):
        raise Wrong(
            f"{shown(text)} does not fit",
            "write holding, input, coil or discrete and a range, as holding 60-69",
        )
    low, high = _span(Span(65535), words[1])
    return Avoid(words[0], low, high)  # type: ignore[arg-type]  # one of the four, looked at above


_READERS: dict[type, Callable[[Any, str], Any]] = {
    Text: _text,
    Choice: _choice,
    Bool: lambda kind, text: scalars.boolean(text),
    Whole: _whole,
    Number: _number,
    Duration: _duration,
    Size: _size,
    Span: _span,
    AvoidText: _avoid,
}


def _pair(node: Node, path: str, found: Findings) -> Any:
    if node.kind != "list" or len(node.items) != 2:
        return _told(found, node, path, "two numbers are meant here", "write [low, high], as [0, 100]")
    low, high = (read(Number(), item, f"{path}[{k}]", found) for k, item in enumerate(node.items))
    if isinstance(low, _Missing) or isinstance(high, _Missing):
        return MISSING
    if low >= high:
        return _told(found, node, path, f"{low:g} is not below {high:g}", "write [low, high]")
    return low, high


def _items(kind: Items, node: Node, path: str, found: Findings) -> Any:
    """A tuple of (value, place) pairs: what stands in a list is judged again, and told at its own place."""
    nodes = node.items
    if node.kind == "scalar" and not node.empty and kind.one:
        nodes = [node]
    elif node.kind != "list" and not node.empty:
        return _told(found, node, path, f"{_stands(node)} stands here", f"write {_expected(kind)}")
    values = [
        (value, (item.line, item.column))
        for k, item in enumerate(nodes)
        if not found.full and not isinstance(value := read(kind.of, item, f"{path}[{k}]", found), _Missing)
    ]
    if len(nodes) < kind.least:
        return _told(found, node, path, "an empty list", "leave the key out, or write at least one")
    return tuple(values) if len(values) == len(nodes) else MISSING


def _mapping(node: Node, path: str, found: Findings, what: str) -> Iterable[tuple[Node, Node]] | None:
    """The pairs of a mapping, once each; None where it is none. Duplicates, merges and odd keys are told."""
    if node.empty:
        return ()
    if node.kind != "mapping":
        found.add((node.line, node.column), path, f"{_stands(node)} stands here", f"write {what}")
        return None
    seen: dict[str, Node] = {}
    pairs = []
    for key, value in node.pairs:
        if found.full:
            break
        if key.kind != "scalar":
            found.add(
                (key.line, key.column), path, f"a {key.kind} stands where a key is meant", "write key: value"
            )
        elif key.plain and key.text == "<<":
            found.add((key.line, key.column), path, "merge keys (<<) are not used here", "write the keys out")
        elif key.text in seen:
            first = seen[key.text]
            where = (
                f"line {first.line}"
                if first.line != key.line
                else f"line {first.line}, column {first.column}"
            )
            found.add(
                (key.line, key.column), join(path, key.text), f"this key is there twice: {where} and line {key.line}",
                "keep one of them",
            )  # fmt: skip
        else:
            seen[key.text] = key
            pairs.append((key, value))
    return pairs


def join(path: str, key: str) -> str:
    """A dotted path and one key more, kept short and printable."""
    short = printable(key[:64])
    return f"{path}.{short}" if path else short


def _section(kind: Section, node: Node, path: str, found: Findings) -> Any:
    block = Block(path, (node.line, node.column))
    pairs = _mapping(node, path, found, kind.what if kind.what != "a mapping" else "a mapping, key: value")
    if pairs is None:
        return MISSING
    for key, value_node in pairs:
        field: Field | None = kind.fields.get(key.text)
        where = join(path, key.text)
        if field is None:
            guess = nearest(key.text, kind.fields)
            hint = f"did you mean {guess}?" if guess else f"known here: {', '.join(kind.fields)}"
            found.add((key.line, key.column), where, "this key is not known here", hint)
            continue
        _keep(
            block,
            key.text,
            key,
            value_node,
            read(field.kind, value_node, where, found, optional=not field.required),
        )
    for name, field in kind.fields.items():
        if field.required and name not in block and name not in block.bad:
            found.add(block.here, path, f"{name} is missing", f"add {name}: {field.doc}")
            block.bad.add(name)
    return block


def _names(kind: Names, node: Node, path: str, found: Findings) -> Any:
    block = Block(path, (node.line, node.column))
    pairs = _mapping(node, path, found, f"a mapping, name of each {kind.what}: what it is")
    if pairs is None:
        return MISSING
    for key, value_node in pairs:
        try:
            if kind.key == "name":
                scalars.name(key.text, plain=key.plain)
            elif kind.key == "whole":
                scalars.integer(key.text)
        except Wrong as wrong:
            hint = wrong.hint or f"write {_EXPECTED[Whole]}"
            found.add((key.line, key.column), join(path, key.text), str(wrong), hint)
            block.bad.add(key.text)
        value = read(kind.of, value_node, join(path, key.text), found)
        _keep(block, key.text, key, value_node, value)
    return block


def _keep(block: Block, name: str, key: Node, node: Node, value: Any) -> None:
    block.keys_at[name] = (key.line, key.column)
    block.at[name] = (node.line, node.column)
    if isinstance(value, _Missing):
        block.bad.add(name)
    else:
        block[name] = value

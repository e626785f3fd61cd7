"""YAML text -> a tree of nodes that know their place. Built from libyaml's events with bounds on everything.

No value is resolved here: a scalar keeps its raw text, and whether it stood in quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from agent.config.scalars import NULL

MOST_NODES = 400_000
"""Values in one file, each alias counted as what it stands for."""
DEEPEST = 40

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Node:
    """A scalar (`text`), a list (`items`) or a mapping (`pairs` of key and value). Lines and columns count from 1."""

    kind: Literal["scalar", "list", "mapping"]
    line: int
    column: int
    text: str = ""
    plain: bool = False  # a scalar without quotes
    items: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    size: int = 1  # values in it, itself included

    @property
    def empty(self) -> bool:
        """True where nothing stands, or null."""
        return self.kind == "scalar" and self.plain and self.text in NULL


class Unreadable(Exception):
    """A text that is no single YAML document: line, column, what and hint of the one problem."""

    def __init__(self, line: int, column: int, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.line = line
        self.column = column
        self.hint = hint


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read."""

    node: Node
    anchor: str | None
    key: Node | None = None


def parse(text: str) -> Node | None:
    """The tree of a YAML text; None where it holds nothing. Raises Unreadable.

    Iterative, so that no depth of nesting can exhaust the stack; aliases share the node that they name and count with
    its full size, so that a few lines cannot stand for millions of values.
    """
    found = _NOT_TEXT.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        raise Unreadable(
            line, column, f"the character U+{ord(found.group()):04X} is no text", "is this a YAML file?"
        )
    loader = _Parser(text)
    try:
        return _tree(loader)
    except yaml.MarkedYAMLError as error:
        raise _in_plain_words(error, text) from None
    except yaml.YAMLError as error:
        raise Unreadable(
            1, 1, f"this is no YAML: {str(error).splitlines()[0]}", "write key: value, one a line"
        ) from None
    finally:
        loader.dispose()


def _tree(loader: Any) -> Node | None:
    root: Node | None = None
    anchors: dict[str, Node | None] = {}
    stack: list[_Open] = []
    total = 0
    documents = 0
    while loader.check_event():
        event = loader.get_event()
        kind = type(event)
        done: Node | None = None
        if kind is ScalarEvent:
            done = _scalar(event)
            if event.anchor:
                anchors[event.anchor] = done
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            stack.append(_opened(event, len(stack)))
            if event.anchor:
                anchors[event.anchor] = None  # until it is complete, an alias to it would hold itself
            continue
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            top = stack.pop()
            done = top.node
            if top.anchor:
                anchors[top.anchor] = done
        elif kind is AliasEvent:
            done = _alias(event, anchors)
            total += done.size
        elif kind is DocumentStartEvent:
            documents += 1
            if documents > 1:
                raise _at(event, "a second document begins here", "keep one document, without a line ---")
            continue
        else:
            continue
        total += 1
        if total > MOST_NODES:
            raise _at(
                event,
                f"the file holds more than {MOST_NODES:,} values, counting what aliases stand for",
                "split it, or write fewer aliases",
            )
        if stack:
            _put(stack[-1], done)
        else:
            root = done
    return None if root is not None and root.empty else root


def _put(top: _Open, done: Node) -> None:
    top.node.size += done.size
    if top.node.kind == "list":
        top.node.items.append(done)
    elif top.key is None:
        top.key = done
    else:
        top.node.pairs.append((top.key, done))
        top.key = None


def _scalar(event: Any) -> Node:
    if event.tag is not None:
        _refuse_tag(event)
    mark = event.start_mark
    return Node("scalar", mark.line + 1, mark.column + 1, text=event.value, plain=event.implicit[0])


def _opened(event: Any, depth: int) -> _Open:
    if event.tag is not None:
        _refuse_tag(event)
    if depth >= DEEPEST:
        raise _at(
            event, f"lists and mappings are nested deeper than {DEEPEST} levels", "no key lies that deep"
        )
    mark = event.start_mark
    kind: Literal["mapping", "list"] = "mapping" if type(event) is MappingStartEvent else "list"
    return _Open(Node(kind, mark.line + 1, mark.column + 1), event.anchor)


def _alias(event: Any, anchors: dict[str, Node | None]) -> Node:
    if event.anchor not in anchors:
        raise _at(
            event,
            f"*{event.anchor} names an anchor that is not there",
            "put text that begins with * in quotes",
        )
    node = anchors[event.anchor]
    if node is None:
        raise _at(event, f"*{event.anchor} stands inside what it names", "write the value out")
    return node


def _refuse_tag(event: Any) -> None:
    raise _at(
        event,
        f"the tag {event.tag[:40]} is not used here",
        "leave it out; put text that begins with ! in quotes",
    )


def _at(event: Any, what: str, hint: str | None = None) -> Unreadable:
    return Unreadable(event.start_mark.line + 1, event.start_mark.column + 1, what, hint)


_WORDS: tuple[tuple[str, str, str | None], ...] = (
    ("mapping values are not allowed", "a colon too many", "put the text in quotes, or mend the indentation"),
    ("could not find expected ':'", "a key without a colon", "write key: value, with a space after the colon"),
    ("expected ',' or '}'", "a { that is not closed, or a comma that is missing", "write {key: value, key: value}"),
    ("expected ',' or ']'", "a [ that is not closed, or a comma that is missing", "write [one, two]"),
    ("expected key", "the indentation does not fit the lines above", "keys of one mapping share a column"),
    ("expected '-' indicator", "the indentation does not fit the list above", "items of one list share a column"),
    ("block sequence entries are not allowed", "a list item stands where none can be", "begin it on a line of its own"),
    ("unexpected end of stream", "quotes that are not closed", "close them"),
    ("unknown escape character", "a backslash before a character that needs none", "use single quotes"),
    ("unexpected document indicator", "a line --- or ... inside of quotes", "close the quotes"),
    ("expected <document start>", "text after the end of the document", "begin keys in the first column, one a line"),
    ("did not find expected node content", "a value is missing here", "a comma too many, or a bracket?"),
    ("did not find the expected comment or line break", "text stands after > or |", "begin the text on the next line"),
    ("nesting depth", f"lists and mappings are nested deeper than {DEEPEST} levels", "no key lies that deep"),
    ("directive", "a line that begins with % is a YAML directive", "put it in quotes"),
    ("alphabetic or numeric character", "& and * begin anchors and aliases", "put the text in quotes"),
)  # fmt: skip
"""What libyaml says (a part of it) -> what it means, and what would be right."""


def _in_plain_words(error: yaml.MarkedYAMLError, text: str) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    said = str(error.problem or error.context or "it cannot be read")
    if mark is None:
        return Unreadable(1, 1, f"this is no YAML: {said}", "write key: value, one a line")
    line, column = mark.line, mark.column
    lines = text.split("\n", line + 1)
    here = lines[line] if line < len(lines) else ""
    tabbed = re.match(r" *\t", here)
    if tabbed or here[column : column + 1] == "\t":
        place = tabbed.end() if tabbed else column + 1
        return Unreadable(line + 1, place, "a tab where YAML wants spaces", "indent with spaces")
    if "cannot start any token" in said:
        start = here[column : column + 1]
        return Unreadable(line + 1, column + 1, f"{start} cannot begin a value", "put the text in quotes")
    if here[column : column + 1] in ("]", "}") and "expected key" in said:
        return Unreadable(
            line + 1, column + 1, f"{here[column]} closes nothing", "leave it out, or open it before"
        )
    for part, what, hint in _WORDS:
        if part in said:
            # An open bracket or quote shows only at the end: its beginning is the place to look at.
            context = error.context_mark
            if context is not None and ("not closed" in what):
                line, column = context.line, context.column
            return Unreadable(line + 1, column + 1, what, hint)
    return Unreadable(line + 1, column + 1, f"this is no YAML: {said}", "write key: value, one a line")

"""Changes a few values in the text of a configuration; comments, order, quotes and all other bytes stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

Entries = Mapping[str, "str | Mapping[str, str]"]
"""Key -> its value as YAML text, or the keys of the mapping that it holds, each with its text."""


class CannotEdit(Exception):
    """The text is written in a way that is not changed here; one line of plain words."""


@dataclass(frozen=True, slots=True)
class _Change:
    """The text from start to end (indices) becomes `text`."""

    start: int
    end: int
    text: str


def edited(text: str, path: Sequence[str], entries: Entries) -> str:
    """The text with these entries in the mapping at `path`; keys that are not there are added at its end.

    Raises CannotEdit where the mapping is not there, or stands there by an alias, or is shared by one.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise CannotEdit("this is no YAML") from None
    uses: dict[int, int] = {}
    for node in _walk(root):
        uses[id(node)] = uses.get(id(node), 0) + 1
    target = root
    for i, key in enumerate(path):
        where = ".".join(path[: i + 1])
        found = _pairs(target, ".".join(path[:i])).get(key)
        if found is None:
            raise CannotEdit(f"{where} is not in this file")
        if uses[id(found[1])] > 1:
            raise CannotEdit(f"{where} is shared by an anchor and an alias; write it out once for each")
        target = found[1]
    assert target is not None
    parts: list[str] = []
    at = 0
    for change in sorted(_changes(text, target, entries, uses, ".".join(path)), key=lambda one: one.start):
        parts += (text[at : change.start], change.text)
        at = change.end
    return "".join([*parts, text[at:]])


def _walk(node: Node | None) -> Iterator[Node]:
    """Every node, one that aliases name each time that it is named."""
    stack = [] if node is None else [node]
    while stack:
        top = stack.pop()
        yield top
        if isinstance(top, MappingNode):
            for pair in top.value:
                stack += pair
        elif not isinstance(top, ScalarNode):
            stack += top.value


def _pairs(node: Node | None, where: str) -> dict[str, tuple[Node, Node]]:
    if not isinstance(node, MappingNode):
        raise CannotEdit(f"{where or 'the file'} is no mapping")
    return {key.value: (key, value) for key, value in node.value}


def _changes(
    text: str, target: Node, entries: Entries, uses: Mapping[int, int], where: str
) -> Iterator[_Change]:
    pairs = _pairs(target, where)
    added: list[tuple[str, str]] = []
    for key, wanted in entries.items():
        if key not in pairs:
            added.append((key, wanted if isinstance(wanted, str) else _flow(wanted)))
            continue
        name, value = pairs[key]
        here = f"{where}.{key}"
        if uses[id(value)] > 1:
            raise CannotEdit(f"{here} is shared by an anchor and an alias; write it out once for each")
        if isinstance(wanted, str):
            yield _replaced(text, name, value, wanted, here)
        elif isinstance(value, MappingNode) and value.value:
            yield from _changes(text, value, wanted, uses, here)
        else:
            yield _replaced(text, name, value, _flow(wanted), here)
    if added:
        assert isinstance(target, CollectionNode)
        yield _addition(text, target, added, where)


def _replaced(text: str, name: Node, node: Node, wanted: str, where: str) -> _Change:
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        raise CannotEdit(f"{where} is a block of text")
    if start == end:  # nothing stands there
        after = _colon(text, name)
        return _Change(after, after, f" {wanted}")
    return _Change(start, end, wanted)


def _addition(text: str, target: CollectionNode, added: Sequence[tuple[str, str]], where: str) -> _Change:
    """The keys that are not there yet, after the last one that is."""
    pairs: list[tuple[Node, Node]] = target.value
    if not pairs:
        raise CannotEdit(f"{where} holds nothing yet")
    end = _end(text, *pairs[-1])
    if target.flow_style:
        return _Change(end, end, "".join(f", {key}: {value}" for key, value in added))
    newline = "\r\n" if "\r\n" in text else "\n"
    line_end = text.find("\n", end)
    stop = len(text) if line_end < 0 else line_end
    if text[:stop].endswith("\r"):
        stop -= 1
    indent = " " * pairs[0][0].start_mark.column
    return _Change(stop, stop, "".join(f"{newline}{indent}{key}: {value}" for key, value in added))


def _colon(text: str, name: Node) -> int:
    """Just after a key's colon."""
    return text.index(":", name.end_mark.index) + 1


def _end(text: str, name: Node, value: Node) -> int:
    """Where a key's value ends, without the comments and blank lines that a block's end mark takes in."""
    if value.start_mark.index == value.end_mark.index:
        return _colon(text, name)
    if isinstance(value, CollectionNode) and not value.flow_style:
        last: Any = value.value[-1]
        return _end(text, *last) if isinstance(value, MappingNode) else _end(text, last, last)
    if isinstance(value, ScalarNode) and value.style in ("|", ">"):
        raise CannotEdit("a block of text ends the mapping that is to be changed")
    return int(value.end_mark.index)


def _flow(entries: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in entries.items()) + "}"

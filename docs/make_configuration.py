"""Writes docs/configuration.md: every key of the configuration, from the table that the reader itself follows.

python docs/make_configuration.py            # tests/docs/test_configuration.py says when that is due
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from agent.config import kinds  # noqa: E402
from agent.config.fields import ROOT  # noqa: E402

HEAD = """\
# Every key of the configuration

YAML in UTF-8. Write `edgetwin check config.yaml` after every change: it names all mistakes at once, with line and
column, and what would be right. [config.example.yaml](../config.example.yaml) is a file to copy from;
`edgetwin schema` prints the JSON Schema for an editor that completes and underlines.

- A *duration* has a unit: `500ms`, `1s`, `5m`, `2h`, `7d`. A *size* too: `64MiB`. Ranges `[0, 100]` include both ends.
- Texts are taken as they stand (`off`, `no`, `12e3` need no quotes where a text is meant); numbers may be written
  `0x160`, `1e-3` or `1_000`.
- Names of devices, tags and loops begin with a letter or digit and hold letters, digits, `_` and `-`.
- Without a default the last column says what holds when the key is not there.

This page is made by docs/make_configuration.py; do not change it by hand.
"""
WORDS: Mapping[type[kinds.Kind], str] = {
    kinds.Bool: "true or false",
    kinds.Duration: "a duration",
    kinds.Size: "a size",
    kinds.Span: "a range, `8-11`",
    kinds.AvoidText: "`holding 60-69`",
    kinds.Pair: "`[low, high]`",
}


@dataclass(frozen=True, slots=True)
class Table:
    """One mapping of the file: where it stands, what it is for, its keys."""

    path: str
    doc: str
    section: kinds.Section


def takes(kind: kinds.Kind) -> str:
    """What a key takes, in a few words. Raises TypeError for a kind that this page does not know."""
    match kind:
        case kinds.Text():
            return kind.form
        case kinds.Choice():
            return ", ".join(f"`{word}`" for word in kind.words)
        case kinds.Whole() | kinds.Number():
            return number(kind)
        case kinds.Items():
            listed = f"a list of {takes(kind.of)}"
            return f"{takes(kind.of)}, or a list" if kind.one else listed
        case kinds.Names():
            return f"by {kind.what}: {takes(kind.of)}"
        case kinds.Section():
            return "a secret" if is_secret(kind) else "a mapping"
        case kinds.Either():
            return f"{takes(kind.scalar)}, or {takes(kind.mapping)}"
    if type(kind) not in WORDS:
        raise TypeError(f"make_configuration.py does not know {type(kind).__name__}")
    return WORDS[type(kind)]


def number(kind: kinds.Whole | kinds.Number) -> str:
    """A number with its bounds."""
    name = "a whole number" if isinstance(kind, kinds.Whole) else "a number"
    above = getattr(kind, "above", None)
    below = getattr(kind, "below", None)
    low = (
        f"above {plain(above)}"
        if above is not None
        else f"from {plain(kind.least)}"
        if kind.least is not None
        else ""
    )
    high = (
        f"below {plain(below)}"
        if below is not None
        else f"to {plain(kind.most)}"
        if kind.most is not None
        else ""
    )
    return " ".join(part for part in (name, low, high) if part)


def plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def is_secret(section: kinds.Section) -> bool:
    """Whether it is {credential: NAME} and its like, explained once at the top."""
    return set(section.fields) == {"credential", "env", "file"}


def tables(path: str, doc: str, kind: kinds.Kind) -> Iterator[Table]:
    """This mapping and those inside it, in the order of the file."""
    match kind:
        case kinds.Section():
            if not is_secret(kind):
                yield Table(path, doc, kind)
                for key, field in kind.fields.items():
                    yield from tables(f"{path}.{key}" if path else key, field.doc, field.kind)
        case kinds.Either():
            yield from tables(path, doc, kind.mapping)
        case kinds.Items():
            yield from tables(path, doc, kind.of)
        case kinds.Names():
            yield from tables(f"{path}.<{kind.what}>", doc, kind.of)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for table in tables("", "", ROOT):
        if table.path:
            parts.append(f"## `{table.path}`\n\n{table.doc[:1].upper()}{table.doc[1:]}.\n")
        else:
            parts.append("## The file\n")
        rows = ["| key | takes | default | what for |", "| --- | --- | --- | --- |"]
        for key, field in table.section.fields.items():
            default = (
                "**required**" if field.required else "" if field.default is None else f"`{field.default}`"
            )
            rows.append(f"| `{key}` | {cell(takes(field.kind))} | {cell(default)} | {cell(field.doc)} |")
        parts.append("\n".join(rows) + "\n")
        if not table.path:
            parts.append(
                "A *secret* (`password`, `token`, `hmac`) is `{credential: NAME}` of systemd, `{env: NAME}`, or\n"
                "`{file: PATH}`; a plain text is taken and warned about.\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "configuration.md").write_text(page(), encoding="utf-8")

"""What a stranger wrote (a file, a device, a command), as a terminal, a log line or a message may show it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line: what is no printable character stands as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, most: int) -> str:
    """The text, with an ellipsis in place of its end where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"

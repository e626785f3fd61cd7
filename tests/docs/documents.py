"""Takes blocks out of the documents, so that what they show is what is tested."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def block(document: str, marked: str, *, language: str | None = None) -> str:
    """The one block of a document whose text holds `marked`. Fails when there is none, or more than one."""
    found = [
        text
        for kind, text in FENCE.findall((DOCS / document).read_text(encoding="utf-8"))
        if marked in text and language in (None, kind)
    ]
    assert len(found) == 1, f"{document}: {len(found)} blocks with {marked!r}"
    text: str = found[0]
    return text

"""docs/configuration.md says what the reader takes."""

from __future__ import annotations

from docs.make_configuration import page
from tests.docs.documents import DOCS


def test_the_page_is_up_to_date() -> None:
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert written == page(), "run: .venv/bin/python docs/make_configuration.py"

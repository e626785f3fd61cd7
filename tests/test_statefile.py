"""State files: whole or not at all, damaged ones set aside."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from agent.statefile import read_or_set_aside, write_atomic


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "models"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert read_or_set_aside(path) == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["models"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_missing_file_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_or_set_aside(tmp_path / "none") is None
    assert caplog.records == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_file_is_set_aside_and_told(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "loops.json"
    path.write_bytes(data)
    (tmp_path / "loops.json.damaged").write_bytes(b"an older one")
    with caplog.at_level(logging.WARNING):
        assert read_or_set_aside(path, json.loads) is None
    assert not path.exists() and (tmp_path / "loops.json.damaged").read_bytes() == data
    assert len(caplog.records) == 1 and "moved to loops.json.damaged" in caplog.text


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["models"]


def test_a_folder_in_its_place_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_or_set_aside(tmp_path) is None
    assert "cannot be read" in caplog.text

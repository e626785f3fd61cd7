"""The command line as a whole, as a terminal sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.main import COMMANDS


def edgetwin(*words: str | bytes, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *words],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HOME": str(folder)} | environment,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_on_a_terminal_that_knows_ascii_alone(command: str, tmp_path: Path) -> None:
    done = edgetwin(command, "--help", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        b"example:\n" in done.stdout
        and f"edgetwin {command}".encode() in done.stdout.partition(b"example:\n")[2]
    )


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_file_whose_name_is_no_text_is_named_all_the_same(encoding: str, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "config") + b"\xff.yaml"
    Path(os.fsdecode(path)).write_text("gateway: g\ndevices: {d: {url: tcp://h, tags: {a: {holding: 1}}}}\n")
    done = edgetwin("check", path, folder=tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"config\\udcff.yaml: fine: 1 device, 1 tag, 0 loops\n")

"""`edgetwin write` against devices of these tests: what it says when nothing could be written."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import pytest

from agent.cli.main import run
from tests.plc import talk

CONFIG = """
state_dir: {folder}
devices:
  d:
    url: tcp://127.0.0.1:{port}
    tags:
      power: {{holding: 0, type: int16, scale_from: sf, write: true}}
      sf: {{holding: 1, type: int16, missing: [0x8000]}}
"""


def written(folder: Path, port: int) -> int:
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(folder=folder, port=port))
    return run(["write", str(path), "d/power", "12", "--yes"])


def test_a_power_of_ten_that_cannot_be_read_is_told_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert written(tmp_path, port) == 1
    said = (
        f"edgetwin: d/power: its power of ten (sf) was not read: tcp://127.0.0.1:{port}: connection refused\n"
    )
    assert capsys.readouterr().err == said


def test_nothing_is_written_where_the_device_does_not_know_the_power_of_ten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def answer(pdu: bytes) -> bytes:
        asked.append(pdu[0])
        return struct.pack(">BBH", 3, 2, 0x8000)

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: talk(server.accept()[0], answer), daemon=True).start()
    assert written(tmp_path, server.getsockname()[1]) == 1
    assert capsys.readouterr().err == "edgetwin: d/power: its power of ten (sf) was not read: missing\n"
    assert asked == [3]

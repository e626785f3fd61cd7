"""`edgetwin read` against a device of these tests: what it says of a device that answers only in part."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path

import pytest

from agent.cli.main import run
from tests.plc import talk

REGISTERS = {0: 0x4142, 1: 0x1B0A, 10: 7}
CONFIG = """
state_dir: {folder}
devices:
  d:
    url: tcp://127.0.0.1:{port}
    limits: {{gap: 20}}
    tags:
      name: {{holding: 0, type: string, length: 4}}
      level: {{holding: 10}}
"""


def answer(pdu: bytes) -> bytes:
    function, first, count = struct.unpack(">BHH", pdu)
    addresses = range(first, first + count)
    if not REGISTERS.keys() >= set(addresses):
        return bytes([function | 0x80, 2])
    return struct.pack(f">BB{count}H", function, 2 * count, *(REGISTERS[at] for at in addresses))


@pytest.fixture
def config(tmp_path: Path) -> str:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        talk(connection, answer)

    threading.Thread(target=serve, daemon=True).start()
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, port=server.getsockname()[1]))
    return str(path)


def test_a_device_whose_tags_were_all_read_is_ok_whatever_its_block_met(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["read", config, "--json"]) == 0
    device = json.loads(capsys.readouterr().out)["devices"]["d"]
    assert [request["exception"] for request in device["requests"]] == [2, None, None]
    assert device["ok"] is True and device["error"] is None
    assert device["tags"]["name"]["v"] == "AB\x1b\n" and device["tags"]["level"]["v"] == 7


def test_what_a_device_sends_as_text_cannot_move_the_cursor(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["read", config, "--orders"]) == 0
    said = capsys.readouterr().out
    assert "name   AB\\x1b\\n  [good]  0x4142 0x1B0A" in said
    assert all(line.isprintable() for line in said.splitlines())


def test_a_device_that_is_not_there_is_told_with_its_url_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, port=port))
    assert run(["read", str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"d  tcp://127.0.0.1:{port} unit 1: connection refused\n")

"""Scan and probe while the daemon holds the line: through it, over its one connection, beside its own reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

pytestmark = pytest.mark.process

CONFIG = """
gateway: line7
state_dir: {folder}/state
mqtt: {{url: "mqtt://127.0.0.1:{broker}"}}
page: off
devices:
  plc:
    url: tcp://127.0.0.1:{plc}
    unit: 1
    every: 200ms
    avoid: [holding 20-21]
    tags:
      word: {{holding: 3}}
"""
SILENT = -1


def answer(unit: int, pdu: bytes) -> bytes | int:
    """Units 1 and 7 have holding 0-29; 7 says who it is; nobody else is there."""
    if unit not in (1, 7):
        return SILENT
    if pdu[0] == 43 and unit == 7:
        return b"\x2b\x0e\x01\x01\x00\x00\x01\x00\x04ACME"
    if pdu[0] == 3:
        first, count = struct.unpack(">HH", pdu[1:])
        if first + count <= 30:
            return bytes([3, 2 * count]) + struct.pack(f">{count}H", *range(first, first + count))
        return bytes([0x83, 2])
    return bytes([pdu[0] | 0x80, 1])


class Plc:
    """Counts its connections, and keeps what it was asked."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked: list[tuple[float, int, bytes]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while len(head := stream.read(7)) == 7:
                tid, _, length, unit = struct.unpack(">HHHB", head)
                pdu = stream.read(length - 1)
                self.asked.append((time.monotonic(), unit, pdu))
                reply = answer(unit, pdu)
                if isinstance(reply, bytes):
                    connection.sendall(struct.pack(">HHHB", tid, 0, len(reply) + 1, unit) + reply)

    def close(self) -> None:
        self._server.close()


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.plc = Plc()
        self.url = f"tcp://127.0.0.1:{self.plc.port}"
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(folder=folder, broker=free_port(), plc=self.plc.port))
        self._runtime = folder / "run"
        self._runtime.mkdir()
        self._log = (folder / "daemon.log").open("wb")
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.daemon = self._popen("run", str(self.config), stdout=self._log, stderr=self._log)
        until(lambda: len(self.plc.asked) > 3, 60.0, "a first poll")

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait(30)
            self.daemon = None

    def close(self) -> None:
        self.stop()
        self.plc.close()
        self._log.close()

    def _popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        env = {**os.environ, "RUNTIME_DIRECTORY": str(self._runtime)}
        return subprocess.Popen([sys.executable, "-m", "agent", *words], env=env, **options)

    def command(self, *words: str) -> tuple[int, str, str]:
        with self._popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=120)
            return process.returncode, out.decode(), err.decode()

    def status(self) -> dict[str, Any]:
        _, out, err = self.command("status", str(self.config), "--json")
        assert out, err
        body: dict[str, Any] = json.loads(out)
        return body


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    try:
        one.start()
        yield one
    finally:
        one.close()


def test_scan_and_probe_go_through_the_daemon_and_say_the_same(rig: Rig) -> None:
    scan = ("scan", rig.url, "--units", "1-8", "--timeout", "100ms", "--json")
    probe = ("probe", rig.url, "--unit", "7", "--holding", "0-40", "--pause", "0s", "--json")
    through = [rig.command(*words) for words in (scan, probe)]
    assert rig.plc.connections == 1
    line = rig.status()["lines"][rig.url]
    assert line["devices"]["plc"]["state"] == "ok"
    assert line["errors"] == {}
    rig.stop()
    alone = [rig.command(*words) for words in (scan, probe)]
    assert rig.plc.connections > 1
    for (status, out, err), (status_alone, out_alone, _) in zip(through, alone, strict=True):
        assert status == status_alone == 0, err
        body, body_alone = json.loads(out), json.loads(out_alone)
        for times in (body, body_alone, *body.get("units", ()), *body_alone.get("units", ())):
            times.pop("rtt_ms", None)
        assert body == body_alone
    units = json.loads(through[0][1])["units"]
    assert [(one["unit"], one["identity"]) for one in units] == [(1, {}), (7, {"vendor": "ACME"})]


def test_what_is_to_be_avoided_is_not_probed_either(rig: Rig) -> None:
    status, out, err = rig.command("probe", rig.url, "--unit", "1", "--holding", "16-25", "--json")
    assert status == 0, err
    body = json.loads(out)
    assert body["tables"]["holding"]["readable"] == ["16-19", "22-25"]
    assert list(body["refusals"]) == ["plc is configured to avoid holding 20-21"]
    for _, unit, pdu in rig.plc.asked:
        first, count = struct.unpack(">HH", pdu[1:])
        assert unit != 1 or first + count <= 20 or first >= 22


def test_ctrl_c_ends_it_in_the_daemon_too(rig: Rig) -> None:
    def others() -> int:
        return sum(unit > 7 for _, unit, _ in rig.plc.asked)

    scan = rig._popen("scan", rig.url, "--units", "7-250", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with scan:
        until(lambda: others() > 0, 60.0, "a silent unit is asked")
        scan.send_signal(signal.SIGINT)
        out, err = scan.communicate(timeout=30)
    assert scan.returncode == 130, err.decode()
    assert "unit 7: data" in out.decode() and "stopped: 1 of 244 units answers so far" in out.decode()
    time.sleep(0.3)  # one that was sent already
    asked, polls = others(), len(rig.plc.asked)
    until(lambda: len(rig.plc.asked) > polls + 10, 60.0, "polling goes on")
    assert others() == asked
    assert rig.plc.connections == 1


def test_a_line_held_in_another_way_is_told(rig: Rig) -> None:
    status, _, err = rig.command("scan", rig.url.replace("tcp://", "rtu+tcp://"), "--units", "1")
    assert status == 1
    assert err.count("\n") == 1 and f"the running agent holds this as {rig.url}" in err
    assert rig.plc.connections == 1

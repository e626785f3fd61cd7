"""A PLC that watches the heartbeat sees at once that the daemon was killed, with its loop in auto or in manual."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.plc import Plc
from tests.ports import free_port

pytestmark = pytest.mark.process
STARTED_WITHIN = 60.0
OUT, BEAT = 4, 5
TIMEOUT = 0.9
"""Seconds after which this PLC takes over; the daemon counts at a third of it."""

CONFIG = """
gateway: line7
state_dir: {folder}/state
page: off
devices:
  plc:
    url: tcp://127.0.0.1:{plc}
    every: 100ms
    on_loss: hold
    tags:
      level: {{holding: 3}}
      valve: {{holding: 4, write: {{range: [0, 500], min_interval: 0s}}}}
      watchdog: {{holding: 5, write: true}}
loops:
  level:
    pv: plc/level
    out: plc/valve
    setpoint: 100
    mode: {mode}
    controller: {{kp: 0.1, ti: 10s}}
    heartbeat: {{tag: plc/watchdog, timeout: 900ms}}
"""


class Reader:
    """Reads single registers of the PLC, beside the daemon."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5.0)
        self._stream = self._socket.makefile("rb")

    def __call__(self, address: int) -> int:
        self._socket.sendall(struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, address, 1))
        (value,) = struct.unpack(">H", self._stream.read(11)[9:])
        return int(value)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def changes(read: Reader, address: int, seconds: float) -> list[float]:
    """Monotonic times at which the register was seen to change."""
    seen, last = [], read(address)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        if (value := read(address)) != last:
            seen.append(now)
            last = value
        time.sleep(0.005)
    return seen


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_a_killed_daemon_is_seen_by_the_plc(mode: str, tmp_path: Path) -> None:
    plc = Plc(free_port(), tmp_path / "journal")
    plc.start()
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path, plc=plc.port, mode=mode))
    environment = os.environ | {"RUNTIME_DIRECTORY": str(tmp_path)}
    daemon = subprocess.Popen([sys.executable, "-m", "agent", "run", str(config)], env=environment)
    read = Reader(plc.port)
    try:
        first = (read(OUT), read(BEAT))
        started = time.monotonic()
        while read(BEAT) == first[1] or (mode == "auto" and read(OUT) == first[0]):
            assert time.monotonic() - started < STARTED_WITHIN, "the loop never ran"
            assert daemon.poll() is None
            time.sleep(0.05)
        beats = changes(read, BEAT, 3.0)
        assert len(beats) >= 3, "it counts while the daemon lives"
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        killed = time.monotonic()
        after = [seen for seen in changes(read, BEAT, 2 * TIMEOUT) if seen > killed + 0.1]
        assert after == [], "nothing counts on for a daemon that is gone"
    finally:
        daemon.kill()
        daemon.wait()
        read.close()
        plc.kill()

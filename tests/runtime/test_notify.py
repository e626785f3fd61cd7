"""What systemd is told, read by a fake notify socket."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.runtime import notify


@pytest.fixture(params=["file", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A datagram socket at $NOTIFY_SOCKET, in the file system or in the abstract name space."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@edgetwin-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name[0] == "@" else name)
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def test_every_message_is_one_datagram_of_assignments(systemd: socket.socket) -> None:
    notify.status("compiling kernels 3/8")
    notify.extend_timeout(60.0)
    notify.ready("12 tags on 2 lines")
    notify.watchdog()
    notify.stopping()
    told = [systemd.recv(4096).decode() for _ in range(5)]
    assert told == [
        "STATUS=compiling kernels 3/8",
        "EXTEND_TIMEOUT_USEC=60000000",
        "READY=1\nSTATUS=12 tags on 2 lines",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_a_reload_carries_the_monotonic_time_in_microseconds(systemd: socket.socket) -> None:
    notify.reloading()
    first, second = systemd.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, microseconds = second.partition("=")
    assert name == "MONOTONIC_USEC"
    now = float(Path("/proc/uptime").read_text().split()[0]) * 1e6
    assert abs(int(microseconds) - now) < 600e6  # uptime counts suspended time too


@pytest.mark.parametrize("path", [None, "", "relative/path", "/nowhere/at/all"])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    if path is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    notify.watchdog()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [
        ("30000000", None, 30.0),
        ("30000000", "its own", 30.0),
        ("30000000", "1", None),  # meant for another process
        ("500000", None, 0.5),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdogs_interval(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: str | None, interval: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "its own" else value)
    assert notify.watchdog_interval() == interval

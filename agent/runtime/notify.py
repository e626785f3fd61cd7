"""sd_notify: what systemd is told. Does nothing where $NOTIFY_SOCKET is not set (man 3 sd_notify)."""

from __future__ import annotations

import contextlib
import os
import socket
import time


def send(*lines: str) -> None:
    """Sends assignments as one datagram; a socket that is gone is no error of ours."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path[0] == "@" else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), address)


def ready(status: str) -> None:
    send("READY=1", f"STATUS={status}")


def status(text: str) -> None:
    send(f"STATUS={text}")


def extend_timeout(seconds: float) -> None:
    """More time for the start: a first one compiles the kernels."""
    send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def reloading() -> None:
    send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    send("STOPPING=1", "STATUS=stopping")


def watchdog() -> None:
    send("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds within which a ping is expected; None where no watchdog watches this process."""
    pid, microseconds = os.environ.get("WATCHDOG_PID"), os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or (pid is not None and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None

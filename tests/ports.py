"""Ports of loopback for servers that a test starts, each given to one test process of the machine at a time.

A port that the kernel picks, and that is closed and handed on, can go to another process before its server starts; so
these come from below the kernel's own range, and each is held by a socket in the abstract namespace, named after it,
until the process that asked ends.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

FIRST = 20_000
END = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

_held: dict[int, socket.socket] = {}
_next = FIRST + os.getpid() * 61 % (END - FIRST)  # so that a port just left is not the next process's first


def free_port() -> int:
    """A port that nobody listens on, and that no other call in any process is given while this one lives."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ones."""
    global _next
    for _ in range(FIRST, END):
        first, _next = _next, _next + 1
        if first + count > END:
            _next = FIRST
        elif all(_hold(port) for port in range(first, first + count)):
            _next = first + count
            return first
    raise AssertionError(f"no {count} free ports from {FIRST} to {END}")


def _hold(port: int) -> bool:
    if port in _held:
        return False
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0edgetwin-test-port-{port}")
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    _held[port] = claim
    return True

"""A Modbus TCP server as fast as a blocking socket allows: function 3 only, each register holds its own address.

It runs as a process of its own, so that the time that it takes is not counted as a client's; it ends with its parent.

    python benchmarks/plain_server.py [--rtu] [--silent UNIT ...] [--slow UNIT=SECONDS ...]

prints the port that it took. With --rtu it speaks RTU frames, and is neither silent nor slow.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REQUEST = struct.Struct(">HHHBBHH")
HEAD = struct.Struct(">HHHBBB")
REGISTERS = b"".join(struct.pack(">H", address) for address in range(65_536))


@contextlib.contextmanager
def serving(
    silent: Sequence[int] = (), slow: Mapping[int, float] | None = None, *, rtu: bool = False
) -> Iterator[int]:
    """Starts the server; yields its port."""
    command = [sys.executable, str(Path(__file__)), *(["--rtu"] if rtu else [])]
    command += ["--silent", *map(str, silent)]
    command += ["--slow", *(f"{unit}={seconds}" for unit, seconds in (slow or {}).items())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()  # it takes that for the end
            process.wait()


def serve(connection: socket.socket, silent: set[int], slow: dict[int, float]) -> None:
    """Answers one connection until its end."""
    buffer = b""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(4096):
        buffer = buffer + data if buffer else data
        while len(buffer) >= REQUEST.size:
            tid, _, _, unit, function, address, count = REQUEST.unpack_from(buffer)
            buffer = buffer[REQUEST.size :]
            if unit in silent:
                continue
            reply = HEAD.pack(tid, 0, 2 * count + 3, unit, function, 2 * count)
            reply += REGISTERS[2 * address : 2 * (address + count)]
            if unit in slow:
                threading.Timer(slow[unit], _send, (connection, reply)).start()
            else:
                connection.sendall(reply)


def serve_rtu(connection: socket.socket) -> None:
    """Answers one connection in RTU frames until its end."""
    known: dict[bytes, bytes] = {}
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while request := connection.recv(8, socket.MSG_WAITALL):
        if request not in known:
            address, count = struct.unpack(">HH", request[2:6])
            body = request[:2] + bytes((2 * count,)) + REGISTERS[2 * address : 2 * (address + count)]
            known[request] = body + crc(body)
        connection.sendall(known[request])


def crc(data: bytes) -> bytes:
    """The CRC of Modbus over serial line, low byte first."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return struct.pack("<H", value)


def _send(connection: socket.socket, reply: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(reply)


def _serve(connection: socket.socket, rtu: bool, silent: set[int], slow: dict[int, float]) -> None:
    with connection, contextlib.suppress(OSError):
        if rtu:
            serve_rtu(connection)
        else:
            serve(connection, silent, slow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtu", action="store_true")
    parser.add_argument("--silent", nargs="*", type=int, default=[])
    parser.add_argument("--slow", nargs="*", default=[])
    args = parser.parse_args()
    silent = set(args.silent)
    slow = {int(unit): float(seconds) for unit, seconds in (pair.split("=") for pair in args.slow)}
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            here = listening.accept()[0]
            threading.Thread(target=_serve, args=(here, args.rtu, silent, slow), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()

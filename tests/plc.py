"""A PLC in a process of its own, over raw sockets, that keeps its own list of what it served.

    python tests/plc.py --port P --epoch E --journal FILE

Holding 0 is the epoch, so that a value from before a restart is told from one after it. Holding 1-2 (uint32) counts
the replies that held it, from EPOCH * 1,000,000 on. 4-19 can be written; all else up to 199 is its own address.
Each value of the counter is appended to the journal, with the monotonic time, before its reply is sent.
"""

from __future__ import annotations

import argparse
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SIZE = 200


def talk(connection: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answers the Modbus TCP requests of one connection until its other side ends it: `answer(request PDU)`."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as stream:
        while len(head := stream.read(7)) == 7:
            tid, _, length, unit = struct.unpack(">HHHB", head)
            reply = answer(stream.read(length - 1))
            connection.sendall(struct.pack(">HHHB", tid, 0, len(reply) + 1, unit) + reply)


def serve(port: int, epoch: int, journal: Path) -> None:
    registers = list(range(SIZE))
    registers[0] = epoch
    counter = epoch * 1_000_000
    lock = threading.Lock()
    server = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    log = journal.open("a", buffering=1)

    def answer(pdu: bytes) -> bytes:
        nonlocal counter
        function, address, value = struct.unpack(">BHH", pdu[:5])
        with lock:
            if function == 3 and address + value <= SIZE:
                if address <= 1 and address + value >= 3:
                    counter += 1
                    registers[1], registers[2] = counter >> 16, counter & 0xFFFF
                    log.write(f"{counter} {time.monotonic()}\n")
                words = registers[address : address + value]
                return struct.pack(f">BB{value}H", 3, 2 * value, *words)
            if function == 6 and 4 <= address < 20:
                registers[address] = value
                return pdu
        return bytes([function | 0x80, 2])

    while True:
        connection, _ = server.accept()
        threading.Thread(target=talk, args=(connection, answer), daemon=True).start()


@dataclass
class Plc:
    """Starts, kills and restarts the PLC's process on one port."""

    port: int
    journal: Path
    epoch: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A new process with the next epoch; returns when it listens."""
        self.epoch += 1
        args = ["--port", str(self.port), "--epoch", str(self.epoch), "--journal", str(self.journal)]
        self.process = subprocess.Popen([sys.executable, __file__, *args], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def served(self) -> list[int]:
        """Every value of the counter that was sent, in order."""
        return [int(line.split()[0]) for line in self.journal.read_text().splitlines()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    arguments = parser.parse_args()
    serve(arguments.port, arguments.epoch, arguments.journal)

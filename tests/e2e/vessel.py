"""A PLC in a process of its own whose every answer can be checked afterwards, with a vessel that a loop can control.

    python -m tests.e2e.vessel --port P --device N --epoch E --journal FILE

Holding 0 is the epoch; 1-2 (uint32) count the replies that held it, from N * 100,000,000 + E * 1,000,000 on; 3 is the
vessel's level, which goes to LEVEL_PER_VALVE times the valve within seconds; 4 is the valve, 5 a heartbeat, and both
can be written. All else up to 199 is N * 1000 + its own address. The journal gets `served TIME COUNT LEVEL` before
such a reply is sent and `wrote TIME ADDRESS VALUE` for each write. Times are monotonic, in s.
"""

from __future__ import annotations

import argparse
import math
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.plc import talk

ROOT = Path(__file__).parents[2]
SIZE = 200
LEVEL, VALVE, BEAT = 3, 4, 5
LEVEL_PER_VALVE = 2.0
TAU = 1.5
PER_DEVICE, PER_EPOCH = 100_000_000, 1_000_000


def constant(device: int, address: int) -> int:
    """What a register that nothing changes holds."""
    return 1000 * device + address


def serve(port: int, device: int, epoch: int, journal: Path) -> None:
    registers = [constant(device, address) for address in range(SIZE)]
    registers[0] = epoch
    registers[VALVE] = registers[BEAT] = 0
    counter = device * PER_DEVICE + epoch * PER_EPOCH
    level, last = 0.0, time.monotonic()
    lock = threading.Lock()
    server = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    log = journal.open("a", buffering=1)

    def answer(pdu: bytes) -> bytes:
        nonlocal counter, level, last
        function, address, value = struct.unpack(">BHH", pdu[:5])
        with lock:
            now = time.monotonic()
            goal = LEVEL_PER_VALVE * registers[VALVE]
            level, last = goal + (level - goal) * math.exp((last - now) / TAU), now
            if function == 3 and address + value <= SIZE:
                if address <= 1 and address + value > LEVEL:
                    counter += 1
                    registers[1], registers[2], registers[3] = counter >> 16, counter & 0xFFFF, round(level)
                    log.write(f"served {now} {counter} {round(level)}\n")
                words = registers[address : address + value]
                return struct.pack(f">BB{value}H", 3, 2 * value, *words)
            if function == 6:
                log.write(f"wrote {now} {address} {value}\n")
                if address in (VALVE, BEAT):
                    registers[address] = value
                    return pdu
        return bytes([function | 0x80, 2])

    while True:
        connection, _ = server.accept()
        threading.Thread(target=talk, args=(connection, answer), daemon=True).start()


@dataclass(frozen=True)
class Served:
    """Count -> (monotonic time, level); and each write as (monotonic time, address, value)."""

    replies: dict[int, tuple[float, int]]
    writes: list[tuple[float, int, int]]


@dataclass
class Vessel:
    """Starts, kills, stops and restarts one PLC's process on one port."""

    device: int
    port: int
    journal: Path
    epoch: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """A new process with the next epoch; returns when it listens."""
        self.epoch += 1
        args = [
            "--port",
            self.port,
            "--device",
            self.device,
            "--epoch",
            self.epoch,
            "--journal",
            self.journal,
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.vessel", *map(str, args)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def served(self) -> Served:
        """What it did, over all its epochs."""
        replies, writes = {}, []
        for line in self.journal.read_text().splitlines():
            kind, *rest = line.split()
            at, first, second = float(rest[0]), int(rest[1]), int(rest[2])
            if kind == "served":
                replies[first] = (at, second)
            else:
                writes.append((at, first, second))
        return Served(replies, writes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--port", "--device", "--epoch"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    arguments = parser.parse_args()
    serve(arguments.port, arguments.device, arguments.epoch, arguments.journal)

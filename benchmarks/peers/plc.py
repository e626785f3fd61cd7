"""A simulated PLC in a process of its own that keeps its own list of what it was asked and what it served.

    python benchmarks/peers/plc.py --port P --control C [--delay 0.002] [--counter 1] [--hosts 1]

Modbus TCP; each connection is a device of its own, which answers `delay` seconds after a request, one request at a
time. All units are alike. Register 1 of each unit counts the replies that held it, from `--counter` on: a reading is
known by it. Every other register moves slowly in a triangle of its own until it is written. Functions 1-6, 15, 16.
With --hosts it listens on so many addresses of loopback (`host(k)`).

The control port takes a line of JSON and gives one back: {"log": true} what was asked since the last time, as
[monotonic s, connection, unit, function, address, count, exception or 0, counter served or null, [values written]];
{"silent": [units]} who does not answer; {"holes": [[first, last]]} what is refused as an illegal address.
To freeze it is to stop the process (SIGSTOP), to kill it is SIGKILL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEAD = struct.Struct(">HHHB")
COUNTER = 1
HALF = 1000
READY = b"ready\n"


def value(address: int, now: float) -> int:
    """What a register shows: a triangle between 1000 and 2000, its speed from its address."""
    phase = now * (3 + address % 17) + address * 37
    return 1000 + int(abs(phase % (2 * HALF) - HALF))


def host(k: int) -> str:
    """The k-th address of loopback, from 127.0.0.1 on."""
    return f"127.0.{k // 250}.{k % 250 + 1}"


@dataclass
class Units:
    """The memory behind all connections."""

    counter: int
    written: dict[tuple[int, int], int] = field(default_factory=dict)
    counters: dict[int, int] = field(default_factory=dict)
    holes: list[tuple[int, int]] = field(default_factory=list)
    silent: set[int] = field(default_factory=set)
    log: list[list[Any]] = field(default_factory=list)

    def answer(self, connection: int, unit: int, pdu: bytes) -> bytes | None:
        """The reply's PDU; None from a unit that is silent."""
        function, address, count = struct.unpack(">BHH", pdu[:5])
        if unit in self.silent:
            self._note(connection, unit, function, address, count)
            return None
        values = self._values(function, count, pdu)
        width = 1 if function in (5, 6) else count
        if any(first < address + width and address <= last for first, last in self.holes):
            self._note(connection, unit, function, address, width, 2)
            return bytes((function | 0x80, 2))
        served = None
        if function in (3, 4) and address <= COUNTER < address + count:
            served = self.counters[unit] = self.counters.get(unit, self.counter - 1) + 1
        self._note(connection, unit, function, address, width, 0, served, values)
        if values:
            self.written.update(((unit, address + k), one) for k, one in enumerate(values))
            return pdu[:5]
        return self._read(function, unit, address, count)

    def _read(self, function: int, unit: int, address: int, count: int) -> bytes:
        now = time.monotonic()
        words = [self.written.get((unit, a), value(a, now)) for a in range(address, address + count)]
        if function in (1, 2):
            bits = sum((word & 1) << k for k, word in enumerate(words))
            size = (count + 7) // 8
            return bytes((function, size)) + bits.to_bytes(size, "little")
        if address <= COUNTER < address + count:
            words[COUNTER - address] = self.counters[unit] & 0xFFFF
        return struct.pack(f">BB{count}H", function, 2 * count, *words)

    @staticmethod
    def _values(function: int, count: int, pdu: bytes) -> list[int]:
        if function in (5, 6):
            return [count]
        return list(struct.unpack(f">{count}H", pdu[6 : 6 + 2 * count])) if function == 16 else []

    def _note(self, *entry: Any) -> None:
        padding = (0, None, [])[len(entry) - 5 :]  # exception, served, written
        self.log.append([time.monotonic(), *entry, *padding])


class Connection(asyncio.Protocol):
    """One device's side of one socket: a request is answered `delay` after it, the next one after that."""

    opened = 0

    def __init__(self, units: Units, delay: float) -> None:
        self.units = units
        self.delay = delay
        self.buffer = b""
        self.free = 0.0
        Connection.opened += 1
        self.number = Connection.opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= HEAD.size:
            tid, _, length, unit = HEAD.unpack_from(self.buffer)
            if len(self.buffer) < 6 + length:
                return
            pdu = self.buffer[HEAD.size : 6 + length]
            self.buffer = self.buffer[6 + length :]
            reply = self.units.answer(self.number, unit, pdu)
            if reply is not None:
                self._send(HEAD.pack(tid, 0, len(reply) + 1, unit) + reply)

    def _send(self, frame: bytes) -> None:
        if not self.delay:
            self.transport.write(frame)
            return
        loop = asyncio.get_running_loop()
        self.free = max(loop.time(), self.free) + self.delay
        loop.call_at(self.free, self.transport.write, frame)


def control(units: Units, line: bytes) -> Any:
    """Does what one line of the control port asks."""
    asked = json.loads(line)
    if "silent" in asked:
        units.silent = set(asked["silent"])
    if "holes" in asked:
        units.holes = [tuple(one) for one in asked["holes"]]
    if "log" in asked:
        taken, units.log = units.log, []
        return taken
    return "ok"


async def serve(port: int, control_port: int, delay: float, hosts: int, units: Units) -> None:
    """Until the process is killed."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(control(units, line)).encode() + b"\n")
            await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    await loop.create_server(
        lambda: Connection(units, delay), [host(k) for k in range(hosts)], port, backlog=64
    )
    await asyncio.start_server(talk, "127.0.0.1", control_port)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Asked:
    """One request as the PLC saw it. `t` in monotonic seconds, the same clock as every process of the machine has."""

    t: float
    connection: int
    unit: int
    function: int
    address: int
    count: int
    exception: int
    served: int | None
    written: tuple[int, ...]


class Plc:
    """Starts, freezes, kills and restarts one such process; holds what it has told so far in `log`."""

    def __init__(self, port: int, control_port: int, *, delay: float = 0.002, hosts: int = 1) -> None:
        self.port, self.control_port, self.delay, self.hosts = port, control_port, delay, hosts
        self.log: list[Asked] = []
        self._starts = 0
        self._units: defaultdict[str, list[Any]] = defaultdict(list)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens. Each start counts on from 10,000 higher."""
        args = [sys.executable, str(Path(__file__)), "--port", str(self.port)]
        args += ["--control", str(self.control_port), "--delay", str(self.delay)]
        args += ["--counter", str(1 + 10_000 * self._starts), "--hosts", str(self.hosts)]
        self._starts += 1
        self._process = subprocess.Popen(args, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            raise RuntimeError(f"the simulated PLC does not start on port {self.port}")
        self._tell(**self._units)

    def silent(self, *units: int) -> None:
        self._tell(silent=list(units))

    def holes(self, *holes: tuple[int, int]) -> None:
        self._tell(holes=list(holes))

    def note(self) -> list[Asked]:
        """Fetches what is new, adds it to `log` and returns it."""
        new = [Asked(*one[:8], tuple(one[8])) for one in self._ask({"log": True})]
        self.log += new
        return new

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, after its log was fetched."""
        self.note()
        self._end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _tell(self, **settings: list[Any]) -> None:
        self._units.update(settings)
        if settings:
            self._ask(settings)

    def _ask(self, what: dict[str, Any]) -> Any:
        with socket.create_connection(("127.0.0.1", self.control_port), timeout=30.0) as line:
            line.sendall(json.dumps(what).encode() + b"\n")
            return json.loads(line.makefile("rb").readline())

    def __enter__(self) -> Plc:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.002)
    parser.add_argument("--counter", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=1)
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.control, args.delay, args.hosts, Units(counter=args.counter)))


if __name__ == "__main__":
    main()

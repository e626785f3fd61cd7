"""A Modbus device that misbehaves on command, on raw sockets, in TCP or RTU framing.

Registers hold their own address (a bit holds its parity), so that a value taken from a wrong reply is always seen.
It runs in the test's loop; a test that blocks the loop blocks it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import tty
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


def crc(data: bytes) -> bytes:
    """The CRC of Modbus over serial line, low byte first."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return struct.pack("<H", value)


def registers(address: int, count: int) -> bytes:
    """What honest registers hold."""
    return b"".join(struct.pack(">H", (address + i) & 0xFFFF) for i in range(count))


def bits(address: int, count: int) -> bytes:
    """What honest bits hold: set where the address is odd."""
    packed = bytearray((count + 7) // 8)
    for i in range(count):
        packed[i // 8] |= ((address + i) & 1) << i % 8
    return bytes(packed)


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    connection: int
    tid: int
    unit: int
    pdu: bytes
    raw: bytes

    @property
    def function(self) -> int:
        return self.pdu[0]

    @property
    def address(self) -> int:
        return int.from_bytes(self.pdu[1:3], "big")

    @property
    def count(self) -> int:
        return int.from_bytes(self.pdu[3:5], "big")

    def answer(self) -> bytes:
        """The right PDU."""
        if self.function in (1, 2):
            data = bits(self.address, self.count)
            return bytes((self.function, len(data))) + data
        if self.function in (3, 4):
            data = registers(self.address, self.count)
            return bytes((self.function, len(data))) + data
        if self.function in (15, 16):
            return self.pdu[:5]
        if self.function in (5, 6, 8, 22):
            return self.pdu
        return bytes((self.function | 0x80, 1))


Fault = Callable[["Conversation", Asked], Awaitable[None]]


@dataclass
class Conversation:
    """One connection, as a fault sees it."""

    server: FaultServer
    number: int
    writer: asyncio.StreamWriter
    previous: Asked | None = None

    def frame(self, asked: Asked, pdu: bytes, *, tid: int | None = None, unit: int | None = None) -> bytes:
        """A well-formed frame."""
        unit = asked.unit if unit is None else unit
        if self.server.rtu:
            body = bytes((unit,)) + pdu
            return body + crc(body)
        return struct.pack(">HHHB", asked.tid if tid is None else tid, 0, len(pdu) + 1, unit) + pdu

    def good(self, asked: Asked) -> bytes:
        return self.frame(asked, asked.answer())

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def fin(self) -> None:
        """Ends the connection in order."""
        self.writer.close()

    async def rst(self) -> None:
        """Ends the connection with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class FaultServer:
    """`fault` answers the next requests; without one they are answered right. `on_connect` True ends a connection."""

    rtu: bool = False
    in_order: bool = False  # the next request is looked at when the one before is answered
    fault: Fault | None = None
    faults_left: int = 0
    silent_units: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)  # register addresses that do not exist
    silent_at: set[int] = field(default_factory=set)  # register addresses at which a read is not answered
    on_connect: Callable[[Conversation], Awaitable[bool]] | None = None
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    live: int = 0
    most_live: int = 0
    port: int = 0
    tls: ssl.SSLContext | None = None
    echo: bool = False  # a two-wire adapter: what is sent comes back first
    _server: asyncio.Server | None = None
    _pipes: list[asyncio.BaseTransport] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _jobs: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, port: int = 0) -> FaultServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port or self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def start_on_a_port(self) -> str:
        """Serves a serial port instead of a socket (one end of a pty pair); returns the path of the other end."""
        self.rtu = True
        loop = asyncio.get_running_loop()
        here, there = os.openpty()
        for end in (here, there):
            tty.setraw(end)
        self._ends = [there]  # held open: the port stays, whoever opens and closes it
        reader = asyncio.StreamReader()
        listening, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(here, "rb", 0)
        )
        speaking, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(os.dup(here), "wb", 0)
        )
        self._pipes = [listening, speaking]
        writer = asyncio.StreamWriter(speaking, protocol, None, loop)
        job = asyncio.create_task(self._serve(reader, writer))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return os.ttyname(there)

    def pull_out(self) -> None:
        """The serial adapter is gone."""
        pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            pipe.abort() if isinstance(pipe, asyncio.WriteTransport) else pipe.close()

    async def stop(self) -> None:
        """Stops listening and drops every connection."""
        self.pull_out()
        if self._server is not None:
            self._server.close()
        for end in self._ends:
            os.close(end)
        self._ends = []
        for writer in list(self._open):
            writer.transport.abort()
        for job in list(self._jobs):
            job.cancel()
        await asyncio.sleep(0)

    async def idle(self) -> None:
        """Returns once every request that came is answered, and what its fault does afterwards is done."""
        while self._jobs:
            await asyncio.wait(self._jobs)

    def break_next(self, fault: Fault, times: int = 1) -> None:
        """The next `times` requests meet `fault`."""
        self.fault, self.faults_left = fault, times

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # an end of the old connection that came before this one's beginning is only now being read
        self.live = 1 + sum(not _at_end(other) for other in self._open)
        self.most_live = max(self.most_live, self.live)
        self.connections += 1
        self._open.add(writer)
        here = Conversation(self, self.connections, writer)
        try:
            if self.on_connect is not None and await self.on_connect(here):
                return
            while True:
                asked = await (self._read_rtu(reader, here) if self.rtu else self._read_tcp(reader, here))
                self.asked.append(asked)
                if self.echo:
                    writer.write(asked.raw)
                job = asyncio.create_task(self._answer(here, asked))
                self._jobs.add(job)
                job.add_done_callback(self._jobs.discard)
                if self.in_order:
                    await job
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _read_tcp(self, reader: asyncio.StreamReader, here: Conversation) -> Asked:
        header = await reader.readexactly(7)
        tid, _, length, unit = struct.unpack(">HHHB", header)
        pdu = await reader.readexactly(length - 1)
        return Asked(here.number, tid, unit, pdu, header + pdu)

    async def _read_rtu(self, reader: asyncio.StreamReader, here: Conversation) -> Asked:
        head = await reader.readexactly(7)
        rest = 1
        if head[1] in (15, 16):
            rest = head[6] + 2
        elif head[1] == 22:
            rest = 3
        raw = head + await reader.readexactly(rest)
        assert crc(raw[:-2]) == raw[-2:]
        return Asked(here.number, 0, raw[0], raw[1:-2], raw)

    async def _answer(self, here: Conversation, asked: Asked) -> None:
        span = range(asked.address, asked.address + asked.count) if asked.function < 5 else range(0)
        if asked.unit in self.silent_units or self.silent_at.intersection(span):
            return
        if self.fault is not None and self.faults_left > 0:
            self.faults_left -= 1
            await self.fault(here, asked)
        elif asked.function < 5 and any(
            asked.address <= address < asked.address + asked.count for address in self.refused
        ):
            await here.send(here.frame(asked, bytes((asked.function | 0x80, 2))))
        else:
            await here.send(here.good(asked))
        here.previous = asked


def _at_end(writer: asyncio.StreamWriter) -> bool:
    """True when the other side has closed this connection, read or not."""
    sock = writer.get_extra_info("socket")
    if writer.is_closing() or sock is None or sock.fileno() < 0:
        return True
    try:
        with socket.socket(fileno=socket.dup(sock.fileno())) as twin:
            twin.setblocking(False)
            return twin.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

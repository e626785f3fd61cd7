"""A small Modbus TCP server for simulated devices: a reply for each request, pipelined ones too, or silence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

HEADER = struct.Struct(">HHHB")
"""Transaction, protocol (0), length of unit and PDU, unit: the MBAP header."""
LONGEST = 254

Answer = Callable[[int, bytes], bytes | None]
"""(unit, PDU of the request) -> PDU of the reply, or None for silence."""


class ModbusServer:
    """Serves `answer` over Modbus TCP to any number of clients."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Transport] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port (a free one for 0). Raises OSError when it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._answer, self._connections), host, port
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stops listening and ends every connection."""
        if self._server is None:
            return
        self._server.close()
        for transport in list(self._connections):
            transport.abort()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 1.0)


class _Connection(asyncio.Protocol):
    def __init__(self, answer: Answer, connections: set[asyncio.Transport]) -> None:
        self._answer = answer
        self._connections = connections
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            transaction, protocol, length, unit = HEADER.unpack_from(self._buffer)
            if protocol != 0 or not 2 <= length <= LONGEST:
                self._transport.abort()  # no Modbus: the stream cannot be read any further
                return
            end = HEADER.size - 1 + length
            if len(self._buffer) < end:
                return
            pdu, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
            reply = self._answer(unit, pdu)
            if reply is not None:
                self._transport.write(HEADER.pack(transaction, 0, len(reply) + 1, unit) + reply)

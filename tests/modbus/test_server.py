"""The simulated devices' server: a reply for each request, in order, or silence."""

import asyncio
import struct

from agent.modbus.server import ModbusServer


def frame(transaction: int, unit: int, pdu: bytes) -> bytes:
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


def answer(unit: int, pdu: bytes) -> bytes | None:
    return None if unit == 9 else bytes([unit]) + pdu


async def talk(*chunks: bytes, want: int) -> bytes:
    server = ModbusServer(answer)
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for chunk in chunks:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0)
    got = await asyncio.wait_for(reader.readexactly(want), 5)
    await server.stop()
    assert await reader.read() == b""
    writer.close()
    return got


def test_pipelined_requests_are_all_answered() -> None:
    sent = b"".join(frame(i, 1, b"\x03" + bytes([i])) for i in range(4))
    want = b"".join(frame(i, 1, b"\x01\x03" + bytes([i])) for i in range(4))
    assert asyncio.run(talk(sent, want=len(want))) == want


def test_split_into_single_bytes() -> None:
    sent = frame(7, 2, b"\x03\x00")
    want = frame(7, 2, b"\x02\x03\x00")
    assert asyncio.run(talk(*(bytes([byte]) for byte in sent), want=len(want))) == want


def test_silence_for_a_unit_that_is_not_there() -> None:
    want = frame(2, 1, b"\x01\x03")
    assert asyncio.run(talk(frame(1, 9, b"\x03"), frame(2, 1, b"\x03"), want=len(want))) == want


def test_what_is_no_modbus_ends_the_connection() -> None:
    async def run() -> bytes:
        server = ModbusServer(answer)
        port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n")
        try:
            return await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            await server.stop()

    assert asyncio.run(run()) == b""

"""docs/troubleshooting.md: the commands against devices that have those faults, and the keys that cure them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.cloud.reasons import connack_words, words
from agent.control.loop import GAVE_WAY
from agent.modbus.server import ModbusServer
from tests.docs.documents import DOCS

pytestmark = pytest.mark.process
TEXT = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
LOW, HIGH = reversed(struct.unpack(">HH", struct.pack(">f", 181.25)))
REGISTERS = {10: 1, 11: 7, 12: 2, 100: LOW, 101: HIGH, **dict.fromkeys(range(102, 130), 0), 130: 185, 131: 0}


def answer(unit: int, pdu: bytes) -> bytes | None:
    """Holding registers with holes; 11 answers only alone; unit 3 is behind a gateway that does not reach it."""
    if unit == 3:
        return bytes([pdu[0] | 0x80, 11])
    if unit != 1:
        return None
    if pdu[0] != 3:
        return bytes([pdu[0] | 0x80, 1])
    first, count = struct.unpack(">HH", pdu[1:5])
    wanted = range(first, first + count)
    if any(address not in REGISTERS for address in wanted) or (11 in wanted and count > 1):
        return bytes([3 | 0x80, 2])
    return bytes([3, 2 * count]) + b"".join(struct.pack(">H", REGISTERS[address]) for address in wanted)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A device with those faults."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    server, ports = ModbusServer(answer), []

    async def begin() -> None:
        ports.append(await server.start("127.0.0.1", 0))
        started.set()

    loop.create_task(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert started.wait(10)
    yield f"tcp://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def edgetwin(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "agent", *arguments], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def read(
    folder: Path, url: str, *tags: str, unit: int = 1, options: tuple[str, ...] = (), more: str = ""
) -> str:
    """`edgetwin read` of one device with these tags."""
    lines = [f'devices:\n  press1:\n    url: "{url}"\n    unit: {unit}\n    {more}\n    tags:']
    path = folder / "config.yaml"
    path.write_text("\n".join([f"state_dir: {folder}", *lines, *(f"      {tag}" for tag in tags)]) + "\n")
    return edgetwin("read", path, *options)


def test_off_by_one(url: str, tmp_path: Path) -> None:
    said = edgetwin("probe", url, "--unit", "1", "--holding", "95-135", "--pause", "1ms")
    assert any(
        line.split()[0] == "130" and " 185 (int16" in line for line in said.splitlines() if line.strip()
    )
    said = read(tmp_path, url, "printed: {modicon: 40131}", "wire: {holding: 130}", "wrong: {holding: 131}")
    assert "printed  185 " in said and "wire     185 " in said and "wrong    0 " in said


def test_words_the_other_way_round(url: str, tmp_path: Path) -> None:
    tag = "temperature: {holding: 100, type: float32}"
    said = read(tmp_path, url, tag, options=("--orders",))
    shown = next(line for line in said.splitlines() if line.strip().startswith("float32"))
    assert " ".join(shown.split()) in " ".join(TEXT.split())
    assert "temperature  181.25  [good]" in read(tmp_path, url, tag, more="order: CDAB")
    assert "temperature  181.25  [good]" in read(tmp_path, url, tag.replace("}", ", order: CDAB}"))


def test_exception_2_costs_only_the_tag_that_does_not_exist(url: str, tmp_path: Path) -> None:
    said = read(tmp_path, url, "first: {holding: 12}", "temperature: {holding: 100}", "gone: {holding: 500}")
    assert "exception 2 (illegal address)" in said and "exception 2 (illegal address)" in TEXT
    assert "gone         -  [illegal]" in said and "gone         -  [illegal]" in TEXT
    assert said.count("[good]") == 2
    said = read(tmp_path, url, "first: {holding: 12}", "last: {holding: 100}", more="avoid: [holding 13-99]")
    assert "exception" not in said


def test_a_register_that_answers_only_alone(url: str, tmp_path: Path) -> None:
    tags = ("before: {holding: 10}", "model: {holding: 11}", "after: {holding: 12}")
    assert "exception 2" in read(tmp_path, url, *tags)
    said = read(tmp_path, url, tags[0], "model: {holding: 11, alone: true}", tags[2], more="limits: {gap: 0}")
    assert "holding 11 x 1" in said and "exception" not in said, said


def test_a_unit_that_is_not_there(url: str, tmp_path: Path) -> None:
    tag = "x: {holding: 100}"
    assert "exception 11 (gateway: the unit does not answer)" in read(tmp_path, url, tag, unit=3)
    assert "x  -  [timeout]" in read(tmp_path, url, tag, unit=2)
    assert "1 of 2 units answers" in edgetwin("scan", url, "--units", "1-2", "--timeout", "100ms")


def test_no_connection(tmp_path: Path) -> None:
    said = read(tmp_path, "tcp://127.0.0.1:1", "x: {holding: 100}")
    assert "connection refused" in said and "[link]" in said and '"connection refused"' in TEXT
    said = read(tmp_path, "rtu:///dev/ttyUSB99?baud=9600", "x: {holding: 100}")
    assert "there is no such serial port" in said and "there is no such serial port" in TEXT


def test_a_wrong_crc(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = server.accept()
                    with near:
                        while near.recv(300):
                            near.sendall(b"\x01\x03\x02\x00\x07xx")

        threading.Thread(target=serve, daemon=True).start()
        said = read(tmp_path, f"rtu+tcp://127.0.0.1:{server.getsockname()[1]}", "x: {holding: 100}")
        server.shutdown(socket.SHUT_RDWR)
    assert "it sent a reply with a wrong CRC" in said and "it sent a reply with a wrong CRC" in TEXT


def test_the_words_of_the_tables_are_the_products_own() -> None:
    for error in (ConnectionRefusedError(), TimeoutError(), socket.gaierror()):
        said = words(error, "mqtts://host").replace("host:8883", "HOST").split(": ")[0]
        assert said in TEXT.replace("HOST:PORT", "HOST"), said
    for code in (4, 5):
        assert connack_words(SimpleNamespace(value=code)).split(" (")[0] in TEXT
    assert GAVE_WAY in TEXT

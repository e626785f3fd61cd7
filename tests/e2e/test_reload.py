"""SIGHUP under load: one of 20 devices changes, and nothing that can be seen happens to the other 19."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.books import Reader
from tests.brokers import Mosquitto
from tests.plc import talk

pytestmark = pytest.mark.process
DEVICES = 20
EVERY = 0.2
CHANGED = "plc7"


class Plcs:
    """Holding registers that hold their own address, behind `ports` ports; counts the connections of each."""

    def __init__(self, ports: int) -> None:
        self.connections: Counter[int] = Counter()
        self._servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(ports)]
        self.ports = [server.getsockname()[1] for server in self._servers]
        for server in self._servers:
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.connections[server.getsockname()[1]] += 1
            threading.Thread(target=talk, args=(connection, self._answer), daemon=True).start()

    @staticmethod
    def _answer(pdu: bytes) -> bytes:
        _, address, count = struct.unpack(">BHH", pdu)
        words = [address + i & 0xFFFF for i in range(count)]
        return struct.pack(f">BB{count}H", 3, 2 * count, *words)

    def close(self) -> None:
        for server in self._servers:
            server.close()


def configuration(folder: Path, broker: int, urls: list[str], **other: str) -> str:
    """Twenty devices of three tags; `other` are whole blocks in place of a device's tags."""
    tags = "{a: {holding: 10}, b: {holding: 11}, c: {holding: 30}}"
    devices = "".join(
        f"  plc{i}: {{url: '{url}', unit: {i + 1}, every: {EVERY}s, tags: {other.get(f'plc{i}', tags)}}}\n"
        for i, url in enumerate(urls)
    )
    mqtt = f"{{url: 'mqtt://127.0.0.1:{broker}', batch: 400ms, twin_every: 1s}}"
    return f"gateway: line7\nstate_dir: {folder}/state\npage: off\nmqtt: {mqtt}\ndevices:\n{devices}"


class Agent:
    def __init__(self, folder: Path, text: str) -> None:
        self.config = folder / "config.yaml"
        self.log = folder / "daemon.log"
        self.config.write_text(text)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", str(self.config)], stderr=log, stdout=log
            )

    def reload(self, text: str) -> None:
        """Another configuration; returns when the agent says what became of it."""
        before = self.log.read_text().count("eloaded:")
        self.config.write_text(text)
        self.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while self.log.read_text().count("eloaded:") == before:
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def status(self) -> dict[str, dict[str, dict[str, int]]]:
        words = [sys.executable, "-m", "agent", "status", str(self.config), "--json"]
        body: dict[str, dict[str, dict[str, int]]] = json.loads(
            subprocess.run(words, capture_output=True, text=True, timeout=30).stdout
        )
        return body

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as made:
        yield made


def wait_for(reader: Reader, batches: int) -> None:
    """Listens until each device has sent so many batches."""

    def there() -> bool:
        sent = Counter(device for device, _, _ in reader.books.have)
        return len(sent) == DEVICES and min(sent.values()) >= batches

    reader.until(there, 60, f"{batches} batches of each device")


@pytest.mark.parametrize("lines", [20, 1], ids=["a line each", "one line"])
def test_one_of_twenty_devices_changes(tmp_path: Path, broker: Mosquitto, lines: int) -> None:
    plcs = Plcs(lines)
    urls = [f"tcp://127.0.0.1:{plcs.ports[i % lines]}" for i in range(DEVICES)]
    agent = Agent(tmp_path, configuration(tmp_path, broker.port, urls))
    try:
        with Reader(broker.port) as reader:
            wait_for(reader, 3)
            before, sockets = agent.status(), Counter(plcs.connections)
            other = {CHANGED: "{a: {holding: 10}, d: {holding: 40}}"}
            agent.reload(configuration(tmp_path, broker.port, urls, **other))
            sent = Counter(device for device, _, _ in reader.books.have)
            wait_for(reader, max(sent.values()) + 4)
            after = agent.status()
            books = reader.books
    finally:
        agent.end()
        plcs.close()
    assert "reloaded: device plc7" in agent.log.read_text()
    assert plcs.connections == sockets, "a connection was opened anew"
    assert books.gaps == set()
    for device in (f"plc{i}" for i in range(DEVICES)):
        seqs = sorted(seq for name, _, seq in books.have if name == device)
        assert seqs == list(range(1, len(seqs) + 1)), device
        if device != CHANGED:
            scan = f"{device}/{EVERY * 1000:.0f}ms"
            assert after["scans"][scan]["done"] > before["scans"][scan]["done"], device
            assert after["scans"][scan]["overruns"] <= before["scans"][scan]["overruns"] + 1, device
    assert before["boot"] == after["boot"]


def retained(port: int) -> dict[str, bytes]:
    """Topic -> what a newcomer is given."""
    with Reader(port) as reader:
        found: dict[str, bytes] = {}
        reader._client.on_message = lambda _c, _u, one: found.update({one.topic: bytes(one.payload)})
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            time.sleep(0.05)
    return {topic.removeprefix("edgetwin/v1/line7/"): body for topic, body in found.items()}


def test_devices_come_and_go_and_the_link_changes_while_readings_go_on(
    tmp_path: Path, broker: Mosquitto
) -> None:
    plcs = Plcs(4)
    urls = [f"tcp://127.0.0.1:{port}" for port in plcs.ports]
    text = configuration(tmp_path, broker.port, urls[:3])
    agent = Agent(tmp_path, text)
    try:
        with Reader(broker.port) as reader:
            reader.until(
                lambda: len({device for device, _, _ in reader.books.have}) == 3, 60, "three devices"
            )
            assert {"meta/plc2", "twin/plc2"} <= retained(broker.port).keys()
            sockets = Counter(plcs.connections)
            without = configuration(tmp_path, broker.port, urls[:2])
            agent.reload(without)
            reader.until(lambda: "meta/plc2" not in retained(broker.port), 20, "plc2 is cleared")
            known = retained(broker.port).keys()
            assert not [topic for topic in known if topic.endswith("/plc2")]
            assert {"meta/plc0", "twin/plc0", "meta/plc1"} <= known
            other = configuration(tmp_path, broker.port, urls[:2] + urls[3:]).replace(
                "batch: 400ms", "batch: 1s"
            )
            agent.reload(other)  # another device, and another link
            broker.stop()
            agent.reload(other.replace("batch: 1s", "batch: 600ms"))  # another link while there is no broker
            time.sleep(1.0)
            broker.start()
            last = max(seq for device, _, seq in reader.books.have if device == "plc0")
            reader.until(
                lambda: (
                    max(seq for device, _, seq in reader.books.have if device == "plc0") > last + 4
                    and sum(device == "plc2" for device, _, _ in reader.books.have) >= 3
                ),
                60,
                "readings after all of it",
            )
            reader.listen(2.5)
            books = reader.books
            status = agent.status()
    finally:
        agent.end()
        plcs.close()
    assert plcs.connections == sockets + Counter({plcs.ports[3]: 1})
    assert status["boot"] and status["outbox"]["dropped"] == 0
    assert books.gaps == set()
    for device in ("plc0", "plc1", "plc2"):
        seqs = sorted(seq for name, _, seq in books.have if name == device)
        assert seqs == list(range(1, len(seqs) + 1)), device

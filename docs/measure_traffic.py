"""Counts what gateways of different settings send to a real mosquitto on loopback: the table in central.md.

    python docs/measure_traffic.py [--minutes 10]

Each setting has its own broker, simulated device (20 numeric tags, every second) and agent. Bytes are those that TCP
carries, both ways, without TLS and without the 52 bytes or so of each packet's TCP/IP headers; the first two minutes
are left out. Needs mosquitto.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.brokers import Mosquitto, TcpProxy, free_port

SETTINGS = {
    "as it comes": "",
    "batch: 10s": "batch: 10s",
    "batch: 10s, compress: all": "batch: 10s, compress: all",
    "batch: 10s, compress: all, twin_every: 60s, forecast_every: 5m": (
        "batch: 10s, compress: all, twin_every: 60s, forecast_every: 5m"
    ),
}
START = 120
"""Seconds that are left out: connecting, meta, the first forecasts."""


class Counter(TcpProxy):
    """A proxy that counts what it passes on: [bytes, reads] to the broker and from it."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.counts = {True: [0, 0], False: [0, 0]}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        count = self.counts[sink.getpeername()[1] == self.target]
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                count[0] += len(data)
                count[1] += 1
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def configuration(folder: Path, url: str, mqtt: str) -> Path:
    """20 tags: ten scaled 16-bit registers, ten float32."""
    tags = [f"      t{i}: {{holding: {100 + i}, scale: 0.1}}" for i in range(10)]
    tags += [f"      f{i}: {{holding: {110 + 2 * i}, type: float32}}" for i in range(10)]
    lines = [
        "gateway: line4",
        f"state_dir: {folder / 'state'}",
        f"mqtt: {{url: '{url}'{', ' if mqtt else ''}{mqtt}}}",
        "page: off",
        "devices:",
        "  press1:",
        "    url: tcp://127.0.0.1:502",
        "    tags:",
        *tags,
    ]
    path = folder / "config.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def measure(mqtt: str, seconds: float) -> dict[str, float]:
    """Bytes and packets a day, each way, extrapolated from `seconds`."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(Mosquitto(folder))
        proxy = stack.enter_context(Counter(broker.port))
        path, port = configuration(folder, proxy.url, mqtt), free_port()
        log = stack.enter_context((folder / "log").open("wb"))
        command = [sys.executable, "-m", "agent"]
        for more in (
            ["simulate", str(path), "--port", str(port)],
            ["run", str(path), "--simulated", str(port)],
        ):
            process = subprocess.Popen(command + more, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(2)
        time.sleep(START)
        before = {way: tuple(count) for way, count in proxy.counts.items()}
        time.sleep(seconds)
        day = 86400 / seconds
        return {
            f"{what}_{'up' if way else 'down'}": round((proxy.counts[way][i] - before[way][i]) * day)
            for way in (True, False)
            for i, what in enumerate(("bytes", "packets"))
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    seconds = 60 * parser.parse_args().minutes
    results: dict[str, dict[str, float]] = {}
    threads = [
        threading.Thread(target=lambda name=name, mqtt=mqtt: results.update({name: measure(mqtt, seconds)}))
        for name, mqtt in SETTINGS.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in SETTINGS:
        print(json.dumps({name: results[name]}))


if __name__ == "__main__":
    main()

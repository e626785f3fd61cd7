"""What a day online costs: bytes to the broker, bytes to the disk, CPU and memory of the whole agent.

    python benchmarks/day.py [--seconds 600]

Two agents side by side, each with a broker of its own, read the same 20 devices of 50 tags (the reference mix) at 1 s:
one as it is shipped, one with MORE. What the brokers received (headers of MQTT included, of TCP not) and what
/proc says of the agents over the time after they have settled is told as a day. The values stay where they are, as a
healthy machine's do: the first alarm of each device is one more write.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
from cloud import cpu_of
from gateway import TYPES, Mix, broker, text
from paho.mqtt.enums import CallbackAPIVersion

MORE = "batch: 10s, compress: all, twin_every: 60s, forecast_every: 5m"
DEVICES, TAGS = 20, 50
SETTLED = 60.0
RECEIVED = "$SYS/broker/bytes/received"
PACKED = {"float32": ">f", "uint32": ">I"}


# -- the devices ----------------------------------------------------------------------------------------------------


class Unit:
    """One device: its mix goes on each second. Holding registers and coils as bytes on the wire."""

    def __init__(self, seed: int) -> None:
        self._mix = Mix(TAGS, seed, pull=0.05)
        self._second = 0
        self.registers = self.coils = b""

    def refresh(self) -> None:
        second = int(time.monotonic())
        if second == self._second:
            return
        self._second = second
        values = self._mix.step()
        kinds = [TYPES[i % 5] for i in range(TAGS)]
        self.registers = b"".join(
            struct.pack(PACKED[kind], value) if kind in PACKED else b"\0\0\0\0"
            for kind, value in zip(kinds, values)
        )
        bits = np.array([kind == "bool" and bool(value) for kind, value in zip(kinds, values)])
        self.coils = np.packbits(bits, bitorder="little").tobytes()

    def answer(self, function: int, address: int, count: int) -> bytes:
        """The data of a reply; coils from any address on."""
        self.refresh()
        if function == 3:
            return self.registers[2 * address : 2 * (address + count)]
        bits = np.unpackbits(np.frombuffer(self.coils, np.uint8), bitorder="little")[
            address : address + count
        ]
        return np.packbits(bits, bitorder="little").tobytes()


def serve(ready: multiprocessing.Queue[int]) -> None:
    """The process of the devices: all units on one port."""
    server = socket.create_server(("127.0.0.1", 0))
    ready.put(server.getsockname()[1])
    while True:
        threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()


def talk(connection: socket.socket) -> None:
    units = {unit: Unit(unit) for unit in range(1, DEVICES + 1)}
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as stream:
        while len(head := stream.read(12)) == 12:
            tid, _, _, unit, function, address, count = struct.unpack(">HHHBBHH", head)
            data = units[unit].answer(function, address, count)
            connection.sendall(
                struct.pack(">HHHBBB", tid, 0, len(data) + 3, unit, function, len(data)) + data
            )


# -- the agents -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Counters at one moment."""

    at: float
    received: int
    written: int
    cpu: float


class Agent:
    """An agent's process with a broker, and what they have used."""

    def __init__(self, folder: Path, url: str, port: int, mqtt: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(
            f"state_dir: {folder}/state\n" + text(url, devices=DEVICES, tags=TAGS, mqtt=mqtt, port=port)
        )
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", str(folder / "config.yaml")], stdout=log, stderr=log
            )
        self.received = self.readings = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._heard
        self._client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._client.subscribe(RECEIVED)
        self._client.loop_start()

    def _heard(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.received = int(message.payload)

    def seen(self) -> Seen:
        """Raises OSError when the agent has ended."""
        pid = self.process.pid
        io = Path(f"/proc/{pid}/io").read_text()
        written = re.search(r"^write_bytes: (\d+)", io, re.M)
        assert written is not None
        return Seen(time.monotonic(), self.received, int(written[1]), cpu_of(pid))

    def memory(self) -> float:
        """MB in memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
        return int(found[1]) / 1000 if found else 0.0

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def plant() -> Iterator[int]:
    """The port of the devices."""
    ready: multiprocessing.Queue[int] = multiprocessing.Queue()
    process = multiprocessing.Process(target=serve, args=(ready,), daemon=True)
    process.start()
    try:
        yield ready.get(timeout=30)
    finally:
        process.terminate()
        process.join()


def show(name: str, before: Seen, after: Seen, memory: float) -> None:
    took = after.at - before.at
    day = 86_400 / took
    received, written = after.received - before.received, after.written - before.written
    print(
        f"{name}\n  {received * day / 1e6:,.0f} MB a day to the broker ({received / took / DEVICES / TAGS:.1f} B a"
        f" reading, twins and forecasts included); {written / 1e6:.2f} MB written in {took:.0f} s,"
        f" {written * day / 1e6:.1f} MB a day; CPU {(after.cpu - before.cpu) / took * 100:.1f} % of a core;"
        f" {memory:.0f} MB in memory",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    args = parser.parse_args()
    names = {"as shipped": "", MORE: MORE}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(plant())
        agents = {}
        for i, (name, mqtt) in enumerate(names.items()):
            place = folder / str(i)
            place.mkdir()
            url, _ = stack.enter_context(broker(place, "sys_interval 1"))
            agents[name] = Agent(place, url, port, mqtt)
            stack.callback(agents[name].end)
        time.sleep(SETTLED)
        before = {name: agent.seen() for name, agent in agents.items()}
        time.sleep(args.seconds)
        print(f"1,000 tags at 1 s over {args.seconds:g} s; load of the machine {os.getloadavg()[0]:.1f}")
        for name, agent in agents.items():
            show(name, before[name], agent.seen(), agent.memory())


if __name__ == "__main__":
    main()

"""Where the time of a reading goes: from the wire to the broker, stage by stage, and what the whole agent takes.

    python benchmarks/journey.py [--seconds 60] [--settle 45]

Devices of 50 float32 tags at 1 s that answer after 2 ms, in a process of their own; a mosquitto. The stages run in one
thread at the agent's own pace, 20 scans a second: caches are as cold as in the agent, where the same stages back to
back cost a half to a tenth. CPU of the agent is that of /proc, its threads told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from cloud import cpu_of
from gateway import broker
from paho.mqtt.enums import CallbackAPIVersion

from agent.cloud import payload
from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.config.load import parse
from agent.modbus.asks import ask
from agent.modbus.codec import Decoder
from agent.modbus.framers import MbapFramer
from agent.modbus.plan import plan_device
from agent.modbus.requests import read_body
from agent.modbus.waiting import Waiting
from agent.predict.health import Health
from agent.predict.predictor import for_config
from agent.twin.history import History
from agent.twin.layout import build_layout
from agent.twin.records import Row
from agent.twin.table import Twin

DEVICES, TAGS = 20, 50
PACE = 0.05
ANSWERS_AFTER = 0.002
HEAD = struct.Struct(">HHHBBHH")


# -- devices --------------------------------------------------------------------------------------------------------


def devices() -> None:
    """The process of the devices: one port, a noisy level per tag. Ends with its standard input."""
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)

    def listen() -> None:
        while True:
            threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    sys.stdin.read()


def talk(connection: socket.socket) -> None:
    rng = np.random.default_rng(1)
    levels: dict[int, Any] = defaultdict(lambda: np.zeros(TAGS))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as stream:
        while len(head := stream.read(HEAD.size)) == HEAD.size:
            tid, _, _, unit, function, address, count = HEAD.unpack(head)
            time.sleep(ANSWERS_AFTER)
            levels[unit] = 0.7 * levels[unit] + rng.normal(size=TAGS)
            data = (50.0 + levels[unit]).astype(">f4").tobytes()[2 * address : 2 * (address + count)]
            connection.sendall(
                struct.pack(">HHHBBB", tid, 0, len(data) + 3, unit, function, len(data)) + data
            )


@contextlib.contextmanager
def serving() -> Iterator[int]:
    command = [sys.executable, __file__, "--devices"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


def text(folder: Path, url: str, port: int, count: int, *, predict: bool) -> str:
    """A configuration of `count` devices, as YAML."""
    lines = ["gateway: bench", "page: off", f"state_dir: {folder}/state", f"mqtt: {{url: '{url}'}}"]
    lines += [] if predict else ["predict: off"]
    lines.append("devices:")
    for unit in range(1, count + 1):
        lines += [f"  d{unit}:", f"    url: tcp://127.0.0.1:{port}", f"    unit: {unit}", "    tags:"]
        lines += [f"      t{tag}: {{holding: {2 * tag}, type: float32, every: 1s}}" for tag in range(TAGS)]
    return "\n".join(lines) + "\n"


# -- the agent ------------------------------------------------------------------------------------------------------


def whole(count: int, settle: float, seconds: float, *, predict: bool) -> None:
    """CPU of an agent in a process of its own, in % of one core."""
    with tempfile.TemporaryDirectory() as name, serving() as port, broker(Path(name)) as (url, _):
        config = Path(name) / "config.yaml"
        config.write_text(text(Path(name), url, port, count, predict=predict))
        run = "from agent.cli.main import entry; entry()"
        command = [sys.executable, "-c", run, "run", str(config)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(settle)
            before, start, since = cpu_of(process.pid), threads(process.pid), time.monotonic()
            time.sleep(seconds)
            took = (time.monotonic() - since) / 100.0
            used, end = cpu_of(process.pid) - before, threads(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    parts = [(end[task] - start.get(task, 0.0)) / took for task in sorted(end)]
    print(
        f"{count:3} devices, forecasts {'on ' if predict else 'off'}: {used / took:.2f} % of a core; main"
        f" {parts[0]:.2f}, cloud {parts[-2]:.2f}, paho's {parts[-1]:.2f}; load {os.getloadavg()[0]:.1f}"
    )


def threads(pid: int) -> dict[int, float]:
    """Task id -> seconds of CPU; the oldest is the main one, the newest paho's, before it the cloud's."""
    folder = Path(f"/proc/{pid}/task")
    return {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in folder.iterdir()
    }


# -- stages ---------------------------------------------------------------------------------------------------------


class Stages:
    """Microseconds of this thread's CPU by stage."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)

    def run(self, name: str, job: Callable[..., Any], *given: Any, **more: Any) -> Any:
        start = time.thread_time_ns()
        result = job(*given, **more)
        self.spent[name].append((time.thread_time_ns() - start) / 1000)
        return result


class Way:
    """The rooms that a reading passes, for one configuration."""

    def __init__(self, port: int, url: str, folder: Path) -> None:
        config = parse(text(folder, url, port, DEVICES, predict=True), "journey.yaml").config
        assert config is not None
        self.layout = build_layout(config)
        self.twin, self.history = Twin(self.layout), History(len(self.layout.keys))
        predictor = for_config(config)
        assert predictor is not None
        self.predictor, self.health = predictor, Health(config, predictor.keys, predictor)
        self.outbox = Outbox(folder, config.mqtt.outbox, tuple(config.devices), wall_ms=lambda: 0)
        self.plans = {name: plan_device(device)[0] for name, device in config.devices.items()}
        self.decoders = {name: Decoder(self.plans[name], device) for name, device in config.devices.items()}
        self.framer, self.loop, self.stamp = MbapFramer(), asyncio.new_event_loop(), Stamp("boot", int)
        self.client = publisher(url)
        self.seen = Stages()
        self._time("the forecast kernel alone", self.predictor, "_step")
        self._time("the health kernel alone", self.health, "_take")
        for decoder in self.decoders.values():
            self._time("the decode kernel alone", decoder, "_decode")

    def _time(self, stage: str, owner: Any, kernel: str) -> None:
        """Has each call of the kernel that `owner` holds under this name timed as a stage of its own."""
        call = getattr(owner, kernel)
        setattr(owner, kernel, lambda *given: self.seen.run(stage, call, *given))

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.outbox.close()
        self.loop.close()

    def scan(self, wire: socket.socket, device: str, tid: int) -> None:
        """Everything that comes of one scan, its batch included."""
        run, plan = self.seen.run, self.plans[device]
        t = float((tid - 1) // DEVICES)  # of the samples: a second from one scan of a device to the next
        wanted = ask(plan.unit, plan.function, read_body(plan))
        frame, mark, size = run("request: encode", self.framer.frame, wanted, tid)
        run("request: send", wire.sendall, frame)
        reply = run("reply: wait, receive", wire.recv, 4096)
        waiting = Waiting(self.loop, wanted, tid, frame, sent=t, until=t + 1, mark=mark, size=size)
        run("reply: framing, checks", self.framer.judge, reply, waiting)
        rows = np.array([self.layout.row[(device, tag)] for tag in plan.tags])
        decoded = run("decode", self.decoders[device].decode, reply[9:], {})
        run("twin", self.twin.apply, rows, decoded.value, decoded.quality, decoded.plain, t)
        run("forecasts, intervals", self.predictor.update, rows, decoded.value, np.full(TAGS, t))
        run("health, rules", self.health.update, rows, decoded.value, t)
        run("history", self.history.add, rows, decoded.value, t)
        row = Row(device, plan.tags, t, decoded.plain, None)
        body = run("batch", payload.data_body, self.stamp, [row], t=t, stream="s", seq=tid, meta="m")
        data = run("JSON", payload.encode, body)
        run("zlib (compress: all, backfill)", zlib.compress, data, 6)
        run("paho: publish, caller's thread", self.client.publish, f"data/{device}", data, qos=1)
        batch = Batch(device, self.outbox.next_seq(device), int(t), TAGS, data, "boot")
        run("sqlite (without a broker; durable)", self.outbox.spill, [batch])

    def show(self) -> None:
        """What is made of all tags once a second."""
        run, t = self.seen.run, 0.0
        forecasts = run(
            "snapshot: forecasts, each second", self.predictor.forecasts, np.arange(len(self.layout.keys))
        )
        views = self.health.views()
        run(
            "snapshot: twin, each second",
            self.twin.snapshot,
            t,
            states={},
            health=views,
            loops={},
            loops_of={},
            forecasts=forecasts,
        )


def stages(port: int, url: str, folder: Path, scans: int, pace: float) -> dict[str, list[float]]:
    """Each stage of each scan after the other, a scan every `pace` seconds."""
    way = Way(port, url, folder)
    with socket.create_connection(("127.0.0.1", port)) as wire:
        for k in range(scans):
            time.sleep(pace)
            way.scan(wire, f"d{k % DEVICES + 1}", k + 1)
            if k % DEVICES == 0:
                way.show()
    way.close()
    return way.seen.spent


def publisher(url: str) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    return client


# -- limits ---------------------------------------------------------------------------------------------------------


def limits(port: int, url: str, scans: int, body: bytes) -> None:
    """What the same work costs at the same pace by itself: process time, all threads."""
    frame = HEAD.pack(1, 0, 6, 1, 3, 0, 2 * TAGS)
    with socket.create_connection(("127.0.0.1", port)) as wire:

        def bare() -> None:
            wire.sendall(frame)
            wire.recv(4096)

        alone("a blocking socket: send, receive", bare, scans)
    asyncio.run(streams(port, frame, scans))
    client = publisher(url)
    alone("paho: the same bodies, both threads", lambda: client.publish("limit", body, qos=1), scans)
    client.disconnect()
    client.loop_stop()


def alone(name: str, job: Callable[[], Any], scans: int) -> None:
    start = time.process_time()
    for _ in range(scans):
        time.sleep(PACE)
        job()
    print(f"  {name:45}{(time.process_time() - start) / scans * 1e6:7.0f}")


async def streams(port: int, frame: bytes, scans: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.process_time()
    for _ in range(scans):
        await asyncio.sleep(PACE)
        writer.write(frame)
        await reader.readexactly(9 + 4 * TAGS)
    used = (time.process_time() - start) / scans * 1e6
    print(f"  {'asyncio streams: write, readexactly':45}{used:7.0f}")
    writer.close()


def table(port: int, url: str, folder: Path) -> None:
    """The stages at the agent's pace and back to back, and the limits."""
    scans = 30 * DEVICES
    cold = stages(port, url, folder / "cold", scans, PACE)
    warm = stages(port, url, folder / "warm", scans, 0.0)
    print(f"{'us of CPU per scan of 50 tags':47}{'paced':>7}{'warm':>7}{'paced, per reading':>20}")
    for name, times in cold.items():
        paced, quick = np.median(times[len(times) // 3 :]), np.median(warm[name][len(warm[name]) // 3 :])
        print(f"  {name:45}{paced:7.0f}{quick:7.0f}{paced / TAGS:20.2f}")
    print("limits, paced")
    limits(port, url, scans // 2, b"x" * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of steady state that count (60)")
    parser.add_argument("--settle", type=float, default=45.0, help="before them (45)")
    parser.add_argument("--stages", action="store_true", help="without the whole agent")
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.devices:
        devices()
        return
    with tempfile.TemporaryDirectory() as name, serving() as port, broker(Path(name)) as (url, _):
        for part in ("cold", "warm"):
            (Path(name) / part).mkdir()
        table(port, url, Path(name))
    for count, predict in () if given.stages else ((DEVICES, True), (DEVICES, False), (1, True)):
        whole(count, given.settle, given.seconds, predict=predict)


if __name__ == "__main__":
    main()

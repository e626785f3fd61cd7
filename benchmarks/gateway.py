"""A gateway without devices, for benchmarks of the cloud side: the reference mix of tags, the real Cloud, a broker.

The mix, a fifth each: two decimals, a slow drift with one, bits, counters, and noise that is exact to float32.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agent.cloud.worker import Cloud
from agent.config.load import parse
from agent.config.types import Config
from agent.runtime.clock import Clock, SystemClock
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Ask, Forecasts, HealthView, Layout, Outcome, Row, Snapshot

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
TYPES = ("float32", "float32", "bool", "uint32", "float32")


class Mix:
    """The values of `count` tags; each `step` is one scan of them. Deterministic for one seed.

    `pull`: how much of its way from 20 a value loses with each step; 0.0: it wanders off.
    """

    def __init__(self, count: int, seed: int = 1, *, pull: float = 0.0) -> None:
        self._pull = pull
        self._rng = np.random.default_rng(seed)
        self._kind = np.arange(count) % 5
        self._walk = np.full(count, 20.0)
        self._counter = np.zeros(count, dtype=np.int64)

    def step(self) -> list[Any]:
        """Plain values, as the decoder hands them on."""
        rng, count = self._rng, len(self._walk)
        self._walk += rng.normal(0, 0.05, count) - self._pull * (self._walk - 20.0)
        self._counter += rng.random(count) < 0.3
        fine = np.round(self._walk, 2).tolist()
        slow = np.round(20 + (self._walk - 20) / 50, 1).tolist()
        bits = (rng.random(count) < 0.999).tolist()
        noise = (self._walk + rng.normal(0, 0.1, count)).astype(np.float32)
        kinds = (fine, slow, bits, self._counter.tolist(), [float(str(one)) for one in noise])
        return [kinds[kind][i] for i, kind in enumerate(self._kind.tolist())]


def text(url: str, *, devices: int, tags: int, name: str = "bench", mqtt: str = "", port: int = 1) -> str:
    """`devices` devices with `tags` tags each, of the mix, at 1 s. `mqtt`: more keys of that section, as YAML."""
    lines = [f"gateway: {name}", "page: off", f"mqtt: {{url: '{url}', {mqtt}}}", "devices:"]
    for unit in range(1, devices + 1):
        lines += [
            f"  d{unit}:",
            f"    url: tcp://127.0.0.1:{port}",
            f"    unit: {unit}",
            "    every: 1s",
            "    tags:",
        ]
        for tag in range(tags):
            kind = TYPES[tag % 5]
            place = f"coil: {tag}" if kind == "bool" else f"holding: {2 * tag}, type: {kind}"
            lines.append(f"      t{tag}: {{{place}}}")
    return "\n".join(lines) + "\n"


def configuration(url: str, *, devices: int, tags: int, name: str = "bench", mqtt: str = "") -> Config:
    """The same, read."""
    loaded = parse(text(url, devices=devices, tags=tags, name=name, mqtt=mqtt), "bench.yaml")
    assert loaded.config is not None, loaded.problems
    return loaded.config


class Gateway:
    """A Cloud, and scans for it. Times are those of `clock`."""

    def __init__(
        self, config: Config, folder: Path, *, clock: Clock | None = None, boot: str = "0badcafe"
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.layout = build_layout(config)
        folder.mkdir(exist_ok=True)
        self.cloud = Cloud(
            config, state_dir=folder, layout=self.layout, boot=boot, clock=self.clock, ask=self._refuse
        )
        self.tags = {name: tuple(device.tags) for name, device in config.devices.items()}
        self._mix = {name: Mix(len(tags), seed) for seed, (name, tags) in enumerate(self.tags.items())}

    def rows(self) -> list[Row]:
        """One scan of each device, now."""
        now = self.clock.mono()
        return [Row(name, tags, now, self._mix[name].step(), None) for name, tags in self.tags.items()]

    def snapshot(self) -> Snapshot:
        """A picture of the twin with forecasts for half of the tags, all of them changing."""
        return snapshot(self.layout, self.clock.mono(), np.random.default_rng(0))

    def wait(self, seconds: float = 20.0) -> None:
        """Until the broker has accepted it. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while self.cloud.status()["uplink"]["state"] != "online":
            if time.monotonic() > end:
                raise TimeoutError(self.cloud.status()["uplink"]["error"])
            time.sleep(0.01)

    @staticmethod
    def _refuse(ask: Ask) -> concurrent.futures.Future[Outcome]:
        raise NotImplementedError("nobody commands a benchmark")


def snapshot(layout: Layout, now: float, rng: np.random.Generator) -> Snapshot:
    """Every tag good, forecasts for half of them."""
    count = len(layout.keys)
    value = np.round(rng.normal(20, 5, count), 2)
    rows = np.arange(0, count, 2)
    spread = np.ones((len(rows), 3))
    forecast = np.repeat(value[rows, None], 3, axis=1)
    return Snapshot(
        layout=layout,
        t=now,
        plain=value.tolist(),
        value=value,
        quality=np.full(count, Quality.GOOD, dtype=np.uint8),
        stamps=np.full(count, now),
        total={},
        states=dict.fromkeys(layout.devices, "ok"),
        health={device: HealthView(0.9, {}, ()) for device in layout.devices},
        loops={},
        loops_of={},
        forecasts=Forecasts(
            h=(1, 5, 20),
            rows=rows,
            t=np.full(len(rows), now),
            y=forecast + rng.normal(0, 0.1, forecast.shape),
            lo=forecast - spread,
            hi=forecast + spread,
            a=rng.normal(0, 1, (len(rows), 3)),
            b=rng.normal(0, 1, len(rows)),
        ),
    )


@contextlib.contextmanager
def broker(folder: Path, *lines: str) -> Iterator[tuple[str, int]]:
    """(URL, process id) of a mosquitto on loopback. Raises SystemExit where it is not installed."""
    if MOSQUITTO is None:
        raise SystemExit("mosquitto is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = folder / "mosquitto.conf"
    text = [f"listener {port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 0", *lines]
    config.write_text("\n".join(text) + "\n")
    process = subprocess.Popen(
        [MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.01)
        yield f"mqtt://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def own_io(counter: str) -> int:
    """`wchar` (bytes handed to write) or `write_bytes` (bytes that reached the disk's layer) of this process."""
    found = re.search(rf"^{counter}: (\d+)", Path("/proc/self/io").read_text(), re.M)
    return int(found[1]) if found else 0


def resident() -> float:
    """MB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6

"""Does each device keep its period while others are dead or slow? The whole agent, over some time.

20 devices with 50 float32 tags each, all at 1 s, on a few hosts (gateways); two devices never answer, one takes longer
than its timeout. Everything else of the agent runs as it does in the field: decoding, forecasts, health, the outbox
and, where mosquitto is installed, the uplink. Servers and broker are processes of their own.

    python benchmarks/period.py [--seconds 600] [--hosts N]

Printed for the healthy devices: how far the time between two scans is from the period, how late scans begin, and the
slope of |n-th scan - (t0 + n * period)|: a drift of the grid would show there as a trend.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from plain_server import serving

from agent.config.load import parse
from agent.config.types import Config
from agent.modbus.line import ScanDone
from agent.runtime.service import Service

DEVICES, TAGS, PERIOD = 20, 50, 1.0
DEAD, SLOW = (3, 12), (7,)
TIMEOUT, SLOW_AFTER = 0.3, 0.4
SETTLED = 5.0
"""Seconds at the start that do not count: connecting, and finding out who is dead and who is slow."""
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
Floats = NDArray[np.float64]


class Measured(Service):
    """The agent, and a list of its scans."""

    scans: list[ScanDone]

    def _on_scan(self, done: ScanDone) -> None:
        self.scans.append(done)
        super()._on_scan(done)


def configuration(ports: Sequence[int], broker: int) -> Config:
    """Units 1 to 20, in turn on the hosts."""
    lines = ["gateway: bench", "page: off", f"mqtt: {{url: 'mqtt://127.0.0.1:{broker}'}}", "devices:"]
    for unit in range(1, DEVICES + 1):
        port = ports[unit % len(ports)]
        lines += [f"  d{unit}:", f"    url: tcp://127.0.0.1:{port}", f"    unit: {unit}"]
        lines += [f"    every: {PERIOD:g}s", f"    timeout: {TIMEOUT * 1000:g}ms", "    tags:"]
        lines += [f"      t{tag}: {{holding: {2 * tag}, type: float32}}" for tag in range(TAGS)]
    loaded = parse("\n".join(lines), "period.yaml")
    assert loaded.config is not None, loaded.problems
    return loaded.config


@contextlib.contextmanager
def broker() -> Iterator[int]:
    """The port of a mosquitto; where it is not installed, one where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    if MOSQUITTO is None:
        yield port
        return
    process = subprocess.Popen(
        [MOSQUITTO, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


async def scans(config: Config, folder: Path, seconds: float) -> list[ScanDone]:
    """What the agent does in this time, after it has settled."""
    service = Measured(config, state_dir=folder)
    service.scans = []
    stop = asyncio.Event()
    gc.collect()
    gc.freeze()
    running = asyncio.create_task(service.run(stop))
    await asyncio.sleep(SETTLED + seconds)
    begin = time.monotonic() - seconds
    status = service.status()
    states = [
        f"{name} {one['state']}"
        for line in status["lines"].values()
        for name, one in line["devices"].items()
        if one["state"] != "ok"
    ]
    print(f"not ok: {', '.join(states)}; uplink {status['uplink']['state']}")
    stop.set()
    await running
    return [one for one in service.scans if one.due >= begin]


def slope(numbers: Floats, deviations: Floats) -> float:
    """Microseconds a scan, least squares."""
    return float(np.polyfit(numbers, deviations, 1)[0] * 1e6)


def percentiles(seconds: Floats) -> str:
    """p50, p99 and the largest, in ms."""
    p50, p99, most = np.quantile(seconds, (0.5, 0.99, 1.0)) * 1000
    return f"p50 {p50:7.3f} ms   p99 {p99:7.3f} ms   max {most:7.3f} ms"


def show(done: Sequence[ScanDone]) -> None:
    """The figures of the healthy devices."""
    healthy = [f"d{unit}" for unit in range(1, DEVICES + 1) if unit not in DEAD + SLOW]
    off_period: list[float] = []
    late: list[float] = []
    slopes: list[float] = []
    skipped = failed = 0
    for name in healthy:
        mine = [one for one in done if one.device == name]
        number = np.array([one.k for one in mine], dtype=float)
        started = np.array([one.started for one in mine])
        skipped += int(number[-1] - number[0]) + 1 - len(mine)
        failed += sum(one.failed > 0 for one in mine)
        off_period += np.abs(np.diff(started) - PERIOD * np.diff(number)).tolist()
        late += [one.started - one.due for one in mine]
        deviation = np.abs(started - (started[0] + PERIOD * (number - number[0])))
        slopes.append(slope(number - number[0], deviation))
    print(
        f"{len(healthy)} healthy devices, {len(late)} scans, {skipped} skipped, {failed} with a failed request"
    )
    print(f"  |time between two scans - period|   {percentiles(np.array(off_period))}")
    print(f"  begin of a scan after its grid      {percentiles(np.array(late))}")
    print(
        f"  slope of |n-th scan - (t0 + n period)|, us a scan: mean {np.mean(slopes):+.2f},"
        f" device by device from {min(slopes):+.2f} to {max(slopes):+.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hosts", type=int, default=4)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        slow = dict.fromkeys(SLOW, SLOW_AFTER)
        ports = [stack.enter_context(serving(DEAD, slow)) for _ in range(args.hosts)]
        config = configuration(ports, stack.enter_context(broker()))
        print(
            f"{DEVICES} devices on {args.hosts} hosts, {DEVICES * TAGS} tags at {PERIOD:g} s, {len(DEAD)} dead,"
            f" {len(SLOW)} answers after {SLOW_AFTER:g} s (timeout {TIMEOUT:g} s); {args.seconds:g} s;"
            f" load of the machine {os.getloadavg()[0]:.1f}"
        )
        show(asyncio.run(scans(config, folder, args.seconds)))


if __name__ == "__main__":
    main()

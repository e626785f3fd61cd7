"""How Edgetwin grows: ten times the tags, and again, until it no longer keeps its second; one line for each step.

    .venv/bin/python benchmarks/growth.py [--seconds 30] [--tags 10 100 1000 10000 100000] [--off]

100 uint16 tags a device at 1 s, each device a host of its own with its own connection, up to 1,000 of them simulated in
one process; the whole daemon with forecasts, health and the outbox, and a mosquitto. --off: with `predict: off`.
CPU is that of the daemon's whole process; periods are those that the devices saw. At the end it says what stopped it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

from figures import gaps, quantile  # noqa: E402
from peer import Command  # noqa: E402
from plc import Asked, Plc, host  # noqa: E402
from rig import Process  # noqa: E402

from tests.brokers import Mosquitto, free_port  # noqa: E402

A_DEVICE = 100
STEPS = (10, 100, 1_000, 10_000, 100_000)
PATIENCE = 300.0
SETTLED = 10.0
LATE = 1.010
"""A p99 of the period above this is the end."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one number of tags cost. CPU in seconds, memory in MiB, periods in seconds, `starting` until polled.

    `server`, `main`, `held`: shares of a core that the simulated devices took and the daemon's main thread (Modbus and
    forecasts) took, and the share of the time that this thread stood ready and had no core.
    """

    tags: int
    devices: int
    starting: float
    took: float
    cpu: float
    memory: float
    readings: int
    periods: tuple[float, ...]
    missed: int
    waiting: int
    server: float
    main: float
    held: float

    @property
    def late(self) -> float:
        return quantile(self.periods, 0.99) if self.periods else float("inf")

    def __str__(self) -> str:
        each = self.cpu / max(1, self.readings) * 1e6
        p50, most = (quantile(self.periods, one) if self.periods else float("inf") for one in (0.5, 1.0))
        return (
            f"| {self.tags:,} | {self.devices:,} | {self.starting:.1f} | {self.cpu / self.took * 100:.2f} | {each:.1f} "
            f"| {self.memory:.0f} | {p50:.3f} / {self.late:.3f} / {most:.3f} | {self.missed} | {self.waiting} |"
        )


HEAD = """| tags | devices | s to start | CPU, % of a core | CPU µs a reading | memory MiB | period p50 / p99 / max, s \
| scans missed | batches waiting |
|---|---|---|---|---|---|---|---|---|"""


def configuration(folder: Path, tags: int, port: int, broker: int, *, off: bool) -> Path:
    """So many tags on as many devices as they need, all of one profile: one file holds 400,000 values at most."""
    mapping = "".join(f"  r{one}: {{holding: {one}}}\n" for one in range(min(tags, A_DEVICE)))
    (folder / "device.yaml").write_text(f"tags:\n{mapping}", encoding="utf-8")
    lines = ["gateway: bench", f"state_dir: {folder}/state", f"page: {{listen: '127.0.0.1:{free_port()}'}}"]
    lines += [f"mqtt: {{url: 'mqtt://127.0.0.1:{broker}', outbox: {{min_free: 0MiB}}}}"]
    lines += [*(["predict: off"] if off else []), "devices:"]
    for k in range(-(-tags // A_DEVICE)):
        lines += [f"  d{k}: {{url: 'tcp://{host(k)}:{port}', profile: ./device.yaml}}"]
    path = folder / "config.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def step(folder: Path, tags: int, seconds: float, *, off: bool) -> Step:
    """Runs the daemon with so many tags. Raises TimeoutError when it does not poll all devices in time."""
    devices = -(-tags // A_DEVICE)
    with (
        Mosquitto(folder) as broker,
        Plc(free_port(), free_port(), hosts=devices) as plc,
    ):
        config = configuration(folder, tags, plc.port, broker.port, off=off)
        process = Process(Command((sys.executable, "-m", "agent", "run", str(config))), folder)
        begin = time.monotonic()
        process.start()
        try:
            _wait_for(plc, process, devices)
            starting = time.monotonic() - begin
            time.sleep(SETTLED)
            plc.note()
            since, (before, _) = time.monotonic(), process.usage()
            served, thread = _scheduled(plc.pid), _scheduled(process.pid)
            time.sleep(seconds)
            took, (after, memory) = time.monotonic() - since, process.usage()
            server = (_scheduled(plc.pid)[0] - served[0]) / took
            main, held = ((b - a) / took for a, b in zip(thread, _scheduled(process.pid)))
            log = plc.note()
            waiting = _waiting(config)
        finally:
            process.stop()
    periods = _periods(log)
    readings = sum(one.count for one in log if not one.exception)
    missed = round(devices * took) - len([one for one in log if one.address == 0])
    return Step(
        tags=tags,
        devices=devices,
        starting=starting,
        took=took,
        cpu=after - before,
        memory=memory,
        readings=readings,
        periods=periods,
        missed=max(0, missed),
        waiting=waiting,
        server=server,
        main=main,
        held=held,
    )


def _wait_for(plc: Plc, process: Process, devices: int) -> None:
    """Returns once each device was polled twice."""
    end = time.monotonic() + PATIENCE
    polled: dict[int, int] = defaultdict(int)
    while sum(count > 1 for count in polled.values()) < devices:
        if time.monotonic() > end or not process.alive:
            why = "it has ended" if not process.alive else f"after {PATIENCE:g} s"
            raise TimeoutError(f"only {len(polled)} of {devices} devices are polled: {why}")
        time.sleep(0.5)
        for one in plc.note():
            polled[one.connection] += 1


def _periods(log: list[Asked]) -> tuple[float, ...]:
    """The times between two scans, of all devices."""
    times: dict[int, list[float]] = defaultdict(list)
    for one in log:
        if one.address == 0:
            times[one.connection].append(one.t)
    return tuple(gap for mine in times.values() for gap in gaps(mine))


def _scheduled(pid: int) -> tuple[float, float]:
    """Seconds that the main thread of a process ran, and that it waited for a core."""
    ran, waited, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def _waiting(config: Path) -> int:
    """Batches in the outbox, as the daemon says itself; -1 when it does not answer."""
    argv = [sys.executable, "-m", "agent", "status", str(config), "--json"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
        return int(json.loads(done.stdout)["outbox"]["batches"])
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--tags", type=int, nargs="+", default=STEPS)
    parser.add_argument("--off", action="store_true", help="with `predict: off`")
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.seconds:g} s a step\n\n{HEAD}",
        flush=True,
    )
    for tags in args.tags:
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = step(Path(folder), tags, args.seconds, off=args.off)
            except TimeoutError as error:
                print(f"\n{tags:,} tags: {error}\n{(Path(folder) / 'log').read_text()[-500:]}")
                return
        print(done, flush=True)
        if done.late > LATE:
            core = done.cpu / done.took
            print(
                f"\nAt {tags:,} tags the period's p99 is {done.late:.3f} s. The daemon took {core:.2f} cores: its main "
                f"thread (Modbus, forecasts) {done.main:.2f}, the others {core - done.main:.2f}; for {done.held:.0%} "
                f"of the time the main thread had no core though it was ready. The simulated devices took "
                f"{done.server:.2f}; load of the machine {os.getloadavg()[0]:.1f}."
            )


if __name__ == "__main__":
    main()

"""What the cloud side costs: CPU, disk and memory, with the real Cloud and a real mosquitto.

python benchmarks/cloud.py cpu [--seconds 60]          # beside one message per tag, in turns
python benchmarks/cloud.py drain [--readings 10000000]
python benchmarks/cloud.py disk
python benchmarks/cloud.py outage [--hours 24]         # simulated: no waiting, all the encoding
python benchmarks/cloud.py                             # all of them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import paho.mqtt.client as paho
from gateway import Gateway, broker, configuration, own_io, resident
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.cloud import payload
from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.config.types import OutboxConfig
from agent.runtime.clock import FakeClock
from agent.twin.records import Row

NOW = 1_800_000_000_000


# -- CPU ------------------------------------------------------------------------------------------------------------


def cpu(folder: Path, seconds: float) -> None:
    """1,000 readings/s at their pace: 20 devices of 50 tags. Columns and one message per tag in turns."""
    print(f"CPU from the row to the broker's acknowledgement, 1,000 readings/s for {seconds:g} s each, QoS 1")
    with broker(folder) as (url, _):
        idle = columns(folder / "idle", url, seconds, "batch: 1s", rows=False)
        costs = {
            "columns, batch: 1s (the default)": columns(folder / "a", url, seconds, "batch: 1s"),
            "columns, batch: 10s, compress: all": columns(
                folder / "b", url, seconds, "batch: 10s, compress: all"
            ),
            "one message per tag": per_tag(url, seconds),
        }
    peer = costs["one message per tag"]
    print(f"  the cloud side without readings: {idle * 1000:.2f} us of CPU a second")
    for name, cost in costs.items():
        print(f"  {name:36} {cost:6.2f} us a reading   1/{peer / cost:.1f}")


def columns(folder: Path, url: str, seconds: float, mqtt: str, *, rows: bool = True) -> float:
    """Microseconds of CPU a reading, of the whole process less that of making values."""
    gateway = Gateway(configuration(url, devices=20, tags=50, mqtt=mqtt), folder)
    gateway.cloud.start()
    gateway.wait()
    scans = [gateway.rows() for _ in range(10)]
    cost = Cpu()
    readings = 0
    for k in range(round(seconds)):
        cost.sleep_until(k + 1)
        now = gateway.clock.mono()
        for row in scans[k % 10] if rows else ():
            gateway.cloud.put(Row(row.device, row.tags, now, row.values, None))
            readings += len(row.tags)
    gateway.cloud.stop(30.0)
    return cost.spent() / (readings or 1000 * seconds) * 1e6


def per_tag(url: str, seconds: float) -> float:
    """The same rows, each reading on a topic of its own: {"v", "q", "t"}, by paho, at most 20 under way."""
    gateway = Gateway(configuration("mqtt://127.0.0.1:1", devices=20, tags=50), Path(tempfile.mkdtemp()))
    scans = [gateway.rows() for _ in range(10)]
    gateway.cloud.stop(0)
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    acked, sent = threading.Semaphore(0), 0
    client.on_publish = lambda *_: acked.release()
    client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
    client.loop_start()
    cost = Cpu()
    for k in range(round(seconds)):
        cost.sleep_until(k + 1)
        ms = round(time.time() * 1000)
        for row in scans[k % 10]:
            for tag, value in zip(row.tags, row.values):
                body = json.dumps({"v": value, "q": "good", "t": ms}, separators=(",", ":")).encode()
                client.publish(f"edgetwin/v1/bench/tag/{row.device}/{tag}", body, qos=1)
                sent += 1
    for _ in range(sent):
        acked.acquire()
    client.disconnect()
    client.loop_stop()
    return cost.spent() / sent * 1e6


class Cpu:
    """Process time since it was made, all threads."""

    def __init__(self) -> None:
        self._start, self._cpu = time.monotonic(), time.process_time()

    def sleep_until(self, seconds: float) -> None:
        time.sleep(max(0.0, self._start + seconds - time.monotonic()))

    def spent(self) -> float:
        return time.process_time() - self._cpu


# -- backlog --------------------------------------------------------------------------------------------------------


def drain(folder: Path, readings: int) -> None:
    """How fast a backlog goes out with `rate: 0`: 1,000 tags of one device, batches of 20 s, nothing live beside it."""
    with broker(folder) as (url, pid), listening(url):
        mqtt = "outbox: {rate: 0, max_size: 4GiB, min_free: 0MiB}"
        config = configuration(url, devices=1, tags=1000, mqtt=mqtt)
        held, size = fill(folder / "drain", config.mqtt.outbox, readings)
        gateway = Gateway(config, folder / "drain")
        cost, start, broker_cpu = Cpu(), time.monotonic(), cpu_of(pid)
        gateway.cloud.start()
        gateway.wait()
        while gateway.cloud.status()["outbox"]["batches"]:
            time.sleep(0.05)
        took = time.monotonic() - start
        used, theirs = cost.spent(), cpu_of(pid) - broker_cpu
        gateway.cloud.stop(10.0)
    print(
        f"drain: {held:,} readings, {size / 1e6:.1f} MB of batches, load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  {held / took:,.0f} readings/s ({took:.1f} s); CPU {used:.1f} s, {used / held * 1e6:.2f} us a reading;"
        f" broker {theirs:.1f} s"
    )


@contextlib.contextmanager
def listening(url: str) -> Iterator[None]:
    """A subscriber in a process of its own, so that the broker has to hand on what it gets."""
    port = url.rsplit(":", 1)[1]
    args = ["mosquitto_sub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "edgetwin/#"]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL) if shutil.which(args[0]) else None
    try:
        time.sleep(1.0)
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def fill(folder: Path, config: OutboxConfig, readings: int) -> tuple[int, int]:
    """An outbox with so many readings of one device of 1,000 tags, 20 s a batch: (readings, bytes of the batches)."""
    gateway = Gateway(configuration("mqtt://127.0.0.1:1", devices=1, tags=1000), folder)
    gateway.cloud.stop(0)
    box = Outbox(folder, config, ("d1",), wall_ms=lambda: round(time.time() * 1000))
    begin = round(time.time() * 1000) - readings
    stamp = Stamp("0badcafe", lambda t: begin + round(1000 * t))
    [(name, tags)] = gateway.tags.items()
    mix, held = gateway._mix[name], 0
    while held < readings:
        rows = [Row(name, tags, held / 1000 + k, mix.step(), None) for k in range(20)]
        seq = box.next_seq(name)
        body = payload.data_body(stamp, rows, t=held / 1000 + 20, stream=box.stream, seq=seq, meta="00000000")
        assert box.spill([Batch(name, seq, begin + held, 20_000, payload.encode(body), "0badcafe")]), (
            box.trouble
        )
        held += 20_000
    size = int(box.stats()["bytes"] or 0)
    box.close()
    return held, size


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- disk -----------------------------------------------------------------------------------------------------------


def disk(folder: Path) -> None:
    """Bytes a reading of the mix, 1,000 readings/s in batches of 20 s, over a simulated hour."""
    readings = 3_600_000
    for name, devices, tags in (("1 device of 1,000 tags", 1, 1000), ("20 devices of 50 tags", 20, 50)):
        place = folder / f"disk{devices}"
        before = own_io("wchar"), own_io("write_bytes")
        simulate(place, readings / 1000, devices=devices, tags=tags, stop=True)
        after = own_io("wchar"), own_io("write_bytes")
        rest = sum(file.stat().st_size for file in place.iterdir()) / readings
        handed, written = ((b - a) / readings for a, b in zip(before, after))
        print(
            f"disk, an hour without a broker, {name}: {rest:.2f} B a reading at rest, {handed:.2f} handed to write,"
            f" {written:.2f} reached the disk"
        )


# -- memory ---------------------------------------------------------------------------------------------------------


def outage(folder: Path, hours: float) -> None:
    """1,000 readings/s of 20 devices without a broker: memory each hour."""
    sizes = simulate(folder / "outage", hours * 3600, devices=20, tags=50, stop=False)
    size = sum(file.stat().st_size for file in (folder / "outage").iterdir())
    settled = sizes[min(2, len(sizes) - 1) :]
    print(f"outage of {hours:g} h: MB in memory by the hour: {' '.join(f'{size:.0f}' for size in sizes)}")
    print(
        f"  from the second hour on between {min(settled):.1f} and {max(settled):.1f} MB;"
        f" {hours * 3.6:.1f} million readings in {size / 1e6:.0f} MB on disk"
    )


def simulate(folder: Path, seconds: float, *, devices: int, tags: int, stop: bool) -> Sequence[float]:
    """An outage in simulated time, every turn of the cloud thread made here: MB in memory each hour."""
    clock = FakeClock(wall_offset=NOW / 1000)
    mqtt = "outbox: {max_size: 4GiB, min_free: 0MiB}"
    config = configuration("mqtt://127.0.0.1:1", devices=devices, tags=tags, mqtt=mqtt)
    gateway = Gateway(config, folder, clock=clock)
    sizes = [resident()]
    for k in range(round(seconds)):
        for row in gateway.rows():
            gateway.cloud.put(row)
        clock.advance(1.0)
        gateway.cloud._turn()
        if (k + 1) % 3600 == 0:
            sizes.append(resident())
    if stop:
        gateway.cloud._put_away(clock.mono())
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("cpu", "drain", "disk", "outage"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--readings", type=int, default=10_000_000)
    parser.add_argument("--hours", type=float, default=24.0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what in (None, "cpu"):
            cpu(folder, args.seconds)
        if args.what in (None, "drain"):
            drain(folder, args.readings)
        if args.what in (None, "disk"):
            disk(folder)
        if args.what in (None, "outage"):
            outage(folder, args.hours)


if __name__ == "__main__":
    main()

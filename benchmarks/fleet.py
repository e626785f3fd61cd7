"""Many gateways at one mosquitto, with three shared subscribers: is every batch there, once, and what does it cost?

    python benchmarks/fleet.py [--gateways 500] [--seconds 60] [--tags 100]

Each gateway is a real Cloud (its payloads, numbers, outbox and uplink) with a connection of its own; one thread turns
them all, in place of a thread each. Subscribers are processes of a shared group, as a central system would have them;
what the three have together is held against the numbers that the gateways gave out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cloud import Cpu, cpu_of
from gateway import Gateway, broker, configuration

from agent.cloud.uplink import Note
from agent.cloud.watch import Subscriber
from agent.cloud.worker import _Stop

SUBSCRIBERS = 3
NOTHING = Note(-1, "nothing")
"""Makes a turn go through without waiting for its queue."""


class Member(Gateway):
    """One gateway of the fleet, turned from outside."""

    ended = False

    def turn(self) -> None:
        if not self.ended:
            self.cloud._queue.put(NOTHING)
            self.ended = self.cloud._turn()

    @property
    def online(self) -> bool:
        return self.cloud._uplink.online

    def numbers(self) -> dict[tuple[str, str, str], int]:
        """(gateway, device, stream) -> the newest number given out."""
        name = self.config.gateway or ""
        box = self.cloud._outbox
        return {(name, device, self.cloud.stream): box.last_seq(device) for device in self.config.devices}


def subscribe(url: str, out: str) -> None:
    """A subscriber's process: until its standard input ends and a second brings nothing more; then writes its books."""
    subscriber = Subscriber(url, share="books")
    keys: Counter[str] = Counter()
    messages = readings = 0
    last = time.monotonic()
    print("ready", flush=True)
    ending = False
    while not ending or time.monotonic() - last < 2.0:
        for message in subscriber.messages(0.1):
            messages += 1
            last = time.monotonic()
            body = message.body
            if message.kind in ("data", "backfill") and body is not None:
                keys[f"{message.gateway} {message.device} {body['stream']} {body['seq']}"] += 1
                readings += sum(len(column) for group in body["groups"] for column in group["c"].values())
        ending = ending or bool(select.select([0], [], [], 0)[0])  # its end alone ever comes
    subscriber.close()
    Path(out).write_text(json.dumps([keys, messages, readings, time.process_time()]))


def run(folder: Path, count: int, tags: int, seconds: float) -> None:
    """Builds the fleet, runs it, and prints what came of it."""
    with broker(folder, "max_inflight_messages 100") as (url, pid):
        outs = [folder / f"books{i}" for i in range(SUBSCRIBERS)]
        ears = [
            subprocess.Popen(
                [sys.executable, __file__, "--subscribe", url, str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for out in outs
        ]
        for ear in ears:
            assert ear.stdout is not None and ear.stdout.readline() == b"ready\n"
        time.sleep(1.0)  # for the subscriptions
        fleet = [
            Member(configuration(url, devices=1, tags=tags, name=f"gateway{i}"), folder / f"g{i}")
            for i in range(count)
        ]
        start = time.monotonic()
        while not all(one.online for one in fleet):
            for one in fleet:
                one.turn()
        print(f"{count} gateways online after {time.monotonic() - start:.1f} s")
        cost, theirs, started = Cpu(), cpu_of(pid), time.monotonic()
        drive(fleet, seconds)
        took, used, theirs = time.monotonic() - started, cost.spent(), cpu_of(pid) - theirs
        end(fleet)
        for ear in ears:
            ear.communicate()
    show(fleet, outs, took, used, theirs)


def drive(fleet: Sequence[Member], seconds: float) -> None:
    """A scan each second, spread over it; every gateway turned at least five times a second."""
    end = time.monotonic() + seconds
    due = [time.monotonic() + i / len(fleet) for i in range(len(fleet))]
    while (now := time.monotonic()) < end:
        for i, one in enumerate(fleet):
            if now >= due[i]:
                due[i] += 1.0
                for row in one.rows():
                    one.cloud.put(row)
                one.cloud.put(one.snapshot())
            one.turn()
        time.sleep(max(0.0, now + 0.2 - time.monotonic()))


def end(fleet: Sequence[Member]) -> None:
    """An orderly end of each."""
    for one in fleet:
        one.cloud._queue.put(_Stop(one.clock.mono() + 60.0))
    while not all(one.ended for one in fleet):
        for one in fleet:
            one.turn()


def show(fleet: Sequence[Member], outs: Sequence[Path], took: float, used: float, broker_cpu: float) -> None:
    have: Counter[str] = Counter()
    messages = readings = 0
    listening = 0.0
    for out in outs:
        keys, heard, values, cpu = json.loads(out.read_text())
        have.update(keys)
        messages, readings, listening = messages + heard, readings + values, listening + cpu
    given = {
        f"{gateway} {device} {stream} {seq}"
        for one in fleet
        for (gateway, device, stream), last in one.numbers().items()
        for seq in range(1, last + 1)
    }
    lost, doubled = given - have.keys(), [key for key, times in have.items() if times > 1]
    print(
        f"{messages:,} messages in {took:.0f} s, {messages / took:,.0f}/s; {readings / took:,.0f} readings/s;"
        f" load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  CPU a second: gateways {used / took:.2f} s ({used / took / len(fleet) * 1e3:.2f} ms each),"
        f" broker {broker_cpu / took:.2f} s, subscribers {listening / took:.2f} s"
    )
    print(f"  {len(given):,} batches given out, {len(lost)} lost, {len(doubled)} doubled")
    if lost or doubled or have.keys() - given:
        raise SystemExit(
            f"lost {sorted(lost)[:5]}, doubled {doubled[:5]}, unknown {[*(have.keys() - given)][:5]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gateways", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tags", type=int, default=100)
    parser.add_argument("--subscribe", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if args.subscribe:
        subscribe(*args.subscribe)
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.gateways, args.tags, args.seconds)


if __name__ == "__main__":
    main()

"""Many gateways at one mosquitto, with three shared subscribers: is every batch there, once, and what does it cost?

    python benchmarks/fleet.py [--gateways 500] [--seconds 60] [--tags 100]

Each gateway is a real Cloud (its payloads, numbers, outbox and uplink) with a connection of its own; one thread turns
125 of them, in place of a thread each. Subscribers are processes of a shared group, as a central system has them;
what the three have together is held against the numbers that the gateways gave out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloud import Cpu, cpu_of
from gateway import Gateway, broker, configuration

from agent.cloud.uplink import Note
from agent.cloud.watch import Subscriber
from agent.cloud.worker import _Stop

SUBSCRIBERS = 3
IN_ONE_PROCESS = 125
"""Each takes 6 file descriptors, and paho waits with select(), which knows 1024."""
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
    """Starts everything, and prints what came of it."""
    with broker(folder, "max_inflight_messages 100") as (url, pid):
        books = [folder / f"books{i}" for i in range(SUBSCRIBERS)]
        ears = [start("--subscribe", url, out) for out in books]
        time.sleep(1.0)  # for the subscriptions
        begun = time.monotonic()
        firsts = range(0, count, IN_ONE_PROCESS)
        given = [folder / f"given{first}" for first in firsts]
        members = [
            start("--drive", url, folder, first, min(IN_ONE_PROCESS, count - first), tags, seconds, out)
            for first, out in zip(firsts, given)
        ]
        print(f"{count} gateways in {len(members)} processes online after {time.monotonic() - begun:.1f} s")
        broker_cpu = cpu_of(pid)
        for one in members:
            go(one)
        for one in members:
            one.wait()
        broker_cpu = cpu_of(pid) - broker_cpu
        for ear in ears:
            ear.communicate()
    show([json.loads(out.read_text()) for out in given], books, seconds, broker_cpu)


def start(*args: object) -> subprocess.Popen[bytes]:
    """This program in another process; returns once it says that it is ready. Raises SystemExit when it ends before."""
    command = [sys.executable, __file__, *map(str, args)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise SystemExit(f"{args[0]} ended before it was ready")
    return process


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


def members(url: str, folder: str, first: str, count: str, tags: str, seconds: str, out: str) -> None:
    """A part of the fleet: online, then at a word on standard input a run; writes numbers given out and CPU."""
    fleet = [
        Member(configuration(url, devices=1, tags=int(tags), name=f"gateway{i}"), Path(folder) / f"g{i}")
        for i in range(int(first), int(first) + int(count))
    ]
    while not all(one.online for one in fleet):
        for one in fleet:
            one.turn()
        time.sleep(0.01)
    print("ready", flush=True)
    while not select.select([0], [], [], 0)[0]:  # their keepalive goes on
        for one in fleet:
            one.turn()
        time.sleep(0.1)
    cost = Cpu()
    drive(fleet, float(seconds))
    used = cost.spent()
    end(fleet)
    given = [(*place, last) for one in fleet for place, last in one.numbers().items()]
    Path(out).write_text(json.dumps({"given": given, "cpu": used}))


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


def show(parts: Sequence[dict[str, Any]], books: Sequence[Path], seconds: float, broker_cpu: float) -> None:
    have: Counter[str] = Counter()
    messages = readings = 0
    listening = 0.0
    for out in books:
        keys, heard, values, cpu = json.loads(out.read_text())
        have.update(keys)
        messages, readings, listening = messages + heard, readings + values, listening + cpu
    places = [place for part in parts for place in part["given"]]
    given = {
        f"{gateway} {device} {stream} {n}"
        for gateway, device, stream, last in places
        for n in range(1, last + 1)
    }
    used = sum(part["cpu"] for part in parts)
    lost, doubled = given - have.keys(), [key for key, times in have.items() if times > 1]
    print(
        f"{messages:,} messages in {seconds:g} s, {messages / seconds:,.0f}/s; {readings / seconds:,.0f} readings/s;"
        f" load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  CPU a second: gateways {used / seconds:.2f} s ({used / seconds / len(places) * 1e3:.2f} ms each),"
        f" broker {broker_cpu / seconds:.2f} s, subscribers {listening / seconds:.2f} s"
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
    parser.add_argument("--drive", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if args.subscribe:
        subscribe(*args.subscribe)
        return
    if args.drive:
        members(*args.drive)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.gateways, args.tags, args.seconds)


if __name__ == "__main__":
    main()

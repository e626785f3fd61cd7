"""Modbus beside its peers, in one run: the cost of a request, of decoding a reply, and the bus time of the plans.

Peers: pymodbus's own async client, libmodbus's C client (where gcc and pkg-config find it), a bare blocking socket
that checks nothing (the floor for Python), pymodbus's convert_from_registers, and a greedy planner that bridges holes
up to 50 registers (Telegraf's max_insert).

    python benchmarks/modbus.py [--requests N] [--rounds N] [--apart]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Literal

import bus_time
import numpy as np
from plain_server import serving
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.client.mixin import ModbusClientMixin
from pymodbus.framer import FramerRTU, FramerType

from agent import kernelcache
from agent.config.types import Device, Tag, Url
from agent.modbus.codec import Decoder
from agent.modbus.crc import crc16
from agent.modbus.kernels import decode as kernel
from agent.modbus.line import Line
from agent.modbus.link import Link
from agent.modbus.plan import plan_device
from agent.runtime.clock import SystemClock

ADDRESS, COUNT = 100, 125
BODY = struct.pack(">HH", ADDRESS, COUNT)
WARM = 200
FLOATS = 62

Figures = tuple[float, float]
"""(requests a second, CPU microseconds a request)"""

LIBMODBUS = """
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    uint16_t words[125];
    int count = atoi(argv[2]);
    modbus_t *client = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    if (argc != 3 || modbus_connect(client))
        return 1;
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < count; i++)
        if (modbus_read_registers(client, 100, 125, words) != 125)
            return 1;
    printf("%g %g\\n", count / (seconds(CLOCK_MONOTONIC) - wall),
           (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / count * 1e6);
    return 0;
}
"""


def url_of(port: int, scheme: Literal["tcp", "rtu+tcp"] = "tcp") -> Url:
    return Url(f"{scheme}://127.0.0.1:{port}", scheme, "127.0.0.1", port)


# -- the cost of a request --------------------------------------------------------------------------------------


async def timed(request: Callable[[], Awaitable[object]], count: int) -> Figures:
    for _ in range(WARM):
        await request()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        await request()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return count / wall, cpu / count * 1e6


async def link(port: int, count: int, scheme: Literal["tcp", "rtu+tcp"] = "tcp") -> Figures:
    """agent.modbus.link.Link: each reply checked, its bytes handed on."""
    one = Link(url_of(port, scheme), clock=SystemClock(), on_lost=print, on_late=print)
    await one.connect(2.0)
    figures = await timed(lambda: one.transact(1, 3, BODY, timeout=1.0, within=1.0), count)
    one.close()
    return figures


async def stock(port: int, count: int, framer: FramerType = FramerType.SOCKET) -> Figures:
    """pymodbus's own client, as it is shipped."""
    one = AsyncModbusTcpClient("127.0.0.1", port=port, framer=framer, timeout=1.0)
    await one.connect()
    figures = await timed(lambda: one.read_holding_registers(ADDRESS, count=COUNT, device_id=1), count)
    one.close()
    return figures


def bare(port: int, count: int) -> Figures:
    """Two system calls a request and no look at what comes."""
    request, space = struct.pack(">HHHBB", 1, 0, 6, 1, 3) + BODY, bytearray(8192)
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        async def transact() -> None:
            one.send(request)
            one.recv_into(space)

        return asyncio.run(timed(transact, count))


async def line(port: int, count: int) -> Figures:
    """agent.modbus.line.Line with one device of 50 such requests, due faster than they can be done: each pass follows
    the one before, with all of the scheduler's books."""
    tags = [Tag(f"t{at}", "holding", at, type="float32", every=0.001) for at in range(0, 62 * 2 * 50, 2)]
    device = Device("d", url_of(port), tags={tag.name: tag for tag in tags})
    plan = plan_device(device)
    done = 0
    enough = asyncio.Event()
    started: list[tuple[float, float, int]] = []

    def on_reply(request: object, reply: object) -> None:
        nonlocal done
        done += 1
        if done == WARM:
            started.append((time.perf_counter(), time.process_time(), done))
        if done >= WARM + count:
            enough.set()

    one = Line(
        device.url,
        [device],
        {"d": plan},
        clock=SystemClock(),
        on_reply=on_reply,
        on_scan=lambda done: None,
        on_event=lambda event: None,
        rng=random.Random(1),
    )
    task = asyncio.create_task(one.run())
    await enough.wait()
    wall, cpu, before = started[0]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return (done - before) / wall, cpu / (done - before) * 1e6


def libmodbus(folder: Path) -> Path | None:
    """The C client, compiled; None where libmodbus or a compiler is missing."""
    if shutil.which("gcc") is None or shutil.which("pkg-config") is None:
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libmodbus"], capture_output=True, text=True)
    if flags.returncode:
        return None
    source, client = folder / "client.c", folder / "client"
    source.write_text(LIBMODBUS)
    subprocess.run(["gcc", "-O2", str(source), "-o", str(client), *flags.stdout.split()], check=True)
    return client


def requests(count: int, rounds: int, *, apart: bool) -> None:
    """All clients in turn, `rounds` times over; medians.

    Clients and server share one core, or have one each with `apart`. Then most of the time goes into waking up the
    other core, which in a virtual machine costs every client alike 15 to 25 us.
    """
    cores = sorted(os.sched_getaffinity(0))
    if apart and len(cores) < 2:
        raise SystemExit("--apart needs two cores")
    os.sched_setaffinity(0, {cores[-1] if apart else cores[0]})  # the servers'
    with tempfile.TemporaryDirectory() as folder, serving() as port, serving(rtu=True) as rtu:
        os.sched_setaffinity(0, {cores[0]})
        client = libmodbus(Path(folder))
        tcp: dict[str, Callable[[], Figures]] = {
            "pymodbus async": lambda: asyncio.run(stock(port, count)),
            "Link": lambda: asyncio.run(link(port, count)),
            "Line (scheduler and all)": lambda: asyncio.run(line(port, count)),
            "bare blocking socket": lambda: bare(port, count),
        }
        if client is not None:
            tcp["libmodbus (C)"] = lambda: in_c(client, port, count)
        where = "client and server on a core of their own" if apart else "client and server on one core"
        print(
            f"One request for {COUNT} registers, one connection, {where}, median of {rounds} turns of {count}:"
        )
        compare(tcp, rounds)
        if client is None:
            print("  libmodbus (C): not measured, gcc or libmodbus's pkg-config file is missing")
        print("In RTU frames over TCP:")
        compare(
            {
                "pymodbus async": lambda: asyncio.run(stock(rtu, count, FramerType.RTU)),
                "Link": lambda: asyncio.run(link(rtu, count, "rtu+tcp")),
            },
            rounds,
        )


def in_c(client: Path, port: int, count: int) -> Figures:
    """libmodbus's figures."""
    command = [str(client), str(port), str(count)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[0]), float(printed[1])


def compare(clients: Mapping[str, Callable[[], Figures]], rounds: int) -> None:
    """Prints the medians of each, and of its CPU beside the first one's."""
    found: dict[str, list[Figures]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, run in clients.items():
            found[name].append(run())
    print(f"  {'client':26} {'requests/s':>10} {'CPU us':>8} {'x pymodbus':>11}")
    first = [cpu for _, cpu in next(iter(found.values()))]
    for name, figures in found.items():
        rate, cpu = (statistics.median(column) for column in zip(*figures))
        # turn by turn: what else the machine does meanwhile hits neighbours alike
        ratio = statistics.median(cpu / base for (_, cpu), base in zip(figures, first))
        print(f"  {name:26} {rate:10.0f} {cpu:8.1f} {ratio:11.2f}")


# -- decoding ---------------------------------------------------------------------------------------------------


def best_of(call: Callable[[], object], *, number: int, repeats: int = 20) -> float:
    """Microseconds of one call: the median of `repeats` means over `number` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(number):
            call()
        times.append((time.perf_counter() - start) / number * 1e6)
    return statistics.median(times)


def decoding() -> None:
    """62 float32 tags out of one reply."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=FLOATS).astype(">f4")
    payload = truth.tobytes()
    words = list(struct.unpack(f">{2 * FLOATS}H", payload))
    tags = {f"t{i}": Tag(f"t{i}", "holding", 2 * i, type="float32") for i in range(FLOATS)}
    device = Device("d", url_of(502), tags=tags)
    [request] = plan_device(device)
    decoder = Decoder(request, device)
    layout, numbers, missing, powers = (
        decoder._layout,
        decoder._numbers,
        decoder._missing,
        decoder._powers,
    )
    scratch = decoder._bits32, decoder._as32, decoder._bits64, decoder._as64
    data = np.frombuffer(payload, dtype=np.uint8).copy()
    value, raw = np.empty(FLOATS), np.empty(FLOATS, dtype=np.uint64)
    quality = np.empty(FLOATS, dtype=np.uint8)

    def ours() -> None:
        kernel(data, layout, numbers, missing, powers, value, raw, quality, *scratch)

    def theirs_one_by_one() -> list[object]:
        convert, kind = ModbusClientMixin.convert_from_registers, ModbusClientMixin.DATATYPE.FLOAT32
        return [convert(words[at : at + 2], kind) for at in range(0, 2 * FLOATS, 2)]

    def theirs_at_once() -> object:
        return ModbusClientMixin.convert_from_registers(words, ModbusClientMixin.DATATYPE.FLOAT32)

    ours()
    # a float32 is published as the shortest decimal that stands for it: equal as float32
    assert np.array_equal(value.astype(np.float32), truth)
    assert np.array_equal(np.array(decoder.decode(payload).plain, dtype=np.float32), truth)
    assert theirs_one_by_one() == theirs_at_once() == truth.tolist()
    number = 2000
    one_by_one = best_of(theirs_one_by_one, number=number // 10)
    print(f"\n{FLOATS} float32 tags of one reply, microseconds (kernels: {kernelcache.backend()}):")
    for name, micros in (
        ("the kernel call", best_of(ours, number=number)),
        (
            "Decoder.decode, with quality and plain values",
            best_of(lambda: decoder.decode(payload), number=number),
        ),
        ("pymodbus, convert_from_registers for each tag", one_by_one),
        ("pymodbus, one call for a list of one type", best_of(theirs_at_once, number=number)),
    ):
        print(f"  {name:46} {micros:8.2f} {one_by_one / micros:7.1f} x")


def checksum() -> None:
    """The CRC of the longest RTU frame."""
    frame = bytes(range(256))
    both = [
        best_of(call, number=500) for call in (lambda: crc16(frame), lambda: FramerRTU.compute_CRC(frame))
    ]
    print(f"\nCRC of an RTU frame of 256 bytes: {both[0]:.1f} us, pymodbus's {both[1]:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--apart", action="store_true", help="client and server on a core of their own")
    args = parser.parse_args()
    requests(args.requests, args.rounds, apart=args.apart)
    decoding()
    checksum()
    bus_time.show()


if __name__ == "__main__":
    main()

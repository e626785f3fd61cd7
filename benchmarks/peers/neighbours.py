"""What a dead host, a silent unit and a refused address cost the others."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path

from figures import period, polls
from peer import Device, Job, Peer
from plc import Plc
from rig import Rig, rig

from tests.brokers import free_port

TAGS = 50
HOLE = (60, 69)
RANGE = range(120)
TIMEOUT = 2.0
"""Of every tool, in seconds: longer than the period, or waiting it out would look like keeping the period."""
FOUND = 3.0
"""Seconds that a tool has to find out that nobody answers."""
LEARNT = 12.0
"""Seconds a tool has to find out what a device refuses."""


def dead_host(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """Two hosts; the second is frozen: its connections stay open, nothing answers."""
    first = "beside a dead host: "
    if not peer.hosts:
        return {first + "the healthy one's period, s": "n/a: one host a process"}
    with rig(peer, folder) as bench, Plc(free_port(), free_port()) as other:
        devices = (Device("d1", bench.plc.port, 1, range(TAGS)), Device("d2", other.port, 1, range(TAGS)))
        bench.run(Job(devices, bench.port))
        bench.settle()
        bench.wait(4.0)
        other.freeze()
        rows = _observed(bench, first, seconds)
        other.thaw()
        return rows


def silent_unit(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """Three units on one connection; the second stops answering."""
    first = "beside a silent unit: "
    if not peer.units:
        return {first + "the healthy one's period, s": "n/a: one unit a process"}
    with rig(peer, folder) as bench:
        units = tuple(Device(f"d{unit}", bench.plc.port, unit, range(TAGS)) for unit in (1, 2, 3))
        bench.run(Job(units, bench.port, timeout=TIMEOUT))
        bench.settle()
        bench.wait(4.0)
        bench.plc.silent(2)
        return _observed(bench, first, seconds)


def _observed(bench: Rig, first: str, seconds: float) -> dict[str, str]:
    """The first device's period at the PLC, as the fault begins and then, and at the subscriber."""
    bench.plc.note()
    bench.wait(FOUND)
    begin = time.monotonic()
    bench.wait(seconds)
    bench.plc.note()
    bench.subscriber.take()
    times = polls(bench.plc.log)
    at_first = [b - a for a, b in itertools.pairwise(times) if begin - FOUND < b < begin]
    return {
        first + "the healthy one's period, s": period([t for t in times if t >= begin]),
        first + f"its longest in the first {FOUND:g} s, s": f"{max(at_first):.3f}"
        if at_first
        else "none in them",
        first + "it is published every, s": period([t for t, _, _ in bench.counted(since=begin)]),
    }


def hole(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """120 registers of which ten in the middle are refused as illegal addresses. All 120 are configured."""
    with rig(peer, folder) as bench:
        bench.plc.holes(HOLE)
        bench.run(Job((Device("d1", bench.plc.port, 1, RANGE),), bench.port))
        bench.wait(LEARNT)
        bench.plc.note()
        bench.subscriber.take()
        begin = len(bench.subscriber.messages)
        bench.wait(seconds)
        log = bench.plc.note()
        bench.wait(2.0)
        came = {
            one.register
            for message in bench.subscriber.messages[begin:]
            for one in message.values
            if one.value is not None
        }
        legal = {one for one in RANGE if not HOLE[0] <= one <= HOLE[1]}
        lies = came - legal
        first = Counter(one.address for one in log)
        scans = max(first.values(), default=0)
        return {
            "a hole in the range: legal tags published, of 110": f"{len(came & legal)}"
            + (f"; and {len(lies)} of the hole" if lies else ""),
            "a hole in the range: requests a scan, once learnt": f"{len(log) / scans:.1f}"
            if scans
            else "none",
            "a hole in the range: refusals in 10 s": f"{sum(one.exception > 0 for one in log) / seconds * 10:.0f}",
        }

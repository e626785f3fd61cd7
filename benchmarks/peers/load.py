"""What 50 and 1,000 tags at 1 s cost, and does the tool keep the second?"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from figures import gaps, lag, period, polls
from peer import Device, Job, Peer
from rig import rig

SETTLED = 6.0
"""Seconds after the first value that do not count."""


def load(peer: Peer, folder: Path, seconds: float, tags: int) -> dict[str, str]:
    """One device with so many uint16 registers in a row."""
    with rig(peer, folder) as bench:
        process = bench.run(Job((Device("d1", bench.plc.port, 1, range(tags)),), bench.port))
        starting = bench.settle()
        bench.wait(SETTLED)
        bench.plc.note()
        begin, (before, _) = time.monotonic(), process.usage()
        bench.wait(seconds)
        took, (after, memory) = time.monotonic() - begin, process.usage()
        log = bench.plc.note()
        bench.wait(1.5)
        times = polls(log)
        whole = [one for one in log if times and times[0] <= one.t < times[-1]]
        came = [one for one in bench.subscriber.messages if begin <= one.t < begin + took]
        kilobytes = sum(len(one.body) for one in came) / 1000
        served = {one.served for one in log if one.served is not None}
        here = {number for _, _, number in bench.counted(since=begin)}
        first = f"{tags} tags: "
        return {
            first + "first value after its start, s": f"{starting:.2f}",
            first + "CPU, % of one core": f"{(after - before) / took * 100:.2f}",
            first + "memory, MiB": f"{memory:.1f}",
            first + "requests a scan": f"{len(whole) / max(1, len(times) - 1):.1f}",
            first + "period p50 / p99 / max, s": period(times),
            first + "lag in 60 s, s": f"{lag(times):+.3f}",
            first + "MQTT messages/s; kB/s": f"{len(came) / took:.1f}; {kilobytes / took:.2f}",
            first + "readings of one tag made and not published": f"{len(served - here)} of {len(served)}",
            first + "published again after, s (median)": _published(bench.counted(since=begin)),
        }


def small(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    return load(peer, folder, seconds, 50)


def large(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    return load(peer, folder, seconds, 1000)


def _published(arrived: list[tuple[float, str, int]]) -> str:
    steps = gaps([t for t, _, _ in arrived])
    return f"{median(steps):.3f}" if steps else "nothing came"

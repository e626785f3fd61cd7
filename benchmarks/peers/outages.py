"""The broker away, the tool killed meanwhile, the PLC frozen or gone: what is lost, doubled, late or untrue?"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from figures import audit
from peer import Device, Job, Peer
from rig import Rig, rig

TAGS = 10
BOOKS = ", lost / doubled / out of order"
OUTAGE = 12.0
BEFORE, AFTER = 5.0, 21.0
KILLED_AFTER = 8.0
FROZEN, GONE = 8.0, 10.0
LATEST = 30.0
PATIENCE = 60.0
DELIVERED = 8.0
"""Seconds that are given to what was read last to arrive."""
FRESH = 1.5
"""Seconds: a value that arrives so long after the PLC has stopped can be one that was read before."""


def _started(bench: Rig, *, durable: bool = False) -> None:
    """The tool at work with one device, for a while."""
    bench.run(Job((Device("d1", bench.plc.port, 1, range(TAGS)),), bench.port, durable=durable))
    bench.settle()
    bench.wait(BEFORE)


def _served(bench: Rig) -> list[int]:
    """The readings that the PLC served since the last time."""
    return [one.served for one in bench.plc.note() if one.served is not None]


def _first_after(bench: Rig, since: float, newer_than: int) -> str:
    """Seconds from then to the first value above this one."""
    times = [t for t, _, number in bench.counted(since=since) if number > newer_than]
    return f"{times[0] - since:.2f}" if times else f"none in {LATEST:g} s"


def broker_down(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    first = f"broker away {OUTAGE:g} s: "
    with rig(peer, folder) as bench:
        _started(bench)
        _served(bench)
        bench.wait(BEFORE)
        before = _served(bench)
        bench.cut()
        bench.wait(OUTAGE)
        during = _served(bench)
        back = time.monotonic()
        bench.connect()
        bench.wait(AFTER)
        after = _served(bench)
        bench.wait(DELIVERED)
        arrived = bench.counted()
        return {
            first + "readings of the outage" + BOOKS: str(audit(during, arrived)),
            first + "readings of the whole run" + BOOKS: str(audit(before + during + after, arrived)),
            first + "a new value after, s": _first_after(bench, back, during[-1] if during else 0),
        }


def broker_late(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """The broker comes 12 s after the tool was started; a supervisor starts again what ends."""
    first = "broker not there at start: "
    with rig(peer, folder) as bench:
        bench.cut()
        process = bench.run(Job((Device("d1", bench.plc.port, 1, range(TAGS)),), bench.port))
        bench.wait(PATIENCE, lambda: _polled(bench) or process.starts > 2)
        bench.wait(OUTAGE)
        during = [one.served for one in bench.plc.log if one.served is not None] + _served(bench)
        back = time.monotonic()
        bench.connect()
        bench.wait(LATEST, lambda: bool(bench.counted()))
        bench.wait(DELIVERED)
        arrived = bench.counted()
        lives = "yes" if process.starts == 1 else f"no: it ends, {process.starts} starts"
        return {
            first + "it lives": lives,
            first + "readings of 12 s" + BOOKS: str(audit(during, arrived)),
            first + "a value after, s": _first_after(bench, back, during[-1] if during else 0),
        }


def _polled(bench: Rig) -> bool:
    bench.plc.note()
    return bool(bench.plc.log)


def killed(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """kill -9 after 8 s of an outage, a supervisor that starts it again 2 s later, the broker back 6 s after that."""
    first = "kill -9 in an outage: "
    with rig(peer, folder) as bench:
        _started(bench, durable=True)
        _served(bench)
        bench.cut()
        bench.wait(KILLED_AFTER)
        assert bench.process is not None
        bench.process.kill()
        during = _served(bench)
        starts = bench.process.starts
        bench.wait(8.0)
        bench.connect()
        bench.wait(AFTER + 5.0)
        after = _served(bench)
        bench.wait(DELIVERED)
        arrived = bench.counted()
        return {
            first + f"readings of the {KILLED_AFTER:g} s before it" + BOOKS: str(audit(during, arrived)),
            first + "readings after it" + BOOKS: str(audit(after, arrived)),
            first + "starts it took": str(bench.process.starts - starts),
        }


def frozen(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """Its process is stopped: connections stay open, nothing answers."""
    with rig(peer, folder) as bench:
        _started(bench)
        last = _newest(bench)
        begin = time.monotonic()
        bench.plc.freeze()
        bench.wait(FROZEN)
        bench.plc.thaw()
        return _away(bench, f"PLC frozen {FROZEN:g} s: ", begin, last)


def gone(peer: Peer, folder: Path, seconds: float) -> dict[str, str]:
    """Its process is killed, its port refuses connections; it comes back with another count."""
    with rig(peer, folder) as bench:
        _started(bench)
        last = _newest(bench)
        begin = time.monotonic()
        bench.plc.kill()
        bench.wait(GONE)
        bench.plc.start()
        return _away(bench, f"PLC gone {GONE:g} s: ", begin, last)


def _newest(bench: Rig) -> int:
    """The newest reading that was served until now."""
    bench.plc.note()
    return max(one.served for one in bench.plc.log if one.served is not None)


def _away(bench: Rig, first: str, begin: float, last: int) -> dict[str, str]:
    """What was said while the PLC was away, and how soon there were values again that were read since."""
    back = time.monotonic()
    bench.wait(LATEST, lambda: any(number > last for _, _, number in bench.counted(since=back)))
    bench.subscriber.take()
    untrue = 0
    for message in bench.subscriber.messages:
        if begin + FRESH <= message.t < back and not message.retained:
            untrue += sum(one.value is not None for one in message.values)
    again = _first_after(bench, back, last)
    with contextlib.suppress(OSError):
        bench.plc.note()
    return {first + "new values after, s": again, first + "old values published as new": str(untrue)}

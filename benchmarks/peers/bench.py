"""Edgetwin beside the tools that its users know, each with the same work in one run, as a Markdown table.

    make bench-peers                                   # all: 77 minutes; ARGS="--quick" takes a few
    .venv/bin/python benchmarks/peers/bench.py --peers edgetwin,modpoll --only small,hole --seconds 30

Each tool is installed into a folder of its own under --work, and runs alone against a simulated PLC in a process of its
own (2 ms an answer) and a mosquitto on loopback. What cannot be had here is skipped, in words. Polls are counted by the
PLC, readings are known by a counter that it serves. `--again` installs anew, and measures it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from collectd import Collectd  # noqa: E402
from edgetwin import Edgetwin, Plain  # noqa: E402
from load import large, small  # noqa: E402
from modbus2mqtt import Modbus2mqtt, Modbus4mqtt  # noqa: E402
from modpoll import Modpoll, Modpoll2mqtt  # noqa: E402
from neighbours import dead_host, hole, silent_unit  # noqa: E402
from nodered import NodeRed  # noqa: E402
from outages import broker_down, broker_late, frozen, gone, killed  # noqa: E402
from peer import Device, Installed, Job, Peer, Unavailable  # noqa: E402
from rig import rig  # noqa: E402
from table import table  # noqa: E402
from thingsboard import Thingsboard  # noqa: E402
from writes import writes  # noqa: E402

Scenario = Callable[[Peer, Path, float], dict[str, str]]

SCENARIOS: dict[str, Scenario] = {
    "small": small,
    "large": large,
    "dead_host": dead_host,
    "silent_unit": silent_unit,
    "hole": hole,
    "broker_down": broker_down,
    "broker_late": broker_late,
    "killed": killed,
    "frozen": frozen,
    "gone": gone,
    "writes": writes,
}
PEERS: dict[str, type[Peer]] = {
    "edgetwin": Edgetwin,
    "plain": Plain,
    "modpoll": Modpoll,
    "collectd": Collectd,
    "modpoll2mqtt": Modpoll2mqtt,
    "modbus2mqtt": Modbus2mqtt,
    "modbus4mqtt": Modbus4mqtt,
    "thingsboard-gateway": Thingsboard,
    "node-red": NodeRed,
}
INSTALL = "install"
FROM_NOTHING = "from nothing to the first value: s to install + s to start; commands; files to write"
FIRST_WITHIN = 600.0
SECONDS, QUICK = 60.0, 10.0
QUICK_PEERS = ["edgetwin", "modpoll", "collectd"]
QUICK_SCENARIOS = ["small", "large", "silent_unit", "hole", "broker_down"]


def installed(key: str, peer: Peer, again: bool) -> dict[str, str]:
    """The rows of the installation; what was measured when it was made is kept beside it. Raises Unavailable."""
    kept = peer.folder / "installed.json"
    if again or not kept.exists() or not peer.ready():
        peer.folder.mkdir(parents=True, exist_ok=True)
        say(key, INSTALL)
        done = peer.install()
        rows = {
            FROM_NOTHING: from_nothing(peer, done, peer.folder / "first"),
            "installed, MB": f"{done.size / 1e6:.0f}",
        }
        kept.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(kept.read_text(encoding="utf-8"))
    assert isinstance(rows, dict)
    if peer.shares:  # what is measured from nothing is the other one
        rows.pop(FROM_NOTHING, None)
    return rows


def from_nothing(peer: Peer, done: Installed, folder: Path) -> str:
    """To the first value ever, of 50 tags: by the one command that does all of it, where a tool has one."""
    shutil.rmtree(folder, ignore_errors=True)
    with rig(peer, folder) as bench:
        job = Job((Device("d1", bench.plc.port, 1, range(50)),), bench.port)
        one = peer.one_command(folder, job)
        install, commands, files = done.seconds, done.commands + 1, peer.files
        begin = time.time()
        if one is None:
            bench.run(job)
        else:
            bench.start(one[0])
        try:
            start = bench.settle(FIRST_WITHIN)
        except TimeoutError as error:
            return str(error)
        if one is not None:
            install, commands, files = one[1].stat().st_mtime - begin, 1, 0
            start -= install
        return f"{install:.0f} + {start:.1f}; {commands}; {files}"


def measured(scenario: Scenario, peer: Peer, folder: Path, seconds: float) -> dict[str, str] | str:
    """The rows, or why there are none."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return scenario(peer, folder, seconds)
    except (Unavailable, TimeoutError) as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def names(text: str, known: Sequence[str]) -> list[str]:
    """The names of a comma-separated list. Raises ArgumentTypeError for one that is not known."""
    chosen = text.split(",") if text else list(known)
    for one in chosen:
        if one not in known:
            raise argparse.ArgumentTypeError(f"{one!r} is none of {', '.join(known)}")
    return chosen


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=lambda text: names(text, list(PEERS)), help=", ".join(PEERS))
    parser.add_argument("--only", type=lambda text: names(text, list(SCENARIOS)), help=", ".join(SCENARIOS))
    parser.add_argument("--seconds", type=float, help="of each measurement of load; 60 unless given")
    parser.add_argument(
        "--quick", action="store_true", help="short measurements of a few things, beside two others"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the figures of the last run that are not measured now"
    )
    parser.add_argument("--again", action="store_true", help="install anew")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--out", type=Path, help="the table; build/peers/table.md unless given")
    args = parser.parse_args()
    args.peers = args.peers or (QUICK_PEERS if args.quick else list(PEERS))
    args.only = args.only or (QUICK_SCENARIOS if args.quick else list(SCENARIOS))
    return args


def main() -> None:
    args = arguments()
    seconds = args.seconds or (QUICK if args.quick else SECONDS)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "results.json"
    results: dict[str, dict[str, str]] = (
        json.loads(kept.read_text("utf-8")) if args.add and kept.exists() else {}
    )
    for key in args.peers:
        peer = PEERS[key](args.work.resolve() / (PEERS[key].shares or key))
        try:
            rows = results.setdefault(peer.name, {})
            rows |= installed(key, peer, args.again)
        except Unavailable as error:
            say(key, "skipped:", error)
            results[peer.name] = {FROM_NOTHING: f"not here: {error}"}
            continue
        for name in args.only:
            begin = time.monotonic()
            found = measured(SCENARIOS[name], peer, args.work.resolve() / "runs" / key / name, seconds)
            rows |= found if isinstance(found, dict) else {f"{name}: not measured": found}
            say(key, name, f"{time.monotonic() - begin:.0f} s", json.dumps(found, ensure_ascii=False))
            kept.write_text(json.dumps(results, indent=1), encoding="utf-8")
    head = (
        f"{platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {seconds:g} s"
    )
    order = {PEERS[key].name: results[PEERS[key].name] for key in PEERS if PEERS[key].name in results}
    text = f"Python {head}.\n\n{table(order)}"
    (args.out or args.work / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

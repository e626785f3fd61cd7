"""Two minutes of random faults on everything at once; afterwards the books balance and no value was wrong.

EDGETWIN_SOAK=1 makes it ten (`make soak`). EDGETWIN_SEED=N repeats a run; a failure prints its seed. In CI the seed is
always the same, so that a change is judged by what it changes.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cloud.journal import VARIABLE, Entry, entries
from tests.books import Reader, compare
from tests.brokers import Mosquitto, TcpProxy, needs_mosquitto
from tests.e2e.chaos import DEVICES, Act, Setting, plan
from tests.e2e.chaos_accounts import (
    PER_START,
    Kill,
    Watchful,
    astray,
    costs,
    unread,
    wrong_levels,
    wrong_writes,
)
from tests.e2e.vessel import BEAT, Vessel
from tests.ports import free_port

pytestmark = [needs_mosquitto, pytest.mark.process, pytest.mark.timeout(1500)]

SOAK = bool(os.environ.get("EDGETWIN_SOAK"))
SECONDS = 600.0 if SOAK else 100.0
SETTLES = 20.0
PATIENCE = 90.0
FULL = 4096
"""Bytes that a file may have beyond this run's journal while the disk is full."""
JOURNAL_PER_SECOND = 600
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def seed() -> int:
    """From the environment; always the same one in CI."""
    named = os.environ.get("EDGETWIN_SEED")
    return int(named) if named else 1 if os.environ.get("CI") else random.randrange(1_000_000)


class Daemon:
    """The agent as a process; each of its runs has a journal of its own, and its log goes through a pipe, so that a
    limit on its files is none on them for long."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.lines: list[str] = []
        self.runs = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def journal(self) -> Path:
        return self.folder / f"batches{self.runs}"

    def start(self) -> None:
        self.runs += 1
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", str(self.config)],
            env=os.environ | {VARIABLE: str(self.journal), "RUNTIME_DIRECTORY": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip())

    def closed(self) -> list[Entry]:
        """What this run has closed."""
        return list(entries(self.journal)) if self.journal.exists() else []

    def reload(self) -> bool:
        """SIGHUP; False when it does not run, or is so young that the signal would end it."""
        if self.process is None:
            return False
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [caught] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")]
        listens = bool(caught >> (signal.SIGHUP - 1) & 1)
        if listens:
            self.process.send_signal(signal.SIGHUP)
        return listens

    def end(self, number: signal.Signals) -> int:
        """Ends it, and waits for that; returns its exit status."""
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(number)
        return process.wait(timeout=60)

    def failed(self) -> bool:
        """Whether it ended by itself."""
        return self.process is not None and self.process.poll() is not None


class Rig:
    """All processes, and what was done to them."""

    def __init__(
        self, folder: Path, broker: Mosquitto, proxy: TcpProxy, reader: Reader, books: Watchful
    ) -> None:
        self.broker, self.proxy, self.reader, self.books = broker, proxy, reader, books
        self.plcs = {n: Vessel(n, free_port(), folder / f"plc{n}") for n in DEVICES}
        self.daemon = Daemon(folder)
        self.setting = Setting()
        self.kills: list[Kill] = []
        self.closed: list[Entry] = []
        self.faults: dict[str, list[tuple[float, float]]] = {f"plc{n}": [] for n in DEVICES}
        self.begun: dict[int, float] = {}
        self.changes = dict.fromkeys(self.faults, 0)
        self.began = 0.0

    def write(self, setting: Setting) -> None:
        """The configuration file, whole at any time."""
        ports = {n: plc.port for n, plc in self.plcs.items()}
        new = self.daemon.folder / "config.new"
        new.write_text(setting.text(self.daemon.folder, self.proxy.port, ports))
        new.replace(self.daemon.config)
        if setting.mistake is None:
            self.changes["plc2"] += setting.extra != self.setting.extra
            self.changes["plc3"] += setting.third != self.setting.third
            self.setting = setting

    def do(self, act: Act) -> None:
        """Carries out one act of the plan."""
        thing, _, _ = act.what.partition(" ")
        if thing == "plc":
            self._plc(act)
        elif thing == "broker":
            self._broker(act)
        elif thing == "proxy":
            self._proxy(act)
        elif thing == "disk":
            self._disk(act.begin)
        elif thing == "agent":
            self._agent(act.begin)
        elif act.setting is not None:
            self.write(act.setting)
            if not self.daemon.reload():
                self.write(self.setting)

    def _plc(self, act: Act) -> None:
        plc, now = self.plcs[act.target], time.monotonic()
        if act.begin:
            self.begun[act.target] = now
            plc.kill() if act.what == "plc killed" else plc.signal(signal.SIGSTOP)
        else:
            plc.start() if act.what == "plc killed" else plc.signal(signal.SIGCONT)
            self.faults[f"plc{act.target}"].append((self.begun[act.target], time.monotonic()))

    def _broker(self, act: Act) -> None:
        if act.what == "broker frozen":
            self.broker.freeze() if act.begin else self.broker.thaw()
        elif not act.begin:
            self.broker.start()
        elif act.what == "broker killed":
            self.broker.kill()
        else:
            self.broker.stop()

    def _proxy(self, act: Act) -> None:
        if act.what == "proxy cut":
            self.proxy.cut()
        elif act.what == "proxy refusing":
            self.proxy.refuse() if act.begin else self.proxy.accept()
        elif act.begin:
            self.proxy.stall()
        else:
            if act.what == "proxy half open":
                self.proxy.cut()
            self.proxy.flow()

    def _disk(self, full: bool) -> None:
        assert self.daemon.process is not None
        size = self.daemon.journal.stat().st_size if self.daemon.journal.exists() else 0
        limit = size + 15 * JOURNAL_PER_SECOND + FULL
        limits = (limit, resource.RLIM_INFINITY) if full else UNLIMITED
        resource.prlimit(self.daemon.process.pid, resource.RLIMIT_FSIZE, limits)

    def _agent(self, begin: bool) -> None:
        if begin:
            at = time.monotonic()
            self.daemon.end(signal.SIGKILL)
            closed = self.daemon.closed()
            self.kills.append(Kill(at, closed))
            self.closed += closed
            self.write(self.setting)  # a wrong file would be told, and end the start
        else:
            self.daemon.start()

    def close(self) -> None:
        if self.daemon.process is not None:
            self.daemon.process.kill()
            self.daemon.process.wait()
        for plc in self.plcs.values():
            plc.kill()
        (self.daemon.folder / "daemon.log").write_text("\n".join(self.daemon.lines))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    limits = ["max_queued_messages 0", "max_inflight_messages 0", "max_inflight_bytes 0"]
    broker = Mosquitto(tmp_path, config_lines=limits, persistence=True)
    broker.start()
    books = Watchful("served")
    with contextlib.ExitStack() as stack:
        stack.callback(broker.stop)
        proxy = stack.enter_context(TcpProxy(broker.port))
        reader = stack.enter_context(Reader(broker.port))
        reader.books = books
        reader.listen(1.0)
        broker.stop()  # it saves the reader's session, so that a kill does not cost it
        broker.start()
        reader.listen(2.0)
        made = Rig(tmp_path, broker, proxy, reader, books)
        stack.callback(made.close)
        for plc in made.plcs.values():
            plc.start()
        made.write(made.setting)
        made.daemon.start()
        yield made


def online(rig: Rig) -> bool:
    """All three devices have sent something."""
    return {device for device, _, _ in rig.books.have} == {"plc1", "plc2", "plc3"}


def test_whatever_happens_the_books_balance(rig: Rig) -> None:
    number = seed()
    acts = plan(number, SECONDS, rig.setting)
    print(f"\nseed {number}: EDGETWIN_SEED={number}; {len(acts)} acts in {SECONDS:.0f} s")
    rig.reader.until(lambda: online(rig), PATIENCE, "the first batches")
    rig.began = began = time.monotonic()
    for act in acts:
        while (left := began + act.at - time.monotonic()) > 0:
            rig.reader.listen(min(left, 0.5))
            assert not rig.daemon.failed(), f"seed {number}: the agent ended:\n" + "\n".join(
                rig.daemon.lines[-20:]
            )
        print(f"  {act.at:6.1f} {act.what} {act.target or ''} {'' if act.begin else 'ends'}")
        rig.do(act)
    _settle(rig)
    assert rig.daemon.end(signal.SIGTERM) == 0
    rig.closed += rig.daemon.closed()
    rig.reader.until(lambda: rig.books.state.get("status") == "offline", PATIENCE, "offline")
    rig.reader.listen(1.0)
    faults = _account(rig)
    assert faults == [], f"seed {number}"


def _settle(rig: Rig) -> None:
    """All is in order from here on; returns when what was closed is here or named, or should have been."""
    settled = time.monotonic()
    rig.reader.until(lambda: time.monotonic() >= settled + SETTLES, 2 * SETTLES, "the time to settle")
    keys = [(device, stream, seq) for device, stream, seq, _ in (*rig.closed, *rig.daemon.closed())]
    while settled + PATIENCE > time.monotonic() and not all(
        key in rig.books.have or rig.books.excused(key) for key in keys
    ):
        rig.reader.listen(0.5)  # what is not here by then is a fault of the books
    beats = [at for at, address, _ in rig.plcs[1].served().writes if address == BEAT and at > settled]
    assert beats, "the loop does not turn any more"


def _account(rig: Rig) -> list[str]:
    """Prints what happened, what it cost and what it might; returns what is out of bounds."""
    audit = compare(rig.closed, rig.books)
    served = {f"plc{n}": plc.served() for n, plc in rig.plcs.items()}
    lost = {name: unread(rig.books, name, one, rig.faults[name]) for name, one in served.items()}
    found = [*audit.faults(), *rig.books.wrong, *wrong_levels(rig.books, served), *wrong_writes(served)]
    print(
        f"{len(rig.closed)} batches closed, {sum(entry[3] for entry in rig.closed)} readings; {len(rig.books.have)}"
        f" here, {rig.books.again} came again, {len(audit.excused)} named by a gap; {rig.books.values_seen} values"
        f" looked at, {sum(len(one.writes) for one in served.values())} writes"
    )
    for gap in sorted(rig.books.gaps, key=lambda gap: (gap.device, gap.first)):
        print(f"  gap {gap.device} {gap.first}..{gap.last} {gap.reason}")
    for number, (kill, devices) in enumerate(zip(rig.kills, costs(rig.kills, audit, lost)), 1):
        for one in devices:
            text = (
                f"kill {number} at {kill.at:.1f}: {one.device} {one.closed} closed rows named lost of at most"
                f" {one.closed_bound:.0f}, {one.open} never closed of at most {one.open_bound:.0f}; from"
                f" {max(one.times, default=0.0)} to {min(one.times, default=0.0)} s before it"
            )
            print("  " + text)
            found += [text] if one.fault else []
    for name, ats in lost.items():
        times = [round(at - rig.began, 1) for at in astray(rig.kills, ats)]
        bound = PER_START * (rig.daemon.runs + rig.changes[name])
        text = f"{name}: {len(times)} replies far from a kill are no reading, of at most {bound}: {times} s"
        print("  " + text)
        found += [text] if len(times) > bound else []
    last = [entry for entry in rig.daemon.closed() if entry[:3] in audit.excused]
    found += [f"after the last kill {last} is lost"] if last else []
    found += [line for line in rig.daemon.lines if "Traceback" in line]
    print("\n".join(f"  fault: {one}" for one in found[:50]))
    return found

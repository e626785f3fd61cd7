"""What happens around the agent: a disk that is full, a clock that is set wrong, through the whole cloud side."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.cloud.journal import VARIABLE, entries
from agent.cloud.worker import Cloud
from agent.runtime.clock import SystemClock
from tests.books import Reader, compare
from tests.brokers import Mosquitto, needs_mosquitto
from tests.cloud.harness import Agent, Ear, make_config, wait_until

pytestmark = [needs_mosquitto, pytest.mark.process]
ROOT = Path(__file__).parents[2]
YEAR = 365 * 86400.0
FULL = 8192
"""Bytes that a file may have on the full disk: SQLite's first pages and the numbers, no more."""


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that keeps its subscribers' sessions over a restart."""
    with Mosquitto(tmp_path, config_lines=["max_queued_messages 0"], persistence=True) as broker:
        yield broker


@pytest.mark.parametrize("end", ["in order", "killed"])
def test_a_full_disk_during_an_outage(lasting: Mosquitto, tmp_path: Path, end: str) -> None:
    """What the disk does not take waits in memory; a kill then costs it, by name."""
    state = tmp_path / "state"
    args = [sys.executable, "-m", "tests.cloud.agent", lasting.url, str(state)]
    with Reader(lasting.port, identity="count") as reader:
        books = reader.books
        process = subprocess.Popen([*args, "0"], cwd=ROOT)
        try:
            reader.until(lambda: len(books.have) >= 3, 30, "the first batches")
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
            lasting.stop()
            time.sleep(7.0)  # longer than batches wait in memory by themselves
            if end == "killed":
                process.kill()
                process.wait()
                first = max(value for value in books.values() if value) + 10_000
                process = subprocess.Popen([*args, str(first)], cwd=ROOT)
            lasting.start()
            if end == "in order":
                reader.until(lambda: books.alarms.get("outbox_unwritable") is not None, 30, "the alarm")
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
                reader.until(lambda: books.alarms.get("outbox_unwritable") is None, 30, "the end of it")
            last = max(books.have, default=("", "", 0))[2]
            reader.until(lambda: max(key[2] for key in books.have) > last + 5, 30, "live batches")
            reader.until(lambda: compare([], books).holes == [], 30, "everything before them")
        finally:
            process.kill()
            process.wait()
    counts = sorted(value for value in books.values() if value is not None)
    assert len(counts) == len(set(counts)), "a reading under two numbers"
    if end == "in order":
        assert counts == list(range(1, counts[-1] + 1)), "none is lost"
        assert not any(gap.reason == "memory" for gap in books.gaps)
    else:
        assert any(gap.reason == "restart" for gap in books.gaps)


def test_what_a_full_disk_does_not_take_is_sent_by_the_link_that_comes_next(
    lasting: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload of `mqtt` during an outage: what waits in memory goes on, under its numbers."""
    agent = Agent(make_config("mqtt://127.0.0.1:1"), tmp_path)
    with Reader(lasting.port, identity="count") as reader, agent:
        old = agent.cloud
        monkeypatch.setattr(old._outbox, "spill", lambda batches: not list(batches))
        agent.run_for(0.5)
        old.stop(0.0, leave=True)
        assert old._store.memory != {}
        agent.cloud = Cloud(
            make_config(lasting.url),
            state_dir=tmp_path,
            layout=agent.layout,
            boot="0badcafe",
            clock=agent.clock,
            ask=agent.doors.ask,
            left=old.left,
        )
        agent.cloud.go_on(old)
        agent.cloud.start()
        agent.run_for(0.5)
        reader.until(lambda: agent.counts["press1"] in reader.books.values(), 30, "the newest reading")
        reader.until(lambda: compare([], reader.books).holes == [], 30, "everything before it")
    assert sorted(reader.books.values()) == list(range(1, agent.counts["press1"] + 1))
    assert reader.books.gaps == set() and {stream for _, stream, _ in reader.books.have} == {old.stream}


@dataclass
class WrongClock(SystemClock):
    """The machine's clocks, the wall clock set wrong by `off` seconds."""

    off: float = field(default=0.0)

    def wall(self) -> float:
        return super().wall() + self.off


@pytest.mark.parametrize("step", [YEAR, -YEAR])
def test_a_clock_that_jumps_by_a_year(
    mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """Nothing is lost or doubled, nothing stands still, and readings keep their distances on each side of the step."""
    journal = tmp_path / "journal"
    monkeypatch.setenv(VARIABLE, str(journal))
    clock = WrongClock(max(0.0, -step) + YEAR)  # both sides are after this version's release
    config = make_config(mosquitto.url)
    with Reader(mosquitto.port, identity="count") as reader, Ear(mosquitto.url) as ear:
        ear.sync()
        with Agent(config, tmp_path / "state", clock=clock) as agent:
            agent.wait_online()
            agent.run_for(1.0)
            clock.off += step
            agent.run_for(1.0)
            before = len(agent.events)
            agent.show(33.0)
            ear.wait(lambda: ear.view.twins != {} and ear.wait_for("twin/press1")["reported"]["target"]["v"] == 33.0,
                     "a twin after the step")  # fmt: skip
            ear.command("status", "after", age=-clock.off)
            assert ear.wait_for("resp/after")["ok"], "commands by the new time are taken"
            assert len(agent.events) >= before
        wait_until(lambda: reader.listen(0.2) or reader.books.state.get("status") == "offline", "offline")
    audit = compare(list(entries(journal)), reader.books)
    assert audit.faults() == [] and audit.excused == []
    counts = [value for value in reader.books.values() if value is not None]
    assert sorted(counts) == list(range(1, agent.counts["press1"] + 1))
    times = [t for one in ear.of("data") if one.body for group in one.body["groups"] for t in group["t"]]
    jumps = [b - a for a, b in itertools.pairwise(times) if abs(b - a) > 5000]
    assert len(jumps) == 1 and jumps[0] == pytest.approx(1000 * step, abs=2000)


def test_a_clock_that_is_put_right_makes_no_backlog_old(tmp_path: Path, spills_soon: None) -> None:
    """A gateway that was off for months begins where it ended, and hears the time only with the network."""
    clock = WrongClock()
    config = make_config("mqtt://127.0.0.1:1", outbox={"max_age": 3600.0})
    with Agent(config, tmp_path, clock=clock) as agent:
        status = agent.cloud.status
        agent.run_for(2.0)
        wait_until(lambda: status()["outbox"]["batches"] > 3, "batches on disk")
        clock.off = YEAR
        agent.run_for(1.0)
        assert status()["outbox"]["dropped"] == 0
        oldest = status()["outbox"]["oldest"]
        assert 0 <= clock.wall() * 1000 - oldest < 60_000
        clock.off = 0.0
        agent.run_for(1.0)
        assert status()["outbox"]["dropped"] == 0

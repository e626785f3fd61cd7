"""1,000 readings/s through cut, stalled and stopped brokers, with the agent killed in the middle of each.

EDGETWIN_SOAK=1 makes the outages long (`make soak`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.cloud.journal import VARIABLE, entries
from tests.books import Reader, compare
from tests.brokers import Mosquitto, TcpProxy
from tests.e2e.test_outages import Daemon
from tests.plc import Plc
from tests.ports import free_port

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

SOAK = bool(os.environ.get("EDGETWIN_SOAK"))
OUTAGE = 60.0 if SOAK else 12.0
PATIENCE = 60.0
TAGS = 100
READINGS_PER_SECOND = TAGS * 10
SPAN = 4.0
"""`outbox.batch`: what a kill may cost beside the open batch."""

CONFIG = """
gateway: line7
state_dir: {folder}/state
mqtt:
  url: "mqtt://127.0.0.1:{proxy}"
  batch: 500ms
  outbox: {{batch: {span}s, rate: {rate}, min_free: 0MiB}}
page: {{listen: "127.0.0.1:{page}"}}
devices:
  plc:
    url: tcp://127.0.0.1:{plc}
    every: 100ms
    timeout: 300ms
    tags:
      served: {{holding: 1, type: uint32}}
{tags}
"""


@dataclass
class Line:
    """The whole chain: PLC, agent, proxy, broker, subscriber; and where in the journal each kill fell."""

    broker: Mosquitto
    proxy: TcpProxy
    daemon: Daemon
    reader: Reader
    journal: Path
    kills: list[tuple[str, int]] = field(default_factory=list)

    def noted(self) -> int:
        return sum(1 for _ in entries(self.journal)) if self.journal.exists() else 0

    def kill(self, when: str) -> None:
        """kill -9, and a new start."""
        self.daemon.end(signal.SIGKILL)
        self.kills.append((when, self.noted()))
        self.daemon.start()

    def until_closing(self, batches: int) -> None:
        """Waits until so many more batches were closed."""
        before = self.noted()
        self.reader.until(lambda: self.noted() >= before + batches, PATIENCE, f"{batches} more batches")

    def until_here(self) -> None:
        """Waits until all that was closed by now is here or named by a gap."""
        books = self.reader.books
        keys = [(device, stream, seq) for device, stream, seq, _ in entries(self.journal)]
        self.reader.until(
            lambda: all(key in books.have or books.excused(key) for key in keys),
            PATIENCE + 2 * OUTAGE,
            "everything that was closed",
        )

    def until_online(self) -> None:
        """Waits for a `state` that this boot has published."""
        old = self.reader.books.state.get("boot")
        self.reader.until(
            lambda: (
                self.reader.books.state.get("boot") != old and self.reader.books.state["status"] == "online"
            ),
            PATIENCE,
            "online after a start",
        )


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    journal = tmp_path / "batches"
    monkeypatch.setenv(VARIABLE, str(journal))
    plc = Plc(free_port(), tmp_path / "served")
    broker = Mosquitto(tmp_path, config_lines=["max_queued_messages 0"], persistence=True)
    broker.start()
    proxy = TcpProxy(broker.port)
    config = tmp_path / "config.yaml"
    tags = "\n".join(f"      r{n}: {{holding: {n}}}" for n in range(3, TAGS + 2))
    config.write_text(
        CONFIG.format(
            folder=tmp_path,
            proxy=proxy.port,
            page=free_port(),
            plc=plc.port,
            span=SPAN,
            rate=3 * READINGS_PER_SECOND,
            tags=tags,
        )
    )
    daemon = Daemon(tmp_path, config)
    plc.start()
    try:
        with Reader(broker.port, identity="served") as reader:
            daemon.start()
            yield Line(broker, proxy, daemon, reader, journal)
    finally:
        if daemon.process is not None:
            daemon.end(signal.SIGKILL)
        plc.kill()
        proxy.close()
        broker.stop()


def test_every_reading_is_here_or_named(line: Line) -> None:
    line.until_online()
    line.until_closing(5)
    line.kill("online")
    line.until_online()
    line.until_closing(3)
    for _ in range(3):
        line.proxy.cut()
        line.until_closing(2)
    line.until_here()
    line.proxy.stall()
    line.reader.listen(9.0)  # shorter than it takes to notice
    line.kill("while the link is half open")
    line.proxy.cut()
    line.proxy.flow()
    line.until_online()
    line.until_closing(3)

    line.broker.stop()
    time.sleep(OUTAGE / 2)
    line.kill("while the broker is down")
    line.until_closing(1)
    time.sleep(OUTAGE / 2)
    line.broker.start()
    line.until_online()
    late = line.reader.books.state["backlog"]["batches"]
    line.until_closing(2)
    line.kill("during backfill")
    line.until_online()
    line.until_closing(2)
    _end(line)

    assert late > 0, "no backlog, so that the last kill fell into nothing"
    _hold(line)


def _end(line: Line) -> None:
    """An orderly end, after everything that waits was sent."""
    line.until_here()
    assert line.daemon.end() == 0
    line.reader.until(lambda: line.reader.books.state["status"] == "offline", PATIENCE, "offline")
    line.reader.listen(0.5)


def _hold(line: Line) -> None:
    """Prints and checks the accounts."""
    journal = list(entries(line.journal))
    books = line.reader.books
    audit = compare(journal, books)
    print(
        f"\n{len(journal)} batches closed, {sum(entry[3] for entry in journal)} readings; {len(books.have)} here,"
        f" {books.again} came again; {len(audit.excused)} named by a gap; faults: {audit.faults() or 'none'}"
    )
    for gap in sorted(books.gaps, key=lambda gap: gap.first):
        print(f"  gap {gap.device} {gap.first}..{gap.last} {gap.reason}")
    bound = round(READINGS_PER_SECOND * SPAN)
    costs, start = [], 0
    for when, at in line.kills:
        costs.append(audit.excused_of(journal[start:at]))
        print(f"  killed {when}: {costs[-1]} closed readings named lost, at most {bound} may be")
        start = at
    assert audit.faults() == []
    assert max(costs) <= bound
    assert audit.excused_of(journal[start:]) == 0, "after the last kill nothing may be lost"
    assert sum(entry[3] for entry in journal) > READINGS_PER_SECOND * OUTAGE

"""Faults in random order and length, kills among them; then the books must hold. EDGETWIN_SOAK=1: longer, new seeds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.cloud.journal import VARIABLE, entries
from tests.books import Reader, compare
from tests.brokers import Mosquitto, TcpProxy, needs_mosquitto

pytestmark = [needs_mosquitto, pytest.mark.process, pytest.mark.timeout(900)]

SOAK = bool(os.environ.get("EDGETWIN_SOAK"))
SECONDS = 300.0 if SOAK else 20.0
SEEDS = [random.randrange(1 << 32) for _ in range(3)] if SOAK else [1]
PAUSES = (0.2, 0.7, 1.5, 3.0, 7.0) if SOAK else (0.2, 0.5, 1.0, 2.0)
BATCHES_PER_KILL = 5
"""Closed batches that one kill may cost: one `outbox.batch` of 0.2 s holds two, as many while a machine is busy."""
ROOT = Path(__file__).parents[2]


@dataclass
class Plant:
    """An agent's process, its link and its broker, and what can happen to them."""

    folder: Path
    broker: Mosquitto
    proxy: TcpProxy
    journal: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    kills: list[int] = field(default_factory=list)
    down: bool = False

    def start(self) -> None:
        """A new process; its counter begins where no other's was."""
        args = [self.proxy.url, str(self.folder / "state"), str(self.starts * 1_000_000)]
        self.starts += 1
        self.process = subprocess.Popen([sys.executable, "-m", "tests.cloud.agent", *args], cwd=ROOT)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        self.end()
        self.kills.append(len(list(entries(self.journal))) if self.journal.exists() else 0)
        self.start()

    def toggle_broker(self) -> None:
        (self.broker.start if self.down else self.broker.stop)()
        self.down = not self.down

    def mend(self) -> None:
        """The link works again."""
        self.proxy.cut()
        self.proxy.flow()
        self.proxy.accept()

    def faults(self) -> list[Callable[[], None]]:
        """One of these happens at a time; some more often."""
        proxy = self.proxy
        return [
            *[self.kill] * 3,
            proxy.cut,
            proxy.stall,
            proxy.refuse,
            *[self.mend] * 2,
            *[self.toggle_broker] * 2,
        ]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    journal = tmp_path / "journal"
    monkeypatch.setenv(VARIABLE, str(journal))
    broker = Mosquitto(tmp_path, config_lines=["max_queued_messages 0"], persistence=True)
    with broker, TcpProxy(broker.port) as proxy:
        plant = Plant(tmp_path, broker, proxy, journal)
        try:
            yield plant
        finally:
            plant.end()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_books_hold(plant: Plant, seed: int) -> None:
    rng = random.Random(seed)
    with Reader(plant.broker.port, identity="count") as reader:
        plant.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            reader.listen(rng.choice(PAUSES))
            rng.choice(plant.faults())()
        if plant.down:
            plant.toggle_broker()
        plant.mend()
        plant.kill()
        books = reader.books
        closed = list(entries(plant.journal))
        keys = [(device, stream, seq) for device, stream, seq, _ in closed]
        reader.until(
            lambda: all(key in books.have or books.excused(key) for key in keys), 60, "all that was closed"
        )
        plant.end()
        reader.listen(1.0)
    audit = compare(list(entries(plant.journal)), books)
    costs = [
        sum(key in audit.excused for key in keys[first:last])
        for first, last in zip([0, *plant.kills], plant.kills)
    ]
    print(f"seed {seed}: {len(keys)} batches, {len(costs)} kills cost {costs}; {books.again} came again")
    newest = max(seq for _, _, seq in keys)  # what was closed later may have been under way at the end
    assert [key for key in (*audit.missing, *audit.holes) if key[2] <= newest] == []
    assert audit.invented == audit.differing == audit.doubled == []
    assert max(costs) <= BATCHES_PER_KILL
    assert len(keys) > SECONDS and plant.kills

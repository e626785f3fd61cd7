"""Keys of mqtt.outbox: what waits, for how long, and how fast it goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.cloud.store import Store
from agent.runtime.clock import SystemClock
from tests.cloud.harness import Agent
from tests.keys.press import plant
from tests.keys.table import effect
from tests.ports import free_port


class Kept:
    """An outbox on a time of the test's own (ms UTC), and what it holds."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.config = plant({"outbox": {"min_free": "1B", **keys}}).mqtt.outbox
        folder.mkdir(exist_ok=True)
        self.ms = 1_800_000_000_000
        self.outbox = Outbox(folder, self.config, ("press1",), wall_ms=lambda: self.ms)
        self.store = Store(self.outbox, self.config)

    def batch(self, readings: int = 1) -> Batch:
        """One more: 1,000 bytes that no compression makes smaller."""
        body = json.dumps(os.urandom(500).hex()).encode()
        return Batch("press1", self.outbox.next_seq("press1"), self.ms, readings, body, "0badcafe", True)

    def spill(self, count: int) -> Kept:
        for _ in range(count):
            assert self.outbox.spill([self.batch()])
        return self

    def seqs(self) -> list[int]:
        return [one.seq for _, one in self.outbox.oldest(1000)]


@effect("mqtt.outbox.max_size")
def test_max_size(tmp_path: Path) -> None:
    assert len(Kept(tmp_path / "a").spill(40).seqs()) == 40
    small = Kept(tmp_path / "b", max_size="10KiB").spill(40)
    assert 5 < len(small.seqs()) < 25 and small.seqs()[-1] == 40
    assert {gap.reason for gap in small.outbox.gaps()} == {"size"}


@effect("mqtt.outbox.max_age")
def test_max_age(tmp_path: Path) -> None:
    def left(folder: Path, **keys: Any) -> list[int]:
        kept = Kept(folder, **keys).spill(1)
        kept.ms += 3_600_000
        return kept.spill(1).seqs()

    assert left(tmp_path / "a") == [1, 2]
    assert left(tmp_path / "b", max_age="30m") == [2]


@effect("mqtt.outbox.min_free")
def test_min_free(tmp_path: Path) -> None:
    assert Kept(tmp_path / "a").spill(3).seqs() == [1, 2, 3]
    greedy = Kept(tmp_path / "b", min_free="100000GiB").spill(3)
    assert greedy.seqs() == [] and {gap.reason for gap in greedy.outbox.gaps()} == {"disk"}


@effect("mqtt.outbox.durable")
def test_durable(tmp_path: Path) -> None:
    for durable, on_disk in ((False, []), (True, [1])):
        kept = Kept(tmp_path / str(durable), durable=durable)
        kept.store.add([kept.batch()], online=True, since=0.0)
        assert kept.seqs() == on_disk


@effect("mqtt.outbox.keep")
def test_keep(tmp_path: Path) -> None:
    for keep, span in (("0s", None), ("1h", (1, 1))):
        kept = Kept(tmp_path / keep, keep=keep).spill(1)
        kept.outbox.ack([("press1", 1)])
        assert kept.seqs() == [] and kept.outbox.span("press1", 1, 9) == span


@effect("mqtt.outbox.rate")
def test_rate(tmp_path: Path) -> None:
    for rate, first_second in ((20_000, 30), (100, 10)):
        kept = Kept(tmp_path / str(rate), rate=rate)
        for _ in range(30):
            assert kept.outbox.spill([kept.batch(readings=10)])
        sent = 0
        while kept.store.next_disk(0.0) is not None:
            sent += 1
        assert sent == first_second


@effect("mqtt.outbox.batch")
def test_outbox_batch(tmp_path: Path) -> None:
    """Without a broker; the time of the agent runs thirty times as fast as ours. `durable` keeps batches short."""

    class Fast(SystemClock):
        def mono(self) -> float:
            return 30 * super().mono()

    def batches(batch: str, durable: bool = False) -> int:
        folder = tmp_path / f"{batch} {durable}"
        folder.mkdir()
        url = f"mqtt://127.0.0.1:{free_port()}"
        config = plant({"url": url, "outbox": {"min_free": "1B", "batch": batch, "durable": durable}})
        with Agent(config, folder, clock=Fast()) as agent:
            agent.run_for(4.0, every=0.02)
            found: int = agent.cloud.status()["outbox"]["batches"]
            return found

    # two minutes hold no batch of ten; how many short ones there are depends on how often the thread gets its turn
    assert batches("10m") <= 1
    assert batches("5s") >= 3
    assert batches("10m", durable=True) >= 3

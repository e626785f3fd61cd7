"""docs/examples/consumer.py against a real broker, fed with the product's own bodies."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from agent.cloud import payload
from agent.cloud.payload import Stamp
from agent.cloud.topics import Topics
from agent.twin.quality import Quality
from agent.twin.records import Row
from tests.brokers import Mosquitto, needs_mosquitto

CONSUMER = Path(__file__).parents[2] / "docs" / "examples" / "consumer.py"
TOPICS = Topics("edgetwin", "line4")
STREAM = "0badcafe"
START = 1_800_000_000_000
PATIENCE = 30.0

pytestmark = [pytest.mark.process, needs_mosquitto]


def stamp(boot: str = "00000001") -> Stamp:
    return Stamp(boot, lambda t: START + round(t * 1000))


def body(seq: int, rows: list[Row]) -> dict[str, Any]:
    return payload.data_body(stamp(), rows, t=float(seq), stream=STREAM, seq=seq, meta="abcdef01")


def counted(seq: int, count: int = 10) -> dict[str, Any]:
    """Batch `seq` of a tag that counts on without end: 10·seq and the nine after it."""
    return body(
        seq, [Row("press1", ("count",), seq + i / count, [seq * count + i], None) for i in range(count)]
    )


class Feeder:
    """Publishes as a gateway does, QoS 1, and waits for the broker's word."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, topic: str, data: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, data, qos=1, retain=retain).wait_for_publish(PATIENCE)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@dataclasses.dataclass
class Bench:
    broker: Mosquitto
    feeder: Feeder
    database: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.database.parent / "consumer.log").open("ab")
        arguments = [sys.executable, str(CONSUMER), self.broker.url, str(self.database)]
        self.process = subprocess.Popen(arguments, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            return database.execute(question).fetchall()

    def wait(self, question: str, wanted: Callable[[Any], bool]) -> None:
        """Until the first column of the answer is as wanted."""
        answer, end = None, time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(sqlite3.OperationalError):  # no table yet
                answer = self.ask(question)
                if answer and wanted(answer[0][0]):
                    return
            assert self.process is not None and self.process.poll() is None, self.log()
            time.sleep(0.02)
        pytest.fail(f"{question}: {answer}\n{self.log()}")

    def subscribed(self) -> None:
        """Until what is sent next will be kept for the consumer: its session at the broker stands."""
        end = time.monotonic() + PATIENCE
        while b"SUBACK to consumer" not in self.broker.log.read_bytes():
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        return (self.database.parent / "consumer.log").read_text(encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Mosquitto(tmp_path, config_lines=["max_queued_messages 100000"]) as broker:
        feeder = Feeder(broker.port)
        bench = Bench(broker, feeder, tmp_path / "readings.db")
        try:
            bench.start()
            bench.subscribed()
            yield bench
        finally:
            bench.kill()
            feeder.close()


def test_it_is_short() -> None:
    text = CONSUMER.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text), clean=False)
    assert docstring is not None
    lines = text.replace(docstring, "").splitlines()
    code = [
        line for line in lines if line.strip() and not line.strip().startswith(("#", "import", "from", '"""'))
    ]
    assert len(code) < 60


def test_killed_in_the_middle_it_loses_and_doubles_nothing(bench: Bench) -> None:
    batches, killed_at = 600, []
    for seq in range(1, batches + 1):
        kind = "backfill" if seq % 3 == 0 else "data"
        data = payload.encode(counted(seq))
        bench.feeder.send(TOPICS.of(kind, "press1"), payload.compressed(data) if kind == "backfill" else data)
        if seq % 200 == 100:  # in the middle of its work, and left dead for a while
            bench.wait("SELECT count(*) FROM batch", lambda n, seq=seq: n > seq - 100)
            bench.kill()
            killed_at.append(bench.ask("SELECT count(*) FROM batch")[0][0])
        elif seq % 200 == 150:
            bench.start()
    bench.wait("SELECT count(*) FROM batch", lambda n: n == batches)
    values = [int(v) for (v,) in bench.ask("SELECT v FROM reading WHERE tag = 'count' ORDER BY seq, n")]
    assert len(killed_at) == 3 and values == list(range(10, 10 * (batches + 1)))
    assert bench.ask("SELECT * FROM missing") == []


def test_parts_make_a_batch_and_nulls_keep_their_quality(bench: Bench) -> None:
    tags = tuple(f"tag{i}" for i in range(40))
    row = Row("press1", tags, 1.0, [float(i) for i in range(40)], None)
    parts = payload.split(body(1, [row, dataclasses.replace(row, t=2.0)]), 400)
    assert len(parts) > 2
    for part, data in list(enumerate(parts, 1))[1:]:
        bench.feeder.send(TOPICS.of("data", "press1", part), data)
    faulty = bytes([Quality.GOOD, Quality.TIMEOUT, Quality.UNCERTAIN, Quality.GOOD, Quality.GOOD])
    values: list[Any] = [2**60, None, 401.5, "run", True]
    bench.feeder.send(
        TOPICS.of("data", "press1"),
        payload.encode(body(2, [Row("press1", ("big", "lost", "hot", "text", "on"), 2.0, values, faulty)])),
    )
    bench.wait("SELECT max(seq) FROM batch", lambda n: n == 2)
    assert bench.ask("SELECT first, last FROM missing") == [(1, 1)]  # a part of it is still to come
    bench.feeder.send(TOPICS.of("data", "press1"), parts[0])
    bench.wait("SELECT count(*) FROM missing", lambda n: n == 0)
    assert bench.ask("SELECT count(*), sum(v) FROM reading WHERE seq = 1") == [(80, 2.0 * sum(range(40)))]
    assert bench.ask("SELECT tag, v, s, q FROM reading WHERE seq = 2 ORDER BY tag") == [
        ("big", None, str(2**60), "good"),
        ("hot", 401.5, None, "uncertain"),
        ("lost", None, None, "timeout"),
        ("on", 1.0, None, "good"),
        ("text", None, "run", "good"),
    ]


def test_the_same_batch_again_changes_nothing(bench: Bench) -> None:
    """However it was split: whole by data, in parts by backfill to a broker that takes less at once."""
    tags = tuple(f"tag{i}" for i in range(40))
    whole = body(1, [Row("press1", tags, 1.0, [float(i) for i in range(40)], None)])
    bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(whole))
    for part, data in enumerate(payload.split(whole, 600), 1):
        bench.feeder.send(TOPICS.of("backfill", "press1", part), data)
    bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(counted(2)))
    bench.wait("SELECT max(seq) FROM batch", lambda n: n == 2)
    assert bench.ask("SELECT count(*) FROM reading WHERE seq = 1") == [(40,)]
    assert bench.ask("SELECT * FROM missing") == []


def test_it_tells_what_is_late_and_what_is_lost(bench: Bench) -> None:
    for seq in (2, 3, 6, 12):
        bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(counted(seq)))
    gap = payload.gap_body(stamp(), 20.0, stream=STREAM, first=3, last=8, reason="outbox full")
    bench.feeder.send(TOPICS.of("gap", "press1"), payload.encode(gap))
    bench.wait("SELECT count(*) FROM gap", lambda n: n == 1)
    assert bench.ask("SELECT first, last FROM missing ORDER BY first") == [(1, 1), (4, 5), (7, 11)]
    assert bench.ask("SELECT first, last, reason FROM lost ORDER BY first") == [
        (4, 5, "outbox full"),
        (7, 8, "outbox full"),
    ]


def test_an_offline_of_another_boot_says_nothing(bench: Bench) -> None:
    def send(boot: str, status: Any) -> None:
        state = payload.state_body(stamp(boot), 1.0, status=status, since=START, version="1", backlog={})
        bench.feeder.send(TOPICS.state, payload.encode(state), retain=True)

    send("00000001", "online")
    send("00000002", "online")
    send("00000001", "offline")  # the will of a connection that the broker gave up only now
    bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(counted(1)))
    bench.wait("SELECT count(*) FROM batch", lambda n: n == 1)
    assert bench.ask("SELECT gateway, boot, status FROM gateway") == [("line4", "00000002", "online")]
    send("00000002", "offline")
    bench.wait("SELECT status FROM gateway", lambda status: status == "offline")


def test_what_is_no_such_message_is_named_and_left_out(bench: Bench) -> None:
    for data in (
        b"",
        b"[1]",
        b"{",
        b"\x78nonsense",
        b"\xff",
        b'{"stream": "0badcafe", "seq": 1, "groups": 5}',
    ):
        bench.feeder.send(TOPICS.of("data", "press1"), data)
    bench.feeder.send(TOPICS.base + "/data/", payload.encode(counted(1)))
    bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(counted(1)))
    bench.wait("SELECT count(*) FROM batch WHERE device = 'press1'", lambda n: n == 1)
    assert bench.log().count("left out") == 6


def test_a_queue_that_ran_over_is_seen_and_what_comes_again_closes_it(tmp_path: Path) -> None:
    """mosquitto's default of 1,000 messages, in small: what is over is dropped, and nobody tells the publisher."""
    with Mosquitto(tmp_path, config_lines=["max_queued_messages 30", "max_inflight_messages 20"]) as broker:
        feeder, bench = Feeder(broker.port), None
        try:
            bench = Bench(broker, feeder, tmp_path / "readings.db")
            bench.start()
            bench.subscribed()
            bench.kill()
            for seq in range(1, 101):
                bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(counted(seq)))
            bench.start()
            bench.wait("SELECT max(seq) FROM batch", lambda n: n and n >= 20)
            bench.feeder.send(TOPICS.of("data", "press1"), payload.encode(counted(101)))
            bench.wait("SELECT max(seq) FROM batch", lambda n: n == 101)
            ((first, last),) = bench.ask("SELECT first, last FROM missing")
            assert 30 < first <= 60 and last == 100
            assert bench.ask("SELECT * FROM lost") == []  # the gateway knows nothing of it
            for seq in range(first, last + 1):
                bench.feeder.send(TOPICS.of("backfill", "press1"), payload.encode(counted(seq)))
                bench.wait(
                    "SELECT count(*) FROM batch", lambda n, seq=seq: n >= seq - 10
                )  # or it runs over again
            bench.wait("SELECT count(*) FROM missing", lambda n: n == 0)
            assert bench.ask("SELECT count(*) FROM reading") == [(1010,)]
        finally:
            if bench is not None:
                bench.kill()
            feeder.close()

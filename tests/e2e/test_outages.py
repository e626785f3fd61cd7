"""The daemon as a process, against a PLC process and a real mosquitto, each killed in turn."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.cloud.schema import mqtt_schemas
from agent.cloud.watch import Received, Subscriber, View
from tests.brokers import Mosquitto
from tests.plc import Plc
from tests.ports import free_port

pytestmark = pytest.mark.process
BACK_WITHIN = 5.0
STARTED_WITHIN = 60.0

CONFIG = """
gateway: line7
state_dir: {folder}/state
mqtt: {{url: "mqtt://127.0.0.1:{broker}", batch: 200ms, twin_every: 200ms, outbox: {{batch: 1s}}}}
page: {{listen: "127.0.0.1:{page}"}}
commands: {{enabled: true}}
devices:
  plc:
    url: tcp://127.0.0.1:{plc}
    every: 100ms
    timeout: 300ms
    tags:
      epoch: {{holding: 0}}
      served: {{holding: 1, type: uint32}}
      word: {{holding: 3}}
      target: {{holding: 4, write: {{range: [0, 500]}}}}
"""


class Central:
    """A subscriber that keeps everything, and holds every body to its schema."""

    def __init__(self, url: str) -> None:
        self.subscriber = Subscriber(url)
        self.view = View()
        self.messages: list[Received] = []
        self._schemas = mqtt_schemas()

    def listen(self, seconds: float = 0.05) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for message in self.subscriber.messages(timeout=min(left, 0.05)):
                self.messages.append(message)
                self.view.take(message)
                if message.body is not None and message.kind != "cmd":
                    kind = "desired_ack" if message.topic.endswith("/desired/ack") else message.kind
                    jsonschema.validate(message.body, self._schemas[kind])

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Listens until the condition holds; returns how long it took."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
            self.listen()
        return time.monotonic() - start

    def reported(self, tag: str) -> dict[str, Any]:
        twin = self.view.twins.get(("line7", "plc"))
        return {} if twin is None else twin["reported"][tag]

    def readings(self) -> Iterator[tuple[int, Any, Any, bool]]:
        """(t, epoch, served, good) of every row of data and backfill, each batch once."""
        seen = set()
        for message in self.messages:
            body = message.body
            if message.kind not in ("data", "backfill") or body is None or body["seq"] in seen:
                continue
            seen.add(body["seq"])
            for group in body["groups"]:
                bad = {index for marks in group["q"].values() for index, _ in marks}
                columns = zip(group["t"], group["c"]["epoch"], group["c"]["served"])
                yield from ((*row, index not in bad) for index, row in enumerate(columns))


class Daemon:
    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config = folder, config
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", str(self.config)], stderr=log, stdout=log
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout=30)
        self.process = None
        return status

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "agent", *words], capture_output=True, text=True, timeout=60
        )

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text()


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[tuple[Plc, Mosquitto, Daemon, Central]]:
    plc = Plc(free_port(), tmp_path / "journal")
    broker = Mosquitto(tmp_path)
    broker.start()
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(folder=tmp_path, broker=broker.port, page=free_port(), plc=plc.port))
    daemon = Daemon(tmp_path, config)
    plc.start()
    daemon.start()
    central = Central(broker.url)
    try:
        central.until(
            lambda: central.reported("epoch").get("q") == "good", STARTED_WITHIN, "a first good value"
        )
        yield plc, broker, daemon, central
    finally:
        central.subscriber.close()
        if daemon.process is not None:
            daemon.end(signal.SIGKILL)
        plc.kill()
        broker.stop()


def test_a_reading_leaves_as_its_scan_ends(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    """Where a batch covers one scan, its age alone would let it leave when the next scan is due, a second later."""
    _, _, daemon, central = plant
    assert daemon.process is not None
    slow = daemon.config.read_text().replace("batch: 200ms", "batch: 1s").replace("every: 100ms", "every: 1s")
    daemon.config.write_text(slow)
    os.kill(daemon.process.pid, signal.SIGHUP)
    central.listen(3.0)
    before = len(central.messages)
    central.listen(6.0)
    bodies = [message.body for message in central.messages[before:] if message.kind == "data"]
    ages = [
        body["ts"] - min(group["t"][0] for group in body["groups"]) for body in bodies if body is not None
    ]
    assert 5 <= len(ages) <= 8
    assert statistics.median(ages) < 500  # of a batch's oldest reading as it is made, ms


def test_plc_killed_and_back(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    plc, _, _, central = plant
    central.listen(1.0)
    plc.kill()
    down = time.time() * 1000
    central.until(
        lambda: central.reported("epoch")["q"] in ("link", "timeout"), BACK_WITHIN, "a quality of the outage"
    )
    assert central.reported("epoch")["v"] is None
    central.listen(3.0)
    up = time.time() * 1000
    plc.start()
    took = central.until(
        lambda: central.reported("epoch")["q"] == "good" and central.reported("epoch")["v"] == 2,
        BACK_WITHIN,
        "the value of the restarted PLC",
    )
    print(f"PLC back: good and right {took:.2f} s after its return")
    central.listen(1.0)
    rows = list(central.readings())
    assert [row for row in rows if down < row[0] < up and row[3]] == []
    assert all(row[1] is None and row[2] is None for row in rows if not row[3])
    assert any(row[3] and row[1] == 2 for row in rows)
    assert central.reported("word") == central.reported("word") | {"v": 3, "q": "good"}
    assert central.view.books.lost() == 0


def test_broker_killed_and_back(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    plc, broker, daemon, central = plant
    central.listen(1.0)
    broker.kill()
    before = len(plc.served())
    time.sleep(8.0)  # long enough for the outbox to go to disk
    during = len(plc.served()) - before
    assert during > 60, "polling must not stop for a broker"
    broker.start()
    outage = set(plc.served()[: before + during])
    took = central.until(
        lambda: outage <= {row[2] for row in central.readings()},
        BACK_WITHIN + 5.0,
        "everything of the outage",
    )
    print(f"broker back: everything of the outage here {took:.2f} s after its return")
    central.listen(1.0)
    assert daemon.end() == 0
    central.listen(1.5)
    received = [row[2] for row in central.readings() if row[3]]
    served = plc.served()
    print(f"broker back: {len(served)} served, {len(set(served) - set(received))} lost")
    assert sorted(set(served) - set(received)) == []
    assert len(received) == len(set(received)), "a reading under two numbers"
    assert central.view.books.lost() == 0
    assert central.view.states["line7"]["status"] == "offline"


def test_daemon_killed_names_what_is_lost(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    plc, _, daemon, central = plant
    central.listen(1.0)
    daemon.end(signal.SIGKILL)
    central.listen(0.5)
    assert central.view.states["line7"]["status"] == "offline", "the last will"
    daemon.start()
    central.until(
        lambda: central.view.states["line7"]["status"] == "online" and central.view.books.lost() == 0,
        STARTED_WITHIN,
        "online again with every hole named",
    )
    central.listen(1.0)
    received = {row[2] for row in central.readings() if row[3]}
    lost = set(plc.served()) - received
    print(f"killed: {len(lost)} of {len(plc.served())} readings lost")
    assert len(lost) < 20  # one open batch of 200 ms, and what was under way


def test_commands_through_every_door(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    _, _, daemon, central = plant
    config = str(daemon.config)
    status = json.loads(daemon.command("status", config, "--json").stdout)
    assert status["healthy"] and status["gateway"] == "line7"
    read = json.loads(daemon.command("read", config, "plc", "--json").stdout)
    assert read["devices"]["plc"]["tags"]["word"] == read["devices"]["plc"]["tags"]["word"] | {
        "raw": ["0x0003"],
        "v": 3,
        "q": "good",
    }
    written = daemon.command("write", config, "plc/target", "123", "--yes")
    assert (written.returncode, written.stdout.strip()) == (0, "plc/target = 123, read back 123")
    refused = daemon.command("write", config, "plc/target", "501", "--yes")
    assert refused.returncode == 1
    assert "501 is out of range; allowed are values from 0 to 500" in refused.stderr
    now = round(time.time() * 1000)
    for number, (value, ok) in enumerate(((7, True), (9999, False))):
        body = {
            "id": f"c{number}",
            "ts": now,
            "exp": now + 30_000,
            "tag": "plc/target",
            "value": value,
            "by": "test",
        }
        central.subscriber.publish("edgetwin/v1/line7/cmd/write", body)
        topic = f"edgetwin/v1/line7/resp/c{number}"
        central.until(lambda topic=topic: any(one.topic == topic for one in central.messages), 10, topic)
        [answer] = [one.body for one in central.messages if one.topic == topic]
        assert answer is not None and answer["ok"] is ok, answer
    central.subscriber.publish(
        "edgetwin/v1/line7/desired",
        {"ver": 1, "set": {"plc/target": 77, "plc/word": 1}, "by": "test"},
        retain=True,
    )
    central.until(
        lambda: any(one.topic.endswith("/desired/ack") for one in central.messages), 10, "an acknowledgement"
    )
    [ack] = [one.body for one in central.messages if one.topic.endswith("/desired/ack")]
    assert ack is not None and ack["applied"] == ["plc/target"] and "plc/word" in ack["rejected"]
    central.until(lambda: central.reported("target")["v"] == 77, 10, "the twin shows it")


def test_ends_in_order_and_goes_on(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    _, _, daemon, central = plant
    central.listen(1.0)
    assert daemon.end() == 0
    central.listen(0.5)
    assert central.view.states["line7"]["status"] == "offline"
    assert "Traceback" not in daemon.log()
    assert not any(path.suffix == ".sock" for path in (daemon.folder / "state").iterdir())
    last = max(one.body["seq"] for one in central.messages if one.kind == "data" and one.body)
    daemon.start()
    central.until(lambda: central.view.states["line7"]["status"] == "online", STARTED_WITHIN, "online again")
    central.listen(1.0)
    later = [one.body["seq"] for one in central.messages if one.kind == "data" and one.body]
    assert max(later) > last
    assert central.view.books.lost() == 0 and not any(one.kind == "gap" for one in central.messages)


def test_reload_takes_a_right_configuration_and_refuses_a_wrong_one(
    plant: tuple[Plc, Mosquitto, Daemon, Central],
) -> None:
    _, _, daemon, central = plant
    assert daemon.process is not None
    right = daemon.config.read_text()
    daemon.config.write_text(right.replace("holding: 3}", "holdin: 3}"))
    os.kill(daemon.process.pid, signal.SIGHUP)
    central.listen(1.0)
    assert "holdin" in daemon.log()
    assert central.reported("epoch")["q"] == "good"
    daemon.config.write_text(right.replace("word: {holding: 3}", "word: {holding: 43}"))
    os.kill(daemon.process.pid, signal.SIGHUP)
    central.until(lambda: central.reported("word")["v"] == 43, 20, "the new address")
    assert daemon.process.poll() is None


def test_a_second_agent_with_the_same_state_is_refused(plant: tuple[Plc, Mosquitto, Daemon, Central]) -> None:
    _, _, daemon, central = plant
    second = daemon.command("run", str(daemon.config))
    assert second.returncode == 1
    assert (
        second.stderr.strip()
        .splitlines()[-1]
        .startswith("edgetwin: another agent runs with the state folder")
    )
    central.listen(0.5)
    assert central.reported("epoch")["q"] == "good"


def test_a_secret_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    text = CONFIG.format(folder=tmp_path, broker=1, page=free_port(), plc=1)
    config.write_text(text.replace("{enabled: true}", "{enabled: true, hmac: {env: NOT_SET_ANYWHERE}}"))
    done = Daemon(tmp_path, config).command("run", str(config))
    assert done.returncode == 78
    assert "NOT_SET_ANYWHERE" in done.stderr and "Traceback" not in done.stderr

"""`edgetwin watch`: what a central system sees, and what it says of what is missing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cloud.watch import NoBroker, Received, Subscriber, View, read_message
from agent.config.types import Config
from tests.brokers import Mosquitto, needs_mosquitto
from tests.cloud.harness import BASE, Agent, Ear, as_json, make_config, wait_until
from tests.ports import free_port

HEAD = {"v": 1, "boot": "0badcafe", "ts": 1000}


def message(topic: str, body: Any, *, retained: bool = False) -> Received:
    return read_message(f"{BASE}/{topic}", as_json(body) if body is not None else b"", retained, "edgetwin")


def data(seq: int) -> dict[str, Any]:
    groups = [{"t": [1000], "c": {"temperature": [20.5]}, "q": {}}]
    return HEAD | {"stream": "aaaaaaaa", "seq": seq, "meta": "bbbbbbbb", "groups": groups}


def twin(value: float | None, quality: str = "good", **more: Any) -> dict[str, Any]:
    return (
        HEAD
        | {
            "stream": "aaaaaaaa",
            "seq": 1,
            "meta": "bbbbbbbb",
            "state": "ok",
            "reported": {"temperature": {"v": value, "q": quality, "t": 1000}},
            "health": {"score": 0.97, "tags": {}, "causes": []},
            "loops": {
                "oven": {
                    "mode": "auto",
                    "sp": 180.0,
                    "pv": 179.0,
                    "out": None,
                    "limited": False,
                    "reason": None,
                }
            },
        }
        | more
    )


def state(status: str, boot: str = "0badcafe", batches: int = 0) -> dict[str, Any]:
    backlog = {"batches": batches, "bytes": 0, "oldest": None}
    return HEAD | {
        "boot": boot,
        "status": status,
        "since": 1,
        "version": "1",
        "clock": "ok",
        "backlog": backlog,
    }


def test_each_message_is_judged() -> None:
    view = View()
    assert view.take(message("data/press1", data(4))) is None
    assert view.take(message("data/press1", data(4))) == "doubled"
    assert view.take(message("data/press1", data(3))) == "out of order"
    assert view.take(message("backfill/press1", data(1))) is None
    assert view.missing("line4") == (1, 0)
    gap = HEAD | {"stream": "aaaaaaaa", "from": 1, "to": 2, "reason": "restart"}
    assert view.take(message("gap/press1", gap)) is None
    assert view.missing("line4") == (0, 0)


def test_what_a_gateway_still_holds_back_is_awaited_not_lost() -> None:
    view = View()
    for body in (data(1), data(5)):
        view.take(message("data/press1", body))
    view.take(message("state", state("online", batches=3)))
    assert view.missing("line4") == (0, 3)
    view.take(message("state", state("online")))
    assert view.missing("line4") == (3, 0)


def test_in_a_group_nothing_can_be_missing() -> None:
    view = View(shared=True)
    for body in (data(1), data(5)):
        view.take(message("data/press1", body))
    assert view.missing("line4") == (0, 0)


def test_an_offline_of_another_boot_is_ignored() -> None:
    view = View()
    view.take(message("state", state("online", boot="22222222")))
    view.take(message("state", state("offline", boot="11111111")))
    assert view.states["line4"]["status"] == "online"
    view.take(message("state", state("offline", boot="22222222")))
    assert view.states["line4"]["status"] == "offline"
    view.take(message("state", state("offline", boot="11111111")))
    assert view.states["line4"]["boot"] == "22222222"


def test_the_table_shows_values_ages_loops_and_alarms() -> None:
    view = View()
    tags = {"temperature": {"type": "float32", "unit": "°C"}}
    event = HEAD | {"severity": "alarm", "name": "silent", "state": "raised", "text": "press1 is silent"}
    for topic, body in [
        ("state", state("online")),
        ("meta/press1", HEAD | {"meta": "bbbbbbbb", "tags": tags}),
        ("twin/press1", twin(181.25)),
        ("twin/press2", twin(None, "timeout")),
        ("alarm/press1/silent", event),
        ("event/press1", event),
        ("data/press1", data(1)),
    ]:
        assert view.take(message(topic, body)) is None
    text = "\n".join(view.lines(now_ms=3500))
    assert "line4  online  1 readings, 0 lost, 0 doubled, 0 out of order" in text
    assert "temperature  181.25 °C  2.5 s ago" in text
    assert "temperature  -  [timeout]" in text
    assert "loop oven: auto sp 180 pv 179 out -" in text
    assert "! line4: press1 is silent" in text and "· line4: alarm: press1 is silent" in text
    view.take(message("alarm/press1/silent", None, retained=True))
    view.take(message("twin/press2", None, retained=True))
    text = "\n".join(view.lines())
    assert "!" not in text and "press2" not in text


def test_the_parts_of_a_twin_are_put_together() -> None:
    view = View()
    view.take(message("twin/press1", twin(1.0, part=[1, 2])))
    second = twin(1.0, part=[2, 2]) | {"reported": {"level": {"v": 2.0, "q": "good", "t": 1000}}}
    view.take(message("twin/press1/2", second))
    assert list(view.twins[("line4", "press1")]["reported"]) == ["temperature", "level"]
    view.take(message("twin/press1", twin(3.0)))
    assert list(view.twins[("line4", "press1")]["reported"]) == ["temperature"]


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"[]",
        b"\xff",
        b"\x78\x9cxx",
        b"[" * 100_000,
        b"{}",
        b'{"seq": "x", "stream": 1}',
        b'{"status": 1}',
    ],
)
@pytest.mark.parametrize("kind", ["data", "gap", "state", "twin", "meta", "event", "alarm"])
def test_what_strangers_publish_brings_nothing_down(kind: str, payload: bytes) -> None:
    view = View()
    told = view.take(read_message(f"{BASE}/{kind}/press1", payload, False, "edgetwin"))
    assert told is not None and told.startswith("malformed") and view.faults == 1
    assert isinstance(view.lines(0), list)


def test_why_there_is_no_broker() -> None:
    port = free_port()
    with pytest.raises(NoBroker, match=f"nothing listens on 127.0.0.1:{port}"):
        Subscriber(f"mqtt://127.0.0.1:{port}")
    with pytest.raises(NoBroker, match="begins with mqtt://"):
        Subscriber("http://127.0.0.1")


# -- the command ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(*args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "watch", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def make_agent(broker: Mosquitto, folder: Path) -> Agent:
    config: Config = make_config(broker.url)
    return Agent(config, folder)


@needs_mosquitto
@pytest.mark.process
def test_a_line_of_json_per_message(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(make_agent(mosquitto, tmp_path))
        with Ear(mosquitto.url) as ear:
            ear.wait_for("meta/press1")
        process = stack.enter_context(watching(mosquitto.url, "--json", "--gateway", "line4"))
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["topic"].startswith(BASE) and first["retained"] is True
        agent.read()
        for line in process.stdout:
            told = json.loads(line)
            if told["topic"] == f"{BASE}/data/press1":
                break
        assert told["note"] is None and told["body"]["seq"] == 1
        assert (told["lost"], told["duplicates"], told["out_of_order"]) == (0, 0, 0)
        with Ear(mosquitto.url) as ear:
            ear.say("data/press1", told["body"])
            ear.say("data/press1", told["body"] | {"seq": 5})
        notes = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert notes[0]["note"] == "doubled" and notes[0]["duplicates"] == 1
        assert notes[1]["lost"] == 3


@needs_mosquitto
@pytest.mark.process
def test_the_live_table_without_a_terminal(mosquitto: Mosquitto, tmp_path: Path) -> None:
    with make_agent(mosquitto, tmp_path) as agent:
        agent.wait_online()
        agent.show(181.5)
        with Ear(mosquitto.url) as ear:
            ear.wait_for("twin/press1")
        with watching(mosquitto.url) as process:
            assert process.stdout is not None
            seen: list[str] = []
            wait_until(lambda: _read(process, seen) and any("181.5 °C" in line for line in seen), "the twin")
        assert any(line.startswith("line4  online") for line in seen)
        assert not any("\x1b" in line for line in seen)


def _read(process: subprocess.Popen[str], seen: list[str]) -> bool:
    assert process.stdout is not None
    seen.append(process.stdout.readline())
    return True


@needs_mosquitto
@pytest.mark.process
def test_a_group_shares_the_messages(mosquitto: Mosquitto) -> None:
    with Ear(mosquitto.url, share="central") as one, Ear(mosquitto.url, share="central") as two:
        with Ear(mosquitto.url) as speaker:
            speaker.sync()
            for seq in range(1, 21):
                speaker.say("data/press1", data(seq))
            speaker.wait(lambda: len(speaker.of("data")) == 20, "all of it")
        wait_until(
            lambda: [one.listen(), two.listen()] and len(one.of("data")) + len(two.of("data")) == 20,
            "each once",
        )
        assert one.of("data") and two.of("data")


@pytest.mark.process
@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["mqtt://127.0.0.1:1"], 1, "nothing listens on 127.0.0.1:1"),
        (["http://x"], 1, "begins with mqtt://"),
        (["mqtt://127.0.0.1:1", "--gateway", "#"], 2, "cannot be part of a subscription"),
        (["mqtt://127.0.0.1:99999"], 1, "Port out of range"),
    ],
)
def test_a_wrong_start_is_one_line(args: list[str], status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "watch", *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status
    assert done.stderr.startswith("edgetwin: ") and said in done.stderr and done.stderr.count("\n") == 1

"""`edgetwin try`: one line against a PLC and a broker of its own, and what it says where that cannot work."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.cli import trial
from agent.cli.main import run
from agent.config.load import load
from tests.books import Reader
from tests.brokers import Mosquitto, free_port, needs_mosquitto
from tests.plc import Plc

PATIENCE = 60
TAG = ["--tag", "v: holding 20-29"]


@pytest.fixture
def plc(tmp_path: Path) -> Iterator[Plc]:
    made = Plc(free_port(), tmp_path / "journal")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as made:
        yield made


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent", *words],
        env={**os.environ, "XDG_STATE_HOME": str(folder / "home"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(plc: Plc, broker: Mosquitto, *more: str) -> list[str]:
    where = [
        "try",
        f"tcp://127.0.0.1:{plc.port}",
        "--mqtt",
        broker.url,
        "--gateway",
        "line7",
        "--page",
        "off",
    ]
    return [*where, "--every", "200ms", *more]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@needs_mosquitto
@pytest.mark.process
def test_values_arrive_until_ctrl_c_and_go_on_from_the_saved_file(
    tmp_path: Path, plc: Plc, broker: Mosquitto
) -> None:
    saved = tmp_path / "edgetwin.yaml"
    with Reader(broker.port, identity="v27") as reader:
        process = start(tmp_path, *line(plc, broker, *TAG, "--save", str(saved)))
        reader.until(lambda: len(reader.books.content) > 3, PATIENCE, "four batches")
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
        assert (status, err.count("Traceback")) == (0, 0), err
        reader.until(lambda: reader.books.state.get("status") == "offline", PATIENCE, "offline")
        assert set(reader.books.values()) == {27}
        [(_, stream)] = {key[:2] for key in reader.books.have}
        state = tmp_path / "home" / "edgetwin" / "line7"
        for words in ("edgetwin/v1/line7/data/device", f"state   {state}\n", f"saved   {saved}\n"):
            assert words in out
        assert out.endswith(f"to go on: edgetwin run {saved}\n")

        before = len(reader.books.have)
        process = start(tmp_path, "run", str(saved))
        reader.until(lambda: len(reader.books.have) > before, PATIENCE, "a batch of the saved configuration")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
        assert {key[1] for key in reader.books.have} == {stream}, (
            "it is another stream than that of the trial"
        )


@needs_mosquitto
@pytest.mark.process
def test_the_first_value_waits_for_no_compiler(tmp_path: Path, plc: Plc, broker: Mosquitto) -> None:
    """With an empty cache: `WARM` is written when everything is compiled; a value is there before, or it waited."""
    cache = tmp_path / "cache"
    with Reader(broker.port, identity="v27") as reader:
        process = start(tmp_path, *line(plc, broker, *TAG), CACHE_DIRECTORY=str(cache))
        reader.until(lambda: bool(reader.books.have), PATIENCE, "a batch")
        assert not list(cache.glob("**/WARM"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        [compiler] = children.read_text().split()
        process.send_signal(signal.SIGINT)
        status, _, err = ended(process)
    assert status == 0
    assert "the kernels are being compiled for the next start" in err
    assert not Path("/proc", compiler).exists(), "the compiling process outlives the command"


@needs_mosquitto
@pytest.mark.process
def test_nobody_writes_through_it(tmp_path: Path, plc: Plc, broker: Mosquitto) -> None:
    """A profile of one's own may say `write`; nobody can write all the same, while `run` with the file could."""
    (tmp_path / "own.yaml").write_text("tags: {target: {holding: 5, write: true}}\n")
    words = line(plc, broker, "--profile", str(tmp_path / "own.yaml"), "--state-dir", str(tmp_path / "s"))
    process = start(tmp_path, *words)
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("values are read"):
            break
    config = tmp_path / "s" / "try.yaml"
    done = start(tmp_path, "write", str(config), "device/target", "9", "--yes")
    status, _, err = ended(done)
    assert status == 1 and "target" in err
    process.send_signal(signal.SIGINT)
    status, out, _ = ended(process)
    assert status == 0
    assert out.endswith("to keep it: the same line with --save FILE, then edgetwin run FILE\n")
    loaded = load(config)
    assert loaded.config is not None and loaded.config.devices["device"].tags["target"].write is not None


@needs_mosquitto
@pytest.mark.process
def test_where_no_value_comes_it_says_why_and_ends_by_itself(
    tmp_path: Path, plc: Plc, broker: Mosquitto
) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    words = ["try", url, *TAG, "--mqtt", broker.url, "--gateway", "line7", "--page", "off", "--for", "7s"]
    status, out, _ = ended(start(tmp_path, *words))
    assert status == 0
    assert f"problem {url}: no connection\n" in out and "values are read" not in out


@dataclass
class Service:
    """What is asked of the service: each status once, then the last one again and again; a second passes by each."""

    states: list[tuple[int, int, str, list[str]]]
    clock: Service = field(init=False)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.clock = self

    def mono(self) -> float:
        return self.now

    def status(self) -> dict[str, Any]:
        self.now += 1.0
        read, bad, uplink, problems = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        counts = {"values_read": read, "values_bad": bad}
        return {"counts": counts, "uplink": {"state": uplink}, "problems": problems}


WAITS = [(0, 0, "connecting", ["broker: refused"])] * 10
FINE = (9, 8, "online", ["another"])


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([FINE], ["values are read"]),
        ([(9, 9, "online", []), FINE], ["values are read"]),
        ([*WAITS, FINE], ["problem broker: refused", "values are read"]),
        (
            [*[(9, 0, "connecting", ["broker: refused", "plc: silent"])] * 10, FINE],
            ["problem broker: refused", "problem plc: silent", "values are read"],
        ),
        ([*[(9, 9, "online", [])] * 10, FINE], ["problem no tag has a good value yet", "values are read"]),
    ],
)
def test_the_first_value_or_what_is_in_its_way(
    states: list[tuple[int, int, str, list[str]]],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trial, "LOOK_EVERY", 0.0)
    asyncio.run(trial._tell_first(Service(states)))  # type: ignore[arg-type]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(said) and all(one.startswith(start) for one, start in zip(told, said))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TAG], "--mqtt is missing: give the broker's URL, as --mqtt mqtt://HOST"),
        (["--mqtt", "mqtt://b"], "there is nothing to read; add --tag 'NAME: holding 100 float32'"),
        ([*TAG, "--mqtt", "mqtt://b", "--for", "soon"], '--for: "soon" is no duration; write a number'),
        ([*TAG, "--mqtt", "mqtt://b", "--for", "0"], "--for: 0 is no time to run"),
        ([*TAG, "--mqtt", "mqtt://b", "--unit", "x"], '--unit: "x" is no whole number'),
        (["--tag", "v: holding 1-3 string", "--mqtt", "mqtt://b"], "--tag 'v: holding 1-3 string': a string"),
    ],
)
def test_a_line_that_is_wrong_is_told_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert run(["try", "tcp://10.0.0.5", "--gateway", "line7", "--state-dir", str(state), *words]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"edgetwin: {said}")
    assert not state.exists()


def test_several_things_wrong_are_several_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["try", "tcp:/10.0.0.5", *TAG, "--mqtt", "b", "--state-dir", str(tmp_path), "--gateway", "line7"]
    assert run(words) == 2
    told = capsys.readouterr().err.splitlines()
    assert [one.split(": ")[1] for one in told] == ["--mqtt", "tcp:/10.0.0.5"]


@pytest.mark.parametrize("name", ["localhost.localdomain", "raspberrypi", "my_machine!"])
def test_a_machine_whose_name_does_not_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    words = ["try", "tcp://10.0.0.5", *TAG, "--mqtt", "mqtt://b", "--state-dir", str(tmp_path)]
    assert run(words) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith("edgetwin: this machine's name does not do: ")
    assert told.endswith("; name the gateway by --gateway NAME")


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "mine.yaml"
    saved.write_text("mine")
    state = tmp_path / "state"
    words = ["try", "tcp://10.0.0.5", *TAG, "--mqtt", "mqtt://b", "--gateway", "line7"]
    assert run([*words, "--state-dir", str(state), "--save", str(saved)]) == 1
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"edgetwin: --save {saved}: the file is there already, and is never overwritten")
    assert saved.read_text() == "mine" and not state.exists()


def test_a_password_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, none = tmp_path / "saved.yaml", tmp_path / "none"
    words = ["try", "tcp://10.0.0.5", *TAG, "--mqtt", "mqtt://b", "--gateway", "line7", "--save", str(saved)]
    words += ["--username", "me", "--password-file", str(none), "--state-dir", str(tmp_path / "state")]
    assert run(words) == 1
    [told] = capsys.readouterr().err.splitlines()
    assert told == f"edgetwin: --password-file: the file {none} cannot be read: No such file or directory"
    assert not saved.exists()


def test_a_state_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["try", "tcp://10.0.0.5", *TAG, "--mqtt", "mqtt://b", "--gateway", "line7"]
    assert run([*words, "--state-dir", str(tmp_path / "file" / "state")]) == 1
    [told] = capsys.readouterr().err.splitlines()
    assert told.endswith("; give another one by --state-dir")

"""`edgetwin status` against a served socket: exit status, text, JSON, and which agent it asks."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import status
from agent.cli.main import run
from agent.config import paths
from agent.twin.records import Outcome
from tests.page.harness import CONFIG, plant
from tests.runtime.test_socket import Daemon, daemon

STATUS = plant().status()


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent of this machine is asked."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setattr(paths, "RUNTIME_FOLDER", tmp_path / "run")
    monkeypatch.setattr(paths, "DEFAULT_STATE", tmp_path / "lib")
    monkeypatch.setattr(status, "DEFAULT", str(tmp_path / "etc.yaml"))
    for name in ("run", "lib", "state"):
        (tmp_path / name).mkdir()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"state_dir: {tmp_path / 'state'}\n{CONFIG}")
    return path


@pytest.fixture
def agent(tmp_path: Path, config: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", str(config)) as running:
        running.outcome = Outcome(True, result=copy.deepcopy(STATUS))
        yield running


def result_of(agent: Daemon) -> dict[str, Any]:
    assert isinstance(agent.outcome.result, dict)
    return agent.outcome.result


def test_healthy_is_0_and_one_screen(agent: Daemon, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "line4  healthy  edgetwin 0.1.0  kernels numba  clock ok"
    assert lines[1].startswith("broker  online (MQTT 5), 2 unacknowledged; outbox 0 batches")
    assert "tcp://10.0.0.5:502  up, 120450 requests, 3 timeout, p50 3.1 ms, 23 % busy" in lines
    assert "  pump2  ok" in lines
    assert "loop oven  auto  sp 180  pv 181.4  out 41.5" in lines
    assert len(lines) < 25


def test_a_dead_plc_is_a_problem_that_is_listed(
    agent: Daemon, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of(agent)
    result["problems"] = ["pump2: silent"]
    result["lines"]["tcp://10.0.0.5:502"]["devices"]["pump2"] = {
        "state": "silent",
        "retry_s": 41.5,
        "learnt": ["limits: {registers: 60}"],
    }
    assert run(["status", str(config)]) == 0
    text = capsys.readouterr().out
    assert "problem  pump2: silent\n" in text
    assert "  pump2  silent, next try in 41.5 s\n    learnt: limits: {registers: 60}\n" in text


def test_not_healthy_is_1(agent: Daemon, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result_of(agent)["healthy"] = False
    assert run(["status", str(config)]) == 1
    assert "NOT HEALTHY" in capsys.readouterr().out


def test_json_is_what_the_agent_said(agent: Daemon, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_not_running_is_1_and_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(config)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"edgetwin: no agent with {config} answers on ") and err.count("\n") == 1


def test_a_user_without_the_right_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").chmod(0)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        assert run(["status"]) == 1
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "run").chmod(0o700)
    err = capsys.readouterr().err
    assert "may not ask the agent on" in err and "group edgetwin" in err and err.count("\n") == 1


def test_an_agent_that_refuses_is_1(agent: Daemon, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent.outcome = Outcome(False, error="the agent is stopping")
    assert run(["status", str(config)]) == 1
    assert capsys.readouterr().err == "edgetwin: the agent is stopping\n"


@pytest.mark.parametrize("wrong", ["nonsense: 1\n", "devices: [\n", "\tx\n"])
def test_a_file_that_is_wrong_by_now_is_no_obstacle(
    agent: Daemon, config: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a reload that failed, `status` is where one sees why."""
    config.write_text(config.read_text() + wrong)
    result_of(agent)["problems"] = ["configuration not taken: config.yaml:40:1: nonsense"]
    assert run(["status", str(config)]) == 0
    assert "configuration not taken" in capsys.readouterr().out


def test_another_agent_does_not_answer_for_this_one(
    agent: Daemon, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with daemon(tmp_path / "run", "other.yaml") as other:
        other.outcome = Outcome(False, error="the other one")
        assert run(["status", str(config)]) == 0
    assert "line4" in capsys.readouterr().out


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(tmp_path / "none.yaml")]) == 78
    assert capsys.readouterr().err == f"edgetwin: {tmp_path}/none.yaml: there is no such file\n"


@pytest.mark.parametrize("where", ["run", "lib", "runtime"])
def test_without_a_configuration_the_usual_places_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "runtime"))
    with daemon(tmp_path / where, "anything.yaml") as running:
        running.outcome = Outcome(True, result=STATUS)
        assert run(["status"]) == 0
    assert capsys.readouterr().out.startswith("line4  healthy")


def test_watch_goes_on_while_nobody_answers(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = iter(range(3))

    def sleep(_: float) -> None:
        if next(waits, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    assert run(["status", str(config), "--watch"]) == 130
    assert capsys.readouterr().out.count("no agent") == 4

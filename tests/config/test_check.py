"""`edgetwin check` as a person, a script and a unit file see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.cli.main import run

GOOD = "gateway: line4\ndevices: {d: {url: tcp://127.0.0.1:5020, tags: {a: {holding: 1}, b: {holding: 3}}}}\n"

SHAPE = {
    "type": "object",
    "required": ["v", "ok", "problems"],
    "properties": {
        "v": {"const": 1},
        "ok": {"type": "boolean"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["severity", "file", "line", "column", "path", "what", "hint"],
                "properties": {
                    "severity": {"enum": ["error", "warning"]},
                    "line": {"type": "integer", "minimum": 1},
                    "column": {"type": "integer", "minimum": 1},
                    "hint": {"type": ["string", "null"]},
                },
            },
        },
    },
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda text: Path("config.yaml").write_text(text, encoding="utf-8")


def checked(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    status = run(["check", "config.yaml", *options])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_good_one(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD)
    assert checked(capsys) == (0, "config.yaml: fine: 1 device, 2 tags, 0 loops\n", "")


def test_errors_exit_78_on_stderr(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD + "page: {lisen: x}\nlog: {level: loud}\n")
    status, out, err = checked(capsys)
    assert (status, out) == (78, "")
    assert err.splitlines() == [
        "config.yaml:3:8: page.lisen: this key is not known here; did you mean listen?",
        'config.yaml:4:14: log.level: "loud" is not known here; write error, warning, info or debug',
    ]


def test_warnings_alone_exit_0(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD + "mqtt: {username: u, password: p}\n")
    status, out, err = checked(capsys)
    assert status == 0
    assert "warning: mqtt.password" in err
    assert "fine" in out


def test_what_run_refuses_is_a_warning_here(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD.replace("line4", "localhost") + "mqtt: {sparkplug: true}\n")
    status, _, err = checked(capsys)
    assert status == 0
    assert err.count("(run refuses it)") == 2
    assert err.count("warning:") == 2


def test_missing_file(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(capsys) == (78, "", "config.yaml:1:1: there is no such file; name one that is there\n")


def test_json(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD + "page: {lisen: x}\n")
    status, out, err = checked(capsys, "--json")
    body = json.loads(out)
    jsonschema.validate(body, SHAPE)
    assert (status, err, body["ok"]) == (78, "", False)
    assert body["problems"] == [
        {
            "severity": "error", "file": "config.yaml", "line": 3, "column": 8, "path": "page.lisen",
            "what": "this key is not known here", "hint": "did you mean listen?",
        }
    ]  # fmt: skip


def test_plan(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD)
    status, out, err = checked(capsys, "--plan", "--json")
    body = json.loads(out)
    jsonschema.validate(body, SHAPE)
    assert (status, err, body["ok"], body["problems"]) == (0, "", True, [])
    assert body["plan"]["d"]["requests"] == [
        {"table": "holding", "address": 1, "count": 3, "wanted": 2, "every": "1s"}
    ]
    assert body["plan"]["d"]["period_ms"] == 1000
    assert 0 < body["plan"]["d"]["cycle_ms"] < 1000
    status, out, _ = checked(capsys, "--plan")
    assert status == 0
    assert "holding 1-3" in out


def test_a_line_that_cannot_keep_its_periods_is_warned_about(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write('devices:\n  d: {url: "rtu:///dev/ttyS0?baud=1200", every: 50ms, tags: {a: {holding: 1}}}\n')
    status, _, err = checked(capsys)
    assert status == 0
    assert "config.yaml:2:3: warning: devices.d: the periods on rtu:///dev/ttyS0" in err


FOREIGN = ("numba", "llvmlite", "numpy", "paho", "pymodbus", "serial", "asyncio", "socket")


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(GOOD)
    code = (
        "import sys\nfrom agent.cli.main import run\n"
        f"status = run(['check', {str(config)!r}, '--plan'])\n"
        f"print([name for name in {FOREIGN!r} if name in sys.modules])\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_thousand_tags_take_under_300_ms(tmp_path: Path) -> None:
    """Of processor time, the whole process: on a machine where others run, the clock on the wall says little."""
    tags = "".join(
        f"      t{k}: {{holding: {2 * k}, type: float32, unit: °C, range: [-40, 400], every: 1s}}\n"
        for k in range(1000)
    )
    config = tmp_path / "config.yaml"
    config.write_text(f"gateway: line4\ndevices:\n  d:\n    url: tcp://127.0.0.1:5020\n    tags:\n{tags}")
    best = float("inf")
    for _ in range(8):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "agent", "check", str(config)], capture_output=True, text=True
        )
        after = os.times()
        assert (done.returncode, done.stderr) == (0, "")
        best = min(
            best, after.children_user + after.children_system - before.children_user - before.children_system
        )
        if best < 0.3:
            break
    assert best < 0.3

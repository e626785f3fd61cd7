"""The demo as a user starts it: a process, its summary, its ports, its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_ports

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]
COMMAND = [sys.executable, "-m", "agent", "demo"]


def children_of(folder: str) -> list[str]:
    """Command lines of the processes that belong to a demo with this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            found.append(line)
    return found


def test_summary_is_true() -> None:
    started = time.monotonic()
    done = subprocess.run([*COMMAND, "--for", "20s"], capture_output=True, text=True, timeout=120)
    took = time.monotonic() - started
    body = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"demo --for 20s: {took:.1f} s, skill {body['forecast_skill']:.3f}, settled in {body['settling_s']} s"
    )
    assert body["failed"] == [] and body["ok"] is True, body
    assert done.returncode == 0
    assert done.stderr == ""
    assert body["forecast_skill"] >= 0.05
    assert (body["lost"], body["duplicates"], body["values_bad"]) == (0, 0, 0)
    assert body["loop_settled"] is True
    assert body["readings_received"] >= body["values_read"]  # which is asked for just before the end
    assert set(body) == {
        "v", "ok", "failed", "seconds", "values_read", "values_bad", "forecasts", "forecast_skill", "coverage",
        "loop_settled", "settling_s", "messages_received", "readings_received", "lost", "duplicates", "out_of_order",
    }  # fmt: skip
    assert "live" not in done.stdout and re.search(r"vessel +1\d\d\.\d °C", done.stdout)


def test_ctrl_c_ends_everything_and_the_page_is_there() -> None:
    first = free_ports(4)
    process = subprocess.Popen(
        [*COMMAND, "--port", str(first)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        lines = []
        while not any("vessel 1" in line for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        assert f"tcp://127.0.0.1:{first} " in lines[0]
        [path] = re.findall(r"agent +(\S+)/demo\.yaml", "".join(lines))
        with urllib.request.urlopen(f"http://127.0.0.1:{first + 3}/api/twin", timeout=5) as answer:
            twin = json.load(answer)
        assert twin["devices"]["vessel"]["reported"]["temperature"]["q"] == "good"
        assert len(children_of(path)) >= 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
    assert children_of(path) == []
    assert not Path(path).exists()
    for port in range(first, first + 4):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"{port} still listens"


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--for", "5s"], 2, "the demo needs 20s at least"),
        (["--for", "soon"], 2, "--for soon"),
        (["--port", "70000"], 2, "give a port from 1 to 65532"),
    ],
)
def test_wrong_arguments(args: list[str], status: int, words: str) -> None:
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("which", [0, 1])  # the plant's, the broker's
def test_a_taken_port_is_told_in_one_line(which: int) -> None:
    first = free_ports(4)
    with socket.create_server(("127.0.0.1", first + which)):
        done = subprocess.run([*COMMAND, "--port", str(first)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("edgetwin: "), done.stderr

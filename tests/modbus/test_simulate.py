"""The command `simulate`: which port serves which url, a process that serves until it is ended, refusals in words."""

from __future__ import annotations

import dataclasses
import json
import signal as signals
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config.types import Tag
from agent.modbus.simulated import ports, redirect
from tests.modbus.test_simulator import EXAMPLE, HERE, ROOT, THERE, bench, device
from tests.ports import free_ports


def test_each_url_has_its_port_in_the_order_of_the_file() -> None:
    devices = (
        device(Tag("a", "holding", 0)),
        device(Tag("a", "holding", 0), name="e", url=THERE),
        device(Tag("a", "holding", 0), name="f", unit=2),
    )
    config = bench(*devices).config
    assert ports(config, 7000) == {HERE.text: 7000, THERE.text: 7001}
    moved = redirect(config, 7000)
    assert [(one.url.scheme, one.url.text) for one in moved.devices.values()] == [
        ("tcp", "tcp://127.0.0.1:7000"),
        ("tcp", "tcp://127.0.0.1:7001"),
        ("tcp", "tcp://127.0.0.1:7000"),
    ]
    for name, one in config.devices.items():
        assert dataclasses.replace(moved.devices[name], url=one.url) == one


def edgetwin(*words: str) -> list[str]:
    return [sys.executable, "-m", "agent", *words]


@pytest.mark.process
def test_simulate_serves_until_it_is_told_to_end() -> None:
    first = free_ports(2)
    server = subprocess.Popen(
        edgetwin("simulate", str(EXAMPLE), "--port", str(first)),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"127.0.0.1:{first}  tcp://127.0.0.1:5020  unit 1 (press1)\n"
        assert server.stdout.readline() == f"127.0.0.1:{first + 1}  tcp://127.0.0.1:5021  unit 2 (meter)\n"
        read = subprocess.run(
            edgetwin("read", str(EXAMPLE), "--json", "--simulated", str(first)),
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        body = json.loads(read.stdout)
        assert read.returncode == 0, read.stderr
        assert {tag["q"] for one in body["devices"].values() for tag in one["tags"].values()} == {"good"}
        second = subprocess.run(
            edgetwin("simulate", str(EXAMPLE), "--port", str(first)),
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1 and f"port {first} cannot be used" in second.stderr
        server.send_signal(signals.SIGTERM)
        assert server.wait(30) == 0
        assert server.stderr is not None and server.stderr.read() == ""
    finally:
        server.kill()
        server.wait()


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "words", "status", "says"),
    [
        ("devices: {d: {url: 'tcp://127.0.0.1:1', tags: {a: {holdin: 1}}}}", (), 78, "holdin"),
        ("devices: {d: {url: 'tcp://127.0.0.1:1', tags: {a: {holding: 1}}}}", ("--port", "0"), 2, "from 1 to 65535"),
    ],
)  # fmt: skip
def test_simulate_refuses_in_plain_words(
    tmp_path: Path, body: str, words: tuple[str, ...], status: int, says: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(body)
    run = subprocess.run(
        edgetwin("simulate", str(path), *words), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == status
    assert says in run.stderr and "Traceback" not in run.stderr

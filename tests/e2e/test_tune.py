"""Tests of a loop by `tune` through a real daemon, on the demo's vessel: the model found, the output brought back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.demo_vessel import DemoVessel
from tests.ports import free_port

pytestmark = pytest.mark.process
GAIN, TIME_CONSTANT = 1.8, 1.2
HEATER = 40.0
PATIENCE = 60.0

LOOP = """\
    mode: manual
    trip: [0, 120]
"""


class Site(DemoVessel):
    """The plant, the agent, and the command line."""

    def __init__(self, folder: Path) -> None:
        mqtt = f'{{url: "mqtt://127.0.0.1:{free_port()}"}}'
        super().__init__(folder, gateway="line7", mqtt=mqtt, more=LOOP)

    def command(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "agent", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def done(self, *words: str) -> tuple[int, str, str]:
        process = self.command(*words)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def loop(self) -> dict[str, Any]:
        status, out, _ = self.done("status", str(self.config), "--json")
        found: dict[str, Any] = json.loads(out)["loops"]["heat"] if status in (0, 1) and out else {}
        return found

    def until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition(self.loop()):
            assert time.monotonic() < end, f"{what}: {self.loop()}"
            time.sleep(0.2)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    one = Site(tmp_path)
    try:
        one.until(lambda loop: loop.get("out") is not None, "the agent reads the heater")
        assert one.done("write", str(one.config), "vessel/heater", str(HEATER), "--yes")[0] == 0
        one.until(lambda loop: loop["pv"] is not None and loop["pv"] > 85, "the vessel is warm")
        yield one
    finally:
        one.end()


def test_a_random_test_finds_the_vessel(site: Site, tmp_path: Path) -> None:
    record = tmp_path / "record.csv"
    words = [
        "--prbs",
        "--max-move",
        "8",
        "--for",
        "25s",
        "--yes",
        "--json",
        "--write",
        "--record",
        str(record),
    ]
    status, out, err = site.done("tune", str(site.config), "heat", *words)
    assert status == 0, err + out
    found = json.loads(out)
    assert found["model"]["grade"] in ("good", "fair")
    assert found["model"]["k"] == pytest.approx(GAIN, rel=0.15)
    assert found["model"]["t1"] + found["model"]["t2"] == pytest.approx(TIME_CONSTANT, rel=0.3)
    assert site.loop()["out"] == HEATER and site.loop()["mode"] == "manual"
    assert "grade: " in site.config.read_text()
    again = json.loads(site.done("tune", str(site.config), "heat", str(record), "--json")[1])
    assert again["model"]["k"] == pytest.approx(found["model"]["k"], rel=0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_output_comes_back_when_the_client_ends(number: signal.Signals, site: Site) -> None:
    client = site.command(
        "tune", str(site.config), "heat", "--step", "--max-move", "10", "--for", "60s", "--yes"
    )
    site.until(lambda loop: loop["out"] == HEATER + 10, "the output moves")
    client.send_signal(number)
    _, err = client.communicate(timeout=PATIENCE)
    if number is signal.SIGINT:
        assert client.returncode == 128 + signal.SIGINT
        assert f"the output is back at {HEATER:g}" in err
        assert site.loop()["out"] == HEATER
    else:
        site.until(lambda loop: loop["out"] == HEATER, "the output is back")
        site.until(lambda loop: loop["reason"] is None, "the test is over")


def test_a_trip_ends_it(site: Site) -> None:
    status, _, err = site.done(
        "tune", str(site.config), "heat", "--step", "--max-move", "40", "--for", "60s", "--yes"
    )
    assert status == 1
    assert "PV trip" in err and f"back at {HEATER:g}" in err
    assert site.loop()["out"] == HEATER


def test_without_a_daemon_or_a_yes_nothing_is_moved(site: Site, tmp_path: Path) -> None:
    words = ("heat", "--relay", "--max-move", "5")
    status, out, err = site.done("tune", str(site.config), *words)
    assert status == 2 and "--yes" in err
    assert "vessel/heater is at 40" in out and "within 35 to 45" in out
    assert site.loop()["out"] == HEATER
    other = tmp_path / "other.yaml"
    other.write_text(site.config.read_text())
    status, _, err = site.done("tune", str(other), *words, "--yes")
    assert status == 1 and "no agent runs with this configuration" in err

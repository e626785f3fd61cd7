"""`cmd/whatif` over a real broker to a real daemon on the demo's vessel, and what came of the change it foretold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Mosquitto, needs_mosquitto
from tests.cloud.harness import Ear, wait_until
from tests.e2e.demo_vessel import DemoVessel

pytestmark = [needs_mosquitto, pytest.mark.process]
PATIENCE = 60.0

MORE = """\
    mode: auto
    setpoint_limits: [20, 120]
    remote: [setpoint]
    controller: {kp: 0.5, ti: 1500ms}
    model: {k: 1.8, t1: 1200ms, delay: 200ms, bias: 18, grade: fair, noise: 0.1}
commands: {enabled: true}
"""


class Site(DemoVessel):
    """The plant and the agent; `ear` is the central side."""

    def __init__(self, folder: Path, broker: Mosquitto, ear: Ear) -> None:
        self.ear = ear
        mqtt = f'{{url: "{broker.url}", batch: 200ms}}'
        super().__init__(folder, gateway="line4", mqtt=mqtt, more=MORE)

    def asked(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "agent", *words, "--json"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return found

    def loop(self) -> dict[str, Any]:
        found: dict[str, Any] = self.asked("status", str(self.config)).get("loops", {}).get("heat", {})
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Mosquitto(tmp_path) as broker, Ear(broker.url) as ear:
        ear.sync()
        one = Site(tmp_path, broker, ear)
        try:
            yield one
        finally:
            one.end()


def test_a_change_is_foretold_made_and_compared(site: Site) -> None:
    ear = site.ear
    wait_until(
        lambda: abs((site.loop().get("pv") or 0.0) - 90.0) < 0.5, "the vessel is at its setpoint", PATIENCE
    )
    question: dict[str, Any] = {"loop": "heat", "setpoint": 100, "for": "20s"}
    ear.command("whatif", "q1", **question)
    answer = ear.wait_for("resp/q1", PATIENCE)
    assert answer["ok"] is True and answer["error"] is None, answer
    found = answer["result"]
    assert found["settling_s"] is not None and 0.5 < found["settling_s"] < 20 and found["controller"] == "pid"
    assert found["t"][-1] == pytest.approx(20.0)
    assert len(found["pv"]) == len(found["out"]) == len(found["t"]) <= 300
    assert found["pv"][0] == pytest.approx(90.0, abs=2.0) and found["pv"][-1] == pytest.approx(100.0, abs=0.5)
    assert site.loop()["sp"] == 90.0  # nothing was changed by asking

    same = site.asked("whatif", str(site.config), "heat", "--setpoint", "100", "--for", "20s")
    assert same["from"]["mode"] == "auto" and same["settling_s"] == pytest.approx(
        found["settling_s"], abs=2.0
    )

    ear.command("whatif", "q2", loop="heat", setpoint=300)
    refused = ear.wait_for("resp/q2", PATIENCE)
    assert refused["ok"] is False and "outside setpoint_limits, 20 to 120" in refused["error"]

    ear.command("loop", "l1", loop="heat", setpoint=100)
    assert ear.wait_for("resp/l1", PATIENCE)["ok"] is True

    def told() -> list[dict[str, Any]]:
        return [one.body for one in ear.of("event") if one.body and one.body["name"] == "loop_compared"]

    ear.wait(lambda: bool(told()), "the comparison", PATIENCE)
    [event] = told()
    assert event["text"].startswith("loop heat: setpoint 90 -> 100: ") and event["tag"] == "temperature"
    compared = site.loop()["compared"]
    assert compared["to"] == 100.0 and compared["misfit"] == event["value"] < 10.0

"""Keys of commands: what is taken from the central side."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from agent.cloud import commands
from agent.config.types import Config
from tests.brokers import Mosquitto
from tests.cloud.harness import Agent, Ear
from tests.cloud.harness import signed as signed_body
from tests.keys.press import plant
from tests.keys.table import configured, effect


def judged(config: Config, *, age: float = 0.0) -> str:
    """What becomes of a command that is so many seconds old."""
    now = 1_800_000_000_000
    body = {"id": "one", "ts": now - round(1000 * age), "exp": now + 60_000}
    try:
        commands.judge("status", body, retained=False, config=config.commands, now_ms=now, synced=True)
    except commands.Refused as refused:
        return refused.reason
    return "taken"


@effect("commands.enabled")
def test_enabled() -> None:
    assert judged(configured()) == "commands are not enabled"
    assert judged(configured({"commands.enabled": True})) == "taken"


@effect("commands.skew")
def test_skew() -> None:
    on = {"commands.enabled": True}
    assert judged(configured(on), age=31.0) == "skew"
    assert judged(configured(on | {"commands.skew": "60s"}), age=31.0) == "taken"


@effect("commands.hmac")
def test_hmac(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    keys = {"enabled": True, "hmac": {"file": str(tmp_path / "key")}}

    def answer(sections: dict[str, Any], folder: Path, *, signed: bool) -> bool:
        folder.mkdir()
        with Mosquitto(folder) as broker, Ear(broker.url) as ear:
            config = plant({"url": broker.url, "outbox": {"min_free": "1B"}}, commands=sections)
            ear.sync()
            with Agent(config, folder) as agent:
                agent.wait_online()
                now = round(1000 * time.time())
                body: dict[str, Any] = {"id": "one", "ts": now, "exp": now + 60_000}
                topic = "edgetwin/v1/line4/cmd/status"
                if signed:
                    body = signed_body(topic, json.dumps(body), b"secret")
                ear.say("cmd/status", body)
                ear.wait(lambda: bool(ear.of("event")), "its audit")
                ear.listen(0.3)
                answers = [one.body for one in ear.of("resp") if one.body and one.body["id"] == "one"]
                return any(one["ok"] for one in answers)

    assert answer({"enabled": True}, tmp_path / "a", signed=False)
    assert not answer(keys, tmp_path / "b", signed=False)
    assert answer(keys, tmp_path / "c", signed=True)

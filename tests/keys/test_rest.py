"""The keys of the page, the state folder and the log, and those of features that are not built yet."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import run
from agent.cli.main import build_parser
from agent.config.fields import NOT_BUILT
from agent.config.load import for_run, parse
from agent.config.paths import socket_candidates, state_dir
from agent.config.secrets import reveal
from agent.config.types import Config
from agent.runtime import logs
from agent.runtime.service import Service
from tests.keys.table import BASE, all_keys, configured, effect
from tests.page.harness import get, plant, serving
from tests.ports import free_port

# -- page -----------------------------------------------------------------------------------------------------------


def served(page: Any, folder: Path) -> int | None:
    """The port at which an agent with this page serves it; None when it serves none."""
    config = configured({"page": page, "devices": {}}, without=("loops",))
    folder.mkdir()

    async def run() -> int | None:
        service = Service(config, state_dir=folder)
        stop = asyncio.Event()
        task = asyncio.create_task(service.run(stop))
        await asyncio.sleep(0)
        port = service.front.port
        stop.set()
        await task
        return port

    return asyncio.run(run())


@effect("page", "page.listen")
def test_listen(tmp_path: Path) -> None:
    port = free_port()
    assert served("off", tmp_path / "off") is None
    assert served({"listen": f"127.0.0.1:{port}"}, tmp_path / "on") == port


def changed(config: Config, folder: Path, token: str) -> int:
    """The HTTP status of a write by the page, from a person who shows this token."""
    assert config.page is not None
    secret = None if config.page.token is None else reveal(config.page.token)
    with serving(plant(), folder, page=config.page, token=secret) as front:
        body = b'{"loop": "oven", "setpoint": 185}'
        headers = {"Authorization": f"Bearer {token}", "Content_Type": "application/json"}
        return get(front, "/api/loop", "POST", body, **headers).status


@effect("page.control", "page.token")
def test_control_and_token(tmp_path: Path) -> None:
    def page(**keys: Any) -> Config:
        return configured({"page": {"listen": f"127.0.0.1:{free_port()}", "token": "sesame-open", **keys}})

    assert changed(page(control=True), tmp_path, "sesame-open") == 200
    assert changed(page(control=True), tmp_path, "wrong") in (401, 403)
    assert changed(page(control=False), tmp_path, "sesame-open") in (403, 404, 405)


# -- state, log -----------------------------------------------------------------------------------------------------


@effect("state_dir")
def test_state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    config = configured({"state_dir": str(tmp_path)})
    assert state_dir(config) == tmp_path != state_dir(configured())
    assert socket_candidates(config)[-1].parent == tmp_path


@effect("log.level")
@pytest.mark.parametrize("level", ["error", "warning", "info", "debug"])
def test_log_level(level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class SetUp(Exception):
        pass

    def setup(chosen: str) -> None:
        raise SetUp(chosen)

    monkeypatch.setattr(logs, "setup", setup)  # nothing after it is to be started
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(BASE | {"log": {"level": level}, "state_dir": str(tmp_path)}))
    arguments = ["run", str(path)]
    with pytest.raises(SetUp, match=level):
        run.main(build_parser("run").parse_args(arguments))
    with pytest.raises(SetUp, match="error"):
        run.main(build_parser("run").parse_args([*arguments, "--log-level", "error"]))


@pytest.mark.parametrize("level", ["warning", "debug"])
def test_log_level_says_how_much_is_told(level: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOGGING, level], capture_output=True, text=True, timeout=60, check=True
    ).stderr
    assert "loud" in told
    assert ("quiet" in told) == (level == "debug")


LOGGING = """
import logging, sys
from agent.runtime import logs
logs.setup(sys.argv[1])
logging.getLogger("edgetwin").debug("quiet")
logging.getLogger("edgetwin").warning("loud")
"""


# -- not built yet --------------------------------------------------------------------------------------------------

WANTED = {
    "mqtt.sparkplug": True,
    "mqtt.homeassistant": True,
}
"""A value of each key that is not built yet, other than the one that is fine."""


def refused(path: str, value: Any) -> list[str]:
    """What `run` alone says of a plant with this key; `check` takes it."""
    tree = configured_text(path.replace("devices.*", "devices.d").replace("loops.*", "loops.l"), value)
    loaded = parse(tree, "config.yaml")
    assert loaded.config is not None, loaded.problems
    return [problem.path for problem in for_run(loaded) if problem.severity == "error"]


def configured_text(path: str, value: Any) -> str:
    tree: Any = copy.deepcopy(BASE)
    *above, last = path.split(".")
    here = tree
    for name in above:
        here = here.setdefault(name, {})
    here[last] = value
    return yaml.safe_dump(tree)


def test_not_built_keys_are_keys() -> None:
    assert WANTED.keys() == NOT_BUILT.keys() <= set(all_keys())


@pytest.mark.parametrize("path", NOT_BUILT)
def test_not_built_keys_are_refused_by_run_alone(path: str) -> None:
    real = path.replace("devices.*", "devices.d").replace("loops.*", "loops.l")
    assert refused(path, WANTED[path]) == [real]
    if NOT_BUILT[path] is not None:
        assert refused(path, NOT_BUILT[path]) == []


def test_udp_is_refused_by_run_alone() -> None:
    assert refused("devices.*.url", "udp://127.0.0.1:502") == ["devices.d.url"]
    assert refused("devices.*.url", "tcp://127.0.0.1:502") == []

"""The walls of ARCHITECTURE.md, held by walking the imports of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "agent").rglob("*.py"))

ONLY_IN = {
    "pymodbus": {"agent/modbus/link.py", "agent/modbus/framers.py"},
    "serial": {"agent/modbus/link.py", "agent/modbus/framers.py"},
    "paho": {"agent/cloud/uplink.py", "agent/cloud/watch.py"},
    "numba": {"agent/kernelcache.py"},
    "iotcore": {"agent/demo/broker.py"},
    "yaml": {"agent/config"},
    "sqlite3": {"agent/cloud/outbox.py", "agent/cloud/salvage.py"},
}
"""An outside library -> the files (or folders) that may know it."""

MAY_IMPORT = {
    "config": {"config"},
    "twin": {"twin", "config"},
    "modbus": {"modbus", "config", "twin", "runtime.clock", "kernelcache"},
    "predict": {"predict", "config", "twin", "kernelcache", "plot"},
    "control": {"control", "config", "twin", "kernelcache"},
    "cloud": {"cloud", "config", "twin", "runtime.clock", "statefile"},
    "page": {"page", "config", "twin", "runtime.clock"},
}
"""A room -> what of agent it may import. runtime, cli and demo put the rooms together and may import all."""

PURE = [
    "agent/modbus/plan.py",
    "agent/modbus/sunspec.py",
    "agent/modbus/codec.py",
    "agent/modbus/schedule.py",
    "agent/cloud/payload.py",
    "agent/cloud/books.py",
    "agent/cloud/topics.py",
    "agent/twin",
    "agent/predict",
    "agent/control",
    "agent/plot.py",
]
IMPURE_MODULES = {"asyncio", "socket", "threading", "time", "sqlite3", "subprocess", "select", "ssl", "queue"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def inside(path: Path, places: set[str] | list[str]) -> bool:
    return any(path.as_posix() == place or path.as_posix().startswith(f"{place}/") for place in places)


def test_there_are_rooms() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("library", ONLY_IN)
def test_one_file_knows_each_library(library: str) -> None:
    strangers = [
        f"{path}:{line}"
        for path in FILES
        if not inside(path, ONLY_IN[library])
        for line, name in imports(path)
        if name.split(".")[0] == library
    ]
    assert strangers == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_keep_to_themselves(room: str) -> None:
    strangers = [
        f"{path}:{line}: {name}"
        for path in FILES
        if inside(path, [f"agent/{room}"])
        for line, name in imports(path)
        if name.startswith("agent.")
        and not any(name.removeprefix("agent.").startswith(allowed) for allowed in MAY_IMPORT[room])
        and name not in ("agent.__version__", "agent.RELEASED_MS")
    ]
    assert strangers == []


def test_pure_files_do_no_io_and_ask_no_clock() -> None:
    strangers = [
        f"{path}:{line}: {name}"
        for path in FILES
        if inside(path, PURE) and path.name != "replay.py" and path.name != "history.py"
        for line, name in imports(path)
        if name.split(".")[0] in IMPURE_MODULES
    ]
    assert strangers == []


def test_kernel_files_hold_kernels_only() -> None:
    kernels = [path for path in FILES if path.name == "kernels.py"]
    assert kernels
    for path in kernels:
        assert {name.split(".")[0] for _, name in imports(path)} <= {
            "__future__",
            "math",
            "numpy",
            "agent",
        }, path
        undecorated = [
            node.name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.FunctionDef) and not node.decorator_list
        ]
        assert undecorated == [], path


def test_only_the_clock_asks_for_the_time() -> None:
    """demo and cli tell a person the time; the daemon's rooms are handed a clock."""
    askers = []
    for path in FILES:
        if inside(path, ["agent/demo", "agent/cli", "agent/runtime/clock.py", "agent/kernelcache.py"]):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "time"
                and node.attr in ("time", "monotonic", "time_ns", "monotonic_ns")
            ):
                askers.append(f"{path}:{node.lineno}")
    assert askers == []


def test_files_stay_readable() -> None:
    long = [f"{path}: {n}" for path in FILES if (n := len((ROOT / path).read_text().splitlines())) > 500]
    assert long == []

"""Where log lines go and how they look, seen from outside the process that writes them."""

from __future__ import annotations

import logging
import os
import queue
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtime import logs

WRITE = """
import logging
from agent.runtime import logs
logs.setup({level!r})
log = logging.getLogger("edgetwin.test")
log.debug("a debug line")
log.info("an info line with %d", 7)
log.warning("first\\nsecond")
log.error("an error line")
logging.getLogger("pymodbus.client").error("noise")
logging.getLogger("paho").error("noise")
try:
    1 / 0
except ZeroDivisionError:
    log.critical("a bug", exc_info=True)
"""


def run(level: str, *, journal: bool) -> list[str]:
    """Lines on standard error of a process that writes to the log."""
    return told(["-c", WRITE.format(level=level)], journal=journal)


def told(words: list[str], *, journal: bool, status: int = 0) -> list[str]:
    """Lines on standard error of a Python; with `journal` it finds $JOURNAL_STREAM naming that very pipe."""
    reading, writing = os.pipe()
    environment = {**os.environ, "JOURNAL_STREAM": "1:2"}
    if journal:
        about = os.fstat(writing)
        environment["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino}"
    process = subprocess.Popen([sys.executable, *words], stderr=writing, env=environment)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    assert process.wait(60) == status
    return lines


def test_under_systemd_lines_carry_priorities_and_no_time() -> None:
    lines = run("debug", journal=True)
    assert lines[:5] == [
        "<7>a debug line",
        "<6>an info line with 7",
        "<4>first",
        "<4>second",
        "<3>an error line",
    ]
    assert lines[5] == "<2>a bug"
    assert lines[6].startswith("<2>Traceback") and lines[-1] == "<2>ZeroDivisionError: division by zero"
    assert all(line.startswith("<2>") for line in lines[5:])


@pytest.mark.parametrize("journal", [True, False])
def test_what_keeps_the_agent_from_starting_carries_priorities_too(tmp_path: Path, journal: bool) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("gateway: line4\nlogs: {}\n")
    error, warning = ("<3>", "<4>") if journal else ("", "")
    assert told(["-m", "agent", "run", str(path)], journal=journal, status=78) == [
        f"{warning}{path}:1:1: warning: devices: no devices: nothing is read; add devices:",
        f"{error}{path}:2:1: logs: this key is not known here; did you mean log?",
        f"{error}edgetwin: {path}: 1 error; nothing was started",
    ]


def test_elsewhere_lines_carry_the_time() -> None:
    lines = run("info", journal=False)
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    an info line with 7", lines[0])
    assert not any(line.startswith("<") for line in lines)


@pytest.mark.parametrize(
    ("level", "shown"),
    [("info", ["info", "first", "error"]), ("warning", ["first", "error"]), ("error", ["error"])],
)
def test_levels(level: str, shown: list[str]) -> None:
    text = "\n".join(run(level, journal=True))
    for word in ("debug", "info", "first", "error"):
        assert (word in text) == (word in shown), word


def test_libraries_are_quiet() -> None:
    assert "noise" not in "\n".join(run("debug", journal=True))


def test_a_stuck_reader_does_not_hold_the_writer_up() -> None:
    """Nobody reads the pipe: far more than it holds is logged, and the program goes on at once."""
    program = """
import logging, os, sys
from agent.runtime import logs
logs.setup("info")
for _ in range(3000):
    logging.getLogger("edgetwin").info("x" * 100)
print("went on", flush=True)
sys.stdin.read()
os._exit(0)
"""
    reading, writing = os.pipe()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "went on\n"
            process.stdin.close()
            assert process.wait(60) == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_a_journal_that_takes_nothing_costs_lines_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_WAITING", 3)
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.Logger("edgetwin.test")
    logger.addHandler(logs.BoundedQueueHandler(waiting))
    for number in range(10):
        logger.warning("line %d", number)
    assert [waiting.get().getMessage() for _ in range(waiting.qsize())] == ["line 0", "line 1", "line 2"]
    logger.warning("there is room again")
    assert [waiting.get().getMessage() for _ in range(waiting.qsize())] == [
        "7 lines of the log are lost: nobody took them",
        "there is room again",
    ]

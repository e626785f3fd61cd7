"""The unit file: hardened, and without what would stop numba."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "systemd" / "edgetwin.service"


def settings() -> list[tuple[str, str]]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_exposure_is_low() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"Overall exposure level for edgetwin.service: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    print(f"exposure {found[1]}")
    assert float(found[1]) <= 2.0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_it(tmp_path: Path) -> None:
    unit = tmp_path / "etc/systemd/system/edgetwin.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT.read_text())
    for target in ("basic", "multi-user", "sysinit", "network", "shutdown"):
        (unit.parent / f"{target}.target").write_text("[Unit]\nDescription=x\n")
    program = tmp_path / "opt/edgetwin/current/bin/edgetwin"
    kill = tmp_path / "bin/kill"
    for executable in (program, kill):
        executable.parent.mkdir(parents=True, exist_ok=True)
        executable.write_text("#!/bin/sh\n")
        executable.chmod(0o755)
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", "edgetwin.service"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "edgetwin.service" in line]
    assert complaints == []


def test_what_must_be_and_must_not_be() -> None:
    found = dict(settings())
    assert found["Type"] == "notify"
    assert found["RestartPreventExitStatus"] == "78"
    assert found["SystemCallErrorNumber"] == "EPERM"
    assert "MemoryDenyWriteExecute" not in found and "ProcSubset" not in found


def test_a_reload_signals_first_and_then_fails_where_the_file_is_wrong() -> None:
    first, second = (value for name, value in settings() if name == "ExecReload")
    start = dict(settings())["ExecStart"]
    assert first == "/bin/kill -HUP $MAINPID" and second == start.replace(" run ", " check ")


def test_what_the_watchdog_ends_says_where_it_stood() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    environment = dict(value.split("=", 1) for name, value in settings() if name == "Environment")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT and 'File "<string>", line 1' in done.stderr


def test_folders_have_the_modes_that_the_installer_gives_them() -> None:
    found = dict(settings())
    modes = {found[f"{kind}DirectoryMode"] for kind in ("Configuration", "State", "Cache")}
    install = (UNIT.parent / "install.sh").read_text()
    assert modes == {"0750"} and 'chmod 0750 "$ETC" "$STATE" "$CACHE"' in install

"""Skips are listed here; on a machine with apt, where all that a test needs can be had, another one fails the run.

With workers (pytest -n) the hooks about reports see all of them in the process that hands the tests out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import hypothesis
import pytest

# the same examples at each CI run, so that a change is judged by what it changes; at a desk new ones are tried
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

LISTED_SKIPS: Mapping[str, str] = {}
"""Start of a test's node id -> why it may be skipped even on a machine with apt."""

LONGEST = (
    "tests/test_kernelcache.py",
    "tests/test_install.py",
    "tests/e2e/test_chaos.py",
    "tests/control/test_identify.py",
    "tests/e2e/test_tune.py",
    "tests/config/test_files.py",
    "tests/cloud/test_worker.py",
    "tests/e2e/test_outages.py",
    "tests/runtime/test_log_volume.py",
    "tests/demo/test_demo.py",
    "tests/modbus/test_fuzz.py",
    "tests/e2e/test_books.py",
    "tests/predict/test_watching.py",
    "tests/predict/test_predictor.py",
    "tests/docs/test_troubleshooting.py",
    "tests/modbus/test_link.py",
)
"""Files that take the longest, in this order, so that with workers the run does not end with one of them alone."""

_unlisted: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: order for order, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(LONGEST)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not any(report.nodeid.startswith(start) for start in LISTED_SKIPS):
        _unlisted.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped and report.nodeid not in LISTED_SKIPS:
        _unlisted.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unlisted and shutil.which("apt-get") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for nodeid in _unlisted:
        terminalreporter.write_line(f"skipped and not listed in tests/conftest.py: {nodeid}", red=True)

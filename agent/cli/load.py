"""Reads the configuration for a command, telling every problem on stderr."""

from __future__ import annotations

from collections.abc import Iterable

from agent.cli.fault import Failure, tell
from agent.config.load import for_run, load
from agent.config.types import Config, Problem


def load_or_fail(path: str, *, simulated: int | None = None) -> Config:
    """The configuration at `path`; ends the command with status 78 when it is wrong."""
    loaded = load(path)
    _tell(path, loaded.problems)
    assert loaded.config is not None
    return redirected(loaded.config, simulated)


def load_for_run(path: str, *, simulated: int | None = None) -> Config:
    """As load_or_fail, with what `run` alone asks for: a gateway name, and no key of a feature not built yet."""
    loaded = load(path)
    _tell(path, (*loaded.problems, *for_run(loaded)))
    assert loaded.config is not None
    return redirected(loaded.config, simulated)


def _tell(path: str, problems: Iterable[Problem]) -> None:
    found = list(problems)
    for problem in found:
        tell(problem, priority=3 if problem.severity == "error" else 4)
    errors = sum(problem.severity == "error" for problem in found)
    if errors:
        raise Failure(f"{path}: {errors} error{'s' if errors > 1 else ''}; nothing was started", status=78)


def redirected(config: Config, port: int | None) -> Config:
    if port is None:
        return config
    from agent.modbus.simulated import redirect

    return redirect(config, port)

"""`edgetwin run CONFIG`: the daemon."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import functools
import gc
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from agent.cli.fault import Failure
from agent.cli.load import load_for_run, redirected

if TYPE_CHECKING:
    from agent.config.types import Config

HELP = "Run the agent until SIGTERM or Ctrl-C; SIGHUP reloads the configuration."
EXAMPLE = "edgetwin run /etc/edgetwin/config.yaml"
log = logging.getLogger("edgetwin")

LOCK = "lock"
SWITCH_INTERVAL = 0.0005
"""Seconds: a pure-Python thread costs the main loop one switch interval per wake-up (5 ms by default)."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument(
        "--simulated", metavar="N", type=int, help="poll `edgetwin simulate CONFIG --port N` instead"
    )


def main(args: argparse.Namespace) -> int:
    hang_up = _HangUp()
    config = load_for_run(args.config, simulated=args.simulated)
    from agent.config.paths import state_dir
    from agent.runtime import logs, notify

    logs.setup(args.log_level or ("debug" if args.verbose else config.log_level))
    folder = state_dir(config)
    lock = _take(folder)
    notify.status("compiling kernels")
    notify.extend_timeout(60.0)
    from agent import kernelcache

    kernelcache.warm()
    for problem in kernelcache.problems():
        log.warning("%s", problem)
    sys.setswitchinterval(SWITCH_INTERVAL)
    with lock:
        return asyncio.run(_run(config, folder, hang_up, functools.partial(_prepared, args)))


def _prepared(args: argparse.Namespace, config: Config) -> Config:
    """A configuration that was read again, as this command line takes it."""
    level = args.log_level or ("debug" if args.verbose else config.log_level)
    logging.getLogger().setLevel(level.upper())
    return redirected(config, args.simulated)


def _take(folder: Path) -> IO[bytes]:
    """Makes the state folder and locks it for this process: two agents would give out the same numbers twice."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("ab")
    except OSError as error:
        raise Failure(
            f"the state folder {folder} cannot be written ({error.strerror}); give another one by `state_dir:`"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise Failure(f"another agent runs with the state folder {folder}") from None
    return lock


class _HangUp:
    """SIGHUP from the first moment on: before a handler is there it would kill the process."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "asked", True))


async def _run(config: Config, folder: Path, hang_up: _HangUp, prepare: Callable[[Config], Config]) -> int:
    """The service from start to end; returns its exit status."""
    from agent.config.secrets import SecretProblem
    from agent.runtime.reload import Reload
    from agent.runtime.service import Service

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        service = Service(config, state_dir=folder)
    except SecretProblem as problem:
        raise Failure(str(problem), status=78) from None
    reload = Reload(service, prepare)
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    if hang_up.asked:
        hang_up.asked = False
        reload.ask()
    gc.collect()
    gc.freeze()
    return await service.run(stop)

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
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agent.cli.fault import Failure
from agent.cli.load import load_for_run, redirected
from agent.config.paths import state_dir

if TYPE_CHECKING:
    from agent.config.types import Config
    from agent.runtime.service import Service

    Beside = Callable[[Service, asyncio.Event], Coroutine[Any, Any, None]]

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
    hang_up = HangUp()
    config = load_for_run(args.config, simulated=args.simulated)
    with take(state_dir(config)):
        return serve(config, hang_up, functools.partial(_prepared, args), level=_level(args, config))


def serve(
    config: Config,
    hang_up: HangUp,
    prepare: Callable[[Config], Config],
    *,
    level: str,
    beside: Beside | None = None,
) -> int:
    """Runs the agent with a checked configuration until it is told to stop; returns its exit status.

    Its state folder is taken (`take`). `prepare`: what is done to a configuration that SIGHUP has read again. `beside`:
    a job of the command that runs with the service, and may end it by the event that it is given. Raises Failure.
    """
    from agent.runtime import logs, notify

    logs.setup(level)
    notify.status("compiling kernels")
    notify.extend_timeout(60.0)
    from agent import kernelcache

    kernelcache.warm()
    for problem in kernelcache.problems():
        log.warning("%s", problem)
    sys.setswitchinterval(SWITCH_INTERVAL)
    return asyncio.run(_run(config, hang_up, prepare, beside))


def _level(args: argparse.Namespace, config: Config) -> str:
    level: str = args.log_level or ("debug" if args.verbose else config.log_level)
    return level


def _prepared(args: argparse.Namespace, config: Config) -> Config:
    """A configuration that was read again, as this command line takes it."""
    logging.getLogger().setLevel(_level(args, config).upper())
    return redirected(config, args.simulated)


def take(folder: Path, *, given_by: str = "`state_dir:`") -> IO[bytes]:
    """Makes the state folder and locks it for this process: two agents would give out the same numbers twice.

    `given_by`: where a person names another one. Raises Failure.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("ab")
    except OSError as error:
        raise Failure(
            f"the state folder {folder} cannot be written ({error.strerror}); give another one by {given_by}"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise Failure(f"another agent runs with the state folder {folder}") from None
    return lock


class HangUp:
    """SIGHUP from the first moment on: before a handler is there it would kill the process."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "asked", True))


async def _run(
    config: Config,
    hang_up: HangUp,
    prepare: Callable[[Config], Config],
    beside: Beside | None,
) -> int:
    """The service from start to end; returns its exit status."""
    from agent.config.secrets import SecretProblem
    from agent.runtime.reload import Reload
    from agent.runtime.service import Service

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        service = Service(config, state_dir=state_dir(config))
    except SecretProblem as problem:
        raise Failure(str(problem), status=78) from None
    reload = Reload(service, prepare)
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    if hang_up.asked:
        hang_up.asked = False
        reload.ask()
    gc.collect()
    gc.freeze()
    if beside is None:
        return await service.run(stop)
    job = asyncio.create_task(beside(service, stop))
    try:
        return await service.run(stop)
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)

"""SIGHUP: the new configuration is checked whole first; a wrong one changes nothing and is told in log and status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config.load import for_run, load
from agent.config.types import Config
from agent.runtime import notify

if TYPE_CHECKING:
    from agent.runtime.service import Service

log = logging.getLogger("edgetwin")


class Reload:
    """Reads the configuration again. Loops take other parameters while they run; any other difference ends the service
    in order, to start with the new configuration."""

    def __init__(self, service: Service, stop: asyncio.Event, prepare: Callable[[Config], Config]) -> None:
        """`prepare` is what the command line does to a configuration (`--simulated`)."""
        self._service = service
        self._stop = stop
        self._prepare = prepare
        self._job: asyncio.Task[None] | None = None
        self.taken: Config | None = None

    def ask(self) -> None:
        """The signal handler."""
        if self._job is None or self._job.done():
            self._job = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        notify.reloading()
        path = self._service.config.path
        loaded = await asyncio.get_running_loop().run_in_executor(None, load, path)
        problems = [
            problem for problem in (*loaded.problems, *for_run(loaded)) if problem.severity == "error"
        ]
        self._service.config_errors = [str(problem) for problem in problems]
        for problem in problems:
            log.error("not reloaded: %s", problem)
        if problems or loaded.config is None:
            notify.ready("reload refused, running on with the old configuration")
            return
        config = self._prepare(loaded.config)
        if config == self._service.config:
            log.info("reloaded: nothing changed")
            notify.ready("nothing changed")
            return
        if self._service.retune(config):
            log.info("reloaded: the loops took their new parameters")
            notify.ready("loops retuned")
            return
        log.info("reloading %s", path)
        self.taken = config
        self._stop.set()

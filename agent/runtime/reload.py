"""SIGHUP: the new configuration is checked whole first; a wrong one changes nothing and is told in log and status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config.load import for_run, load
from agent.config.secrets import SecretProblem
from agent.config.types import Config
from agent.control.grant import prepare
from agent.runtime import notify

if TYPE_CHECKING:
    from agent.runtime.service import Service

log = logging.getLogger("edgetwin")


class Reload:
    """Reads the configuration again; the service then touches what differs."""

    def __init__(self, service: Service, prepare: Callable[[Config], Config]) -> None:
        """`prepare` is what the command line does to a configuration (`--simulated`, the level of the log)."""
        self._service = service
        self._prepare = prepare
        self._job: asyncio.Task[None] | None = None
        self._again = False

    def ask(self) -> None:
        """The signal handler. One that comes while a reload is under way is done after it."""
        self._again = True
        if self._job is None or self._job.done():
            self._job = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            await self._read()

    async def _read(self) -> None:
        notify.reloading()
        path = self._service.config.path
        loaded = await asyncio.get_running_loop().run_in_executor(None, load, path)
        problems = [
            str(problem) for problem in (*loaded.problems, *for_run(loaded)) if problem.severity == "error"
        ]
        if problems or loaded.config is None:
            self._refuse(problems)
            return
        self._service.config_errors = []
        config = self._prepare(loaded.config)
        if config == self._service.config:
            log.info("reloaded: nothing changed")
            notify.ready("nothing changed")
            return
        await asyncio.get_running_loop().run_in_executor(None, prepare, config)
        try:
            touched = await self._service.change(config)
        except SecretProblem as problem:
            self._refuse([str(problem)])
            return
        except Exception:
            log.exception("the reload failed half way; this is a fault of the program; it starts anew")
            self._service.give_up()
            return
        log.info("reloaded: %s", ", ".join(touched) or "nothing that shows")
        if "state_dir" in touched:
            log.warning("state_dir is taken when the service is started anew; until then it is the old one")
        notify.ready(f"reloaded: {', '.join(touched)}"[:200])

    def _refuse(self, problems: list[str]) -> None:
        self._service.config_errors = problems
        for problem in problems:
            log.error("not reloaded: %s", problem)
        notify.ready("reload refused, running on with the old configuration")

"""Tasks that must go on: a fault in one is logged once with its traceback, and it starts anew, later each time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from agent.runtime.clock import Clock

log = logging.getLogger("edgetwin")

FIRST_DELAY = 1.0
MAX_DELAY = 60.0
LIMIT = 3
WINDOW = 60.0


class TooManyFaults(Exception):
    """Three faults of ours within a minute: the process had better be started anew."""


class Supervisor:
    """Restarts tasks; `on_fault` is called first, so that loops go to their fail value before anything else."""

    def __init__(self, clock: Clock, on_fault: Callable[[], None]) -> None:
        self._clock = clock
        self._on_fault = on_fault
        self._faults: deque[float] = deque(maxlen=LIMIT)

    async def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Runs `run` until it returns; raises TooManyFaults when the faults of all tasks come too fast."""
        delay = FIRST_DELAY
        while True:
            try:
                await run()
                return
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception(
                    "%s failed; this is a fault of the program; it starts anew in %.0f s", name, delay
                )
                self._on_fault()
                now = self._clock.mono()
                self._faults.append(now)
                if len(self._faults) == LIMIT and now - self._faults[0] < WINDOW:
                    raise TooManyFaults(name) from None
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_DELAY)

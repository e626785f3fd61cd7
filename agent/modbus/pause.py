"""Holding a line between two requests, while what it is about is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pause:
    """The line's own task looks at `wanted` between two steps; `wake()` ends what it may be waiting for.

    `turning`: the task goes from step to step, so that whoever holds it has to wait for the end of the present one.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wanted = False
        self.turning = False
        self._wake = wake
        self._stands = asyncio.Event()
        self._released = asyncio.Event()

    async def hold(self) -> None:
        """Returns when the line stands, which it does until `release`."""
        self.wanted = True
        self._stands.clear()
        self._released.clear()
        self._wake()
        if self.turning:
            await self._stands.wait()

    def release(self) -> None:
        """The line goes on."""
        self.wanted = False
        self._released.set()

    async def stand(self) -> None:
        """The line's own task waits here for its release."""
        self._stands.set()
        await self._released.wait()

    def over(self) -> None:
        """The line's own task has come to an end: nobody need wait for it."""
        self.turning = False
        self._stands.set()

"""Keeps one connection up: when to connect, how long to wait after a failure, when to give up a mute connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Literal, Protocol

from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.runtime.clock import Clock

log = logging.getLogger("edgetwin.modbus")

FIRST_WAIT = 0.1
EARLY = 60.0
"""Seconds of an outage during which a new attempt is made at least every EARLY_WAIT seconds."""
EARLY_WAIT = 0.9
LONGEST_WAIT = 30.0
CONNECT_TIMEOUT = 1.0
PATIENT_TIMEOUT = 5.0
"""Every third attempt may take this long, for hosts behind slow radio links."""
MUTE_TRIES = 3
MUTE_AFTER, MUTE_LONGEST = 10.0, 120.0
"""A connection on which nobody answered for this long (seconds, doubling) is made anew."""


class Connection(Protocol):
    """What a Keeper keeps: `link.Link`, or a test's own."""

    @property
    def connected(self) -> bool:
        """True between connect and the end of the connection."""

    async def connect(self, timeout: float) -> None:
        """Opens the connection; raises LinkFault."""

    async def transact(
        self, unit: int, function: int, body: bytes, *, timeout: float, within: float
    ) -> Answer:
        """One request; raises LinkFault."""

    def close(self) -> None:
        """Ends the connection."""


class Keeper:
    """The life of one connection. `changed()` is called after each change of `state`, `back()` when there is a
    connection again after attempts that failed."""

    def __init__(
        self,
        link: Connection,
        *,
        clock: Clock,
        rng: random.Random,
        changed: Callable[[], None],
        back: Callable[[], None] = lambda: None,
    ) -> None:
        self.link = link
        self.words = "not connected yet"
        self.failures = 0  # attempts without a good reply since the last one
        self.attempts = 0
        self.resting = False  # closed by our own will until it is needed again
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._back = back
        self._task: asyncio.Task[None] | None = None
        self._down_since: float | None = None
        self._wait = FIRST_WAIT
        self._retry_at = 0.0
        self._last_good = 0.0
        self._proven = False  # a good reply came on this connection
        self._mute_tries = 0
        self._mute_after = MUTE_AFTER

    @property
    def state(self) -> Literal["up", "down", "connecting"]:
        if self.link.connected and self._task is None:
            return "up"
        if self.resting:
            return "up"
        return "down" if self.failures else "connecting"

    @property
    def hopeless(self) -> bool:
        """True when requests had better fail now than wait: the last attempt failed."""
        return self.failures > 0 and not self.usable

    @property
    def usable(self) -> bool:
        """True when a request may be sent now."""
        return self.link.connected and self._task is None

    @property
    def wake_at(self) -> float:
        """When there is something to do next; inf while an attempt runs or all is well."""
        if self._task is not None or self.link.connected or self.resting:
            return float("inf")
        return self._retry_at

    def keep(self) -> None:
        """Starts an attempt when there is no connection and its time has come."""
        if self._task is not None or self.link.connected or self._clock.mono() < self._retry_at:
            return
        self.resting = False
        self.attempts += 1
        self._task = asyncio.get_running_loop().create_task(self._attempt())

    async def _attempt(self) -> None:
        try:
            await self.link.connect(PATIENT_TIMEOUT if self.attempts % 3 == 0 else CONNECT_TIMEOUT)
        except LinkFault as fault:
            self._failed(fault.words)
        except Exception as fault:  # a fault of ours must not end in attempts without a pause
            log.exception("connecting failed in a way that it should not")
            self._failed(f"{type(fault).__name__}: {fault}")
        else:
            self._last_good = self._clock.mono()
            self._mute_tries = 0
            self._proven = False
            if self.failures:
                self._back()
        finally:
            self._task = None
            self._changed()

    def _failed(self, words: str) -> None:
        now = self._clock.mono()
        self.words = words
        self.failures += 1
        if self._down_since is None:
            self._down_since = now
        cap = EARLY_WAIT if now - self._down_since < EARLY else LONGEST_WAIT
        self._retry_at = now + min(self._wait, cap) * self._rng.uniform(0.5, 1.0)
        self._wait = min(2 * self._wait, cap)

    def lost(self, words: str) -> None:
        """The other side ended the connection. After a good reply on it, a new attempt is made at once."""
        if self._proven:
            self.words = words
            self._down_since = self._clock.mono()
            self._retry_at = self._down_since
        else:
            self._failed(words)
        self._changed()

    def good(self) -> None:
        """A right reply came: the connection is worth its name, and the waiting times start anew."""
        self._last_good = self._clock.mono()
        self._proven = True
        self._mute_tries = 0
        self._mute_after = MUTE_AFTER
        self.failures = 0
        self._down_since = None
        self._wait = FIRST_WAIT

    def mute(self) -> bool:
        """Nobody answered a request. True when the connection was given up for it."""
        self._mute_tries += 1
        if self._mute_tries < MUTE_TRIES or self._clock.mono() - self._last_good < self._mute_after:
            return False
        self._mute_after = min(2 * self._mute_after, MUTE_LONGEST)
        self._retry_at = self._clock.mono()
        self.link.close()
        return True

    def rest(self) -> None:
        """Closes a connection that was used until `keep` is called again (close_after_poll)."""
        if self.link.connected and self._proven:
            self.resting = True
            self.link.close()

    async def close(self) -> None:
        """Ends an attempt under way and the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.link.close()

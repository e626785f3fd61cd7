"""The one request under way on a connection, what its caller awaits, and the requests that were given up."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from agent.modbus.asks import Answer, Ask
from agent.modbus.faults import LinkFault

LATEST = 10.0
"""Seconds after which an RTU request that nobody answered is taken for lost, not late."""
LATEST_BEHIND = 600.0
"""The same for a unit that answered an older request instead: it lives, and owes the reply until it is asked again."""


class GivenUp(NamedTuple):
    """A request that was not answered in time, and may be yet."""

    ask: Ask
    sent: float
    ended: float
    behind: bool = False  # the unit answered an older request instead

    def awaited(self, now: float) -> bool:
        """True while its reply may still come on a line without transaction ids."""
        return now - self.ended < (LATEST_BEHIND if self.behind else LATEST)


class Waiting:
    """One request that was sent; awaiting it gives its Answer, or raises LinkFault.

    An asyncio.Future wakes its task in the next turn of the loop, behind one more look at all sockets. This one wakes
    it within the turn that read the reply, which saves a seventh of all that a request costs. Faults, and answers
    that are told from within a task, go the usual way. `mark` is how the reply begins when it is just what was asked
    for, `size` its length then (0: it has to be looked for).
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_callback",
        "_context",
        "_loop",
        "_outcome",
        "ask",
        "behind",
        "echo_due",
        "echo_seen",
        "frame",
        "limit",
        "mark",
        "sent",
        "size",
        "tid",
        "until",
        "wrong",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ask: Ask,
        tid: int,
        frame: bytes,
        *,
        sent: float,
        until: float,
        mark: bytes = b"",
        size: int = 0,
        echo_due: bool = False,
    ) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._outcome: Answer | BaseException | None = None
        self._callback: Callable[[Any], object] | None = None
        self._context: contextvars.Context | None = None
        self.ask = ask
        self.tid = tid
        self.frame = frame
        self.sent = sent
        self.limit = self.until = (
            until  # monotonic seconds at which it is given up at the latest, and as it stands
        )
        self.mark = mark
        self.size = size
        self.echo_due = echo_due
        self.echo_seen = False
        self.wrong: str | None = None  # what came instead of the right reply
        self.behind = False  # a reply of its unit to an earlier request came instead

    # -- how it ends --------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """True when it was answered, failed or cancelled."""
        return self._outcome is not None

    def answer(self, answer: Answer) -> None:
        """The right reply came."""
        self._outcome = answer
        callback, self._callback = self._callback, None
        if callback is None:
            return
        if self._context is not None and asyncio.current_task(self._loop) is None:
            self._context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=self._context)

    def fail(self, fault: LinkFault) -> None:
        """No reply will come any more; nothing when it has ended before."""
        self._end(fault)

    def cancel(self, msg: str | None = None) -> bool:
        """As of a Future: the task that waits was cancelled."""
        return self._end(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def _end(self, outcome: BaseException) -> bool:
        if self._outcome is not None:
            return False
        self._outcome = outcome
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)
        return True

    # -- what a task wants of what it waits for -----------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        """One callback: the task's that waits."""
        assert self._callback is None, "one waiter"
        self._callback, self._context = callback, context
        if self._outcome is not None:
            self._loop.call_soon(callback, self, context=context)

    def result(self) -> Answer:
        """The answer; raises what it ended with instead."""
        outcome = self._outcome
        if isinstance(outcome, Answer):
            return outcome
        assert outcome is not None
        raise outcome

    def __await__(self) -> Generator[Any, None, Answer]:
        if self._outcome is None:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

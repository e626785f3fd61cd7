"""What somebody waits for: writes and reads on demand, served before the scans, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agent.modbus.encode import WireWrite
from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.modbus.plan import Request
from agent.twin.quality import Quality


@dataclass(slots=True, eq=False)
class Job:
    """A write, or a read on demand, that somebody waits for until `deadline` (monotonic seconds).

    With neither, the device's own chain is walked where it is not known, and nothing else is asked.
    """

    device: str
    deadline: float
    future: asyncio.Future[Answer]
    request: Request | None = None
    wire: WireWrite | None = None

    def done(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, fault: LinkFault) -> None:
        if not self.future.done():
            self.future.set_exception(fault)


class Jobs:
    """The queue of one line. `added()` is called when something comes in."""

    def __init__(self, added: Callable[[], None]) -> None:
        self._added = added
        self._waiting: deque[Job] = deque()
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def first_deadline(self) -> float:
        """Monotonic seconds; inf when nothing waits."""
        return min((job.deadline for job in self._waiting), default=float("inf"))

    async def done(
        self, device: str, deadline: float, *, request: Request | None = None, wire: WireWrite | None = None
    ) -> Answer:
        """Queues a job and waits for its answer. Raises LinkFault."""
        if self._closed:
            raise LinkFault("the line was closed")
        job = Job(device, deadline, asyncio.get_running_loop().create_future(), request, wire)
        self._waiting.append(job)
        self._added()
        try:
            return await job.future
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    def take(self, now: float, may: Callable[[str], bool]) -> Job | None:
        """The first job whose device `may` be asked now; those whose time is over are told so."""
        for job in list(self._waiting):
            if job.deadline <= now:
                self._waiting.remove(job)
                job.fail(LinkFault("its time was over before it could be sent", Quality.TIMEOUT))
            elif may(job.device):
                self._waiting.remove(job)
                return job
        return None

    def moved(self, device: str, words: str) -> None:
        """What was asked of a device by addresses that are not its own any more gets a LinkFault."""
        for job in [one for one in self._waiting if one.device == device and (one.request or one.wire)]:
            self._waiting.remove(job)
            job.fail(LinkFault(words))

    def fail(self, words: str, *, close: bool = False) -> None:
        """Whoever waits gets a LinkFault; with `close` whoever comes later too."""
        self._closed = self._closed or close
        while self._waiting:
            self._waiting.popleft().fail(LinkFault(words))

"""One request on a line, and the books that are kept of it: counters, what its unit is like, what is told."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from agent.modbus.encode import WireWrite
from agent.modbus.faults import ABSENT, LinkFault, exception_words
from agent.modbus.framers import Answer
from agent.modbus.keeper import Keeper
from agent.modbus.lessons import Lessons
from agent.modbus.meter import Meter
from agent.modbus.plan import Request
from agent.modbus.replies import answered_after
from agent.modbus.requests import read_body, write_steps
from agent.modbus.schedule import Schedule, Unit
from agent.modbus.teller import Teller
from agent.runtime.clock import Clock
from agent.twin.quality import Quality


class Caller:
    """Sends what its line decides on. `on_missed(unit)` is called when a unit did not answer, `on_gone()` when the
    connection was lost or given up.

    `numbered`: frames carry a transaction id.
    """

    def __init__(
        self,
        schedule: Schedule,
        keeper: Keeper,
        meter: Meter,
        teller: Teller,
        lessons: Lessons,
        *,
        clock: Clock,
        numbered: bool,
        on_missed: Callable[[Unit], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._schedule = schedule
        self._keeper = keeper
        self._meter = meter
        self._teller = teller
        self._lessons = lessons
        self._clock = clock
        self._numbered = numbered
        self._on_missed = on_missed
        self._on_gone = on_gone

    def read(
        self, unit: Unit, request: Request, timeout: float, *, trial: bool = False
    ) -> Coroutine[Any, Any, Answer]:
        """One read, of which one remembers whether the unit answers it. Awaiting it raises LinkFault."""
        body = read_body(request)
        return self.ask(unit, request.unit, request.function, body, timeout, request=request, trial=trial)

    async def ask(
        self,
        unit: Unit,
        number: int,
        function: int,
        body: bytes,
        timeout: float,
        *,
        request: Request | None = None,
        trial: bool = False,
    ) -> Answer:
        """One request to unit `number`, with up to `timeout` seconds for its reply. Raises LinkFault.

        request: the read that it is, where that is to be remembered. trial: it may well stay without an answer, which
        then says nothing of the unit.
        """
        started = self._clock.mono()
        # only frames without a transaction id may need more: to make sure that no late reply is taken for this one
        within = timeout if self._numbered else max(timeout, self._schedule.slack(unit.name, started))
        try:
            answer = await self._keeper.link.transact(number, function, body, timeout=timeout, within=within)
        except LinkFault as fault:
            now = self._clock.mono()
            self._meter.used(started, now)
            self._meter.error(fault.quality.name.lower())
            if trial and fault.quality is Quality.TIMEOUT:
                # without a transaction id a late reply could still be taken for the next one
                unit.ready_at = now + (unit.pause if self._numbered else max(unit.pause, 2 * timeout))
            elif fault.quality is Quality.TIMEOUT:
                self._missed(unit, started, now)
                self._tell(unit, fault.words)
                if self._keeper.mute():
                    self._gone()
                if request is not None:
                    self._lessons.silences[unit.name].silent(request)
            raise
        self._meter.used(started, answer.t)
        self._meter.rtts.append(answer.rtt)
        self._keeper.good()
        if answer.exception is not None:
            self._meter.error(f"exception {answer.exception}")
        if answer.exception in ABSENT and not trial:
            self._missed(unit, started, answer.t)
        elif answer.exception not in ABSENT:
            unit.answered(answer.t, answer.rtt)
        if self._teller.is_news(unit.name, unit.state):
            silent = answer.exception in ABSENT
            self._tell(unit, exception_words(answer.exception or 0) if silent else answered_after(answer.rtt))
        if request is not None:
            if answer.exception not in ABSENT:
                self._lessons.silences[unit.name].answered(request)
            elif not trial:
                self._lessons.silences[unit.name].silent(request)
        return answer

    async def write(self, unit: Unit, wire: WireWrite, timeout: float) -> Answer:
        """The frames of one write, with nothing in between. Raises LinkFault."""
        steps = write_steps(wire)
        function, body = next(steps)
        while True:
            answer = await self.ask(unit, wire.unit, function, body, timeout)
            try:
                function, body = steps.send(answer)
            except StopIteration as end:
                result: Answer = end.value
                return result

    def lost(self, words: str) -> None:
        """The other side ended the connection."""
        self._meter.error("lost")
        self._keeper.lost(words)
        now = self._clock.mono()
        self._schedule.owe_all(now)
        self._gone()
        self.back()

    def back(self) -> None:
        """Units that were silent are worth a try at once: it was the connection, or that has changed."""
        now = self._clock.mono()
        for unit in self._schedule.units.values():
            unit.again(now)

    def late(self, number: int, seconds: float) -> None:
        """A reply came `seconds` after its request, which had been given up: the unit is slow, not dead."""
        for unit in self._schedule.units.values():
            if unit.unit == number:
                self._lessons.forget(unit.name)
                unit.late(self._clock.mono(), seconds)
                self._tell(unit, answered_after(seconds))

    def _missed(self, unit: Unit, started: float, now: float) -> None:
        unit.missed(started, now)
        self._on_missed(unit)

    def _tell(self, unit: Unit, words: str) -> None:
        if self._teller.unit(unit.name, unit.state, words) == "silent":
            self._schedule.owe_all(self._clock.mono(), unit.name)

    def _gone(self) -> None:
        for name in self._schedule.units:
            self._lessons.forget(name)
        self._on_gone()

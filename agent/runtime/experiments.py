"""Carries out the experiments of `tune`: writes what they want, puts the output back, brings the loop's mode back."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.control.excite import KINDS, Experiment, plan
from agent.control.loop import Loop
from agent.control.signals import Inputs
from agent.runtime.clock import Clock
from agent.twin.records import Event, Key, Outcome

log = logging.getLogger("edgetwin")

PATIENCE = 2.0
"""Seconds for one write."""
TRIES, RETRY = 10, 1.0
"""Attempts to put the output back, and seconds between them."""
REASON = "tune moves the output"
MOST_ROWS = 2000
"""In one answer."""


class Write(Protocol):
    """The writer: `agent.runtime.writer.Writer.write`."""

    def __call__(
        self, key: Key, value: float, *, source: str, deadline: float, safety: bool = False
    ) -> Awaitable[Outcome]: ...


@dataclass
class _Test:
    """An experiment on a loop and its writes. `was`: the loop's mode before, which comes back at the end."""

    loop: Loop
    experiment: Experiment
    was: str
    same: Callable[[float, float], bool]
    min_interval: float
    writing: bool = False
    next_write: float = -math.inf
    ended: bool = False
    restoring: bool = False
    restored: bool = True
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Experiments:
    """The experiments on the loops of a configuration, one for each loop at most. All in the main loop's thread."""

    def __init__(
        self,
        *,
        write: Write,
        clock: Clock,
        on_event: Callable[[Event], None],
        set_mode: Callable[[Loop, str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._write = write
        self._clock = clock
        self._on_event = on_event
        self._set_mode = set_mode
        self._sleep = sleep
        self._tests: dict[str, _Test] = {}

    # -- requests -----------------------------------------------------------------------------------------------

    def begin(
        self,
        loop: Loop,
        inputs: Inputs,
        asked: Mapping[str, Any],
        *,
        period: float,
        min_interval: float,
        same: Callable[[float, float], bool],
    ) -> Outcome:
        """Begins one: `asked` has kind, move and seconds. The loop is in manual from now until the end."""
        name = loop.config.name
        why = self._refused(loop, inputs, asked)
        if why is not None:
            return Outcome(False, error=f"loop {name}: {why}")
        try:
            wanted = plan(
                asked["kind"],
                loop.config,
                base=loop.output_now(inputs.out),
                move=asked["move"],
                seconds=asked["seconds"],
                period=period,
            )
        except ValueError as error:
            return Outcome(False, error=f"loop {name}: {error}")
        now = self._clock.mono()
        was = loop.mode
        self._set_mode(loop, "manual")
        loop.reason = REASON
        self._tests[name] = _Test(loop, Experiment(loop.config, wanted, now), was, same, min_interval)
        text = f"loop {name}: a test ({wanted.kind}) moves the output from {wanted.low:g} to {wanted.high:g}"
        self._tell(loop, "raised", text)
        return Outcome(True, result=self.report(name, 0))

    def _refused(self, loop: Loop, inputs: Inputs, asked: Mapping[str, Any]) -> str | None:
        if asked["kind"] not in KINDS:
            return f"there is no test {asked['kind']!r}: {', '.join(KINDS)}"
        running = self._tests.get(loop.config.name)
        if running is not None and not running.ended:
            return "a test runs already"
        if loop.failed:
            return f"it has failed: {loop.reason}"
        if not inputs.pv.good:
            return "the PV is not good"
        if not inputs.out.good:
            return "the output's value is not known"
        return None

    def report(self, name: str, first: int) -> dict[str, Any] | None:
        """How the loop's newest experiment stands, with its rows from number `first` on; None: there was none."""
        test = self._tests.get(name)
        if test is None:
            return None
        one = test.experiment
        rows = one.rows[first : first + MOST_ROWS]
        return {
            "running": not test.ended,
            "over": one.over,
            "done": one.done,
            "restored": test.restored,
            "base": one.plan.base,
            "low": one.plan.low,
            "high": one.plan.high,
            "seconds": one.plan.seconds,
            "elapsed": self._clock.mono() - one.started,
            "rows": [[None if math.isnan(cell) else cell for cell in row] for row in rows],
            "more": first + len(rows) < len(one.rows),
            "mode": test.was,
        }

    def hear(self, name: str) -> None:
        """Who began the experiment has asked for it."""
        if name in self._tests:
            self._tests[name].experiment.hear(self._clock.mono())

    def close(self, name: str, why: str) -> None:
        """Asked to end: the output goes back at the loop's rate."""
        if name in self._tests:
            self._tests[name].experiment.close(why)

    def abort(self, name: str, why: str) -> None:
        """Ends it at once, the output goes back in one step."""
        test = self._tests.get(name)
        if test is not None and not test.ended:
            test.experiment.end(why)
            self._restore(test)

    async def abort_all(self, names: Iterable[str], why: str) -> None:
        """As `abort`; returns when every output is back, or cannot be brought back."""
        for name in names:
            self.abort(name, why)
        tasks = {task for name in names if name in self._tests for task in self._tests[name].tasks}
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)

    def holder_of(self, key: Key) -> str | None:
        """The loop whose experiment alone may write this tag now."""
        for name, test in self._tests.items():
            if not test.ended and test.loop.config.out == key:
                return name
        return None

    # -- samples and time ---------------------------------------------------------------------------------------

    def on_sample(self, name: str, inputs: Inputs) -> None:
        """A sample of the loop's PV has come, after the loop itself has seen it."""
        test = self._tests.get(name)
        if test is None or test.restoring or test.ended:
            return
        now, one = self._clock.mono(), test.experiment
        if test.loop.failed:
            one.end(test.loop.reason or "the loop has failed")
        value = one.on_sample(now, inputs, same=test.same(one.written, inputs.out.value))
        if one.over is not None:
            self._restore(test)
        elif value is not None and not test.writing and now >= test.next_write:
            test.next_write, test.writing = now + test.min_interval, True
            one.write_began(value)
            self._keep(test, self._move(test, value))
        elif value is not None:
            one.held_back()

    def on_tick(self) -> None:
        """Time has passed."""
        now = self._clock.mono()
        for test in self._tests.values():
            if not test.restoring and not test.ended:
                test.experiment.on_tick(now)
                if test.experiment.over is not None:
                    self._restore(test)

    # -- inside -------------------------------------------------------------------------------------------------

    async def _move(self, test: _Test, value: float) -> None:
        outcome = await self._put(test, value, safety=False)
        test.writing = False
        if outcome.ok:
            test.experiment.write_answered(self._clock.mono())
        elif not test.restoring:
            test.experiment.end(f"the output could not be written: {outcome.error}")
            self._restore(test)

    def _restore(self, test: _Test) -> None:
        """Back to where the output was, unless the loop's own fail action or somebody else has it."""
        if test.restoring or test.ended:
            return
        test.restoring = True
        ours = test.experiment.restores and not (test.loop.failed and test.loop.config.fail.to != "hold")
        if not ours:
            test.restored = False
            self._finish(test)
        elif test.experiment.written == test.experiment.plan.base and not test.writing:
            self._finish(test)
        else:
            test.restored = False
            self._keep(test, self._put_back(test))

    async def _put_back(self, test: _Test) -> None:
        base = test.experiment.plan.base
        for left in reversed(range(TRIES)):
            outcome = await self._put(test, base, safety=True)
            if outcome.ok or outcome.readback is not None:
                test.restored = True
                break
            if left:
                await self._sleep(RETRY)
        self._finish(test)

    async def _put(self, test: _Test, value: float, *, safety: bool) -> Outcome:
        deadline = self._clock.mono() + PATIENCE
        try:
            return await self._write(
                test.loop.config.out, value, source="loop", deadline=deadline, safety=safety
            )
        except Exception:
            log.exception("a write of a test failed; this is a fault of the program")
            return Outcome(False, error="a fault of the program")

    def _finish(self, test: _Test) -> None:
        test.ended = True
        loop, one = test.loop, test.experiment
        if loop.mode == "manual" and not loop.failed:
            loop.reason = None
            if test.was != "manual":
                self._set_mode(loop, test.was)
        where = f"the output is back at {one.plan.base:g}"
        if not test.restored:
            where = "the output was not brought back"
        self._tell(loop, "cleared", f"loop {loop.config.name}: the test is over ({one.over}); {where}")

    def _tell(self, loop: Loop, state: Any, text: str) -> None:
        device, tag = loop.config.out
        self._on_event(Event(device, "loop_test", "warning", state, text, self._clock.mono(), tag=tag))

    def _keep(self, test: _Test, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        test.tasks.add(task)
        task.add_done_callback(test.tasks.discard)

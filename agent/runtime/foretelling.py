"""Runs of `whatif` beside the main loop: one at a time, in a thread that lets the main loop go first."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.config.types import Config, LoopConfig
from agent.control import whatif
from agent.control.loop import Loop
from agent.control.signals import Inputs
from agent.control.whatif import Foretold, Hardware, State
from agent.runtime.clock import Clock
from agent.twin.records import Outcome

BREATH = 0.0005
"""Seconds that a run sleeps after every few steps, so that the main loop never waits longer than those steps take."""
WAITING = 4
"""Questions that may wait at once."""


class Foretelling:
    """Answers what a loop would do. For the main loop's thread, but for the runs themselves."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0
        self._closed = False

    def close(self) -> None:
        """Ends the run under way and takes no more: the agent stops."""
        self._closed = True

    async def answer(
        self,
        config: Config,
        loop: Loop,
        inputs: Inputs,
        asked: Mapping[str, float | None],
        *,
        deadline: float,
    ) -> Outcome:
        """The answer to `cmd/whatif`: asked has setpoint, load and seconds, each None where it was left out."""
        name, setpoint, load = loop.config.name, asked["setpoint"], asked["load"] or 0.0
        for key, sample in ((loop.config.pv, inputs.pv), (loop.config.out, inputs.out)):
            if not sample.good:
                return Outcome(False, error=f"there is no good value of {'/'.join(key)} now")
        if self._waiting >= WAITING:
            return Outcome(False, error="too many questions at once")
        start = state_of(loop, inputs)
        if setpoint is None and not math.isnan(loop.setpoint.target):
            setpoint = loop.setpoint.target  # a ramp that is under way goes on
        if load == 0.0 and setpoint in (None, start.setpoint) and start.setpoint == start.pv:
            return Outcome(
                False, error=f"nothing would change from {start.setpoint:g}: give setpoint or load"
            )
        self._waiting += 1
        try:
            found = await self.run(
                loop.config,
                whatif.hardware_of(config, loop.config),
                start,
                deadline=deadline,
                setpoint=setpoint,
                load=load,
                seconds=asked["seconds"],
            )
        except ValueError as error:
            return Outcome(False, error=str(error))
        except TimeoutError:
            return Outcome(False, error=f"loop {name} could not be simulated in time: ask for less (`for`)")
        finally:
            self._waiting -= 1
        return Outcome(True, result={"loop": name, **whatif.body(found)})

    async def run(
        self, loop: LoopConfig, hardware: Hardware, start: State, *, deadline: float, **asked: Any
    ) -> Foretold:
        """`whatif.foretell` in a thread. Raises ValueError as it does, TimeoutError at `deadline` (monotonic)."""
        run = functools.partial(whatif.foretell, loop, start, hardware, pause=self._pause(deadline), **asked)
        async with asyncio.timeout(max(deadline - self._clock.mono(), 0.0)), self._one_at_a_time:
            return await asyncio.to_thread(run)

    def _pause(self, deadline: float) -> Callable[[], None]:
        def pause() -> None:
            time.sleep(BREATH)
            if self._closed or self._clock.mono() > deadline:
                raise TimeoutError

        return pause


def state_of(loop: Loop, inputs: Inputs) -> State:
    """Where a loop stands, for `whatif`; a setpoint that is not known yet is the PV."""
    shown = loop.setpoint.shown
    mode = "fail" if loop.failed else loop.mode
    setpoint = inputs.pv.value if math.isnan(shown) else shown
    return State(inputs.pv.value, inputs.out.value, setpoint, mode, loop.reason)

"""Follows changes of setpoints: what `whatif` foretells of each, and later what came of it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from agent.config.types import Config, LoopConfig
from agent.control import hindsight, whatif
from agent.control.hindsight import Compared, Trace
from agent.control.loop import Loop
from agent.control.shape import within
from agent.control.signals import Inputs
from agent.control.whatif import Foretold, Hardware, State
from agent.runtime.clock import Clock
from agent.runtime.foretelling import Foretelling
from agent.twin.records import Event

log = logging.getLogger("edgetwin")

LINGER = 2.0
"""Seconds for which a setpoint must have stood before anything is computed: one that moves on costs nothing."""
PATIENCE = 300.0
"""Seconds that a simulation may take."""


@dataclass
class _Change:
    """A setpoint that went to `goal` at `begun` (monotonic)."""

    loop: Loop
    config: LoopConfig
    hardware: Hardware
    start: State
    goal: float
    begun: float
    trace: Trace
    asked: bool = False
    foretold: Foretold | None = None

    @property
    def over(self) -> bool:
        """The loop is not in auto any more, or is another one."""
        same = self.loop.config is self.config or self.loop.config == self.config
        return not (same and _runs(self.loop))


@dataclass
class _Followed:
    """The setpoint at the loop's last step: what was asked for and where its ramp was. `last`: (when, what came)."""

    target: float = math.nan
    value: float = math.nan
    change: _Change | None = None
    last: tuple[float, Compared] | None = None


@dataclass
class Comparisons:
    """One change of each loop at a time; another one takes its place. For the main loop's thread."""

    foretelling: Foretelling
    clock: Clock
    on_event: Callable[[Event], None]
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def on_sample(self, config: Config, loop: Loop, inputs: Inputs) -> None:
        """The loop took a step with these inputs."""
        name = loop.config.name
        one = self._followed.get(name)
        if one is None:
            one = self._followed[name] = _Followed()
        if not _runs(loop):
            one.change, one.target = None, math.nan
            return
        target = loop.setpoint.target
        if target != one.target:
            one.change = self._begin(config, loop, inputs, one)
            one.target = target
        elif one.change is not None and inputs.pv.good:
            one.change.trace.add(inputs.pv.t - one.change.begun, inputs.pv.value)
        one.value = loop.setpoint.value

    def _begin(self, config: Config, loop: Loop, inputs: Inputs, before: _Followed) -> _Change | None:
        """None where nothing can be foretold, or nothing that noise would not hide."""
        model, target = loop.config.model, loop.setpoint.target
        if model is None or not (inputs.pv.good and inputs.out.good and math.isfinite(before.target)):
            return None
        goal = within(target, loop.config.setpoint_limits)
        if not abs(goal - before.value) > max(3.0 * model.noise, 1e-6 * abs(goal)):
            return None
        hardware = whatif.hardware_of(config, loop.config)
        start = State(inputs.pv.value, inputs.out.value, before.value)
        trace = Trace(hardware.period, [0.0], [inputs.pv.value])
        return _Change(loop, loop.config, hardware, start, goal, inputs.pv.t, trace)

    def on_tick(self) -> None:
        """Has foretold what is to be foretold, and compares what is due."""
        now = self.clock.mono()
        for one in self._followed.values():
            change = one.change
            if change is None:
                continue
            if change.over:
                one.change = None
            elif not change.asked:
                if now - change.begun >= max(LINGER, 2.0 * change.hardware.period):
                    change.asked = True
                    task = asyncio.get_running_loop().create_task(self._foretell(one, change))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            elif change.foretold is not None and now - change.begun >= hindsight.due(change.foretold):
                one.change = None
                self._compare(one, change, change.foretold, now)

    async def _foretell(self, one: _Followed, change: _Change) -> None:
        try:
            change.foretold = await self.foretelling.run(
                change.config,
                change.hardware,
                change.start,
                deadline=self.clock.mono() + PATIENCE,
                setpoint=change.goal,
            )
        except (ValueError, TimeoutError) as error:
            log.debug("loop %s: nothing is foretold: %s", change.config.name, error)
            if one.change is change:
                one.change = None
        except Exception:
            log.exception("loop %s: foretelling failed; this is a fault of the program", change.config.name)

    def _compare(self, one: _Followed, change: _Change, foretold: Foretold, now: float) -> None:
        if foretold.controller == "predictive" and change.loop.reason is not None:
            return  # a PID has run in its place meanwhile
        model = change.config.model
        found = hindsight.compare(foretold, change.trace, noise=0.0 if model is None else model.noise)
        if found is None:
            return
        one.last = now, found
        device, tag = change.config.pv
        text = f"loop {change.config.name}: {hindsight.words(found)}"
        self.on_event(
            Event(
                device, "loop_compared", "info", "raised", text, now, tag=tag, value=whatif.tidy(found.misfit)
            )
        )

    def keep(self, names: Collection[str]) -> None:
        """Forgets loops of other names: the configuration changed."""
        self._followed = {name: one for name, one in self._followed.items() if name in names}

    def last(self, name: str) -> dict[str, Any] | None:
        """`loops.<name>.compared` of `status --json`: the last comparison, and how many seconds ago it was made."""
        one = self._followed.get(name)
        if one is None or one.last is None:
            return None
        at, found = one.last
        return {**hindsight.body(found), "ago_s": round(self.clock.mono() - at, 1)}


def _runs(loop: Loop) -> bool:
    return loop.mode == "auto" and loop.engaged and not loop.failed

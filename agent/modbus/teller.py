"""Events of a line: the first occurrence and changes, never the same twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from agent.modbus.schedule import State
from agent.runtime.clock import Clock
from agent.twin.records import Event


class Teller:
    """Raises and clears link_down, device_silent and device_slow of the devices of one line."""

    def __init__(self, devices: Sequence[str], *, clock: Clock, on_event: Callable[[Event], None]) -> None:
        self._devices = devices
        self._clock = clock
        self._on_event = on_event
        self._down = False
        self._states: dict[str, State] = dict.fromkeys(devices, "ok")

    def link_down(self, words: str) -> None:
        """An attempt to connect failed."""
        if not self._down:
            self._down = True
            self._link("raised", words)

    def link_up(self, words: str) -> None:
        """A good reply came."""
        if self._down:
            self._down = False
            self._link("cleared", words)

    def _link(self, state: Literal["raised", "cleared"], words: str) -> None:
        now = self._clock.mono()
        for name in self._devices:
            self._on_event(Event(name, "link_down", "warning", state, f"{name}: {words}", now, alarm=True))

    def unit(self, name: str, state: State, words: str) -> State | None:
        """A device is in `state`. Returns the one before when that is a change, else None."""
        before = self._states[name]
        if state == before:
            return None
        self._states[name] = state
        self._change(name, before, "cleared", words)
        self._change(name, state, "raised", words)
        return before

    def _change(self, name: str, state: State, change: Literal["raised", "cleared"], words: str) -> None:
        now = self._clock.mono()
        text = f"{name}: {words}"
        if state == "silent":
            self._on_event(Event(name, "device_silent", "warning", change, text, now, alarm=True))
        elif state == "slow":
            self._on_event(Event(name, "device_slow", "info", change, text, now))

"""Events of a line: the first occurrence and changes, never the same twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from agent.config.types import Table
from agent.modbus.learning import Learner
from agent.modbus.plan import Span
from agent.modbus.schedule import State
from agent.runtime.clock import Clock
from agent.twin.records import Event


class Teller:
    """Raises and clears link_down, device_silent, device_slow, address_refused; tells what was learnt."""

    def __init__(self, devices: Sequence[str], *, clock: Clock, on_event: Callable[[Event], None]) -> None:
        self._devices = devices
        self._clock = clock
        self._on_event = on_event
        self.down = False  # the connection, as far as it was told
        self._states: dict[str, State] = dict.fromkeys(devices, "ok")
        self._lacking: dict[str, str] = {}  # device -> what was told of its SunSpec chain

    def change(self, devices: Sequence[str], changed: Collection[str]) -> None:
        """Other devices are on the line; of the `changed` ones nothing has been told yet."""
        self._devices = devices
        self._states = {name: "ok" if name in changed else self._states.get(name, "ok") for name in devices}
        for name in changed:
            self._lacking.pop(name, None)
        if self.down:
            self._link("raised", "no connection", [name for name in devices if name in changed])

    def link_down(self, words: str) -> None:
        """An attempt to connect failed."""
        if not self.down:
            self.down = True
            self._link("raised", words, self._devices)

    def link_up(self, words: str) -> None:
        """A good reply came."""
        if self.down:
            self.down = False
            self._link("cleared", words, self._devices)

    def _link(self, state: Literal["raised", "cleared"], words: str, devices: Sequence[str]) -> None:
        now = self._clock.mono()
        for name in devices:
            self._on_event(Event(name, "link_down", "warning", state, f"{name}: {words}", now, alarm=True))

    def is_news(self, name: str, state: State) -> bool:
        """True when `unit` would tell something."""
        return self._states[name] != state

    def unit(self, name: str, state: State, words: str) -> State | None:
        """A device is in `state`. Returns the one before when that is a change, else None."""
        before = self._states[name]
        if state == before:
            return None
        self._states[name] = state
        self._change(name, before, "cleared", words)
        self._change(name, state, "raised", words)
        return before

    def learnt(self, learner: Learner, before: frozenset[str]) -> None:
        """More is known of what a device refuses; `before` are the tags that it was known to refuse."""
        now = self._clock.mono()
        name = learner.device.name
        for tag in sorted(learner.learnt.refused - before):
            where = learner.device.tags[tag]
            how = learner.how(where.table, (where.address, where.address + where.count))
            text = f"{name}: the device {how} {where.table} {where.address} ({tag}); the other tags are read"
            self._on_event(Event(name, "address_refused", "warning", "raised", text, now, tag))
        for tag in sorted(before - learner.learnt.refused):
            self._on_event(
                Event(name, "address_refused", "warning", "cleared", f"{name}: {tag} can be read", now, tag)
            )
        lines = [line for line in learner.as_yaml() if not line.startswith("#")]
        if lines and learner.learnt.refused == before:
            text = f"{name}: learnt what the device bears; for its block: {'; '.join(lines)}"
            self._on_event(Event(name, "limits_learnt", "info", "raised", text, now))

    def shifted(self, name: str, table: Table, span: Span) -> None:
        """Values behind a hole were not the same when they were read without it."""
        where = f"{table} {span[0]}" if span[1] - span[0] == 1 else f"{table} {span[0]}-{span[1] - 1}"
        text = (
            f"{name}: the device answers wrongly what stands behind {where} when it is read across it;"
            " it is read without it"
        )
        self._on_event(Event(name, "hole_distrusted", "warning", "raised", text, self._clock.mono()))

    def chain(self, name: str, why: Sequence[str], *, moved: bool) -> None:
        """A SunSpec chain was walked: `why` some of it cannot be read; `moved`: it is another one than before."""
        now = self._clock.mono()
        if moved:
            text = f"{name}: its SunSpec chain has changed; its tags are read at their new addresses"
            self._on_event(Event(name, "sunspec_moved", "info", "raised", text, now))
        words, before = "; ".join(why), self._lacking.pop(name, "")
        if words:
            self._lacking[name] = words
        if words and words != before:
            self._on_event(Event(name, "sunspec_chain", "warning", "raised", f"{name}: {words}", now))
        elif before and not words:
            text = f"{name}: its SunSpec chain has all its tags"
            self._on_event(Event(name, "sunspec_chain", "warning", "cleared", text, now))

    def _change(self, name: str, state: State, change: Literal["raised", "cleared"], words: str) -> None:
        now = self._clock.mono()
        text = f"{name}: {words}"
        if state == "silent":
            self._on_event(Event(name, "device_silent", "warning", change, text, now, alarm=True))
        elif state == "slow":
            self._on_event(Event(name, "device_slow", "info", change, text, now))

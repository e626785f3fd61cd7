"""The doors: every request from outside the main loop is judged here, whoever sent it.

A request from the cloud, the socket or the page passes the same limits; a tag that a running loop holds belongs to
that loop alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.config.types import Config
from agent.modbus.line import Line
from agent.runtime import commission
from agent.runtime.clock import Clock
from agent.runtime.loops import Loops
from agent.runtime.poll import poll_keys
from agent.runtime.writer import Writer
from agent.twin.quality import WORDS
from agent.twin.records import Ask, Key, Outcome

LOCAL = ("socket", "page")


@dataclass
class Doors:
    """Answers `Ask`s. `status` gives the body of `edgetwin status --json`."""

    config: Config
    writer: Writer
    loops: Loops
    clock: Clock
    status: Callable[[], dict[str, Any]]
    wall_ms: Callable[[float], int]
    on_local_change: Callable[[str], None]
    """Told the name (as in `desired.set`) of what somebody on the spot has changed."""
    relearn: Callable[[str], Outcome]
    """Begins the commissioning of a device's health anew."""

    async def handle(self, ask: Ask) -> Outcome:
        """The answer to one request. Never raises for what the request holds."""
        if self.clock.mono() > ask.deadline:
            return Outcome(False, error="expired before its turn came")
        match ask.op:
            case "write":
                return await self._write(ask)
            case "read":
                return await self._read(ask)
            case "loop":
                return self._loop(ask)
            case "holds":
                return commission.held(self._lines(), ask.extra["url"])
            case "ask":
                return await commission.ask_unit(self._lines(), **ask.extra, deadline=ask.deadline)
            case "status":
                return Outcome(True, result=self.status())
            case "relearn":
                device = ask.extra["device"]
                if device not in self.config.devices:
                    return Outcome(False, error=f"there is no device {device!r}")
                return self.relearn(device)
            case "tune":
                return self._tune(ask)
            case "whatif":
                return await self._whatif(ask)
        return Outcome(False, error=f"unknown operation {ask.op!r}")

    def _lines(self) -> set[Line]:
        return set(self.writer.line_of.values())

    def _unknown(self, key: Key) -> str | None:
        device = self.config.devices.get(key[0])
        if device is None:
            return f"there is no device {key[0]!r}"
        if key[1] not in device.tags:
            return f"device {key[0]!r} has no tag {key[1]!r}"
        return None

    async def _write(self, ask: Ask) -> Outcome:
        if ask.key is None:
            return Outcome(False, error="a write needs a tag")
        if unknown := self._unknown(ask.key):
            return Outcome(False, error=unknown)
        owner = self.loops.holder_of(ask.key)
        if owner:
            return Outcome(
                False,
                error=f"{'/'.join(ask.key)} belongs to loop {owner} while it is in auto, in fail or tested",
            )
        outcome = await self.writer.write(ask.key, ask.value, source=ask.source, deadline=ask.deadline)
        if outcome.ok and ask.source in LOCAL:
            self.on_local_change("/".join(ask.key))
        return outcome

    async def _read(self, ask: Ask) -> Outcome:
        for key in ask.keys:
            if unknown := self._unknown(key):
                return Outcome(False, error=unknown)
        keys = ask.keys or tuple((d.name, tag) for d in self.config.devices.values() for tag in d.tags)
        polled = await poll_keys(self.config, self.writer.line_of, keys, deadline=ask.deadline)
        if ask.extra.get("full"):
            return Outcome(True, result=polled.as_json(self.config, self.wall_ms))
        result = {
            "/".join(key): {"v": one.plain, "q": WORDS[one.quality], "t": self.wall_ms(one.t)}
            for key, one in polled.values.items()
        }
        return Outcome(True, result=result)

    def _tune(self, ask: Ask) -> Outcome:
        if ask.source != "socket":
            return Outcome(False, error="tests of a loop are for who is on the spot")
        if ask.loop is None or ask.loop not in self.config.loops:
            return Outcome(False, error=f"there is no loop {ask.loop!r}")
        return self.loops.experiment(ask.loop, ask.extra)

    async def _whatif(self, ask: Ask) -> Outcome:
        if ask.loop is None or ask.loop not in self.config.loops:
            return Outcome(False, error=f"there is no loop {ask.loop!r}")
        asked = {"setpoint": ask.setpoint, "load": ask.extra.get("load"), "seconds": ask.extra.get("for")}
        return await self.loops.whatif(ask.loop, asked, deadline=ask.deadline)

    def _loop(self, ask: Ask) -> Outcome:
        if ask.loop is None or ask.loop not in self.config.loops:
            return Outcome(False, error=f"there is no loop {ask.loop!r}")
        local = ask.source in LOCAL
        outcome = self.loops.ask(ask.loop, mode=ask.mode, setpoint=ask.setpoint, remote=not local)
        if outcome.ok and local:
            for what, given in (("mode", ask.mode), ("setpoint", ask.setpoint)):
                if given is not None:
                    self.on_local_change(f"loop/{ask.loop}/{what}")
        return outcome

"""The one way to a register: every write, from a loop, the cloud, the socket or the page, passes here.

Only tags with `write:` are written, within their range, not more often than `min_interval`, not more than `daily`
times a day, and read back unless `verify: false`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from agent.config.types import Config, Device, Tag, Write
from agent.modbus.codec import Decoder, EncodeProblem, encode, power_of, readback_matches
from agent.modbus.faults import DeviceFault, LinkFault
from agent.modbus.line import Line
from agent.modbus.plan import Request, request_for
from agent.runtime.clock import Clock
from agent.twin.records import Event, Key, Outcome, Plain
from agent.twin.table import Twin

NONVOLATILE_INTERVAL = 60.0
"""Seconds between writes to a register that the device keeps in EEPROM (about 1e6 writes: 11 days at one a second)."""
HEARTBEAT = "heartbeat"
DAY = 86_400.0
SETTLE = 2.0
"""Seconds for which a written register may still show its old value."""
SETTLE_STEP = 0.1


@dataclass(slots=True)
class Gate:
    """When a tag may be written next, and how often it has been today. Times are monotonic seconds."""

    write: Write
    last: float | None = None
    day: int = -1
    count: int = 0
    newest: int = 0

    def earliest(self, now: float) -> float:
        """The time from which the next write may go out."""
        if self.last is None:
            return now
        interval = self.write.min_interval
        if self.write.nonvolatile:
            interval = max(interval, NONVOLATILE_INTERVAL)
        return max(now, self.last + interval)

    def spent(self, now: float) -> bool:
        """True when today's writes are used up."""
        return int(now // DAY) == self.day and self.count >= self.write.daily

    def written(self, now: float) -> None:
        """Counts one write."""
        self.last = now
        day = int(now // DAY)
        self.count = self.count + 1 if day == self.day else 1
        self.day = day


@dataclass
class Writer:
    """Writes tags of `config` through the lines of their devices. `line_of` maps a device to its line."""

    config: Config
    twin: Twin
    line_of: Mapping[str, Line]
    clock: Clock
    on_event: Callable[[Event], None]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _gates: dict[Key, Gate] = field(default_factory=dict)
    _checks: dict[Key, tuple[Request, Decoder]] = field(default_factory=dict)

    async def write(
        self,
        key: Key,
        value: Plain,
        *,
        source: str,
        deadline: float,
        safety: bool = False,
    ) -> Outcome:
        """Writes one value and reads it back. Never raises for a fault: the outcome says what happened.

        `safety` is for the one step to a loop's fail or stop value: neither interval nor daily budget holds it up,
        and what still waits for its turn is dropped. A write whose `source` is "heartbeat" is never read
        back: the PLC may well reset it.
        """
        device = self.config.devices[key[0]]
        tag = device.tags[key[1]]
        name = "/".join(key)
        write = tag.write
        if write is None:
            return Outcome(False, error=f"{name} is not writable: its configuration has no `write`")
        line = self.line_of[device.name]
        try:
            if tag.sunspec is not None:  # it is where the device's own chain says
                placement = await line.placed(device.name, deadline=deadline)
                if tag.name in placement.absent:
                    return Outcome(False, error=f"{name}: {placement.absent[tag.name]}")
                device = placement.device
                tag = device.tags[tag.name]
            wire = encode(tag, device, value, self._power(device, tag))
        except (EncodeProblem, LinkFault) as problem:
            return Outcome(False, error=f"{name}: {problem}")
        gate = self._gates.setdefault(key, Gate(write))
        gate.newest += safety
        refused = None if safety else await self._wait_turn(name, gate, deadline)
        if refused:
            return refused
        if tag.sunspec is not None and line.placements[device.name].device is not device:
            return Outcome(False, error=f"{name}: its address has changed meanwhile: ask again")
        gate.written(self.clock.mono())
        try:
            await line.write(device.name, wire, deadline=deadline)
            if source == HEARTBEAT:
                return Outcome(True, applied=value)
            return await self._verified(key, tag, device, value, deadline)
        except (LinkFault, DeviceFault) as fault:
            return Outcome(False, error=f"{name}: {fault}")

    def change(self, config: Config, twin: Twin, line_of: Mapping[str, Line]) -> None:
        """Another configuration; tags that are written as before keep their intervals and what today has used."""
        self.config, self.twin, self.line_of = config, twin, line_of
        self._checks.clear()
        for (device, tag), gate in list(self._gates.items()):
            found = config.devices[device].tags.get(tag) if device in config.devices else None
            if found is None or found.write != gate.write:
                del self._gates[(device, tag)]

    async def _wait_turn(self, name: str, gate: Gate, deadline: float) -> Outcome | None:
        gate.newest += 1
        turn = gate.newest
        now = self.clock.mono()
        if gate.spent(now):
            self._budget_event(name, gate)
            return Outcome(
                False, error=f"{name}: its {gate.write.daily} writes of today (`daily`) are used up"
            )
        while (wait := gate.earliest(now) - now) > 0:
            if now + wait > deadline:
                return Outcome(
                    False, error=f"{name}: too soon after the last write; possible in {wait:.1f} s"
                )
            await self.sleep(wait)
            if turn != gate.newest:
                return Outcome(False, error=f"{name}: superseded by a newer value before its turn")
            now = self.clock.mono()
        if now > deadline:
            return Outcome(False, error=f"{name}: expired before it could be written")
        return None

    async def _verified(self, key: Key, tag: Tag, device: Device, value: Plain, deadline: float) -> Outcome:
        assert tag.write is not None
        if not tag.write.verify:
            return Outcome(True, applied=value)
        request, decoder = self._check(key, tag, device)
        line = self.line_of[device.name]
        power = self._power(device, tag)
        give_up = self.clock.mono() + SETTLE
        readback: Plain = None
        while True:
            [(_, reply)] = await line.read([request], deadline=max(deadline, give_up))
            if reply.payload is None:
                return Outcome(
                    False, readback=readback, error=f"{'/'.join(key)}: written, not read back: {reply.words}"
                )
            readback = decoder.decode(reply.payload, {} if power is None else {tag.name: power}).plain[0]
            if readback_matches(tag, value, readback, power):
                return Outcome(True, applied=value, readback=readback)
            if self.clock.mono() >= give_up:
                return Outcome(
                    False,
                    readback=readback,
                    error=f"{'/'.join(key)}: wrote {value}, the device shows {readback}",
                )
            await self.sleep(SETTLE_STEP)

    def _check(self, key: Key, tag: Tag, device: Device) -> tuple[Request, Decoder]:
        check = self._checks.get(key)
        if check is None or check[0].address != tag.address:
            request = request_for(device, (tag.name,))
            check = self._checks[key] = (request, Decoder(request, device))
        return check

    def _power(self, device: Device, tag: Tag) -> int | None:
        if tag.scale_from is None:
            return None
        return power_of(self.twin.sample((device.name, tag.scale_from)).plain)

    def _budget_event(self, name: str, gate: Gate) -> None:
        if gate.count == gate.write.daily:
            gate.count += 1  # once a day is enough
            device, tag = name.split("/")
            text = f"{name}: {gate.write.daily} writes in a day; no more until tomorrow"
            self.on_event(
                Event(
                    device,
                    "write_budget",
                    "warning",
                    "raised",
                    text,
                    self.clock.mono(),
                    tag,
                    limit=gate.write.daily,
                )
            )

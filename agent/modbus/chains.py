"""What is known of the SunSpec chains of a line's devices: which are to be walked, where their tags are, what lacks."""

from __future__ import annotations

import dataclasses
import struct
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass

from agent.config.types import Device
from agent.modbus.framers import Answer
from agent.modbus.lessons import Lessons
from agent.modbus.plan import Request, request_for
from agent.modbus.schedule import Run, Schedule, Unit
from agent.modbus.sunspec import Chain, Placement, Words, has_places, placed, walk
from agent.modbus.teller import Teller

FIRST_AGAIN, LONGEST_AGAIN = 30.0, 3600.0
"""Seconds before the chain of a device whose tags are not all in it is walked again: it may have been starting."""


@dataclass(slots=True)
class Walked:
    """One device with tags of a chain. Times are monotonic seconds."""

    device: Device
    steps: Generator[int, Words | None, Chain] | None = None  # a walk under way
    address: int = 0  # what it reads next
    chain: Chain | None = None
    due: float | None = 0.0  # when it is walked next; None: all its tags are there
    wait: float = FIRST_AGAIN


@dataclass(frozen=True, slots=True)
class End:
    """A walk is over: whether tags have other addresses than before, and the device's passes under way."""

    changed: bool
    runs: tuple[Run, ...]


class Chains:
    """Keeps `placements` (device -> where its tags are) up to date; other devices are in it as they are configured.

    Once a walk is over `lessons` and `schedule` read the device by the addresses that it gave.
    """

    def __init__(
        self, devices: Iterable[Device], schedule: Schedule, lessons: Lessons, teller: Teller
    ) -> None:
        self._schedule = schedule
        self._lessons = lessons
        self._teller = teller
        self.placements: dict[str, Placement] = {}
        self._of: dict[str, Walked] = {}
        for device in devices:
            self._begin(device)

    def _begin(self, device: Device) -> None:
        self.placements[device.name] = Placement(device)
        if has_places(device):
            self._of[device.name] = Walked(device)
            self._lessons.hold(device.name)

    def change(self, devices: Sequence[Device], changed: Collection[str]) -> None:
        """Other devices are on the line; of those in `changed` the chain is not known."""
        stays = {device.name for device in devices}.difference(changed)
        for name in self.placements.keys() - stays:
            del self.placements[name]
            self._of.pop(name, None)
        for device in devices:
            if device.name in changed:
                self._begin(device)

    def wanted(self, name: str, now: float) -> bool:
        """True while a device is not read before its chain was walked (again)."""
        one = self._of.get(name)
        return one is not None and one.due is not None and one.due <= now

    def next(self, name: str) -> bytes:
        """The body of the read (function 3) by which the walk goes on."""
        one = self._of[name]
        if one.steps is None:
            one.steps = walk(one.chain.base if one.chain is not None else None)
            one.address = next(one.steps)
        return struct.pack(">HH", one.address, 2)

    def told(self, name: str, answer: Answer, now: float) -> End | None:
        """Takes the answer to `next`; None while the walk goes on."""
        one = self._of[name]
        assert one.steps is not None
        data = answer.payload
        try:
            one.address = one.steps.send(None if data is None else struct.unpack(">HH", data))
        except StopIteration as end:
            one.steps = None
            return self._walked(one, end.value, now)
        return None

    def gone(self, now: float) -> None:
        """The connection was lost: what comes back may have another chain."""
        for name in self._of:
            self._again(name, now)

    def missed(self, unit: Unit, now: float) -> None:
        """A device did not answer. One that is silent may come back with another chain; of one that has nothing to
        be read by, the chain shows that it is back."""
        if unit.name in self._of and (unit.state == "silent" or not self.placements[unit.name].readable.tags):
            self._again(unit.name, now)

    def _again(self, name: str, now: float) -> None:
        one = self._of[name]
        one.steps, one.due, one.wait = None, now, FIRST_AGAIN
        self._lessons.hold(name)

    def barred(self, request: Request) -> str | None:
        """Why a request is not sent: none of its tags is in the chain. None where it is."""
        absent = self.placements[request.device].absent
        return absent.get(request.tags[0]) if absent and request.tags else None

    def why(self, name: str) -> list[str]:
        """What keeps tags of a device from being read, or its chain from being whole."""
        chain = self._of[name].chain if name in self._of else None
        words = self.placements[name].why()
        if chain is not None and chain.fault and not any(chain.fault in one for one in words):
            words.append(chain.fault)
        return words

    def _walked(self, one: Walked, chain: Chain, now: float) -> End:
        name = one.device.name
        first, one.chain = one.chain is None, chain
        before = self.placements[name]
        made = placed(one.device, chain)
        one.due = None
        if made.absent or chain.fault:
            one.due = now + one.wait
            one.wait = min(2 * one.wait, LONGEST_AGAIN)
        if made == before:
            made = before
        self.placements[name] = made
        self._lessons.place(made.readable, standing_in(made))
        self._teller.chain(name, self.why(name), moved=not first and made is not before)
        runs = tuple(run for run in self._schedule.active if run.scan.device == name)
        for run in runs if made is not before else ():
            run.pending = deque(run.scan.requests)
        return End(made is not before, runs)


def standing_in(placement: Placement) -> tuple[Request, ...]:
    """Requests that are never sent: by them absent tags are told of at their turn, those of one reason and period
    together."""
    groups: dict[tuple[float, str], list[str]] = {}
    for name, words in placement.absent.items():
        groups.setdefault((placement.device.tags[name].every, words), []).append(name)
    return tuple(
        dataclasses.replace(request_for(placement.device, tuple(names)), count=0, wanted=0)
        for names in groups.values()
    )

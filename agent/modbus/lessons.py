"""What the devices of one line do not bear, found out in the line's spare time: refused addresses, holes, lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.config.types import Device
from agent.modbus.faults import REFUSED
from agent.modbus.holes import Holes, Proof
from agent.modbus.learning import Learner
from agent.modbus.plan import NOTHING_LEARNT, Learnt, Request
from agent.modbus.replies import Reply
from agent.modbus.schedule import BUSY_RETRY, SHORTEST_TRY, Schedule, Unit
from agent.modbus.teller import Teller


@dataclass(frozen=True, slots=True)
class Lesson:
    """A read that shows something: seconds that it may take, and whether it looks behind a hole."""

    unit: Unit
    request: Request
    limit: float
    hole: bool


class Lessons:
    """`on_learnt(device, learnt)` is called when more is known. Times are monotonic seconds."""

    def __init__(
        self,
        devices: Iterable[Device],
        schedule: Schedule,
        teller: Teller,
        *,
        learnt: Mapping[str, Learnt],
        on_learnt: Callable[[str, Learnt], None] | None,
    ) -> None:
        self._schedule = schedule
        self._teller = teller
        self._on_learnt = on_learnt
        self._held: set[str] = set()  # devices whose addresses are not sure
        self._besides: dict[str, tuple[Request, ...]] = {}
        self.of: dict[str, Learner] = {
            device.name: Learner(device, learnt.get(device.name, NOTHING_LEARNT)) for device in devices
        }
        self._holes: dict[str, Holes] = {}
        for name, learner in self.of.items():
            if learner.learnt != NOTHING_LEARNT and schedule.requests_of(name):
                schedule.replace(name, learner.plan())
            requests = schedule.requests_of(name)
            planned = requests and set(requests) == set(learner.plan())
            self._holes[name] = Holes(
                learner.device, learner.learnt.trusted, learner.goal() if planned else requests
            )

    def wanted_after(self, now: float) -> float:
        """When the next lesson comes up; inf: none. One that came up already waits for the line's spare time."""
        times = [learner.wanted_at() for learner in self.of.values()]
        times += [holes.wanted_at() for holes in self._holes.values()]
        return min((at for at in times if at > now), default=float("inf"))

    def next(self, now: float) -> Lesson | None:
        """The read that may be sent in the spare time that there is now."""
        for name, learner in self.of.items():
            unit = self._schedule.units[name]
            if unit.demoted or unit.ready_at > now or name in self._held:
                continue
            if min(learner.wanted_at(), self._holes[name].wanted_at()) > now:
                continue
            slack = self._schedule.slack(name, now)
            if slack < max(SHORTEST_TRY, unit.slowest):
                continue
            request = learner.next(now) if learner.wanted_at() <= now else None
            hole = request is None
            if request is None:
                request = self._holes[name].next(now)
            if request is not None:
                return Lesson(unit, request, min(unit.patience, slack), hole)
        return None

    def hold(self, name: str) -> None:
        """Nothing is found out about a device before `place`."""
        self._held.add(name)

    def place(self, device: Device, besides: tuple[Request, ...]) -> None:
        """A device's tags are where they are in `device`, and are read there; of other addresses than before nothing
        is known any more. `besides` are requests that are no matter of learning."""
        name = device.name
        self._held.discard(name)
        learner = self.of[name]
        if device == learner.device and besides == self._besides.get(name, ()):
            return
        self._besides[name] = besides
        if device != learner.device:
            known = learner.learnt
            learner = self.of[name] = Learner(device, Learnt(longest=known.longest))
            self._holes[name] = Holes(device, (), learner.goal())
            if learner.learnt != known and self._on_learnt is not None:
                self._on_learnt(name, learner.learnt)
        self._read(name)

    def _read(self, name: str) -> None:
        self._schedule.replace(name, (*self.of[name].plan(), *self._besides.get(name, ())))

    def told(self, lesson: Lesson, reply: Reply, now: float) -> None:
        """What came of a lesson."""
        unit = lesson.unit
        if reply.exception is not None and reply.exception not in REFUSED:
            unit.ready_at = now + BUSY_RETRY
        elif lesson.hole:
            holes = self._holes[unit.name]
            refused_whole = reply.exception is not None
            proof = holes.refused(now) if refused_whole else holes.told(reply.payload, now)
            self._judged(unit.name, proof, shifts=not refused_whole)
        else:
            learner = self.of[unit.name]
            refused = learner.learnt.refused
            if learner.told(lesson.request, reply.payload is not None, reply.t):
                self._learnt(unit.name, refused)

    def _judged(self, name: str, proof: Proof | None, *, shifts: bool) -> None:
        """A hole is proven, one way or the other; `shifts`: not by a refusal, but by what came."""
        if proof is None:
            return
        learner = self.of[name]
        if proof.trusted:
            learner.trust(proof.table, proof.span)
        else:
            learner.avoid(proof.table, proof.span)
            if shifts:
                self._teller.shifted(name, proof.table, proof.span)
        self._learnt(name, learner.learnt.refused)

    def failed(self, lesson: Lesson, now: float) -> None:
        """A lesson was not answered in time."""
        if lesson.hole:
            self._holes[lesson.unit.name].told(None, now)

    def _learnt(self, name: str, refused: frozenset[str]) -> None:
        learner = self.of[name]
        self._read(name)
        self._holes[name].plan(learner.goal())
        self._teller.learnt(learner, refused)
        if self._on_learnt is not None:
            self._on_learnt(name, learner.learnt)

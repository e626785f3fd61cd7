"""What the devices of one line do not bear, found out in the line's spare time: refused addresses, holes, lengths."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.config.types import Device
from agent.modbus.faults import ABSENT, REFUSED
from agent.modbus.holes import Holes, Proof
from agent.modbus.learning import WHOLLY_REFUSED, Learner
from agent.modbus.plan import NOTHING_LEARNT, Learnt, Request, request_for
from agent.modbus.replies import Reply
from agent.modbus.schedule import BUSY_RETRY, SHORTEST_TRY, Schedule, Unit
from agent.modbus.silence import Silence
from agent.modbus.teller import Teller
from agent.twin.quality import Quality

Source = Literal["plan", "study", "retry", "hole"]
NEEDED: Mapping[Source, int] = {"plan": 5, "study": 3, "retry": 1, "hole": 4}
"""Silences between signs of life, one after the other, that are believed."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A read that shows something: seconds that it may take, and what `subject` it is about.

    source: whose question it is: a request of the plan that is not answered, the halving of a refused one, a refused
    tag's next try, a hole. kind: proof and trial are as in Silence; a read is for requests that are answered somehow.
    """

    unit: Unit
    request: Request
    limit: float
    source: Source
    kind: Literal["read", "proof", "trial"]
    subject: Request


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
        self.of: dict[str, Learner] = {}
        self.silences: dict[str, Silence] = {}
        self._wary_of: dict[str, Request] = {}  # device -> what was not answered when a hole was looked at
        self._holes: dict[str, Holes] = {}
        for device in devices:
            self._begin(device, learnt.get(device.name, NOTHING_LEARNT))

    def _begin(self, device: Device, learnt: Learnt) -> None:
        name, schedule = device.name, self._schedule
        learner = self.of[name] = Learner(device, learnt)
        self.silences[name] = Silence()
        if learner.learnt != NOTHING_LEARNT and schedule.requests_of(name):
            schedule.replace(name, learner.plan())
        requests = schedule.requests_of(name)
        planned = requests and set(requests) == set(learner.plan())
        self._holes[name] = Holes(
            learner.device, learner.learnt.trusted, learner.goal() if planned else requests
        )

    def change(
        self, devices: Sequence[Device], changed: Collection[str], learnt: Mapping[str, Learnt]
    ) -> None:
        """Other devices are on the line: of those in `changed` there is what is `learnt`, the others stay."""
        stays = {device.name for device in devices}.difference(changed)
        for name in self.of.keys() - stays:
            for kept in (self.of, self.silences, self._wary_of, self._holes, self._besides):
                kept.pop(name, None)
            self._held.discard(name)
        for device in devices:
            if device.name in changed:
                self._begin(device, learnt.get(device.name, NOTHING_LEARNT))
        self.of = {device.name: self.of[device.name] for device in devices}

    def wanted_after(self, now: float) -> float:
        """When the next lesson comes up; inf: none. One that came up already waits for the line's spare time."""
        times = [learner.wanted_at() for learner in self.of.values()]
        times += [holes.wanted_at() for holes in self._holes.values()]
        times += [silence.rest_until for silence in self.silences.values() if silence.suspects]
        return min((at for at in times if at > now), default=float("inf"))

    def next(self, now: float) -> Lesson | None:
        """The read that may be sent in the spare time that there is now."""
        for name in self.of:
            if not self._wants(name, now):
                continue
            unit = self._schedule.units[name]
            if unit.demoted or unit.ready_at > now or name in self._held:
                continue
            slack = self._schedule.slack(name, now)
            if slack < max(SHORTEST_TRY, unit.slowest):
                continue
            asked = self._asked(name, now)
            lesson = None if asked is None else self._lesson(unit, *asked, slack, now)
            if lesson is not None:
                return lesson
        return None

    def _wants(self, name: str, now: float) -> bool:
        """Whether there may be something to find out of a device: cheap, since each scan of each device asks it."""
        if self.silences[name].suspects:
            return True
        return self.of[name].wanted_at() <= now or self._holes[name].wanted_at() <= now

    def _asked(self, name: str, now: float) -> tuple[Request, Source, bool] | None:
        """What is to be found out next of a device, whose question it is, and whether it may be silent at it."""
        learner, silence, holes = self.of[name], self.silences[name], self._holes[name]
        if silence.suspects and not learner.studying and silence.rest_until <= now:
            return silence.suspects[0], "plan", True
        request = learner.next(now) if learner.wanted_at() <= now else None
        if request is not None:
            return request, "study" if learner.studying else "retry", learner.wary
        request = holes.next(now) if holes.wanted_at() <= now else None
        return None if request is None else (request, "hole", request == self._wary_of.get(name))

    def _lesson(
        self, unit: Unit, subject: Request, source: Source, wary: bool, slack: float, now: float
    ) -> Lesson | None:
        limit = min(unit.patience, slack)
        if not wary:
            return Lesson(unit, subject, limit, source, "read", subject)
        silence = self.silences[unit.name]
        request = silence.step(subject, now)
        if request is None:
            return None
        if request != subject:
            return Lesson(unit, request, limit, source, "proof", subject)
        if limit < min(unit.patience, silence.least):
            return None
        return Lesson(unit, request, limit, source, "trial", subject)

    def barred(self, request: Request) -> tuple[Quality, str] | None:
        """Why a request is not sent at its turn, or None."""
        name, learner = request.device, self.of[request.device]
        if learner.is_refused(request):
            span = (request.address, request.address + request.count)
            return Quality.ILLEGAL, f"{name} {learner.how(request.table, span)} this address"
        if request in self.silences[name].suspects:
            return (
                Quality.TIMEOUT,
                f"{name} keeps silent at {request.table} {request.address} x {request.count}",
            )
        return None

    def life_sign(self, unit: Unit, shortest: Request) -> Request:
        """What to ask a unit that did not answer: in turn what it has answered, its shortest request, single tags of
        it, since it may keep silent at some address of each request."""
        ways = [self.silences[unit.name].good or shortest]
        device, refused = self.of[unit.name].device, self.of[unit.name].learnt.refused
        for request in self._schedule.requests_of(unit.name):
            names = [name for name in request.tags if name in device.tags and name not in refused]
            if len(request.tags) > 1 and names:
                ways += [request_for(device, (name,)) for name in (names[0], names[-1])]
        return ways[(unit.misses - 1) % len(ways)]

    def forget(self, name: str) -> None:
        """The device is dead, slow or lost: its silences say nothing of its addresses."""
        self.silences[name].forget()
        self._wary_of.pop(name, None)
        if self.of[name].studying and self.of[name].wary:
            self.of[name].drop()

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
            self.silences[name] = Silence()
            if learner.learnt != known and self._on_learnt is not None:
                self._on_learnt(name, learner.learnt)
        self._read(name)

    def _read(self, name: str) -> None:
        self._schedule.replace(name, (*self.of[name].plan(), *self._besides.get(name, ())))

    def told(self, lesson: Lesson, reply: Reply, now: float) -> None:
        """What came of a lesson."""
        unit, silence = lesson.unit, self.silences[lesson.unit.name]
        if reply.exception in ABSENT:
            self.failed(lesson, now)
        elif lesson.kind == "proof":
            if silence.lives(now, reply.rtt or 0.0) >= NEEDED[lesson.source]:
                silence.over()
                self._keeps_silent(unit.name, lesson.subject, lesson.source, now)
        elif reply.exception is not None and reply.exception not in REFUSED:
            unit.ready_at = now + BUSY_RETRY
        else:
            silence.over()
            self._shown(lesson, reply, now)

    def _shown(self, lesson: Lesson, reply: Reply, now: float) -> None:
        name, learner = lesson.unit.name, self.of[lesson.unit.name]
        refused = learner.learnt.refused
        if lesson.source == "hole":
            holes = self._holes[name]
            refused_whole = reply.exception is not None
            proof = holes.refused(now) if refused_whole else holes.told(reply.payload, now)
            self._judged(name, proof, shifts=not refused_whole)
        elif lesson.source == "plan":
            if reply.exception is not None:
                learner.refused(lesson.subject, now)
        elif learner.told(lesson.request, reply.payload is not None, reply.t):
            self._learnt(name, refused)

    def _keeps_silent(self, name: str, subject: Request, source: Source, now: float) -> None:
        """It is certain that the device lives and does not answer `subject`."""
        learner, silence = self.of[name], self.silences[name]
        if source == "hole":
            self._wary_of.pop(name, None)
            self._judged(name, self._holes[name].refused(now), shifts=False, silent=True)
        elif source == "plan":
            learner.refused(subject, now, silent=True)
            if learner.studying:
                silence.suspects.remove(subject)
            else:
                silence.rest_until = now + WHOLLY_REFUSED
        else:
            refused = learner.learnt.refused
            if learner.told(subject, False, now, silent=True):
                self._learnt(name, refused)

    def _judged(self, name: str, proof: Proof | None, *, shifts: bool, silent: bool = False) -> None:
        """A hole is proven, one way or the other; `shifts`: not by a refusal (or silence), but by what came."""
        if proof is None:
            return
        learner = self.of[name]
        if proof.trusted:
            learner.trust(proof.table, proof.span)
        else:
            learner.avoid(proof.table, proof.span, silent=silent)
            if shifts:
                self._teller.shifted(name, proof.table, proof.span)
        self._learnt(name, learner.learnt.refused)

    def failed(self, lesson: Lesson, now: float) -> None:
        """A lesson was not answered in time."""
        name = lesson.unit.name
        if lesson.kind == "trial":
            self.silences[name].was_silent()
        elif lesson.kind == "proof":
            self.forget(name)
        elif lesson.source == "hole":
            self._wary_of[name] = lesson.request
            self._holes[name].told(None, now)
        else:
            self.of[name].beware()

    def _learnt(self, name: str, refused: frozenset[str]) -> None:
        learner = self.of[name]
        self._read(name)
        self.silences[name].forget()
        self._holes[name].plan(learner.goal())
        self._teller.learnt(learner, refused)
        if self._on_learnt is not None:
            self._on_learnt(name, learner.learnt)

"""Requests at which a device keeps silent although it lives: some do so at an address that they do not have.

A silence counts only between two signs of life: a request that the device is known to answer is answered right before
and right after it. So a device that is dead, slow or starting anew is not taken for one that has holes. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.modbus.plan import Request

SUSPECT_AFTER = 2
"""Silences at its turn, with an answer of the device to another request in between, before a request is looked into."""
PROOF_HOLDS = 2.0
"""Seconds for which an answer says that the device lives."""
PATIENT = 3.0
"""A silence has to last this many times as long as the answer before it took, at least."""


@dataclass(slots=True)
class Silence:
    """What is known of one device's silences. Times are monotonic seconds."""

    good: Request | None = None
    """The shortest request among those that it answered lately: the sign of life that is asked for."""
    suspects: list[Request] = field(default_factory=list)
    """Requests of the plan that are not sent at their turn any more, until it is known what is wrong with them."""
    rest_until: float = 0.0
    _counts: dict[Request, tuple[int, int]] = field(
        default_factory=dict
    )  # silences, answers before the last one
    _answers: int = 0
    _trial: Request | None = None
    _silences: int = 0
    _open: bool = False  # a silence waits for the sign of life that makes it count
    _proven_at: float = float("-inf")
    _rtt: float = 0.0

    def answered(self, request: Request) -> None:
        """`request` was answered, if only with an exception."""
        self._answers += 1
        self._counts.pop(request, None)
        if request in self.suspects:
            self.suspects.remove(request)
        if self.good is None or request.count <= self.good.count:
            self.good = request

    def silent(self, request: Request) -> None:
        """`request` was not answered, neither on a trial nor as a sign of life."""
        if request == self.good:
            self.good = None
        times, answers = self._counts.get(request, (0, -1))
        if answers == self._answers:
            return  # nothing was answered since: it may just be dead
        self._counts[request] = (times + 1, self._answers)
        if times + 1 >= SUSPECT_AFTER and request not in self.suspects:
            self.suspects.append(request)

    def forget(self) -> None:
        """The device is dead, slow, or elsewhere: nothing that was counted says anything."""
        self.suspects.clear()
        self._counts.clear()
        self._trial = None

    # -- trials -------------------------------------------------------------------------------------------------

    def step(self, request: Request, now: float) -> Request | None:
        """What to send next to find out about `request`: the sign of life, or itself. None: no sign is known."""
        if self._trial != request:
            self._trial, self._silences, self._open = request, 0, False
        if self.good is None or self.good == request:
            return None
        proven = not self._open and now - self._proven_at <= PROOF_HOLDS
        return request if proven else self.good

    @property
    def least(self) -> float:
        """Seconds that a trial has to be waited for."""
        return PATIENT * self._rtt

    def lives(self, now: float, rtt: float) -> int:
        """The sign of life came. Returns how often the request on trial was silent by now, one after the other."""
        self._proven_at, self._rtt = now, rtt
        self._silences += self._open
        self._open = False
        return self._silences

    def was_silent(self) -> None:
        """The request on trial was not answered; that counts once the next sign of life has come."""
        self._open = True

    def over(self) -> None:
        """The trial has come to an end."""
        self._trial = None

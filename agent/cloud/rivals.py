"""Another gateway with our name: the two throw each other off the broker for ever."""

from __future__ import annotations

from collections import deque

from agent.cloud.uplink import Disconnected

WINDOW = 60.0
TAKEN_OVER_TIMES, CUT_TIMES = 2, 5
"""How often within WINDOW an accepted link must end until another gateway of our name is suspected.

Not every broker says that a session was taken over; then only that it happens again and again tells.
"""
TOLD_EVERY = 600.0


class Rivals:
    """Watches how links end. `name` is the client id. Times are monotonic seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._taken_over: deque[float] = deque(maxlen=TAKEN_OVER_TIMES)
        self._cuts: deque[float] = deque(maxlen=CUT_TIMES)
        self._told: float | None = None

    def lost(self, lost: Disconnected, now: float) -> str | None:
        """What to suspect after a link ended, in words; None where there is no reason, or it was told not long ago."""
        if lost.taken_over:
            self._taken_over.append(now)
        elif lost.cut:
            self._cuts.append(now)
        if not (_often(self._taken_over, now) or _often(self._cuts, now)):
            return None
        if self._told is not None and now - self._told < TOLD_EVERY:
            return None
        self._told = now
        if lost.taken_over:
            return f"another client connects as {self._name}: are there two gateways with one name?"
        return (
            f"the broker ends every connection soon: is there another gateway that connects as {self._name}?"
        )


def _often(times: deque[float], now: float) -> bool:
    return len(times) == times.maxlen and now - times[0] < WINDOW

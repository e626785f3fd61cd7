"""What a line counts about itself: requests, errors, round trips, utilisation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

KEPT = 512
WINDOW = 30.0
"""Seconds over which the utilisation is measured."""


def percentile(values: Iterable[float], share: float) -> float | None:
    """The value below which `share` of the values lie (nearest rank); None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(seconds: float | None) -> float | None:
    """Seconds as milliseconds with three decimals."""
    return None if seconds is None else round(seconds * 1000, 3)


def spread(seconds: Iterable[float]) -> dict[str, float | None]:
    """p50, p99 and max in ms; None where there are no values."""
    kept = tuple(seconds)
    return {
        name: milliseconds(percentile(kept, share))
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


@dataclass(slots=True)
class Meter:
    """Counters of one line; times are monotonic seconds."""

    requests: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    rtts: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    utilisation: float = 0.0
    _busy: float = 0.0
    _window: float | None = None

    def used(self, started: float, ended: float) -> None:
        """The line was busy from `started` to `ended`."""
        self.requests += 1
        self._busy += ended - started
        self.roll(ended)

    def roll(self, now: float) -> None:
        """Closes the window of the utilisation when it is over."""
        if self._window is None:
            self._window = now
        span = now - self._window
        if span < WINDOW and (span < 1.0 or self.utilisation):
            return
        self.utilisation = min(1.0, self._busy / span)
        if span >= WINDOW:
            self._window = now
            self._busy = 0.0

    def error(self, what: str) -> None:
        """Counts one failure by its kind."""
        self.errors[what] = self.errors.get(what, 0) + 1

"""From what was asked and what arrived to the figures of a row. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from plc import Asked

COUNTER = 1


def polls(log: Iterable[Asked], *, unit: int = 1, first: int = COUNTER) -> list[float]:
    """When this register of a unit was asked for, answered or not."""
    return [
        one.t
        for one in log
        if one.unit == unit and one.address <= first < one.address + one.count and one.function in (3, 4)
    ]


def gaps(times: Sequence[float]) -> list[float]:
    """Seconds from one to the next."""
    return [b - a for a, b in itertools.pairwise(times)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def period(times: Sequence[float]) -> str:
    """'p50 / p99 / max' of the time between polls, in seconds."""
    steps = gaps(times)
    if len(steps) < 2:
        return f"only {len(times)} in the time"
    return f"{median(steps):.3f} / {quantile(steps, 0.99):.3f} / {max(steps):.3f}"


def lag(times: Sequence[float], every: float = 1.0) -> float:
    """Seconds that the last poll comes after the grid that begins with the first, over 60 s."""
    steps = len(times) - 1
    return (times[-1] - times[0] - steps * every) * 60 / (steps * every) if steps > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class Audit:
    """Readings made, and of them lost; readings that came more than once; ones after a later one on their topic.

    As text: lost / doubled / out of order of those that were made.
    """

    made: int
    lost: int
    doubled: int
    disordered: int

    def __str__(self) -> str:
        if not self.made:
            return "nothing was read"
        return f"{self.lost} / {self.doubled} / {self.disordered} of {self.made}"


def audit(served: Sequence[int], arrived: Iterable[tuple[float, str, int]]) -> Audit:
    """Holds the readings that the PLC served against those that arrived, at whatever time and on whatever topic."""
    asked = set(served)
    times: Counter[int] = Counter()
    latest: dict[str, int] = {}
    disordered = 0
    for _, topic, number in arrived:
        if number not in asked:
            continue
        if not times[number]:
            disordered += number < latest.get(topic, 0)
        times[number] += 1
        latest[topic] = max(latest.get(topic, 0), number)
    doubled = sum(count - 1 for count in times.values())
    return Audit(len(asked), len(asked) - len(times), doubled, disordered)

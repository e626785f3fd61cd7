"""The demo's summary: what the agent and the central side say, held against the plant's own books. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SKILL_WANTED = 0.05
BAND = 0.02
"""Of the setpoint step: how near the vessel must stay."""
HOLD = 5.0
"""Seconds before the end in which it must not leave the band."""

Trace = Sequence[Sequence[float]]


def settling(trace: Trace, *, old: float, new: float, at: float, end: float) -> tuple[bool, float | None]:
    """Whether the noise-free value settled on `new`, and how many seconds after the step.

    `trace` is rows of (monotonic time, temperature, heater); the step was sent at `at`, the run ended at `end`.
    """
    band = BAND * abs(new - old)
    after = [(row[0], abs(row[1] - new)) for row in trace if at <= row[0] <= end]
    if not after or after[-1][0] < end - HOLD:
        return False, None
    last_outside = max((t for t, away in after if away > band), default=at)
    settled = last_outside < end - HOLD
    return settled, round(last_outside - at, 2) if settled else None


def against_books(served: Sequence[int], received: Sequence[int]) -> tuple[int, int]:
    """(lost, duplicates): counter values that the plant served and nobody got, and those that came more than once."""
    counts = Counter(received)
    lost = sum(value not in counts for value in served)
    return lost, sum(count - 1 for count in counts.values())


def summary(
    *,
    seconds: float,
    plant: Mapping[str, Any],
    central: Mapping[str, Any],
    status: Mapping[str, Any],
    step: tuple[float, float, float] | None,
    end: float,
) -> dict[str, Any]:
    """The body that `edgetwin demo --for` prints last. `step` is (old setpoint, new setpoint, monotonic time)."""
    counts = status.get("counts", {})
    forecast = status.get("forecasts", {}).get("vessel/temperature", {})
    settled, settling_s = (False, None)
    if step is not None:
        settled, settling_s = settling(plant["trace"], old=step[0], new=step[1], at=step[2], end=end)
    lost, duplicates = against_books(plant["served"], central["served"])
    body = {
        "v": 1,
        "ok": False,
        "failed": [],
        "seconds": round(seconds, 1),
        "values_read": counts.get("values_read", 0),
        "values_bad": counts.get("values_bad", 0),
        "forecasts": counts.get("forecasts", 0),
        "forecast_skill": forecast.get("skill"),
        "coverage": forecast.get("coverage"),
        "loop_settled": settled,
        "settling_s": settling_s,
        "messages_received": central["messages"],
        "readings_received": central["readings"],
        "lost": lost + central["lost"],
        "duplicates": duplicates + central["doubled"],
        "out_of_order": central["out_of_order"],
    }
    body["failed"] = failed(body)
    body["ok"] = not body["failed"]
    return body


def failed(body: Mapping[str, Any]) -> list[str]:
    """Which parts of a summary are not as they must be."""
    skill = body["forecast_skill"]
    must = {
        "values_read": body["values_read"] > 0,
        "values_bad": body["values_bad"] == 0,
        "forecasts": body["forecasts"] > 0,
        "forecast_skill": skill is not None and skill >= SKILL_WANTED,
        "loop_settled": body["loop_settled"],
        "readings_received": body["readings_received"] > 0,
        "lost": body["lost"] == 0,
        "duplicates": body["duplicates"] == 0,
        "out_of_order": body["out_of_order"] == 0,
    }
    return [name for name, fine in must.items() if not fine]

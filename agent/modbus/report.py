"""What `edgetwin status --json` says of a line, its devices and its scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agent.config.scalars import duration_text
from agent.modbus.learning import Learner
from agent.modbus.meter import Meter, milliseconds, percentile, spread
from agent.modbus.schedule import Scan, Unit


def meter_status(meter: Meter, now: float) -> dict[str, Any]:
    """Counters of a line."""
    meter.roll(now)
    return {
        "requests": meter.requests,
        "errors": dict(meter.errors),
        "rtt_ms": {
            "p50": milliseconds(percentile(meter.rtts, 0.5)),
            "p99": milliseconds(percentile(meter.rtts, 0.99)),
        },
        "utilisation": round(meter.utilisation, 4),
    }


def device_status(
    unit: Unit, state: str, learner: Learner, lacking: Sequence[str], now: float
) -> dict[str, Any]:
    """One device: its state, when a silent one is tried again, and what it was found to refuse, as YAML to paste.

    `lacking` is what its SunSpec chain does not have.
    """
    retry = max(0.0, unit.next_try - now) if unit.demoted else None
    status: dict[str, Any] = {
        "state": state,
        "retry_s": None if retry is None else round(retry, 1),
        "learnt": [*learner.as_yaml(), *(f"# {words}" for words in lacking)],
    }
    if lacking and state == "degraded":
        status["problem"] = "; ".join(lacking)
    if unit.state == "slow":
        status["timeout_ms"] = milliseconds(unit.patience)
    if learner.device.accept:
        status["accept"] = list(learner.device.accept)
    return status


def scans_status(scans: Iterable[Scan]) -> dict[str, Any]:
    """device/period -> what was done, skipped, and how late."""
    return {
        f"{scan.device}/{duration_text(scan.every)}": {
            "done": scan.done,
            "overruns": scan.overruns,
            "late_ms": spread(scan.late),
        }
        for scan in scans
    }

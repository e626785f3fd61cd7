"""What `edgetwin status --json` says of a line, its devices and its scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.config.scalars import duration_text
from agent.modbus.chains import Chains
from agent.modbus.keeper import Keeper
from agent.modbus.learning import Learner
from agent.modbus.lessons import Lessons
from agent.modbus.meter import Meter, milliseconds, percentile, spread
from agent.modbus.schedule import Schedule, Unit


@dataclass(frozen=True, slots=True)
class Report:
    """Reads the books of one line."""

    meter: Meter
    keeper: Keeper
    schedule: Schedule
    lessons: Lessons
    chains: Chains

    def status(self, now: float) -> dict[str, Any]:
        """Counters, connection and devices, at the monotonic time `now`."""
        meter = self.meter
        meter.roll(now)
        return {
            "requests": meter.requests,
            "errors": dict(meter.errors),
            "rtt_ms": {
                "p50": milliseconds(percentile(meter.rtts, 0.5)),
                "p99": milliseconds(percentile(meter.rtts, 0.99)),
            },
            "utilisation": round(meter.utilisation, 4),
            "state": self.keeper.state,
            "devices": {
                name: device_status(
                    unit, self._state_of(unit), self.lessons.of[name], self.chains.why(name), now
                )
                for name, unit in self.schedule.units.items()
            },
        }

    def scans(self) -> dict[str, Any]:
        """device/period -> what was done, skipped, and how late."""
        return {
            f"{scan.device}/{duration_text(scan.every)}": {
                "done": scan.done,
                "overruns": scan.overruns,
                "late_ms": spread(scan.late),
            }
            for scan in self.schedule.scans
        }

    def device_states(self) -> dict[str, str]:
        """Device -> ok, slow, silent, link or degraded (some of its addresses are refused)."""
        return {name: self._state_of(unit) for name, unit in self.schedule.units.items()}

    def _state_of(self, unit: Unit) -> str:
        if self.keeper.state == "down" or self.keeper.hopeless:
            return "link"
        lacks = self.lessons.of[unit.name].learnt.refused or self.chains.why(unit.name)
        return "degraded" if unit.state == "ok" and lacks else unit.state


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

"""The planner on whole configurations: each folder of cases/ holds one and the plan that `check --plan` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.load import load
from agent.config.types import Config
from agent.modbus.plan import REGISTER_TABLES, describe, line_cost, plan_device, text, warnings

CASES = sorted((Path(__file__).parent / "cases").iterdir())


def planned(case: Path) -> Config:
    loaded = load(str(case / "config.yaml"))
    assert loaded.config is not None, loaded.problems
    return loaded.config


def as_text(config: Config) -> str:
    lines = [*text(config), *(f"warning: {device}: {words}" for device, words in warnings(config))]
    return "".join(f"{line}\n" for line in lines)


def test_there_are_cases() -> None:
    assert len(CASES) >= 10


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plan(case: Path) -> None:
    assert as_text(planned(case)) == (case / "plan.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_two_requests_would_cost_less_as_one(case: Path) -> None:
    """Where two neighbours of one table and period may be joined, joining them is not cheaper."""
    for device in planned(case).devices.values():
        cost = line_cost(device.url)
        requests = [one for one in plan_device(device) if not device.tags[one.tags[0]].alone]
        for one in requests:
            for other in requests:
                if (one.table, one.every) != (other.table, other.every) or one.address >= other.address:
                    continue
                count = other.address + other.count - one.address
                limit = device.limits.registers if one.table in REGISTER_TABLES else device.limits.bits
                hole = other.address - one.address - one.count
                barred = any(
                    avoid.table == one.table
                    and avoid.first < other.address + other.count
                    and avoid.last >= one.address
                    for avoid in device.avoid
                )
                if count > limit or barred or (device.limits.gap is not None and hole > device.limits.gap):
                    continue
                apart = cost.of(one.table, one.count) + cost.of(other.table, other.count)
                assert apart <= cost.of(one.table, count)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_json_says_is_what_is_sent(case: Path) -> None:
    config = planned(case)
    for name, plan in describe(config).items():
        sent = [(one.table, one.address, one.count, one.wanted) for one in plan_device(config.devices[name])]
        assert [(r["table"], r["address"], r["count"], r["wanted"]) for r in plan["requests"]] == sent
        assert plan["period_ms"] == 1000 * min(tag.every for tag in config.devices[name].tags.values())

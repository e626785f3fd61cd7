"""Bus time of the planner beside a greedy one, on the shipped profiles or, without them, on four well-known maps.

The greedy one takes tags by address and bridges each hole of up to 50 registers, as Telegraf's max_insert does; it is
given the same limits (of a device that bears no holes at all too), and `alone` tags and addresses to avoid are kept
out of its requests.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.config.load import load
from agent.config.types import Device, Limits, Table, Tag, Url
from agent.modbus.plan import line_cost, plan_device

PROFILES = Path(__file__).parents[1] / "agent" / "profiles"
GAP = 50
TCP = Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502)
LINES = (
    Url("rtu:///dev/ttyUSB0?baud=9600&parity=N", "rtu", path="/dev/ttyUSB0", baud=9600, parity="N"),
    Url("rtu:///dev/ttyUSB0?baud=9600", "rtu", path="/dev/ttyUSB0", baud=9600),
    Url("rtu:///dev/ttyUSB0?baud=115200", "rtu", path="/dev/ttyUSB0", baud=115200),
    TCP,
)
Span = tuple[int, int]


def shipped() -> Iterator[Device]:
    """One device for each profile."""
    for path in sorted(PROFILES.glob("*.yaml")):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(
                f"gateway: bench\ndevices:\n  {path.stem}:\n    url: {TCP.text}\n    profile: {path.stem}\n"
            )
            loaded = load(file)
        if loaded.config is None:
            print(f"  {path.name}: left out, {loaded.problems[0].what}")
        else:
            yield from loaded.config.devices.values()


def well_known() -> Iterator[Device]:
    """Register maps from public manuals, where no profile is shipped."""
    single = (0, 6, 12, 18, 24, 30, 36, 70, 72, 74, 76, 78, 84, 86, 88, 90, 92, 94, 258, 264, 342, 344)
    yield _device("single-phase meter", "input", dict.fromkeys(single, "float32"), registers=60)
    three = (
        *range(0, 38, 2),
        42,
        46,
        48,
        52,
        56,
        60,
        62,
        66,
        70,
        72,
        74,
        76,
        78,
        84,
        200,
        202,
        204,
        224,
        342,
        344,
    )
    yield _device("three-phase meter", "input", dict.fromkeys(three, "float32"), registers=80)
    panel = dict.fromkeys((*range(0, 20, 2), 40, 52, 64, 66, 68, 78), "int32") | {50: "uint16", 51: "uint16"}
    yield _device("panel meter", "holding", panel, registers=50)
    storage = {
        32080: "int32",
        32106: "uint32",
        37113: "int32",
        37117: "int16",
        37760: "uint16",
        37762: "uint16",
    }
    storage |= dict.fromkeys((37101, 37103, 37105, 37107, 37109, 37111, 37765), "int32")
    yield _device("hybrid inverter", "holding", storage)


def _device(name: str, table: Table, types: dict[int, str], registers: int = 125) -> Device:
    tags = {f"t{at}": Tag(f"t{at}", table, at, type=type_) for at, type_ in types.items()}
    return Device(name, TCP, tags=tags, limits=Limits(registers=registers))


def greedy(device: Device) -> list[tuple[Table, int]]:
    """(table, count) of the greedy planner's requests."""
    requests: list[tuple[Table, int]] = []
    groups: dict[tuple[float, Table], list[Span]] = {}
    for tag in device.tags.values():
        if tag.alone:
            requests.append((tag.table, tag.count))
        else:
            groups.setdefault((tag.every, tag.table), []).append((tag.address, tag.address + tag.count))
    for (_, table), spans in groups.items():
        limit = device.limits.registers if table in ("holding", "input") else device.limits.bits
        forbidden = [(one.first, one.last + 1) for one in device.avoid if one.table == table]
        gap = GAP if device.limits.gap is None else min(GAP, device.limits.gap)
        merged = _merged(sorted(spans), limit, gap, forbidden)
        requests += [(table, after - first) for first, after in merged]
    return requests


def _merged(spans: Iterable[Span], limit: int, gap: int, forbidden: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for first, after in spans:
        if merged:
            start, end = merged[-1]
            wide = first - end > gap or max(end, after) - start > limit
            barred = any(low < first and high > end for low, high in forbidden)
            if not wide and not barred:
                merged[-1] = (start, max(end, after))
                continue
        merged.append((first, after))
    return merged


def show() -> None:
    """Prints the table; raises AssertionError where the planner takes more bus time than the greedy one."""
    print(f"\nBus time of one pass over all tags, ms (greedy: holes up to {GAP} registers bridged):")
    devices = list(shipped()) or list(well_known())
    for device in devices:
        for url in LINES:
            there = dataclasses.replace(device, url=url)
            cost = line_cost(url, there.limits.pause)
            plan = [(request.table, request.count) for request in plan_device(there)]
            other = greedy(there)
            ours, theirs = (sum(cost.of(*one) for one in all_) for all_ in (plan, other))
            where = f"{url.baud} 8{url.parity}{url.stopbits}" if url.scheme == "rtu" else url.scheme
            print(
                f"  {device.name:20} {where:11} {len(plan):3} requests {ours:8.1f}"
                f"   greedy {len(other):3} requests {theirs:8.1f}   {ours / theirs:.2f}"
            )
            assert ours <= theirs + 1e-9, device.name

"""What outlives a restart beside the outbox: models, loops and counter totals, each a file in the state folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent.config.types import Config, Device, Table
from agent.modbus.plan import Learnt, Span
from agent.statefile import read_or_set_aside, write_atomic
from agent.twin.counter import Counter
from agent.twin.records import Key

log = logging.getLogger("edgetwin")

MODELS, COMMISSIONING = "models.state", "commissioning.state"
LOOPS, COUNTERS, LEARNT = "loops.json", "counters.json", "learnt.json"


def make_counters(config: Config, saved: Mapping[str, Any]) -> dict[Key, Counter]:
    """A Counter for each `counter: true` tag; those whose type did not change go on with their total."""
    counters = {}
    for device in config.devices.values():
        for tag in device.tags.values():
            if not tag.counter:
                continue
            counter = counters[(device.name, tag.name)] = Counter(tag)
            known = saved.get(f"{device.name}/{tag.name}")
            if isinstance(known, dict) and known.get("type") == tag.type:
                counter.last, counter.steps = known["last"], known["steps"]
    return counters


def dump_counters(counters: Mapping[Key, Counter]) -> dict[str, Any]:
    """What `make_counters` takes."""
    return {
        "/".join(key): {"type": one.tag.type, "last": one.last, "steps": one.steps}
        for key, one in counters.items()
        if one.last is not None
    }


def load_json(folder: Path, name: str) -> dict[str, Any]:
    """A saved JSON object; a missing or damaged file is an empty one (damaged ones are set aside and told)."""
    body = read_or_set_aside(folder / name)
    if body is None:
        return {}
    try:
        loaded = json.loads(body)
    except ValueError:
        loaded = None
    if not isinstance(loaded, dict):
        log.warning("%s holds no JSON object; starting without it", folder / name)
        return {}
    return loaded


def save_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON object durably."""
    write_atomic(folder / name, json.dumps(content, separators=(",", ":")).encode())


def device_digest(device: Device) -> str:
    """Changes with whatever gives what was learnt of a device its meaning."""
    shape = (
        device.url.text,
        device.unit,
        sorted((tag.name, tag.table, tag.address, tag.count) for tag in device.tags.values()),
    )
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:16]


def load_learnt(config: Config, saved: Mapping[str, Any]) -> dict[str, Learnt]:
    """What earlier runs found out about devices that are still the same; what cannot be read is learnt anew."""
    learnt = {}
    for name, device in config.devices.items():
        one = saved.get(name)
        if not isinstance(one, dict) or one.get("device") != device_digest(device):
            continue
        try:
            learnt[name] = Learnt(
                illegal=_spans(one["illegal"]),
                refused=frozenset(one["refused"]) & device.tags.keys(),
                longest=int(one["longest"]),
                trusted=_spans(one["trusted"]),
                silent=_spans(one.get("silent", ())),
            )
        except (KeyError, TypeError, ValueError):
            log.warning("what was learnt of %s cannot be read; it is learnt anew", name)
    return learnt


def _spans(saved: Iterable[Any]) -> tuple[tuple[Table, Span], ...]:
    return tuple((table, (int(first), int(after))) for table, (first, after) in saved)


def dump_learnt(devices: Mapping[str, Device], learnt: Mapping[str, Learnt]) -> dict[str, Any]:
    """What `load_learnt` takes. `devices` have their tags where they were when it was learnt: what belongs to
    addresses that a device's own chain gave, and the configuration does not, is learnt anew."""
    return {
        name: {
            "device": device_digest(devices[name]),
            "illegal": [[table, list(span)] for table, span in one.illegal],
            "refused": sorted(one.refused),
            "longest": one.longest,
            "trusted": [[table, list(span)] for table, span in one.trusted],
            "silent": [[table, list(span)] for table, span in one.silent],
        }
        for name, one in learnt.items()
    }

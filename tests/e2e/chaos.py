"""Random faults for a whole gateway: which, when and for how long, all from one seed; and the configurations between.

`plan(seed, seconds)` is pure; `test_chaos.py` carries it out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.vessel import BEAT, LEVEL, VALVE

SPAN = 4.0
"""`outbox.batch`, s: what a kill may cost of what was closed."""
EVERY = 0.2
BATCHES = (0.3, 0.6)
"""Values of `mqtt.batch`, s."""
LIMITS = (100, 400)
"""Of the loop's output; its register takes 0 to 500."""
SETPOINTS = (120, 400, 650, 950)
"""The first and the last are out of reach: the output stays at its limits."""
TIMEOUT = 0.6
DEVICES = (1, 2, 3)
CONSTANTS = range(10, 32)
DISK_RESTS = 3 * SPAN + 6.0
"""Seconds after a full disk without a kill: what waited in memory goes to disk by then."""

EXTRA = 2
"""How many tags of device 2 a reload moves."""
WIDTH = {"plc1": 5 + len(CONSTANTS), "plc2": 3 + len(CONSTANTS) + EXTRA, "plc3": 3 + len(CONSTANTS)}
"""Tags in a row of each device."""

MISTAKES = (
    ("0.2s", "soon"),
    ("holding", "holdin"),
    ("tcp://", "tpc://"),
    ("plc1/level", "plc1/gone"),
    ("}", ""),
)
"""What stands in the file, and what is written in its place."""


@dataclass(frozen=True)
class Setting:
    """What a reload changes. `extra`: addresses of EXTRA tags of device 2; `third`: whether there is a device 3."""

    batch: float = BATCHES[0]
    twin_every: float = 1.0
    keepalive: int = 15
    compress: str = "backfill"
    rate: int = 20000
    kp: float = 0.2
    setpoint: int = SETPOINTS[1]
    extra: tuple[int, ...] = (40, 41)
    third: bool = True
    mistake: tuple[str, str] | None = None

    def text(self, folder: Path, broker: int, ports: Mapping[int, int]) -> str:
        """The configuration. JSON is YAML too."""
        devices = {f"plc{n}": self._device(n, ports[n]) for n in DEVICES if self.third or n != 3}
        content = {
            "gateway": "line7",
            "state_dir": str(folder / "state"),
            "page": False,
            "mqtt": {
                "url": f"mqtt://127.0.0.1:{broker}",
                "batch": f"{self.batch}s",
                "twin_every": f"{self.twin_every}s",
                "keepalive": f"{self.keepalive}s",
                "compress": self.compress,
                "outbox": {"batch": f"{SPAN}s", "rate": self.rate, "min_free": "0MiB"},
            },
            "devices": devices,
            "loops": {"level": self._loop()},
        }
        text = json.dumps(content, indent=1)
        return text if self.mistake is None else text.replace(*self.mistake)

    def _device(self, number: int, port: int) -> dict[str, object]:
        tags: dict[str, object] = {
            "epoch": {"holding": 0},
            "served": {"holding": 1, "type": "uint32"},
            "level": {"holding": LEVEL},
            **{f"r{address}": {"holding": address} for address in CONSTANTS},
        }
        if number == 1:
            tags["valve"] = {"holding": VALVE, "write": {"range": [0, 500], "min_interval": "0s"}}
            tags["beat"] = {"holding": BEAT, "write": True}
        if number == 2:
            tags |= {f"r{address}": {"holding": address} for address in self.extra}
        return {
            "url": f"tcp://127.0.0.1:{port}",
            "every": f"{EVERY}s",
            "timeout": f"{TIMEOUT}s",
            "on_loss": "hold",
            "tags": tags,
        }

    def _loop(self) -> dict[str, object]:
        return {
            "pv": "plc1/level",
            "out": "plc1/valve",
            "setpoint": self.setpoint,
            "mode": "auto",
            "controller": {"kp": self.kp, "ti": "1.5s"},
            "limits": list(LIMITS),
            "fail": {"after": 3, "to": 150, "on_stop": "hold", "resume": 2},
            "heartbeat": {"tag": "plc1/beat", "timeout": "3s"},
        }


def other(setting: Setting, rng: random.Random) -> Setting:
    """A setting that differs in one thing, or has a mistake."""
    right = replace(setting, mistake=None)
    kind = rng.choice(("device", "device", "loop", "loop", "mqtt", "third", "mistake"))
    if kind == "device":
        return replace(right, extra=tuple(rng.sample(range(40, 120), EXTRA)))
    if kind == "loop":
        return replace(right, kp=rng.choice((0.1, 0.2, 0.3)), setpoint=rng.choice(SETPOINTS))
    if kind == "third":
        return replace(right, third=not right.third)
    if kind == "mistake":
        return replace(right, mistake=rng.choice(MISTAKES))
    return rng.choice(
        (
            replace(right, batch=BATCHES[right.batch == BATCHES[0]]),
            replace(right, twin_every=rng.choice((0.5, 2.0))),
            replace(right, keepalive=rng.choice((5, 15))),
            replace(right, compress=rng.choice(("never", "backfill", "all"))),
            replace(right, rate=rng.choice((5000, 20000, 0))),
        )
    )


@dataclass(frozen=True, order=True)
class Act:
    """`what` at `at` seconds: `begin` or, where a fault lasts, `end`."""

    at: float
    what: str
    target: int = 0
    begin: bool = True
    setting: Setting | None = field(default=None, compare=False)


LASTING: Mapping[str, tuple[float, float, float]] = {
    "plc stopped": (2.0, 0.3, 6.0),
    "plc killed": (1.5, 0.2, 6.0),
    "broker frozen": (1.0, 0.5, 8.0),
    "broker killed": (0.7, 0.5, 12.0),
    "broker ended": (0.7, 0.5, 12.0),
    "proxy stalled": (1.0, 0.5, 10.0),
    "proxy half open": (1.0, 2.0, 10.0),
    "proxy refusing": (1.0, 1.0, 10.0),
    "disk full": (1.2, 4.0, 10.0),
    "agent killed": (1.5, 0.0, 2.0),
}
"""Fault -> its weight, and how long it lasts at least and at most, s."""
MOMENTS = {"proxy cut": 1.5, "reload": 5.0}
WAY = ("broker", "proxy")


def plan(seed: int, seconds: float, first: Setting) -> list[Act]:
    """Faults that overlap, but never two on one target. All have ended after `seconds`; in order of time."""
    rng = random.Random(seed)
    weights = {**{name: spec[0] for name, spec in LASTING.items()}, **MOMENTS}
    busy: dict[str, float] = {}
    setting = first
    acts: list[Act] = []
    at = rng.uniform(0.5, 2.0)
    while at < seconds - 1.0:
        [what] = rng.choices(list(weights), list(weights.values()))
        target = rng.choice(DEVICES) if what.startswith("plc") else 0
        key = f"{what.split()[0]}{target}"
        end = at + rng.uniform(*LASTING[what][1:]) if what in LASTING else at
        kill = what == "agent killed"
        if busy.get(key, 0.0) <= at and end < seconds and not (kill and busy.get("disk0", 0.0) > at):
            if what == "reload":
                setting = other(setting, rng)
                acts.append(Act(at, what, setting=setting))
            else:
                acts.append(Act(at, what, target))
            if what in LASTING:
                acts.append(Act(end, what, target, begin=False))
            busy[key] = end + (DISK_RESTS if what == "disk full" else 0.2)
            if kill:
                busy["disk0"] = max(busy.get("disk0", 0.0), end)
        at += rng.uniform(0.2, 2.2)
    return sorted(acts)

"""What the rooms hand to each other: immutable records, one way, from the poll to the cloud and the page.

Times named `t` are monotonic seconds (`Clock.mono()`); only `agent.cloud` turns them into wall time.
Plain values are what JSON takes as it is: float, int, bool, str or None. Integers beyond 2^53 are still int here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Tag

Plain = float | int | bool | str | None
Key = tuple[str, str]
"""(device, tag)"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which row of the twin's columns is which tag. A reload makes a new one."""

    keys: tuple[Key, ...]
    tags: tuple[Tag, ...]
    row: Mapping[Key, int]
    of_device: Mapping[str, range]  # rows of a device are neighbours, in the order of the file

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.of_device)


@dataclass(frozen=True, slots=True)
class Row:
    """One answered or failed request: one value for each of its tags, at one time.

    `tags` is the same tuple object for each row of one request, so that rows can be grouped by identity or equality.
    `quality` is None when all are good, else one code per tag.
    """

    device: str
    tags: tuple[str, ...]
    t: float
    values: list[Plain]
    quality: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """Scans of these devices are over, and with them a batch of each."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """Something a person should know. `device` None: of the gateway itself."""

    device: str | None
    name: str  # stable, lower case with underscores: "device_silent", "loop_fail", "health_low"
    severity: Literal["info", "warning", "alarm"]
    state: Literal["raised", "cleared"]
    text: str
    t: float
    tag: str | None = None
    value: Plain = None
    limit: Plain = None
    causes: tuple[str, ...] = ()
    alarm: bool = False  # kept retained under alarm/<device>/<name> while raised


@dataclass(frozen=True, slots=True)
class LoopView:
    mode: str  # off shadow manual auto fail
    sp: float | None
    pv: float | None
    out: float | None
    limited: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class HealthView:
    score: float | None  # 1 as always .. 0; None while it is still learning
    tags: Mapping[str, float | None]
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Forecasts of some rows of the twin. Shapes: rows (n,), y lo hi (n, H), a (n, order + 1), b (n,), t (n,).

    `y[i, j]` is foretold for `t[i] + h[j] * period of the tag`; NaN where there is none yet.
    `a`, `b` are the coefficients in levels: y(t) = sum a_i x(t - i) + b.
    """

    h: tuple[int, ...]
    rows: NDArray[np.int64]
    t: NDArray[np.float64]
    y: NDArray[np.float64]
    lo: NDArray[np.float64]
    hi: NDArray[np.float64]
    a: NDArray[np.float64]
    b: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen picture of the whole twin: columns copied, so a reader needs no lock.

    `plain[i]`, `quality[i]`, `t[i]`, `total[i]` belong to `layout.keys[i]`. `plain` is None unless the quality is good
    or uncertain; `t` is the time of the reply that gave the quality, NaN before the first.
    """

    layout: Layout
    t: float
    plain: list[Plain]
    value: NDArray[np.float64]  # numeric value, NaN where there is none
    quality: NDArray[np.uint8]
    stamps: NDArray[np.float64]
    total: Mapping[int, int | float]  # row -> continuing total of a counter
    states: Mapping[str, str]  # device -> "ok", "degraded", "silent", "link"
    health: Mapping[str, HealthView]
    loops: Mapping[str, LoopView]
    loops_of: Mapping[str, tuple[str, ...]]  # device -> names of the loops whose output it holds
    forecasts: Forecasts | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a request that came through a door: from the cloud, the socket or the page."""

    ok: bool
    applied: Plain = None
    readback: Plain = None
    error: str | None = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request from outside the main loop. The doors (`agent.runtime.doors`) judge it, whoever sent it.

    op: "write" (device, tag, value), "loop" (loop, mode and/or setpoint), "read" (tags), "whatif", "status",
    "relearn" (device); for commissioning "holds" (url) and "ask" (one read of any unit).
    `deadline` is monotonic: past it the request is refused, not done late.
    """

    op: str
    source: Literal["cmd", "desired", "socket", "page"]
    deadline: float
    by: str | None = None
    key: Key | None = None
    value: Plain = None
    loop: str | None = None
    mode: str | None = None
    setpoint: float | None = None
    keys: tuple[Key, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

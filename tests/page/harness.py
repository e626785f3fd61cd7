"""A Front on a free port, with a made-up plant behind it instead of the main loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import math
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.config.load import parse
from agent.config.types import Config, PageConfig
from agent.page.front import Front
from agent.runtime.clock import Clock, SystemClock
from agent.runtime.socket import ControlSocket
from agent.twin.history import BUCKET, History
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Ask, Event, Forecasts, HealthView, LoopView, Outcome, Snapshot

URL = "tcp://10.0.0.5:502"
CONFIG = """
gateway: line4
devices:
  press1:
    url: tcp://10.0.0.5:502
    on_loss: zero
    tags:
      temperature: {holding: 100, type: float32, unit: °C, range: [-40, 400]}
      pressure: {input: 7, type: int16, scale: 0.01, unit: bar}
      running: {coil: 3}
      fault_code: {holding: 110, states: {0: ok, 3: overheat}}
      serial: {holding: 200, type: string, length: 16, every: 1h}
      energy: {holding: 300, type: uint64, unit: Wh, counter: true}
      oven_out: {holding: 120, scale: 0.1, unit: "%", write: {range: [0, 100]}}
  pump2:
    url: tcp://10.0.0.5:502
    unit: 2
    tags:
      speed: {holding: 10, unit: 1/min}
      flow: {holding: 11, scale: 0.1, unit: m³/h}
      level: {input: 9, scale: 0.001, unit: mA, loop_current: true}
loops:
  oven:
    pv: press1/temperature
    out: press1/oven_out
    setpoint: 180
    setpoint_limits: [20, 250]
    limits: [0, 100]
    mode: auto
    trip: [0, 350]
"""
VALUES: dict[str, Any] = {
    "press1/temperature": 181.375,
    "press1/pressure": 4.21,
    "press1/running": True,
    "press1/fault_code": 3,
    "press1/serial": "PX-4\n<b>7</b>",
    "press1/energy": 2**53 + 1,
    "press1/oven_out": 41.5,
    "pump2/speed": 1480,
    "pump2/flow": 12.5,
    "pump2/level": None,
}


@dataclass
class Plant:
    """What the main loop would hold; `front` reads it."""

    config: Config
    clock: Clock = field(default_factory=SystemClock)
    healthy: bool = True
    problems: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    outcome: Outcome = field(default_factory=lambda: Outcome(True))
    values: dict[str, Any] = field(default_factory=lambda: dict(VALUES))
    status_calls: int = 0
    snapshot: Snapshot | None = None

    def __post_init__(self) -> None:
        self.layout = build_layout(self.config)
        self.history = History(len(self.layout.keys))
        self.step()

    def ms(self, mono: float) -> int:
        return round(1_800_000_000_000 + 1000 * mono)

    def step(self) -> None:
        """A new snapshot from `values`; None is a silent device."""
        now = self.clock.mono()
        plain = [self.values.get("/".join(key)) for key in self.layout.keys]
        value = np.array([float(v) if isinstance(v, int | float) else math.nan for v in plain])
        quality = np.array([Quality.TIMEOUT if v is None else Quality.GOOD for v in plain], dtype=np.uint8)
        self.snapshot = Snapshot(
            layout=self.layout,
            t=now,
            plain=plain,
            value=value,
            quality=quality,
            stamps=np.full(len(plain), now - 0.2),
            total={row: 2**53 + 7 for row, key in enumerate(self.layout.keys) if key[1] == "energy"},
            states=dict.fromkeys(self.layout.devices, "ok"),
            health={
                "press1": HealthView(0.42, {"temperature": 0.42}, ("temperature rises faster than before",))
            },
            loops={name: LoopView("auto", 180.0, 181.375, 41.5, False, None) for name in self.config.loops},
            loops_of={"press1": tuple(self.config.loops)},
            forecasts=self.forecasts(now) if "press1" in self.layout.devices else None,
        )

    def forecasts(self, now: float) -> Forecasts:
        row = self.layout.row["press1", "temperature"]
        y = np.array([[181.5, 182.0, math.nan]])
        return Forecasts(
            (1, 5, 20), np.array([row]), np.array([now]), y, y - 1, y + 1, np.zeros((1, 9)), np.zeros(1)
        )

    def fill_history(self, seconds: float = 3600.0, seed: int = 1) -> None:
        """An hour of slow waves with noise for every tag that has a number."""
        draw, now = random.Random(seed), self.clock.mono()
        rows = np.arange(len(self.layout.keys), dtype=np.int64)
        base = np.array(
            [
                float(v) if isinstance(v := self.values.get("/".join(key)), int | float) else math.nan
                for key in self.layout.keys
            ]
        )
        steps = int(seconds / BUCKET * 4)
        for k in range(steps + 1):
            t = now - seconds + k * BUCKET / 4
            wave = np.array(
                [math.sin(t / (70 + 9 * i) + i) * 0.02 + draw.gauss(0, 0.004) for i in range(len(rows))]
            )
            self.history.add(rows, np.where(base == np.rint(base), base, base * (1 + wave)), t)

    def status(self) -> dict[str, Any]:
        self.status_calls += 1
        return {
            "v": 1,
            "version": "0.1.0",
            "gateway": self.config.gateway,
            "boot": "0badcafe",
            "stream": "12345678",
            "since": self.ms(self.clock.mono() - 93_000),
            "healthy": self.healthy,
            "problems": self.problems,
            "clock": "ok",
            "kernels": "numba",
            "config": {"path": "/etc/edgetwin/config.yaml", "errors": []},
            "lines": {
                URL: {
                    "state": "up",
                    "requests": 120_450,
                    "errors": {"timeout": 3},
                    "rtt_ms": {"p50": 3.1, "p99": 8.75},
                    "utilisation": 0.23,
                    "devices": {
                        name: {"state": "ok", "retry_s": None, "learnt": []} for name in self.layout.devices
                    },
                }
            },
            "scans": {
                "press1/1s": {"done": 93_000, "overruns": 1, "late_ms": {"p50": 0.1, "p99": 0.9, "max": 12.0}}
            },
            "loops": {
                "oven": {
                    "mode": "auto",
                    "sp": 180.0,
                    "pv": 181.375,
                    "out": 41.5,
                    "limited": False,
                    "reason": None,
                }
            },
            "outbox": {"batches": 0, "bytes": 0, "oldest": None, "dropped": 0},
            "uplink": {"state": "online", "protocol": 5, "unacked": 2, "error": None},
            "counts": {"values_read": 930_000, "values_bad": 12, "forecasts": 93_000},
        }

    def ask(self, ask: Ask) -> concurrent.futures.Future[Outcome]:
        self.asked.append(ask)
        answer: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        answer.set_result(Outcome(True, result=self.status()) if ask.op == "status" else self.outcome)
        return answer


def plant(text: str = CONFIG, **more: Any) -> Plant:
    config = parse(text, "config.yaml").config
    assert config is not None
    return Plant(config, **more)


@contextlib.contextmanager
def serving(
    behind: Plant, folder: Path, *, page: PageConfig | None = None, token: str | None = None
) -> Iterator[Front]:
    """A started Front; its control socket is `folder`/edgetwin.sock."""
    control = ControlSocket(
        folder / "edgetwin.sock", config_path="config.yaml", ask=behind.ask, clock=behind.clock
    )
    front = Front(
        page=page or PageConfig("127.0.0.1", 0),
        token=token,
        serve_socket=control.serve,
        snapshot=lambda: behind.snapshot,
        status=behind.status,
        events=lambda: tuple(behind.events),
        history=behind.history.read,
        ask=behind.ask,
        anchor_ms=behind.ms,
        clock=behind.clock,
        loops=lambda: behind.config.loops,
    )
    front.start()
    try:
        yield front
    finally:
        front.stop()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda word: (_ for _ in ()).throw(ValueError(word)))


def get(front: Front, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    """One request; an underscore in a header's name is a dash."""
    assert front.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def raw(front: Front, data: bytes) -> bytes:
    """Sends bytes as they are; everything that comes back until the connection is closed."""
    assert front.port is not None
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


@contextlib.contextmanager
def stream(front: Front, path: str = "/events") -> Iterator[Iterator[dict[str, Any]]]:
    """The messages of a stream of server-sent events."""
    assert front.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"

    def messages() -> Iterator[dict[str, Any]]:
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    try:
        yield messages()
    finally:
        answer.close()
        connection.close()


async def no_socket() -> asyncio.Server:
    raise OSError("none wanted")

"""The configuration as frozen records: what `agent.config.load` returns and every other room reads.

Durations are seconds, sizes bytes, addresses wire addresses from 0. Names follow the keys of the YAML file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Table = Literal["holding", "input", "coil", "discrete"]
Mode = Literal["off", "shadow", "manual", "auto"]
OnLoss = Literal["hold", "zero", "stops", "unknown"]

REGISTERS: Mapping[str, int] = MappingProxyType(
    {
        "bool": 1,
        "int16": 1,
        "uint16": 1,
        "bcd16": 1,
        "int32": 2,
        "uint32": 2,
        "float32": 2,
        "bcd32": 2,
        "int64": 4,
        "uint64": 4,
        "float64": 4,
    }
)
"""Registers that each type takes; a string takes (length + 1) // 2. In coils and discretes a bool takes one bit."""


@dataclass(frozen=True, slots=True)
class Write:
    """What may be written to a tag, and how. A tag without it is never written."""

    range: tuple[float, float] | None = None
    function: int | None = None  # 5, 6, 15, 16 or 22; None: the shortest that fits
    verify: bool = True
    min_interval: float = 1.0
    nonvolatile: bool = False
    daily: int = 20_000


@dataclass(frozen=True, slots=True)
class SunSpec:
    """A register of a SunSpec model: of the first in the chain whose ID is in [first, last], counted from its ID."""

    first: int
    last: int
    offset: int


@dataclass(frozen=True, slots=True)
class Tag:
    """One value of a device: where its raw words are and what they mean (value = raw * scale + offset)."""

    name: str
    table: Table
    address: int
    type: str = "uint16"
    order: str = "ABCD"
    scale: Decimal = Decimal(1)
    offset: Decimal = Decimal(0)
    scale_from: str | None = None  # tag of the same device that holds a power of ten
    unit: str | None = None
    range: tuple[float, float] | None = None  # of the scaled value; outside it is uncertain
    missing: tuple[int, ...] = ()  # raw values that mean "not available"
    states: Mapping[int, str] = field(default_factory=dict)
    bit: int | None = None
    bits: tuple[int, int] | None = None  # lowest and highest bit, both inclusive
    length: int = 0  # bytes of a string
    every: float = 1.0
    counter: bool = False
    loop_current: bool = False
    alone: bool = False
    deadband: float = 0.0  # a smaller change is not published as a change of the twin
    write: Write | None = None
    sunspec: SunSpec | None = None  # where the device's own chain says; `address` is as in the usual chain

    @property
    def count(self) -> int:
        """Registers (holding, input) or bits (coil, discrete) that it takes on the wire."""
        if self.type == "string":
            return (self.length + 1) // 2
        return REGISTERS[self.type]

    @property
    def numeric(self) -> bool:
        """True where a forecast makes sense: not text, no bool, no single bit, no named states."""
        return self.type not in ("string", "bool") and self.bit is None and not self.states

    @property
    def boolean(self) -> bool:
        """True where the published value is true or false."""
        return self.type == "bool" or self.bit is not None

    @property
    def exact(self) -> bool:
        """True for 64-bit integers, which a double cannot hold: published from the raw integer."""
        return self.type in ("int64", "uint64") and self.bit is None and self.bits is None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device bears."""

    registers: int = 125
    bits: int = 2000
    gap: int | None = None  # longest hole bridged, in registers or bits; None: where it costs less (auto)
    pause: float = 0.0  # between a reply and the next request to this device
    pause_after_connect: float = 0.0
    close_after_poll: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    first: float = 30.0
    max: float = 300.0


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Certificates for tls:// (PEM files). ca None: those of the system; name None: the host of the url."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Avoid:
    """An inclusive range of addresses that is never read."""

    table: Table
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed device URL. `text` is its canonical form: devices with the same text share one line."""

    text: str
    scheme: Literal["tcp", "tls", "rtu+tcp", "udp", "rtu"]
    host: str = ""
    port: int = 0
    path: str = ""  # serial port
    baud: int = 19200
    parity: Literal["N", "E", "O"] = "E"
    stopbits: int = 1
    local_echo: bool = False

    @property
    def character(self) -> float:
        """Seconds that one character takes on a serial line: start bit, 8 data bits, parity bit, stop bits."""
        return (9 + (self.parity != "N") + self.stopbits) / self.baud


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    url: Url
    unit: int = 1
    every: float = 1.0
    timeout: float = 0.5
    order: str = "ABCD"
    limits: Limits = Limits()
    retry: Retry = Retry()
    tls: TlsConfig = TlsConfig()
    avoid: tuple[Avoid, ...] = ()
    accept: tuple[str, ...] = ()
    on_loss: OnLoss = "unknown"
    tags: Mapping[str, Tag] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is. `agent.config.secrets.reveal` reads it; its repr shows the place, never the text."""

    kind: Literal["credential", "env", "file", "plain"]
    name: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OutboxConfig:
    max_size: int = 256 << 20
    max_age: float = 7 * 86_400.0
    batch: float = 20.0
    rate: int = 20_000
    durable: bool = False
    keep: float = 0.0
    min_free: int = 100 << 20


@dataclass(frozen=True, slots=True)
class MqttConfig:
    url: str = "mqtt://127.0.0.1:1883"
    root: str = "edgetwin"
    client_id: str | None = None
    username: str | None = None
    password: Secret | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    keepalive: float = 15.0
    batch: float = 1.0
    twin_every: float = 5.0
    forecast_every: float = 30.0
    full_every: float = 60.0
    compress: Literal["never", "backfill", "all"] = "backfill"
    flat: bool = False
    outbox: OutboxConfig = OutboxConfig()


@dataclass(frozen=True, slots=True)
class CommandsConfig:
    enabled: bool = False
    skew: float = 30.0
    hmac: Secret | None = None


@dataclass(frozen=True, slots=True)
class PageConfig:
    """None in Config means `page: off`."""

    host: str = "127.0.0.1"
    port: int = 8080
    control: bool = False
    token: Secret | None = None


@dataclass(frozen=True, slots=True)
class PredictConfig:
    """What is forecast. None in Config means `predict: off`."""

    tags: tuple[tuple[str, str], ...] = ()  # (device, tag) pairs, patterns already resolved
    horizon: tuple[int, ...] = (1, 5, 20)
    interval: float = 0.9
    order: int = 8
    inputs: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """The health score of one device. `tags` are names of the device's own tags."""

    tags: tuple[str, ...]
    alarm: float = 0.5
    hold: float = 10.0
    warmup: int = 400
    calibrate: tuple[float, float] | None = None  # a, b of 1/(1+exp(-(a z + b)))
    reference: Literal["frozen", "slow"] = "frozen"


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    type: Literal["pid", "predictive"] = "pid"
    kp: float = 1.0  # 0 with predictive: kp, ti and td that suit the model
    ti: float = 60.0
    td: float = 0.0
    b: float = 0.7
    c: float = 0.0
    n: float = 8.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    k: float = 1.0
    t1: float = 1.0
    t2: float = 0.0
    delay: float = 0.0
    bias: float = 0.0
    integrating: bool = False
    grade: Literal["good", "fair", "poor"] = "poor"
    noise: float = 0.0  # standard deviation of the pv at rest; 0: not known
    damping: float = 1.0  # below 1: k / (t1² s² + 2 damping t1 s + 1), without t2


@dataclass(frozen=True, slots=True)
class FeedForward:
    tag: tuple[str, str]
    gain: float = 0.0
    lag: float = 0.0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    tag: tuple[str, str]
    timeout: float = 3.0  # of the PLC; the register is counted on at a third of it


@dataclass(frozen=True, slots=True)
class Fail:
    after: int = 3
    to: float | Literal["hold", "release"] = "hold"
    on_stop: float | Literal["hold", "release"] = "hold"
    resume: int | None = 3  # good scans; None: by hand


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """One control loop. Tags are (device, tag) pairs; output values are in the output tag's unit."""

    name: str
    pv: tuple[str, str]
    out: tuple[str, str]
    setpoint: float | tuple[str, str]
    limits: tuple[float, float]
    every: float = 1.0
    mode: Mode = "shadow"
    setpoint_limits: tuple[float, float] | None = None
    ramp: float | None = None  # of the setpoint, per second
    controller: ControllerConfig = ControllerConfig()
    model: ModelConfig | None = None
    action: Literal["reverse", "direct"] = "reverse"
    rate: float | None = None  # of the output, per second
    deadband: float = 0.0
    feed_forward: FeedForward | None = None
    trip: tuple[float, float] | None = None
    fail: Fail = Fail()
    heartbeat: Heartbeat | None = None
    interlock: tuple[tuple[str, str], ...] = ()
    remote: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, checked: every name in it resolves."""

    path: str
    gateway: str | None
    state_dir: Path | None
    log_level: str = "info"
    mqtt: MqttConfig = MqttConfig()
    commands: CommandsConfig = CommandsConfig()
    page: PageConfig | None = PageConfig()
    devices: Mapping[str, Device] = field(default_factory=dict)
    predict: PredictConfig | None = None
    health: Mapping[str, HealthConfig] = field(default_factory=dict)
    loops: Mapping[str, LoopConfig] = field(default_factory=dict)

    def tag(self, key: tuple[str, str]) -> Tag:
        """The tag named by a (device, tag) pair."""
        return self.devices[key[0]].tags[key[1]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, what, and what would be right."""

    file: str
    line: int
    column: int
    path: str
    what: str
    hint: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        hint = f"; {self.hint}" if self.hint else ""
        mark = "warning: " if self.severity == "warning" else ""
        where = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}:{self.column}: {mark}{where}{self.what}{hint}"

"""A configuration's devices as simulated ones: every tag has a plausible, moving value in its own type and order.

Registers that the plan does not read answer exception 2; a unit that is not configured is silent, as on a serial
line. A writable tag is still until it is written, and then keeps what was written, as does what shares its register.
The process variable of a loop follows the loop's output, first order, so that a loop can be tried before the plant
is there; its interlocks are true. Tags of SunSpec models stand in a chain of those models that begins at 40000.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.config.sunspec import BASE, HEADER, Model, usual
from agent.config.types import Config, Device, LoopConfig, Table, Tag
from agent.modbus.codec import Decoder, power_of
from agent.modbus.encode import EncodeProblem, WireWrite
from agent.modbus.lifelike import Signal, power_signal, signal
from agent.modbus.plan import READ_FUNCTION, TABLE_OF, plan_device, request_for
from agent.modbus.sunspec import has_places, marks
from agent.twin.records import Key

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
MOST_READ = {1: 2000, 2: 2000, 3: 125, 4: 125}
MOST_WRITTEN = {15: 1968, 16: 123}
COIL_ON, COIL_OFF = 0xFF00, 0x0000
IDENTIFY, DEVICE_IDENTIFICATION = 0x2B, 0x0E
IDENTITY = ("Edgetwin", "simulated device", "0")
"""Vendor, product code, revision."""
CONFORMITY = 0x81
"""Basic identification, as a stream or one by one."""

MARGIN = 0.1
"""Of the span of a process variable, left free at both ends."""
RIPPLE = 0.001
STEPS_IN_LAG = 5.0
"""Time constants are at least so many steps of the loop, and times its gain: what its own controller can hold."""

Cell = tuple[Table, int]


@dataclass(slots=True)
class Process:
    """A first-order process from the loop's output to its process variable."""

    loop: LoopConfig
    low: float
    high: float
    value: float | None = None
    stepped: float = 0.0

    @property
    def lag(self) -> float:
        """Time constant in seconds: the model's t1 or the controller's ti, longer where the gain asks for it."""
        loop = self.loop
        least, most = loop.limits
        gain = loop.controller.kp * (self.high - self.low) / ((most - least) or 1.0)
        natural = loop.model.t1 if loop.model is not None else loop.controller.ti
        return max(natural, STEPS_IN_LAG * loop.every * max(1.0, abs(gain)))

    def step(self, out: float, t: float) -> float:
        """The process variable at time t, after the output has been `out` since the step before."""
        least, most = self.loop.limits
        share = min(max((out - least) / ((most - least) or 1.0), 0.0), 1.0)
        if self.loop.action == "direct":
            share = 1.0 - share
        goal = self.low + (self.high - self.low) * share
        if self.value is None:
            self.value = goal
        else:
            self.value += (goal - self.value) * -math.expm1((self.stepped - t) / self.lag)
        self.stepped = t
        return self.value + RIPPLE * (self.high - self.low) * math.sin(7.0 * t)


@dataclass(slots=True)
class Unit:
    """Registers and bits of one unit on one line: of one device, or of several that name the same unit."""

    cells: dict[Cell, int] = field(default_factory=dict)
    writable: set[Cell] = field(default_factory=set)
    written: set[Cell] = field(default_factory=set)
    devices: list[Device] = field(default_factory=list)
    signals: list[tuple[Device, Signal]] = field(default_factory=list)

    def write(self, wire: WireWrite, table: Table) -> None:
        """Takes a frame as the device does."""
        if wire.masked:
            old = self.cells[(table, wire.address)]
            self.cells[(table, wire.address)] = (old & wire.and_mask) | (wire.or_mask & ~wire.and_mask)
            return
        for k, one in enumerate(wire.bits or wire.words):
            self.cells[(table, wire.address + k)] = int(one)

    def data(self, table: Table, address: int, count: int) -> bytes:
        """The data bytes of a reply. Raises KeyError for an address that is not there."""
        cells = [self.cells[(table, at)] for at in range(address, address + count)]
        if READ_FUNCTION[table] > 2:
            return struct.pack(f">{count}H", *cells)
        packed = bytearray((count + 7) // 8)
        for k, bit in enumerate(cells):
            packed[k // 8] |= bit << k % 8
        return bytes(packed)


class Simulation:
    """All devices of a configuration. `now` gives monotonic seconds."""

    def __init__(self, config: Config, now: Callable[[], float]) -> None:
        self._config = config
        self._now = now
        self._start = now()
        self._units: dict[tuple[str, int], Unit] = {}
        self._signals: dict[Key, Signal] = {}
        self._processes: dict[Key, Process] = {}
        self._decoders: dict[Key, Decoder] = {}
        self._true = {key for loop in config.loops.values() for key in loop.interlock}
        outputs = {loop.out for loop in config.loops.values()}
        for device in config.devices.values():
            unit = self._units.setdefault((device.url.text, device.unit), Unit())
            unit.devices.append(device)
            for tag, bound in _signals(device, outputs):
                self._signals[(device.name, tag.name)] = bound
                unit.signals.append((device, bound))
            _lay_out(unit, device)
        for loop in config.loops.values():
            low, high = _process_span(self._signals[loop.pv], loop)
            self._processes[loop.pv] = Process(loop, low, high)
        for unit in self._units.values():
            for device, bound in unit.signals:
                self._refresh(unit, device, bound)

    @property
    def lines(self) -> Mapping[str, Mapping[int, tuple[str, ...]]]:
        """URL text -> unit -> names of its devices, in the order of the file."""
        found: dict[str, dict[int, tuple[str, ...]]] = {}
        for (url, unit), one in self._units.items():
            found.setdefault(url, {})[unit] = tuple(device.name for device in one.devices)
        return found

    def line(self, url: str) -> Callable[[int, bytes], bytes | None]:
        """The answers of a line's URL: (unit, PDU of the request) -> PDU of the reply, None for silence."""

        def answer(unit: int, pdu: bytes) -> bytes | None:
            found = self._units.get((url, unit))
            return None if found is None else self._answer(found, pdu)

        return answer

    # -- values -------------------------------------------------------------------------------------------------

    def _refresh(self, unit: Unit, device: Device, bound: Signal) -> None:
        """Moves one tag's registers on to the present."""
        tag = bound.tag
        if not unit.written.isdisjoint(_cells(tag)):
            return
        key = (device.name, tag.name)
        t = self._now() - self._start
        process = self._processes.get(key)
        if process is not None:
            raw = bound.raw_of(process.step(self._output(process.loop), t))
        elif key in self._true and tag.boolean:
            raw = True
        else:
            raw = bound.raw_at(t)
        with contextlib.suppress(EncodeProblem):  # a bit field across two registers stays 0
            unit.write(bound.wire(device, raw), tag.table)

    def _output(self, loop: LoopConfig) -> float:
        """What the loop's output register holds now."""
        device = self._config.devices[loop.out[0]]
        unit = self._units[(device.url.text, device.unit)]
        bound = self._signals[loop.out]
        if loop.out not in self._processes:
            self._refresh(unit, device, bound)
        decoder = self._decoders.get(loop.out)
        request = request_for(device, (bound.tag.name,))
        if decoder is None:
            decoder = self._decoders[loop.out] = Decoder(request, device)
        powers = {name: _power(device, bound.tag) for name in decoder.elsewhere}
        decoded = decoder.decode(unit.data(bound.tag.table, request.address, request.count), powers)
        value = decoded.plain[0]
        return float(value) if isinstance(value, int | float) else loop.limits[0]

    # -- Modbus -------------------------------------------------------------------------------------------------

    def _answer(self, unit: Unit, pdu: bytes) -> bytes:
        function = pdu[0]
        try:
            if function in TABLE_OF:
                return self._read(unit, function, *struct.unpack(">HH", pdu[1:]))
            if function in (5, 6, 15, 16, 22):
                return _write(unit, function, pdu)
            if function == IDENTIFY and pdu[1:2] == bytes([DEVICE_IDENTIFICATION]):
                return _identify(*struct.unpack(">BB", pdu[2:]))
            code = ILLEGAL_FUNCTION
        except KeyError:
            code = ILLEGAL_ADDRESS
        except (struct.error, ValueError):
            code = ILLEGAL_VALUE
        return bytes([function | 0x80, code])

    def _read(self, unit: Unit, function: int, address: int, count: int) -> bytes:
        if not 1 <= count <= MOST_READ[function]:
            raise ValueError(count)
        table = TABLE_OF[function]
        for device, bound in unit.signals:
            tag = bound.tag
            if tag.table == table and tag.address < address + count and address < tag.address + tag.count:
                self._refresh(unit, device, bound)
        data = unit.data(table, address, count)
        return bytes([function, len(data)]) + data


def _signals(device: Device, outputs: set[Key]) -> list[tuple[Tag, Signal]]:
    """Each tag bound to what it may hold, powers of ten first known."""
    names = {tag.scale_from for tag in device.tags.values()}
    found = []
    for tag in device.tags.values():
        if tag.name in names:
            found.append((tag, power_signal(tag)))
        else:
            still = tag.write is not None and (device.name, tag.name) not in outputs
            found.append((tag, signal(tag, power=_power(device, tag) or 0, still=still)))
    return found


def _power(device: Device, tag: Tag) -> int | None:
    """The power of ten that the register of `scale_from` holds while nobody writes it; None without one."""
    if tag.scale_from is None:
        return None
    low, _ = power_signal(device.tags[tag.scale_from]).span
    return power_of(int(low)) if low == int(low) else None


def _lay_out(unit: Unit, device: Device) -> None:
    """Empty registers and bits for all that is read, what lies between tags of one request too."""
    for request in plan_device(device):
        for address in range(request.address, request.address + request.count):
            unit.cells.setdefault((request.table, address), 0)
    for tag in device.tags.values():
        if tag.write is not None:
            unit.writable.update(_cells(tag))
    if has_places(device):
        _lay_chain(unit, usual(device.tags.values()))


def _lay_chain(unit: Unit, models: tuple[Model, ...]) -> None:
    """The chain that the device's tags suppose: whole models, and headers that no value moves."""
    for model in models:
        for address in range(model.address, model.address + HEADER + model.length):
            unit.cells.setdefault(("holding", address), 0)
    for address, word in marks(BASE, models).items():
        unit.cells[("holding", address)] = word
        unit.written.add(("holding", address))


def _cells(tag: Tag) -> list[Cell]:
    return [(tag.table, address) for address in range(tag.address, tag.address + tag.count)]


def _process_span(pv: Signal, loop: LoopConfig) -> tuple[float, float]:
    """Where the output's limits bring the process variable: within its range and the loop's trip limits."""
    low, high = pv.span
    if loop.trip is not None and max(low, loop.trip[0]) < min(high, loop.trip[1]):
        low, high = max(low, loop.trip[0]), min(high, loop.trip[1])
    margin = MARGIN * (high - low)
    return low + margin, high - margin


def _write(unit: Unit, function: int, pdu: bytes) -> bytes:
    """Only registers of tags with `write` take a write; others are refused as a device refuses them."""
    address, value = struct.unpack(">HH", pdu[1:5])
    if function == 5:
        if value not in (COIL_ON, COIL_OFF) or len(pdu) != 5:
            raise ValueError(value)
        _put(unit, "coil", address, [value == COIL_ON])
    elif function == 6:
        if len(pdu) != 5:
            raise ValueError(len(pdu))
        _put(unit, "holding", address, [value])
    elif function == 22:
        (or_mask,) = struct.unpack(">H", pdu[5:])
        old = unit.cells[("holding", address)]
        _put(unit, "holding", address, [(old & value) | (or_mask & ~value & 0xFFFF)])
        return pdu
    else:
        size = (value + 7) // 8 if function == 15 else 2 * value
        data = pdu[6:]
        if not 1 <= value <= MOST_WRITTEN[function] or pdu[5:6] != bytes([size]) or len(data) != size:
            raise ValueError(value)
        if function == 15:
            _put(unit, "coil", address, [data[k // 8] >> k % 8 & 1 for k in range(value)])
        else:
            _put(unit, "holding", address, list(struct.unpack(f">{value}H", data)))
    return pdu[:5]


def _put(unit: Unit, table: Table, address: int, values: list[int]) -> None:
    cells: list[Cell] = [(table, address + k) for k in range(len(values))]
    if not unit.writable.issuperset(cells):
        raise KeyError(address)
    unit.cells.update(zip(cells, map(int, values)))
    unit.written.update(cells)


def _identify(code: int, first: int) -> bytes:
    """Function 43/14, read device identification (Modbus application protocol V1.1b3, 6.21)."""
    if not 1 <= code <= 4:
        raise ValueError(code)
    if code == 4:
        if first >= len(IDENTITY):
            raise KeyError(first)
        numbers = [first]
    else:
        numbers = list(range(first if first < len(IDENTITY) else 0, len(IDENTITY)))
    objects = b"".join(bytes([k, len(IDENTITY[k])]) + IDENTITY[k].encode() for k in numbers)
    return bytes([IDENTIFY, DEVICE_IDENTIFICATION, code, CONFORMITY, 0, 0, len(numbers)]) + objects

"""A configuration's devices as simulated ones: every tag has a plausible, moving value in its own type and order.

Registers that the plan does not read answer exception 2; a unit that is not configured is silent, as on a serial
line. A written tag keeps what was written. The process variable of a loop follows its output: first order, from the
output's limits onto the variable's range, so that a loop can be tried before the plant is there.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.config.types import Config, Device, LoopConfig, Table, Tag, Write
from agent.modbus.codec import Decoder
from agent.modbus.encode import EncodeProblem, WireWrite, encode
from agent.modbus.plan import READ_FUNCTION, TABLE_OF, plan_device, request_for
from agent.twin.records import Plain

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
WANDER = 60.0
"""Seconds of the slow swing of a value."""
LAG_STEPS = 5.0
"""Time constant of a loop's process, in steps of the loop."""
COUNTS_PER_SECOND = 3.0
DEFAULT_SPAN = (0.0, 100.0)
MARGIN = 0.1
IDENTITY = ("Edgetwin", "simulated device", "0")

Cell = tuple[Table, int]


@dataclass
class SimulatedDevice:
    """Registers and bits of one device. `now` gives monotonic seconds."""

    device: Device
    loops: tuple[LoopConfig, ...]
    now: Callable[[], float]
    cells: dict[Cell, int] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    _pv: dict[str, float] = field(default_factory=dict)
    _stepped: float | None = None

    def __post_init__(self) -> None:
        self._start = self.now()
        for tag in self.device.tags.values():
            for address in range(tag.address, tag.address + tag.count):
                self.cells.setdefault((tag.table, address), 0)
        for request in plan_device(self.device):  # what is read between tags is there, and empty
            for address in range(request.address, request.address + request.count):
                self.cells.setdefault((request.table, address), 0)
        self.refresh()

    def refresh(self) -> None:
        """Moves every value on to the present."""
        t = self.now() - self._start
        outputs = {loop.pv[1]: loop for loop in self.loops}
        powers = {tag.scale_from for tag in self.device.tags.values()}
        interlocks = {key[1] for loop in self.loops for key in loop.interlock if key[0] == self.device.name}
        for tag in self.device.tags.values():
            if tag.name in self.written:
                continue
            if tag.name in outputs:
                self._store(tag, self._process(outputs[tag.name], tag, t))
            elif tag.name in powers:
                self._store(tag, -1)
            elif tag.name in interlocks:
                self._store(tag, True)
            else:
                self._store(tag, lifelike(tag, t))
        self._stepped = t

    def _process(self, loop: LoopConfig, tag: Tag, t: float) -> float:
        """First order from the loop's output onto the range of its process variable."""
        low, high = tag.range or DEFAULT_SPAN
        least, most = loop.limits
        out = self._value(self.device.tags[loop.out[1]]) if loop.out[0] == self.device.name else None
        share = ((float(out) if out is not None else least) - least) / ((most - least) or 1.0)
        goal = low + (high - low) * (
            MARGIN + (1 - 2 * MARGIN) * (share if loop.action == "reverse" else 1 - share)
        )
        before = self._pv.setdefault(tag.name, goal)
        passed = t - (self._stepped if self._stepped is not None else t)
        value = before + (goal - before) * (1 - math.exp(-passed / (LAG_STEPS * loop.every)))
        self._pv[tag.name] = value
        return value + 0.001 * (high - low) * math.sin(7.0 * t)

    def _value(self, tag: Tag) -> Plain:
        request = request_for(self.device, (tag.name,))
        return (
            Decoder(request, self.device)
            .decode(self._data(tag.table, request.address, request.count))
            .plain[0]
        )

    def _store(self, tag: Tag, value: Plain) -> None:
        writable = dataclasses.replace(tag, write=Write(range=(-math.inf, math.inf)), missing=())
        try:
            wire = encode(writable, self.device, value, -1 if tag.scale_from else None)
        except EncodeProblem:
            return
        self._apply(tag.table, wire)

    def _apply(self, table: Table, wire: WireWrite) -> None:
        if wire.masked:
            old = self.cells[(table, wire.address)]
            self.cells[(table, wire.address)] = (old & wire.and_mask) | (wire.or_mask & ~wire.and_mask)
            return
        for k, one in enumerate(wire.bits or wire.words):
            self.cells[(table, wire.address + k)] = int(one)

    # -- Modbus -------------------------------------------------------------------------------------------------

    def answer(self, pdu: bytes) -> bytes:
        """The reply to one request."""
        function = pdu[0]
        try:
            if function in TABLE_OF and len(pdu) == 5:
                return self._read(function, *struct.unpack(">HH", pdu[1:]))
            if function in (5, 6, 15, 16, 22):
                return self._write(function, pdu)
            if function == 0x2B and pdu[1:2] == b"\x0e":
                return self._identify()
            code = ILLEGAL_FUNCTION
        except KeyError:
            code = ILLEGAL_ADDRESS
        except (struct.error, ValueError, IndexError):
            code = ILLEGAL_VALUE
        return bytes([function | 0x80, code])

    def _read(self, function: int, address: int, count: int) -> bytes:
        if not 1 <= count <= (2000 if function < 3 else 125):
            raise ValueError(count)
        self.refresh()
        data = self._data(TABLE_OF[function], address, count)
        return bytes([function, len(data)]) + data

    def _data(self, table: Table, address: int, count: int) -> bytes:
        cells = [self.cells[(table, at)] for at in range(address, address + count)]
        if READ_FUNCTION[table] > 2:
            return struct.pack(f">{count}H", *cells)
        packed = bytearray((count + 7) // 8)
        for k, bit in enumerate(cells):
            packed[k // 8] |= bit << k % 8
        return bytes(packed)

    def _write(self, function: int, pdu: bytes) -> bytes:
        address, value = struct.unpack(">HH", pdu[1:5])
        if function == 5:
            self._put("coil", address, [value == 0xFF00])
        elif function == 6:
            self._put("holding", address, [value])
        elif function == 15:
            self._put("coil", address, [pdu[6 + k // 8] >> k % 8 & 1 for k in range(value)])
        elif function == 16:
            self._put("holding", address, list(struct.unpack(f">{value}H", pdu[6:])))
        else:
            (or_mask,) = struct.unpack(">H", pdu[5:7])
            old = self.cells[("holding", address)]
            self._put("holding", address, [(old & value) | (or_mask & ~value & 0xFFFF)])
            return pdu
        return pdu[:5]

    def _put(self, table: Table, address: int, values: list[int]) -> None:
        """Only tags with `write` take a write; the others are refused as a device refuses them."""
        touched = range(address, address + len(values))
        tags = [
            tag
            for tag in self.device.tags.values()
            if tag.table == table and tag.address < touched.stop and touched.start < tag.address + tag.count
        ]
        if not any(tag.write is not None for tag in tags):
            raise KeyError(address)
        for at in touched:
            if (table, at) not in self.cells:
                raise KeyError(at)
        for at, value in zip(touched, values):
            self.cells[(table, at)] = int(value)
        self.written |= {tag.name for tag in tags}

    def _identify(self) -> bytes:
        """Function 43/14, basic identification (Modbus application protocol V1.1b3, 6.21)."""
        objects = b"".join(bytes([k, len(text)]) + text.encode() for k, text in enumerate(IDENTITY))
        return bytes([0x2B, 0x0E, 1, 1, 0, 0, len(IDENTITY)]) + objects


def lifelike(tag: Tag, t: float) -> Plain:
    """A value that a tag may have after t seconds: swings within its range, counts up, walks through its states."""
    seed = zlib.crc32(tag.name.encode()) % 1000
    if tag.type == "string":
        return f"SIM-{seed:03d}"[: tag.length]
    if tag.boolean:
        return math.sin((t + seed) / 10.0) > -0.5
    if tag.states:
        names = sorted(tag.states)
        return names[int(t / 20.0) % len(names)]
    if tag.bits is not None:
        return int(t / 10.0) % (1 << (tag.bits[1] - tag.bits[0] + 1))
    if tag.counter:
        return (seed + int(t * COUNTS_PER_SECOND)) * float(abs(tag.scale))
    low, high = _span(tag)
    middle, half = (low + high) / 2, (high - low) / 2
    swing = 0.6 * math.sin(2 * math.pi * (t + seed) / WANDER) + 0.05 * math.sin(11.0 * t + seed)
    return middle + half * swing


def _span(tag: Tag) -> tuple[float, float]:
    if tag.loop_current:
        return 4.0, 20.0
    if tag.range is not None:
        return tag.range
    if tag.write is not None and tag.write.range is not None:
        return tag.write.range
    scale, offset = float(tag.scale), float(tag.offset)
    ends = sorted((DEFAULT_SPAN[0] * scale + offset, DEFAULT_SPAN[1] * scale + offset))
    return ends[0], ends[1]


class Line:
    """All simulated devices of one URL, by unit."""

    def __init__(self, config: Config, url: str, now: Callable[[], float]) -> None:
        self.units: dict[int, SimulatedDevice] = {}
        by_unit: dict[int, list[Device]] = {}
        for device in config.devices.values():
            if device.url.text == url:
                by_unit.setdefault(device.unit, []).append(device)
        for unit, devices in by_unit.items():
            loops = tuple(config.loops.values())
            self.units[unit] = SimulatedDevice(*_one_set_of_registers(devices, loops), now)

    def answer(self, unit: int, pdu: bytes) -> bytes | None:
        device = self.units.get(unit)
        return None if device is None else device.answer(pdu)


def _one_set_of_registers(
    devices: list[Device], loops: tuple[LoopConfig, ...]
) -> tuple[Device, tuple[LoopConfig, ...]]:
    """All that the names of one unit say about it, and the loops of its process variables."""
    own = devices[0].name

    def name_of(device: str, tag: str) -> str:
        return tag if device == own else f"{device}/{tag}"

    names = {device.name for device in devices}
    tags: dict[str, Tag] = {}
    for device in devices:
        for tag in device.tags.values():
            power = tag.scale_from and name_of(device.name, tag.scale_from)
            name = name_of(device.name, tag.name)
            tags[name] = dataclasses.replace(tag, name=name, scale_from=power)
    renamed = tuple(
        dataclasses.replace(
            loop,
            pv=(own, name_of(*loop.pv)),
            out=(own, name_of(*loop.out)) if loop.out[0] in names else loop.out,
        )
        for loop in loops
        if loop.pv[0] in names
    )
    return dataclasses.replace(devices[0], tags=tags), renamed

"""The demo plant: a process of its own that serves the vessel and the meter over Modbus TCP and keeps its own books.

    python -m agent.demo.plant [--port N]

Prints lines of JSON: its port, when the first poll came, and at its end (its standard input ends, or SIGTERM) what it
served: every value of the `served` counter that it sent, and the vessel's noise-free temperature.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import struct
import sys
import time
from collections import deque

from agent.demo.vessel import STEP, Vessel
from agent.modbus.server import ModbusServer

VESSEL, METER = 1, 2
TEMPERATURE, HEATER, WATCHDOG, STATUS, SERVED, PRESSURE, PULSES = 100, 102, 103, 104, 105, 107, 108
ENERGY, POWER, POWER_SF = 0, 4, 5
ENERGY_AT_START = 2**53 + 1
"""Wh: beyond what a double can hold, so that a lost digit would be seen."""
WATCHDOG_TIMEOUT = 3.0
"""Seconds without a new value in the watchdog register after which the heater goes off by itself."""
TRACE_SECONDS = 600
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3


class Plant:
    """Registers over the vessel. `answer` is the whole Modbus side: a request's PDU in, the reply's PDU out."""

    def __init__(self, vessel: Vessel) -> None:
        self.vessel = vessel
        self.heater_raw = 0
        self.watchdog = 0
        self.watchdog_changed: float | None = None
        self.served: list[int] = []
        self.trace: deque[tuple[float, float, float]] = deque(maxlen=round(TRACE_SECONDS / STEP))

    def holding(self) -> dict[int, int]:
        """The vessel's registers as they are now."""
        vessel = self.vessel
        status = (vessel.heater > 0) | vessel.pump << 1 | (3 if vessel.heater > 0 else 1) << 4
        hot, cold = struct.unpack(">HH", struct.pack(">f", vessel.thermometer()))
        served = len(self.served) + 1
        return {
            TEMPERATURE: hot,
            TEMPERATURE + 1: cold,
            HEATER: self.heater_raw,
            WATCHDOG: self.watchdog,
            STATUS: status,
            SERVED: served >> 16,
            SERVED + 1: served & 0xFFFF,
            PRESSURE: round(vessel.manometer() * 100),
            PULSES: int(vessel.pulses) & 0xFFFF,
        }

    def input(self) -> dict[int, int]:
        """The meter's registers as they are now."""
        energy = struct.unpack(">4H", struct.pack(">Q", ENERGY_AT_START + int(self.vessel.energy * 1000)))
        registers = {ENERGY + k: word for k, word in enumerate(energy)}
        registers[POWER] = round(self.vessel.power / 10)
        registers[POWER_SF] = 1
        return registers

    def answer(self, unit: int, pdu: bytes) -> bytes | None:
        """The reply to one request; None (silence) for a unit that is not there."""
        if unit not in (VESSEL, METER):
            return None
        function = pdu[0]
        try:
            if function in (3, 4) and len(pdu) == 5:
                return self._read(unit, function, *struct.unpack(">HH", pdu[1:]))
            if function == 1 and unit == VESSEL and len(pdu) == 5:
                address, count = struct.unpack(">HH", pdu[1:])
                if (address, count) != (0, 1):
                    return bytes([function | 0x80, ILLEGAL_ADDRESS])
                return bytes([1, 1, self.vessel.pump])
            if function in (5, 6) and unit == VESSEL and len(pdu) == 5:
                return self._write(pdu, *struct.unpack(">HH", pdu[1:]))
        except KeyError:
            return bytes([function | 0x80, ILLEGAL_ADDRESS])
        return bytes([function | 0x80, ILLEGAL_FUNCTION])

    def _read(self, unit: int, function: int, address: int, count: int) -> bytes:
        if (unit, function) not in ((VESSEL, 3), (METER, 4)):
            return bytes([function | 0x80, ILLEGAL_FUNCTION])
        if not 1 <= count <= 125:
            return bytes([function | 0x80, ILLEGAL_VALUE])
        registers = self.holding() if unit == VESSEL else self.input()
        first, last = min(registers), max(registers)
        wanted = range(address, address + count)
        if wanted[0] < first or wanted[-1] > last:
            return bytes([function | 0x80, ILLEGAL_ADDRESS])
        words = [registers.get(register, 0) for register in wanted]
        if unit == VESSEL and SERVED in wanted and SERVED + 1 in wanted:
            if not self.served:
                print(json.dumps({"first_poll": time.monotonic()}), flush=True)
            self.served.append(len(self.served) + 1)
        return bytes([function, 2 * count]) + struct.pack(f">{count}H", *words)

    def _write(self, pdu: bytes, address: int, value: int) -> bytes:
        if pdu[0] == 5 and address == 0:
            self.vessel.pump = value == 0xFF00
        elif pdu[0] == 6 and address == HEATER:
            if value > 1000:
                return bytes([6 | 0x80, ILLEGAL_VALUE])
            self.heater_raw = value
            self.vessel.heater = value / 10
        elif pdu[0] == 6 and address == WATCHDOG:
            self.watchdog = value
            self.watchdog_changed = time.monotonic()
        else:
            raise KeyError(address)
        return pdu

    def step(self, now: float) -> None:
        """One step of the physics, and of the heater's own protection."""
        if self.watchdog_changed is not None and now - self.watchdog_changed > WATCHDOG_TIMEOUT:
            self.heater_raw = 0
            self.vessel.heater = 0.0
        self.vessel.step()
        self.trace.append((now, self.vessel.temperature, self.vessel.heater))


async def _simulate(plant: Plant) -> None:
    start = time.monotonic()
    steps = 0
    while True:
        now = time.monotonic()
        while start + steps * STEP <= now:
            plant.step(start + steps * STEP)
            steps += 1
        await asyncio.sleep(STEP)


async def serve(port: int) -> None:
    """Serves until standard input ends or SIGTERM comes; prints the port first and the books last."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the demo decides when it ends
    await loop.connect_read_pipe(lambda: _EndsWith(done), sys.stdin)
    plant = Plant(Vessel(random.Random(7)))
    server = ModbusServer(plant.answer)
    port = await server.start("127.0.0.1", port)
    print(json.dumps({"port": port}), flush=True)
    physics = asyncio.create_task(_simulate(plant))
    await done.wait()
    physics.cancel()
    await server.stop()
    print(json.dumps({"served": plant.served, "trace": list(plant.trace)}), flush=True)


class _EndsWith(asyncio.Protocol):
    """Ends the process with the pipe from its parent, so that none is left when the parent is killed."""

    def __init__(self, done: asyncio.Event) -> None:
        self._done = done

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    wanted = parser.parse_args().port
    try:
        asyncio.run(serve(wanted))
    except OSError as error:
        sys.exit(f"port {wanted} cannot be used: {error.strerror or error}")

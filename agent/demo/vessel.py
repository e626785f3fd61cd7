"""The physics of the demo plant: a heated vessel, a pump and a meter. Pure: time comes in as steps."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

STEP = 0.01
"""Seconds of one step of the simulation."""
AMBIENT = 20.0
GAIN = 1.8
"""°C per % of the heater, at rest."""
TIME_CONSTANT = 1.2
DEAD_TIME = 0.3
NOISE = 0.25
"""Standard deviation of the thermometer, °C."""
DRIFT = 0.02
"""Standard deviation of what the surroundings change the temperature by in a step, °C."""
FULL_POWER = 3_000.0
"""W of the heater at 100 %."""
PUMP_POWER = 250.0


@dataclass
class Vessel:
    """First order with dead time: temperature follows ambient + GAIN * heater(t - DEAD_TIME) with TIME_CONSTANT.

    `temperature` is the true one, without the thermometer's noise. The pump adds pressure and turns the pulse counter.
    """

    random: random.Random
    temperature: float = AMBIENT
    heater: float = 0.0  # %
    pump: bool = True
    pressure: float = 1.0  # bar
    pulses: float = 65_000.0
    energy: float = 0.0  # Wh since the start
    _pipe: deque[float] = field(default_factory=lambda: deque([0.0] * round(DEAD_TIME / STEP)))

    def step(self) -> None:
        """Moves everything on by STEP seconds."""
        self._pipe.append(self.heater)
        heat = self._pipe.popleft()
        goal = AMBIENT + GAIN * heat
        self.temperature += (goal - self.temperature) * STEP / TIME_CONSTANT
        self.temperature += self.random.gauss(0.0, DRIFT) * STEP**0.5
        self.pressure += ((2.4 if self.pump else 1.0) - self.pressure) * STEP / 2.0
        self.pulses += 30.0 * STEP if self.pump else 0.0
        self.energy += self.power * STEP / 3600.0

    @property
    def power(self) -> float:
        """W drawn at present."""
        return self.heater / 100.0 * FULL_POWER + (PUMP_POWER if self.pump else 0.0)

    def thermometer(self) -> float:
        """What the thermometer shows now, °C."""
        return self.temperature + self.random.gauss(0.0, NOISE)

    def manometer(self) -> float:
        """What the manometer shows now, bar."""
        return self.pressure + self.random.gauss(0.0, 0.005)

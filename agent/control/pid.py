"""A PID controller: its parameters, its state, and taking over without a bump."""

from __future__ import annotations

import math

import numpy as np

from agent.config.types import LoopConfig
from agent.control import columns as c
from agent.control import kernels, reference
from agent.kernelcache import choose

SHORTEST_STEP, LONGEST_STEP = 0.5, 3.0
"""Of the loop's period: dt is that of the samples, within these."""


class Pid:
    """Output in the unit of the output tag, time in seconds. `config.action` reverse: a higher PV lowers the output."""

    def __init__(self, config: LoopConfig) -> None:
        controller = config.controller
        gain = controller.kp if config.action == "reverse" else -controller.kp
        rate = math.inf if config.rate is None else config.rate
        self._par = np.array(
            [
                gain,
                controller.ti,
                controller.td,
                controller.b,
                controller.c,
                controller.n,
                *config.limits,
                rate,
            ]
        )
        self._every = config.every
        self._state = np.zeros(c.STATE)
        self._step = choose(kernels.pid, reference.pid)

    @property
    def output(self) -> float:
        """What was put out last."""
        return float(self._state[c.LAST_OUTPUT])

    def take_over(self, output: float, setpoint: float, pv: float, feed_forward: float) -> None:
        """Sets the state so that the next step, with the same numbers, puts out `output`: no bump."""
        proportional = self._par[c.GAIN] * (self._par[c.B] * setpoint - pv)
        self._state[c.INTEGRAL] = (
            output - proportional - feed_forward
        )  # without integral action it stays as a bias
        self._state[c.DERIVATIVE] = 0.0
        self._state[c.LAST_WEIGHTED] = self._par[c.C] * setpoint - pv
        self._state[c.LAST_OUTPUT] = output

    def step(self, setpoint: float, pv: float, feed_forward: float, dt: float) -> float:
        """The next output. dt: seconds between this PV sample and the one before, clamped to the loop's period."""
        held = min(max(dt, SHORTEST_STEP * self._every), LONGEST_STEP * self._every)
        return float(self._step(self._state, self._par, setpoint, pv, feed_forward, held))

    def pushed_to(self, output: float) -> None:
        """The device shows another output than was written (its own limit, a hand): go on from that one."""
        self._state[c.INTEGRAL] += output - self._state[c.LAST_OUTPUT]
        self._state[c.LAST_OUTPUT] = output

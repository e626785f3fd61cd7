"""Model predictive control of one loop: the state of a design's step, and taking over without a bump."""

from __future__ import annotations

import numpy as np

from agent.control import columns as c
from agent.control import kernels, reference
from agent.control.design import Design
from agent.control.pid import LIMITED
from agent.kernelcache import choose


class Mpc:
    """The predictive step alone: output in the unit of the output tag, time in seconds."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.state = np.zeros(c.MEMORY + int(design.arrays[0][c.DEAD]) + 4)
        self._step = choose(kernels.predictive, reference.predictive)

    @property
    def output(self) -> float:
        return float(self.state[c.SHOWN])

    @property
    def limited(self) -> bool:
        par = self.design.arrays[0]
        span = par[c.HIGHEST] - par[c.LOWEST]
        return bool(abs(self.state[c.WISHED] - self.state[c.SHOWN]) > LIMITED * span)

    @property
    def passed(self) -> int:
        """Intervals of the model in the last step; 0: the last plan was kept."""
        return int(self.state[c.PASSED])

    @property
    def surprise(self) -> float:
        return float(self.state[c.SURPRISE])

    @property
    def alone(self) -> float:
        """The PV as the controller's own moves would have it, from 0 at the take-over, if the model were all."""
        return float(self.state[c.ALONE])

    def take_over(self, output: float, setpoint: float, pv: float, feed_forward: float) -> None:
        """The process counts as at rest, and the distance to the setpoint is forgiven at first: no bump."""
        par, state = self.design.arrays[0], self.state
        state[:] = 0.0
        state[c.SHOWN] = state[c.WISHED] = output
        state[c.BASE] = output - feed_forward
        state[c.FILTERED] = state[c.BEFORE] = pv
        state[c.LOAD] = pv * (1.0 - par[c.A1] - par[c.A2])
        state[c.GAP] = pv - setpoint

    def step(self, setpoint: float, pv: float, feed_forward: float, dt: float, elapsed: float) -> float:
        return float(self._step(self.state, *self.design.arrays, setpoint, pv, feed_forward, dt, elapsed))

    def pushed_to(self, output: float) -> None:
        """The device has another output than was put out last: the model goes on from that one."""
        self.state[c.MEMORY] += output - self.state[c.SHOWN]
        self.state[c.GOAL] = self.state[c.MEMORY]
        self.state[c.SHOWN] = output

    stayed_at = pushed_to

    def absorb(self, feed_forward: float) -> None:
        self.state[c.BASE] -= feed_forward

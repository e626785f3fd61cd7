"""A PID controller: its parameters, its state, and taking over without a bump."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agent.config.types import LoopConfig
from agent.control import columns as c
from agent.control import kernels, reference
from agent.kernelcache import choose

SHORTEST_STEP, LONGEST_STEP = 0.5, 3.0
"""Of the loop's period: dt is that of the samples, within these."""
LIMITED = 1e-9
"""Of the output's range: a larger difference between what is wanted and what is put out counts as limited."""


class Pid:
    """Output in the unit of the output tag, time in seconds. `config.action` reverse: a higher PV lowers the output.

    ti 0 means no integral action: the integral then is a bias, fixed when the loop takes over. td 0 means no derivative
    action. `period`: seconds between two steps as they should be. `last`: setpoint, PV and feed-forward of the last
    step.
    """

    reason: str | None = None
    """Why another controller than the one that was asked for runs: never here."""

    def __init__(self, config: LoopConfig, period: float) -> None:
        self._par = _parameters(config)
        self._period = period
        self._state = np.zeros(c.STATE)
        self.last = (0.0, 0.0, 0.0)
        self._step = choose(kernels.pid, reference.pid)

    @property
    def output(self) -> float:
        """What was put out last."""
        return float(self._state[c.LAST_OUTPUT])

    @property
    def limited(self) -> bool:
        """True when limits or rate kept the last output from what the controller wanted."""
        span = self._par[c.HIGH] - self._par[c.LOW]
        return bool(abs(self._state[c.WANTED] - self._state[c.LAST_OUTPUT]) > LIMITED * span)

    def take_over(self, output: float, setpoint: float, pv: float, feed_forward: float) -> None:
        """Sets the state so that the next step, with the same numbers, puts out `output`: no bump."""
        par = self._par
        self.last = (setpoint, pv, feed_forward)
        self._state[c.INTEGRAL] = output - par[c.GAIN] * (par[c.B] * setpoint - pv) - feed_forward
        self._state[c.DERIVATIVE] = 0.0
        self._state[c.LAST_WEIGHTED] = par[c.C] * setpoint - pv
        self._state[c.LAST_OUTPUT] = output
        self._state[c.WANTED] = output

    def step(self, setpoint: float, pv: float, feed_forward: float, dt: float, elapsed: float) -> float:
        """The next output.

        dt: seconds between this PV sample and the one used before; elapsed: seconds since the output was last decided
        on, which is what a rate limit counts. Both are clamped to the loop's period.
        """
        longest = LONGEST_STEP * self._period
        held = min(max(dt, SHORTEST_STEP * self._period), longest)
        moving = min(max(elapsed, 0.0), longest)
        output = float(self._step(self._state, self._par, setpoint, pv, feed_forward, held, moving))
        if math.isfinite(setpoint) and math.isfinite(pv) and math.isfinite(feed_forward):
            self.last = (setpoint, pv, feed_forward)
        return output

    def pushed_to(self, output: float) -> None:
        """The device shows another output than was written (its own limit, a hand): go on from that one."""
        self._state[c.INTEGRAL] += output - self._state[c.LAST_OUTPUT]
        self._state[c.LAST_OUTPUT] = output

    def stayed_at(self, output: float) -> None:
        """What was put out last did not arrive: the rate counts from `output`, and the integral does not wind up."""
        ti, td = float(self._par[c.TI]), float(self._par[c.TD])
        if ti > 0.0:
            tracking = math.sqrt(ti * td) if td > 0.0 else ti
            missing = output - self._state[c.LAST_OUTPUT]
            self._state[c.INTEGRAL] += min(1.0, self._period / tracking) * missing
        self._state[c.LAST_OUTPUT] = output

    def absorb(self, feed_forward: float) -> None:
        """A feed-forward that was not known before is added from the next step on; the integral makes room for it."""
        self._state[c.INTEGRAL] -= feed_forward

    def fall_back(self) -> str | None:
        """None: as `Predictive.fall_back`, and there is nothing to fall back to."""
        return None

    def trust_again(self) -> None:
        """As `Predictive.trust_again`."""

    def set_parameters(self, config: LoopConfig, period: float) -> None:
        """Other gains, weights, limits or action: the next output, with the same numbers, is the last one."""
        self._par = _parameters(config)
        self._period = period
        self.take_over(self.output, *self.last)


def _parameters(config: LoopConfig) -> NDArray[np.float64]:
    controller = config.controller
    gain = controller.kp if config.action == "reverse" else -controller.kp
    rate = math.inf if config.rate is None else config.rate
    shape = (gain, controller.ti, controller.td, controller.b, controller.c, controller.n)
    return np.array([*shape, *config.limits, rate])

"""The predictive controller: as `Pid` to the loop, with a PID beneath for when its model is not to be trusted."""

from __future__ import annotations

import dataclasses
import math

from agent.config.types import LoopConfig
from agent.control.grant import grant
from agent.control.monitor import Monitor
from agent.control.mpc import Mpc
from agent.control.pid import LONGEST_STEP, Pid

DETUNED = 1.0 / 3.0
"""Of the PID's gain, where the process was found to be another than its model."""

Numbers = tuple[float, float, float]
"""Setpoint, PV, feed-forward."""


class Predictive:
    """Output in the unit of the output tag, time in seconds. `period`: seconds between two steps as they should be.

    The PID runs where the model is not granted, and with a third of its gain after `fall_back`, until `trust_again`.
    The model is never adapted.
    """

    def __init__(self, config: LoopConfig, period: float) -> None:
        self._config = config
        self._period = period
        self.last: Numbers = (0.0, 0.0, 0.0)
        self._set_up()

    def _set_up(self) -> None:
        granted = grant(self._config, self._period)
        self._gains = granted.pid
        self.reason = None if granted.why is None else f"not predictive: {granted.why}"
        self._pid = self._make_pid(1.0)
        self._mpc = None if granted.design is None else Mpc(granted.design)
        window = math.inf if granted.design is None else granted.design.window
        self._monitor = Monitor(window, granted.noise)
        self._trusted = self._mpc is not None
        self._since = 0.0
        self._wrong: str | None = None

    def _make_pid(self, share: float) -> Pid:
        gains = dataclasses.replace(self._gains, kp=share * self._gains.kp)
        return Pid(dataclasses.replace(self._config, controller=gains), self._period)

    @property
    def _running(self) -> Mpc | Pid:
        return self._mpc if self._mpc is not None and self._trusted else self._pid

    @property
    def output(self) -> float:
        """What was put out last."""
        return self._running.output

    @property
    def limited(self) -> bool:
        """True when limits or rate kept the last output from what the controller wanted."""
        return self._running.limited

    def take_over(self, output: float, setpoint: float, pv: float, feed_forward: float) -> None:
        """The next step, with the same numbers, puts out `output`: no bump."""
        self.last = (setpoint, pv, feed_forward)
        self._running.take_over(output, setpoint, pv, feed_forward)
        self._monitor.clear(setpoint, pv)
        self._since, self._wrong = 0.0, None

    def step(self, setpoint: float, pv: float, feed_forward: float, dt: float, elapsed: float) -> float:
        """The next output; as `Pid.step`, but a sample that is late moves the model on by all the time that passed."""
        mpc = self._running
        if not isinstance(mpc, Mpc):
            return self._pid_step(setpoint, pv, feed_forward, dt, elapsed)
        numbers = (setpoint, pv, feed_forward)
        if not all(map(math.isfinite, numbers)):
            return mpc.output
        moving = min(max(elapsed, 0.0), LONGEST_STEP * self._period)
        output = mpc.step(setpoint, pv, feed_forward, dt, moving)
        self.last = numbers
        self._since += max(dt, 0.0)
        if mpc.passed > 0:
            self._wrong = self._monitor.see(self._since, setpoint, pv, mpc.alone)
            self._since = 0.0
        return output

    def _pid_step(self, setpoint: float, pv: float, feed_forward: float, dt: float, elapsed: float) -> float:
        output = self._pid.step(setpoint, pv, feed_forward, dt, elapsed)
        if math.isfinite(setpoint) and math.isfinite(pv) and math.isfinite(feed_forward):
            self.last = (setpoint, pv, feed_forward)
        return output

    def pushed_to(self, output: float) -> None:
        """The device shows another output than was written (its own limit, a hand): go on from that one."""
        self._running.pushed_to(output)

    def stayed_at(self, output: float) -> None:
        """What was put out last did not arrive: the model sees the output that the device has."""
        self._running.stayed_at(output)

    def absorb(self, feed_forward: float) -> None:
        """A feed-forward that was not known before is added from the next step on, without a bump."""
        self._running.absorb(feed_forward)

    def fall_back(self) -> str | None:
        """Asked after each step whose output was put to use: once, what is wrong; the next step is the PID's."""
        if self._wrong is None or not self._trusted:
            return None
        output = self.output
        self._trusted = False
        self.reason = f"not predictive: {self._wrong}; a PID with a third of its gain runs"
        self._pid = self._make_pid(DETUNED)
        self._pid.take_over(output, *self.last)
        return self.reason

    def trust_again(self) -> None:
        """A person wants the model again. Before the next `take_over`."""
        if self._mpc is not None and not self._trusted:
            self._set_up()

    def set_parameters(self, config: LoopConfig, period: float) -> None:
        """Another model, limits or gains: the next output, with the same numbers, is the last one."""
        output = self.output
        self._config, self._period = config, period
        self._set_up()
        self.take_over(output, *self.last)


def controller_for(config: LoopConfig, period: float) -> Pid | Predictive:
    """The controller that the configuration asks for."""
    return (Predictive if config.controller.type == "predictive" else Pid)(config, period)


def retuned(controller: Pid | Predictive, config: LoopConfig, period: float) -> Pid | Predictive:
    """The same one with other parameters, or one of the other type in its place, without a bump."""
    if isinstance(controller, Predictive) == (config.controller.type == "predictive"):
        controller.set_parameters(config, period)
        return controller
    other = controller_for(config, period)
    other.take_over(controller.output, *controller.last)
    return other

"""The loop around a simulated first-order plant with dead time: it settles on its setpoint, from every start."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Any

import pytest

from agent.config.types import ControllerConfig, Fail
from agent.control.loop import Loop
from agent.control.signals import Inputs, Sample
from tests.control.bench import config


class Plant:
    """K/(T s + 1) e^(-L s), a load on its input, noise on its reading."""

    def __init__(self, *, k: float, t: float, delay: float, every: float, register: float) -> None:
        self.k, self.share = k, 1 - math.exp(-every / t)
        self.pipe = deque([register] * max(1, round(delay / every)))
        self.pv = k * register
        self.register, self.load = register, 0.0

    def step(self) -> float:
        self.pipe.append(self.register)
        self.pv += (self.k * (self.pipe.popleft() + self.load) - self.pv) * self.share
        return self.pv


def run(
    plant: Plant, loop: Loop, seconds: float, now: float, *, noise: float = 0.0
) -> tuple[float, list[float]]:
    every, seen, dice = loop.config.every, [], random.Random(1)
    for _ in range(round(seconds / every)):
        now += every
        seen.append(plant.step())
        pv = Sample(seen[-1] + dice.gauss(0.0, noise), True, now)
        step = loop.on_sample(now, Inputs(pv, Sample(plant.register, True, now)))
        assert step.events == ()
        if step.write is not None:
            plant.register = step.write
            loop.on_write_begin(step.write)
            loop.on_write_done(now, value=step.write, ok=True, readback=step.write, error=None, safety=False)
    return now, seen


SIMC = ControllerConfig(kp=40.0 / (1.2 * (5.5 + 5.5)), ti=40.0, b=0.7)


def made(**changes: Any) -> tuple[Plant, Loop]:
    every = changes.pop("every", 1.0)
    gain = changes.pop("gain", 1.2)
    plant = Plant(k=gain, t=40.0, delay=5.0, every=every, register=40.0)
    settings = {"controller": SIMC, "setpoint": plant.pv, "every": every, **changes}
    return plant, Loop(config(**settings), pv_period=every)


@pytest.mark.parametrize("every", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rate", [None, 2.0])
def test_settles_without_steady_state_error(every: float, rate: float | None) -> None:
    plant, loop = made(every=every, rate=rate)
    now, start = run(plant, loop, 20.0, 1000.0)
    assert start[-1] == pytest.approx(48.0)
    assert loop.set_setpoint(70.0) is None
    now, seen = run(plant, loop, 400.0, now)
    assert seen[-1] == pytest.approx(70.0, abs=0.01)
    assert max(seen) < 70.0 + 0.15 * 22.0
    plant.load = -15.0
    now, seen = run(plant, loop, 600.0, now)
    assert min(seen) < 69.0
    assert seen[-1] == pytest.approx(70.0, abs=0.01)


def test_direct_action_cools() -> None:
    plant, loop = made(action="direct", gain=-1.2, controller=SIMC)
    now, _ = run(plant, loop, 20.0, 1000.0)
    assert loop.set_setpoint(-70.0) is None
    _, seen = run(plant, loop, 500.0, now)
    assert seen[-1] == pytest.approx(-70.0, abs=0.01)


def test_with_derivative_noise_and_a_deadband() -> None:
    plant, loop = made(
        controller=ControllerConfig(kp=3.0, ti=25.0, td=3.0, b=0.7),
        deadband=0.1,
        setpoint=70.0,
        fail=Fail(after=1),
    )
    _, seen = run(plant, loop, 800.0, 1000.0, noise=0.1)
    tail = seen[-200:]
    assert sum(tail) / len(tail) == pytest.approx(70.0, abs=0.1)
    assert max(abs(one - 70.0) for one in tail) < 1.0


def test_comes_back_at_once_from_a_setpoint_out_of_reach() -> None:
    plant, loop = made()
    now, _ = run(plant, loop, 10.0, 1000.0)
    loop.set_setpoint(150.0)
    now, _ = run(plant, loop, 600.0, now)
    assert plant.register == 100.0 and loop.view().limited
    loop.set_setpoint(60.0)
    now, _ = run(plant, loop, 3.0, now)
    assert plant.register < 99.0
    _, seen = run(plant, loop, 500.0, now)
    assert seen[-1] == pytest.approx(60.0, abs=0.01)
    assert min(seen) > 55.0

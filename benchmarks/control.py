"""How well loops are controlled on models that were identified, beside simple-pid with SIMC gains.

Each plant is moved by a random binary output with noise on the PV; `identify` finds a model from that record alone, and
SIMC, the rule of maximum sensitivity and the predictive controller all start from that model. Then, with noise: a step
of the setpoint, a load at the plant's input, and the same with gain and delay of the plant 30 % other than before.
simple-pid comes from `pip install .[bench]`; without it the product's own PI with the same gains stands in its place.

    python benchmarks/control.py [--seeds 3] [--each]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.gains import Gains, amigo_pid, simc
from agent.control.identify import bounds_of, identify, whitened
from agent.control.pid import Pid
from agent.control.predictive import Predictive
from agent.control.record import Record, to_grid
from agent.control.robust import most_sensitive

Floats = NDArray[np.float64]
PARTS = 10
"""Of a period, in which a plant is stepped."""
NOISE, LIMITS = 0.005, (-2.0, 2.0)
STEPS, STEP_AT = 400, 10
ERRORS = ((1.3, 1.3), (1.3, 1.0), (0.7, 1.0), (1.0, 0.7))
TWICE = (2.0, 1.0)


@dataclass(frozen=True)
class Plant:
    """num/den in s with a delay, times in periods; `hold`: periods for which the identifying output stays."""

    num: tuple[float, ...]
    den: tuple[float, ...]
    delay: float
    hold: int


def product(*factors: tuple[float, ...]) -> tuple[float, ...]:
    found = np.array([1.0])
    for factor in factors:
        found = np.convolve(found, factor)
    return tuple(found)


GROUPS: dict[str, dict[str, Plant]] = {
    "first order with dead time": {
        "L/T 0.1": Plant((1.0,), (10.0, 1.0), 1.0, 4),
        "L/T 0.5": Plant((1.0,), (10.0, 1.0), 5.0, 5),
        "L/T 1": Plant((1.0,), (10.0, 1.0), 10.0, 10),
        "L/T 3": Plant((1.0,), (5.0, 1.0), 15.0, 15),
    },
    "high order, zero in the right half plane": {
        "1/(2s+1)^4": Plant((1.0,), product(*[(2.0, 1.0)] * 4), 0.0, 5),
        "1/(2s+1)^8": Plant((1.0,), product(*[(2.0, 1.0)] * 8), 0.0, 13),
        "(1-3s)/((10s+1)(5s+1))": Plant((-3.0, 1.0), product((10.0, 1.0), (5.0, 1.0)), 1.0, 6),
    },
    "oscillatory, damping 0.3": {"1/(25s2+3s+1)": Plant((1.0,), (25.0, 3.0, 1.0), 2.0, 5)},
    "integrating": {"0.05/s": Plant((0.05,), (1.0, 0.0), 2.0, 4)},
}


class Simulated:
    """A plant from rest at 0, stepped a period at a time; gain and delay may be others than the plant's own."""

    def __init__(self, plant: Plant, gain: float = 1.0, delay: float = 1.0) -> None:
        den = np.array(plant.den) / plant.den[0]
        order = len(den) - 1
        a = np.zeros((order + 1, order + 1))  # with the held input as one more state
        a[0, :order], a[0, order] = -den[1:], 1.0
        a[1:order, : order - 1] = np.eye(order - 1)
        self._move = exponential(a / PARTS)
        num = gain * np.array(plant.num) / plant.den[0]
        self._c = np.concatenate([np.zeros(order - len(num)), num, [0.0]])
        self._state = np.zeros(order + 1)
        self._line = [0.0] * round(plant.delay * delay * PARTS)

    def step(self, out: float) -> float:
        for _ in range(PARTS):
            self._line.append(out)
            self._state[-1] = self._line.pop(0)
            self._state = self._move @ self._state
        return float(self._c @ self._state)


def exponential(a: Floats) -> Floats:
    """exp(a) by scaling, a Taylor series and squaring."""
    halvings = max(0, math.ceil(math.log2(max(np.abs(a).sum(axis=1).max(), 1e-9)))) + 4
    a = a / 2**halvings
    found = term = np.eye(len(a))
    for k in range(1, 15):
        term = term @ a / k
        found = found + term
    for _ in range(halvings):
        found = found @ found
    return found


def record(plant: Plant, seed: int) -> Record:
    """400 samples of a random binary output of +-0.15."""
    generator, simulated = np.random.default_rng(seed), Simulated(plant)
    out, pv, moved = np.zeros(400), np.zeros(400), 0.0
    level = 0.0
    for k in range(400):
        if k >= 25 and k % plant.hold == 0:
            level = generator.choice([-0.15, 0.15])
        pv[k] = moved + NOISE * generator.normal()
        out[k] = level
        moved = simulated.step(level)
    return Record(np.arange(400.0), pv, out)


Stepper = Callable[[float, float], float]
"""(setpoint, pv) -> output."""


@dataclass(frozen=True)
class Result:
    setpoint: float
    load: float
    overshoot: float
    travel: float


def run(plant: Plant, stepper: Stepper, seed: int, error: tuple[float, float] = (1.0, 1.0)) -> Result:
    """IAE after the step and after the load, overshoot in percent, the output's total variation."""
    generator, simulated = np.random.default_rng(1000 + seed), Simulated(plant, *error)
    pv, out, actual = np.zeros(STEPS), np.zeros(STEPS), 0.0
    for k in range(STEPS):
        pv[k] = actual
        out[k] = stepper(float(k >= STEP_AT), actual + NOISE * generator.normal())
        actual = simulated.step(out[k] - 0.5 * (k >= STEPS // 2))
    half = STEPS // 2
    errors = np.abs((np.arange(STEPS) >= STEP_AT) - pv)
    overshoot = 100.0 * max(float(pv[STEP_AT:half].max()) - 1.0, 0.0)
    return Result(
        float(errors[:half].sum()), float(errors[half:].sum()), overshoot, float(np.abs(np.diff(out)).sum())
    )


def loop_of(model: ModelConfig, gains: Gains | None, kind: Any = "pid") -> LoopConfig:
    controller = ControllerConfig(type=kind, kp=0.0)
    if gains is not None:
        controller = ControllerConfig(kp=abs(gains.kp), ti=gains.ti, td=gains.td, b=gains.b)
    action: Any = "reverse" if model.k > 0.0 else "direct"
    return LoopConfig(
        "l", ("d", "pv"), ("d", "out"), 0.0, LIMITS, controller=controller, model=model, action=action
    )


def ours(make: Callable[[], Pid | Predictive]) -> Stepper:
    controller = make()
    controller.take_over(0.0, 0.0, 0.0, 0.0)

    def step(setpoint: float, pv: float) -> float:
        out = controller.step(setpoint, pv, 0.0, 1.0, 1.0)
        controller.fall_back()
        return out

    return step


def simple_pid(gains: Gains) -> Stepper:
    from simple_pid import PID  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pid = PID(gains.kp, gains.kp / gains.ti, 0.0, setpoint=0.0, sample_time=None, output_limits=LIMITS)

    def step(setpoint: float, pv: float) -> float:
        pid.setpoint = setpoint
        out = pid(pv, dt=1.0)
        return 0.0 if out is None else float(out)

    return step


def two_lags(recorded: Record) -> ModelConfig:
    """The best two lags and delay, which SIMC and AMIGO need where the process oscillates."""
    grid = to_grid(recorded, None)
    _, fit = whitened(grid, bounds_of(grid), "settling")
    return ModelConfig(k=fit.k, t1=fit.t1, t2=fit.t2, delay=fit.delay)


def controllers(model: ModelConfig, lags: ModelConfig) -> dict[str, Callable[[], Stepper]]:
    """Name -> a fresh one, the first is what the others are compared with. lags: the model for SIMC and AMIGO."""
    rule, amigo, sensitive = simc(lags, 1.0), amigo_pid(lags, 1.0), most_sensitive(model, 1.0)
    found: dict[str, Callable[[], Stepper]] = {}
    if find_spec("simple_pid") is not None:
        found["simple-pid, SIMC PI"] = lambda: simple_pid(rule)
    else:
        plain = loop_of(lags, dataclasses.replace(rule, b=1.0))
        found["own PI, SIMC, b 1"] = lambda: ours(lambda: Pid(plain, 1.0))
    found["2-DOF PID, AMIGO"] = lambda: ours(lambda: Pid(loop_of(lags, amigo), 1.0))
    if sensitive is not None:
        found["2-DOF PID, Ms 1.5"] = lambda: ours(lambda: Pid(loop_of(model, sensitive), 1.0))
    predictive = loop_of(model, None, "predictive")
    found["predictive"] = lambda: ours(lambda: Predictive(predictive, 1.0))
    return found


Row = tuple[float, float, float, float, float, float]
"""IAE after the step and after the load, overshoot, travel, worst / nominal, the same at twice the gain."""


def measure(plant: Plant, seed: int, trusted: bool) -> tuple[ModelConfig, str, dict[str, Row]]:
    """The model, what the predictive loop says of itself, and a row for each controller."""
    recorded = record(plant, seed)
    model = identify(recorded).model
    lags = model if model.damping == 1.0 else two_lags(recorded)
    if trusted:
        model = dataclasses.replace(model, grade="good")
    rows = {}
    for name, make in controllers(model, lags).items():
        right = run(plant, make(), seed)
        whole = right.setpoint + right.load
        others = [run(plant, make(), seed, error) for error in (*ERRORS, TWICE)]
        ratios = [(one.setpoint + one.load) / whole for one in others]
        rows[name] = (
            right.setpoint, right.load, right.overshoot, right.travel, max(ratios[:-1]), ratios[-1],
        )  # fmt: skip
    reason = Predictive(loop_of(model, None, "predictive"), 1.0).reason
    return model, reason or "", rows


def show_group(name: str, rows: dict[str, list[Row]]) -> None:
    """Geometric means of the ratios to the first controller; means and maxima of the rest."""
    base = np.array(next(iter(rows.values())))
    print(f"\n{name}\n{'':24}{'IAE set':>9}{'load':>7}{'travel':>8}{'overshoot (max) %':>20}", end="")
    print(f"{'worst/nominal (max)':>21}{'twice the gain':>16}")
    for controller, values in rows.items():
        one = np.array(values)
        ratio = np.exp(np.log(one[:, [0, 1, 3]] / base[: len(one), [0, 1, 3]]).mean(axis=0))
        print(f"{controller:24}{ratio[0]:9.2f}{ratio[1]:7.2f}{ratio[2]:8.2f}", end="")
        print(f"{one[:, 2].mean():13.1f} ({one[:, 2].max():.0f})", end="")
        print(f"{one[:, 4].mean():16.2f} ({one[:, 4].max():.2f}){one[:, 5].max():16.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", action="store_true", help="each plant by itself too")
    parser.add_argument("--trusted", action="store_true", help="as if each model were graded good")
    args = parser.parse_args()
    if find_spec("simple_pid") is None:
        print("simple-pid is not installed (pip install .[bench]): the product's own PI stands in its place")
    started = time.perf_counter()
    for group, plants in GROUPS.items():
        rows: dict[str, list[Row]] = {}
        for name, plant in plants.items():
            for seed in range(args.seeds):
                model, reason, found = measure(plant, seed, args.trusted)
                for controller, row in found.items():
                    rows.setdefault(controller, []).append(row)
                if args.each:
                    print(f"{name} seed {seed}: k {model.k:.3g} t1 {model.t1:.3g} t2 {model.t2:.3g}", end=" ")
                    print(f"damping {model.damping:.3g} delay {model.delay:.3g}", end=" ")
                    print(f"noise {model.noise:.2g} {model.grade}; {reason}")
                    for controller, row in found.items():
                        print(f"    {controller:24}", *(f"{value:8.2f}" for value in row))
        show_group(group, rows)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

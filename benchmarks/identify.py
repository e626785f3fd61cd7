"""How well a loop's process is found from a record, and whether records that tell nothing are refused.

Nine simulated plants with noise on the PV and a slow load that nobody measures are recorded in five ways: the output
moved at random, by one step and by a relay (as `tune --prbs`, `--step` and `--relay` do it), by steps of the setpoint
in a closed loop, and not at all in a quiet closed loop. Only a fit that is graded good or fair is told and scored.

    python benchmarks/identify.py [--seeds 5] [--noise 0.005] [--each]
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from control import GROUPS, Plant, Simulated

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.excite import Kind, Signal, plan
from agent.control.identify import Identified, identify
from agent.control.pid import Pid
from agent.control.process import Process
from agent.control.record import Record

MOVE, SAMPLES = 0.15, 600
LOAD, LOAD_PERIODS = 0.02, 37.0
SETPOINT, SETPOINT_EVERY = 0.3, 100
REDUCED = {
    "L/T 0.1": (1.0, 10.0, 1.0),
    "L/T 0.5": (1.0, 10.0, 5.0),
    "L/T 1": (1.0, 10.0, 10.0),
    "L/T 3": (1.0, 5.0, 15.0),
    "1/(2s+1)^4": (1.0, 3.0, 5.0),
    "1/(2s+1)^8": (1.0, 5.0, 11.0),
    "(1-3s)/((10s+1)(5s+1))": (1.0, 12.5, 6.5),
    "1/(25s2+3s+1)": (1.0, 1.0, 7.0),
    "0.05/s": (0.05, math.inf, 2.0),
}
"""Gain, lag and delay that the closed loops' PI is made from, as somebody might have guessed them."""
KINDS = {"random": "prbs", "step": "step", "relay": "relay"}
LONG = 150
"""Periods over which step responses are compared."""


@dataclass(frozen=True)
class Score:
    """gain: relative error. response: largest difference of the step responses, of the plant's largest value."""

    gain: float
    delay: float
    response: float


def record(name: str, plant: Plant, kind: str, *, noise: float, seed: int) -> Record:
    """One record of SAMPLES periods around a PV and an output of 0."""
    rng = np.random.default_rng(seed)
    simulated = Simulated(plant)
    loop = closed_loop(name)
    pid = Pid(loop, 1.0)
    pid.take_over(0.0, 0.0, 0.0, 0.0)
    signal = None
    if kind in KINDS:
        test: Kind = KINDS[kind]  # type: ignore[assignment]
        signal = Signal(plan(test, loop, base=0.0, move=MOVE, seconds=SAMPLES, period=1.0), True)
    pv, rows = 0.0, []
    for k in range(SAMPLES):
        seen = pv + noise * rng.normal()
        if signal is not None:
            out = signal.at(float(k), seen)
        else:
            setpoint = SETPOINT * ((k // SETPOINT_EVERY) % 2) if kind == "setpoint" else 0.0
            out = pid.step(setpoint, seen, 0.0, 1.0, 1.0)
        rows.append((seen, out))
        pv = simulated.step(out + LOAD * math.sin(k / LOAD_PERIODS))
    columns = np.array(rows).T
    return Record(np.arange(float(SAMPLES)), columns[0].copy(), columns[1].copy())


def closed_loop(name: str) -> LoopConfig:
    """A PI with half the gain of the SIMC rule."""
    gain, lag, delay = REDUCED[name]
    closed = max(delay, 2.0) + delay
    kp, ti = (
        (1 / (gain * closed), 4 * closed)
        if math.isinf(lag)
        else (lag / (gain * closed), min(lag, 4 * closed))
    )
    controller = ControllerConfig(kp=kp / 2, ti=ti, td=0.0, b=1.0)
    return LoopConfig("loop", ("d", "pv"), ("d", "out"), 0.0, (-2.0, 2.0), controller=controller)


def scored(plant: Plant, found: ModelConfig) -> Score:
    """The model against the plant itself."""
    true, model = Simulated(plant), Process(found, 1.0, pv=0.0, out=0.0)
    pairs = np.array([(true.step(1.0), model.step(1.0)) for _ in range(LONG)])
    integrates = plant.den[-1] == 0.0
    gain = plant.num[-1] / (plant.den[-2] if integrates else plant.den[-1])
    differ = found.integrating != integrates
    response = float(np.abs(pairs[:, 0] - pairs[:, 1]).max() / np.abs(pairs[:, 0]).max())
    simple = len(plant.den) == 2 and len(plant.num) == 1
    return Score(
        math.nan if differ else abs(found.k / gain - 1),
        abs(found.delay - plant.delay) if simple and not differ else math.nan,
        response,
    )


def runs(kind: str, *, noise: float, seeds: int) -> Iterator[tuple[str, Plant, Identified]]:
    for plants in GROUPS.values():
        for name, plant in plants.items():
            for seed in range(seeds):
                yield name, plant, identify(record(name, plant, kind, noise=noise, seed=seed))


def number(values: list[float], worst: bool = False) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "-"
    return f"{max(known) if worst else float(np.median(known)):.3f}"


def told(kind: str, *, noise: float, seeds: int, each: bool) -> None:
    """One line of the table."""
    grades: Counter[str] = Counter()
    scores: list[Score] = []
    took = time.perf_counter()
    for name, plant, found in runs(kind, noise=noise, seeds=seeds):
        grades[found.grade] += 1
        if found.grade == "poor":
            continue
        score = scored(plant, found.model)
        scores.append(score)
        if each:
            print(
                f"  {name:24} {found.grade:5} gain {score.gain:.3f} delay {score.delay:.2f} "
                f"response {score.response:.3f}"
            )
    count = sum(grades.values())
    took = (time.perf_counter() - took) / count
    shares = " ".join(f"{grades[grade]:4}" for grade in ("good", "fair", "poor"))
    columns = ([one.gain for one in scores], [one.delay for one in scores], [one.response for one in scores])
    cells = " ".join(f"{number(values):>8} {number(values, True):>8}" for values in columns)
    print(f"{kind:10} {shares}   {cells}   {took:6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.005)
    parser.add_argument("--each", action="store_true", help="every record by itself")
    args = parser.parse_args()
    print(
        f"noise {args.noise}; median and largest of: relative error of the gain; error of the delay in periods"
    )
    print("(plants of one lag); largest difference of the step responses, of the plant's largest value")
    names = " ".join(f"{name:>8} {'max':>8}" for name in ("gain", "delay", "response"))
    print(f"{'moved by':10} good fair poor   {names}   s/fit")
    for kind in (*KINDS, "setpoint", "quiet"):
        told(kind, noise=args.noise, seeds=4 * args.seeds if kind == "quiet" else args.seeds, each=args.each)


if __name__ == "__main__":
    main()

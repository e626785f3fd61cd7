"""Recorded loops for the tests: known processes moved in the ways that records come from."""

from __future__ import annotations

import math

import numpy as np

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.pid import Pid
from agent.control.process import Process
from agent.control.record import Record

PERIOD = 1.0
PLANTS = {
    "L/T 0.1": ModelConfig(k=1, t1=10, delay=1),
    "L/T 0.5": ModelConfig(k=1, t1=10, delay=5),
    "L/T 1": ModelConfig(k=1, t1=10, delay=10),
    "L/T 3": ModelConfig(k=1, t1=5, delay=15),
    "two lags": ModelConfig(k=-2, t1=8, t2=4, delay=2.4),
    "integrating": ModelConfig(k=0.1, t1=0, delay=3, integrating=True),
}


def recorded(
    model: ModelConfig,
    kind: str,
    *,
    noise: float = 0.005,
    drift: float = 0.02,
    samples: int = 600,
    seed: int = 0,
    base: tuple[float, float] = (20.0, 50.0),
) -> Record:
    """A record of `kind`: random (open loop, +-0.15), bump, steps (of the setpoint), quiet, deadband or coarse (quiet).

    drift: size of a slow load at the process's input. base: (pv, out) around which all of it happens.
    """
    rng = np.random.default_rng(seed)
    pv0, out0 = base
    process = Process(model, PERIOD, pv=pv0, out=out0)
    controller = _controller(model, out0)
    controller.take_over(out0, pv0, pv0, 0.0)
    hold = max(4, int(model.delay))
    pv, out, rows = pv0, out0, []
    for i in range(samples):
        seen, setpoint = pv + noise * rng.normal(), pv0
        if kind == "random":
            if i >= 25 and i % hold == 0:
                out = out0 + rng.choice([-0.15, 0.15])
        elif kind == "bump":
            out = out0 + (0.3 if 50 <= i < samples // 2 else 0.0)
        else:
            if kind == "steps" and i >= 25:
                setpoint = pv0 + 0.3 * ((i // 100) % 2)
            wanted = controller.step(setpoint, seen, 0.0, PERIOD, PERIOD)
            if kind == "coarse":
                wanted = round(wanted / 0.005) * 0.005
            if kind != "deadband" or abs(wanted - out) > 0.004:
                out = wanted
        rows.append((seen, out, setpoint))
        pv = process.step(out, drift * math.sin(i / 37))
    seen, outs, setpoints = np.array(rows).T
    return Record(np.arange(samples) * PERIOD, seen, outs, setpoints)


def _controller(model: ModelConfig, out: float) -> Pid:
    """SIMC at half its gain."""
    late = max(model.delay, 2 * PERIOD) + model.delay
    lag = model.t1 + model.t2 / 2
    gain = 1 / (abs(model.k) * late) if model.integrating else lag / (abs(model.k) * late)
    config = LoopConfig(
        "loop",
        ("a", "pv"),
        ("a", "out"),
        0.0,
        (out - 2, out + 2),
        controller=ControllerConfig(
            kp=gain / 2, ti=4 * late if model.integrating else min(lag, 4 * late), td=0.0, b=1.0
        ),
        action="reverse" if model.k > 0 else "direct",
    )
    return Pid(config, PERIOD)

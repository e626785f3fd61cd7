"""The numbers that kernels, codec and a short replay give on one machine, and how those of two machines differ.

    python compare.py data FOLDER               # series and configuration, made once and given to both
    python compare.py numbers FOLDER OUT.json   # on each machine
    python compare.py compare ONE.json OTHER.json

What is decoded must be the same bit for bit. Models and controllers add products, which one processor rounds once and
another twice (fused multiply-add); over ROWS steps that may make TOLERANCE of a value, or of 1 where it is smaller.
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROWS = 400
TOLERANCE = 1e-9
EXACT = ("codec",)
TYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bcd16", "bcd32")
ORDERS = ("ABCD", "CDAB", "BADC", "DCBA")
CONFIG = """
gateway: line7
devices:
  plc: {url: "tcp://127.0.0.1:502", every: 1s, tags: {a: {holding: 0}, b: {holding: 1}}}
health: {plc: {warmup: 100}}
"""

Numbers = dict[str, list[str]]


def write_data(folder: Path) -> None:
    """A damped oscillator with noise, and one that leaves its ways after three quarters."""
    rng = random.Random(1)
    rows, x = [], [0.0, 0.0]
    for i in range(ROWS):
        x = [x[1], 1.8 * x[1] - 0.9 * x[0] + rng.uniform(-1, 1)]
        rows.append((i, round(x[1], 3), round(50 + rng.uniform(-1, 1) + (i > 3 * ROWS // 4) * i / 50, 3)))
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("time", "plc/a", "plc/b"), *rows])
    (folder / "config.yaml").write_text(CONFIG)


def exact(values: Iterable[float]) -> list[str]:
    return [float(value).hex() for value in values]


def codec() -> list[str]:
    """Random bytes and edges as every type in every order, scaled and not."""
    from decimal import Decimal

    from agent.config.types import Device, Tag, Url
    from agent.modbus.codec import Decoder
    from agent.modbus.plan import request_for

    rng = random.Random(2)
    wires = [rng.randbytes(8) for _ in range(150)]
    wires += [
        bytes.fromhex(text) for text in ("00" * 8, "ff" * 8, "80" + "00" * 7, "7fc00000" * 2, "00000001" * 2)
    ]
    found = []
    for kind in TYPES:
        for order in ORDERS:
            for scale in ("1", "0.1", "0.003"):
                tag = Tag("t", "holding", 0, type=kind, order=order, scale=Decimal(scale))
                device = Device("d", Url("tcp://127.0.0.1:502", "tcp", "127.0.0.1", 502), tags={"t": tag})
                decoder = Decoder(request_for(device, ("t",)), device)
                for wire in wires:
                    decoded = decoder.decode(wire[: 2 * tag.count], {})
                    found.append(f"{decoded.plain[0]!r} {int(decoded.quality[0])}")
    return found


def forecasts(folder: Path) -> list[str]:
    """Forecasts and intervals of the series, straight from the models."""
    import numpy as np

    from agent.predict.predictor import Predictor

    model = Predictor([("plc", "a"), ("plc", "b")], np.ones(2))
    slots = np.arange(2)
    found: list[str] = []
    for i, row in enumerate(series(folder)):
        model.update(slots, np.array(row), np.full(2, float(i)))
        found += exact(np.concatenate([model.y.ravel(), model.lo.ravel(), model.hi.ravel()]))
    return found


def series(folder: Path) -> list[list[float]]:
    with (folder / "data.csv").open() as file:
        return [[float(row[1]), float(row[2])] for row in list(csv.reader(file))[1:]]


def replay(folder: Path) -> list[str]:
    """Every number that `edgetwin replay` writes."""
    from agent.cli.main import run

    out = folder / "replayed.csv"
    status = run(["replay", str(folder / "config.yaml"), str(folder / "data.csv"), "--out", str(out)])
    assert status == 0, status
    with out.open() as file:
        return [cell for row in list(csv.reader(file))[1:] for cell in row[1:]]


def loop(kind: str) -> list[str]:
    """Output and PV of a closed loop with noise, a step of the setpoint and a load."""
    from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
    from agent.control.pid import Pid
    from agent.control.predictive import Predictive
    from agent.control.process import Process

    model = ModelConfig(k=1.2, t1=20.0, t2=3.0, delay=2.5, grade="good")
    controller = ControllerConfig(type=kind, kp=2.0, ti=20.0, td=1.0)  # type: ignore[arg-type]
    config = LoopConfig(
        "l",
        ("d", "pv"),
        ("d", "out"),
        0.0,
        (0.0, 100.0),
        controller=controller,
        model=model,
        action="reverse",
    )
    made = Pid(config, 1.0) if kind == "pid" else Predictive(config, 1.0)
    assert made.reason is None, made.reason
    process, rng, found = Process(model, 1.0, pv=40.0, out=30.0), random.Random(3), []
    made.take_over(30.0, 40.0, 40.0, 0.0)
    for i in range(ROWS):
        out = made.step(60.0 if i > 20 else 40.0, process.pv + rng.uniform(-0.05, 0.05), 0.0, 1.0, 1.0)
        found += exact((out, process.step(out, 5.0 if i > ROWS // 2 else 0.0)))
    return found


def numbers(folder: Path) -> Numbers:
    parts: dict[str, Callable[[], list[str]]] = {
        "codec": codec,
        "forecasts": lambda: forecasts(folder),
        "replay": lambda: replay(folder),
        "pid": lambda: loop("pid"),
        "predictive": lambda: loop("predictive"),
    }
    return {name: part() for name, part in parts.items()}


def as_number(text: str) -> float:
    try:
        return float.fromhex(text) if "0x" in text else float(text)
    except ValueError:
        return math.nan


def apart(one: Sequence[str], other: Sequence[str]) -> float:
    """The largest difference, relative to numbers above 1; inf where what is no number differs."""
    if len(one) != len(other):
        return math.inf
    pairs = [(as_number(a), as_number(b), a == b) for a, b in zip(one, other)]
    if any(not same and (math.isnan(a) or math.isnan(b)) for a, b, same in pairs):
        return math.inf
    return max((abs(a - b) / max(1.0, abs(a), abs(b)) for a, b, same in pairs if not same), default=0.0)


def compare(one: Numbers, other: Numbers) -> list[str]:
    """Prints how each part differs; returns the parts that differ too much."""
    wrong = sorted(one.keys() ^ other.keys())
    for name in sorted(one.keys() & other.keys()):
        same = sum(a == b for a, b in zip(one[name], other[name]))
        far = apart(one[name], other[name])
        bound = 0.0 if name in EXACT else TOLERANCE
        wrong += [name] if far > bound else []
        print(f"{name}: {same} of {len(one[name])} the same bit for bit, apart {far:.1e}, at most {bound:g}")
    return wrong


def main(words: Sequence[str]) -> int:
    match words:
        case ["data", folder]:
            write_data(Path(folder))
        case ["numbers", folder, out]:
            from agent.kernelcache import backend, problems

            found = numbers(Path(folder))
            assert backend() == "numba" and not problems(), f"no compiled kernels: {problems()}"
            Path(out).write_text(json.dumps(found))
        case ["compare", one, other]:
            wrong = compare(json.loads(Path(one).read_text()), json.loads(Path(other).read_text()))
            print(f"differ too much: {', '.join(wrong)}" if wrong else "equal within the bounds")
            return 1 if wrong else 0
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How good and how fast the forecasts and the health score are, beside the last value and, where installed, two peers.

Real series come from a data folder (--data, or ../shared/data beside the repository) and are skipped where absent.
Peers, from `pip install .[bench]`: statsmodels AutoReg(8), refitted every 100 samples on the last 1000; river SNARIMAX
on levels and on differences. Strictly online: each sample is forecast before it is seen; scored from the 101st,
intervals from the 401st.

    python benchmarks/predict.py [--data FOLDER] [--quick]
    python benchmarks/predict.py --long 10000000      # nothing but this: does a model stay sound for months
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent import kernelcache
from agent.predict.predictor import Predictor

Floats = NDArray[np.float64]
HORIZON = (1, 5, 20)
BURN, BURN_INTERVAL = 100, 400
NAB = ("machine", "ambient")


def column(path: Path, index: int) -> Floats:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([float(row[index]) if row[index] else np.nan for row in rows])


def real_series(data: Path) -> dict[str, Floats]:
    """The series that the folder holds: NAB 2, Tennessee Eastman 52, water flow 1."""
    found: dict[str, Floats] = {}
    for name in NAB:
        path = data / f"nab_{name}_temperature_system_failure.csv"
        if path.exists():
            found[f"nab {name}"] = column(path, 1)
    if (data / "river_water_flow.csv").exists():
        found["water flow"] = column(data / "river_water_flow.csv", 1)
    plant = data / "tep_d00_te.csv"
    if plant.exists():
        names = plant.read_text().splitlines()[0].split(",")[1:]
        found |= {f"tep {name}": column(plant, i + 1) for i, name in enumerate(names)}
    return found


def synthetic_series(n: int = 6000) -> dict[str, Floats]:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=n)
    ar2 = np.zeros(n)
    for i in range(2, n):
        ar2[i] = 1.8 * ar2[i - 1] - 0.9 * ar2[i - 2] + noise[i]
    spikes, shift = 20 + 0.1 * ar2, 20 + 0.1 * ar2
    spikes[::211] += 80.0
    shift[n // 2 :] += 50.0
    return {
        "random walk": np.cumsum(rng.normal(size=n)),
        "random walk, heavy tails": np.cumsum(rng.standard_t(3, size=n)),
        "AR(2)": ar2,
        "AR(2) at 1e9": ar2 + 1e9,
        "white noise": rng.normal(size=n),
        "staircase": np.round(5 * np.sin(np.arange(n) / 200) + 0.3 * rng.normal(size=n)),
        "spikes": spikes,
        "level shift": shift,
    }


def ours(y: Floats) -> tuple[Floats, Floats, Floats, float]:
    """Forecasts and bounds, each (n, horizons), and the seconds that one update takes."""
    model = Predictor([("plant", "tag")], np.ones(1), horizon=HORIZON)
    slot, made = np.zeros(1, dtype=np.int64), np.empty((3, len(y), len(HORIZON)))
    started = time.process_time()
    for i in range(len(y)):
        model.update(slot, y[i : i + 1], np.array([float(i)]))
        made[:, i] = model.ahead(0)
    return made[0], made[1], made[2], (time.process_time() - started) / len(y)


def autoreg(y: Floats) -> tuple[Floats, float]:
    from statsmodels.tsa.ar_model import AutoReg

    made = np.full((len(y), len(HORIZON)), np.nan)
    started = time.process_time()
    params = np.zeros(9)
    for t in range(60, len(y)):
        if t % 100 == 60:
            params = AutoReg(y[max(0, t - 999) : t + 1], lags=8).fit().params
        path = list(y[t - 7 : t + 1][::-1])
        for h in range(1, HORIZON[-1] + 1):
            path.insert(0, params[0] + float(np.dot(params[1:], path[:8])))
            if h in HORIZON:
                made[t, HORIZON.index(h)] = path[0]
    return made, (time.process_time() - started) / len(y)


def snarimax(y: Floats, d: int) -> tuple[Floats, float]:
    from river import linear_model, optim, preprocessing
    from river import time_series as rts

    scaled = preprocessing.StandardScaler() | linear_model.LinearRegression(optimizer=optim.SGD(0.01))
    model = rts.SNARIMAX(p=8, d=d, q=0, regressor=scaled)
    made = np.full((len(y), len(HORIZON)), np.nan)
    started = time.process_time()
    for t, value in enumerate(y):
        model.learn_one(float(value))
        if t >= BURN:
            path = model.forecast(horizon=HORIZON[-1])
            made[t] = [path[h - 1] for h in HORIZON]
    return made, (time.process_time() - started) / len(y)


def relative(y: Floats, made: Floats, j: int) -> float:
    h = HORIZON[j]
    error, last = np.abs(y[BURN + h :] - made[BURN:-h, j]), np.abs(y[BURN + h :] - y[BURN:-h])
    both = np.isfinite(error) & np.isfinite(last)
    return float(error[both].mean() / last[both].mean())


def coverage(y: Floats, lower: Floats, upper: Floats, j: int) -> float:
    h = HORIZON[j]
    now, low, high = y[BURN_INTERVAL + h :], lower[BURN_INTERVAL:-h, j], upper[BURN_INTERVAL:-h, j]
    known = np.isfinite(now) & np.isfinite(low)
    return float(((now >= low) & (now <= high))[known].mean())


def fine(y: Floats) -> bool:
    """True where the median change is above two quanta and there are at least 900 rows."""
    change = np.abs(np.diff(y[np.isfinite(y)]))
    steps = np.unique(np.round(change[change > 0], 12))
    return len(y) >= 900 and float(np.median(change)) > 2 * float(steps[0])


def accuracy(series: dict[str, Floats], title: str) -> None:
    print(f"\n{title}: {len(series)} series; MAE over that of the last value, coverage of the 90 % interval")
    scores, covers, seconds = [], [], []
    for name, y in series.items():
        made, lower, upper, each = ours(y)
        scores.append([relative(y, made, j) for j in range(3)])
        covers.append([coverage(y, lower, upper, j) for j in range(3)])
        seconds.append(each)
        if not name.startswith("tep"):
            print(
                f"  {name:26}",
                *(f"{value:7.3f}" for value in scores[-1]),
                " |",
                *(f"{v:6.3f}" for v in covers[-1]),
            )
    table, cover = np.array(scores), np.array(covers)
    names = list(series)
    print("  geometric mean            ", *(f"{value:7.4f}" for value in np.exp(np.log(table).mean(0))))
    print(
        "  worst                     ",
        *(f"{table[i, j]:7.4f} ({names[i]})" for j, i in enumerate(table.argmax(0))),
    )
    is_fine = np.array([fine(y) for y in series.values()])
    for label, chosen in (("fine", is_fine), ("coarse or short", ~is_fine)):
        if chosen.any():
            low, high = cover[chosen].min(0), cover[chosen].max(0)
            spans = ", ".join(f"{a:.3f}-{b:.3f}" for a, b in zip(low, high, strict=True))
            print(f"  coverage, {label} ({chosen.sum()}): {spans}")
    print(f"  {1e6 * float(np.mean(seconds)):.1f} us per update of a single tag, call included")


def peers(series: dict[str, Floats]) -> None:
    some = {name: y[:1500] for name, y in list(series.items())[::6] if np.isfinite(y[:1500]).all()}
    rivals: dict[str, tuple[str, Callable[[Floats], tuple[Floats, float]]]] = {
        "statsmodels AutoReg(8)": ("statsmodels", autoreg),
        "river SNARIMAX(8,0,0)": ("river", lambda y: snarimax(y, 0)),
        "river SNARIMAX(8,1,0)": ("river", lambda y: snarimax(y, 1)),
    }
    print(
        f"\nPeers on {len(some)} series of at most 1500 rows: MAE over that of the last value, the worst at 1 step"
    )
    many = speed(1000)
    own = float("nan")
    for name, (module, function) in {"ours": ("", lambda y: (ours(y)[0], ours(y)[3])), **rivals}.items():
        if module and find_spec(module) is None:
            print(f"  {name:26} not installed, skipped (pip install .[bench])")
            continue
        scores, seconds = [], []
        with np.errstate(all="ignore"):
            for y in some.values():
                made, each = function(y)
                scores.append([relative(y, made, j) for j in range(3)])
                seconds.append(each)
        table, each = np.array(scores), float(np.mean(seconds))
        mean = np.exp(np.log(table).mean(0))
        own = each if not module else own
        ratio = (
            f", {each / own:.0f} times ours for one tag, {each / many:.0f} times ours for one of 1000"
            if module
            else ""
        )
        print(
            f"  {name:26}",
            *(f"{value:9.3g}" for value in mean),
            f" |{table[:, 0].max():9.3g}",
            f" | {1e6 * each:7.1f} us per update{ratio}",
        )


def long(updates: int) -> None:
    """Four models over so many samples each: what rounding and forgetting make of their state."""
    kinds = ("AR(1) noise", "constant", "random walk", "at 1e9, half of it missing")
    model = Predictor([("plant", kind) for kind in kinds], np.ones(4), horizon=HORIZON)
    rng = np.random.default_rng(4)
    slots, size, least, row = np.arange(4), model.state.side.shape[1], np.inf, np.zeros(4)
    lower = np.tril_indices(size)
    block = 100_000
    started = time.process_time()
    for begin in range(0, updates, block):
        noise = rng.normal(size=(block, 4))
        gone = rng.random(block) < 0.5
        for i in range(min(block, updates - begin)):
            row = np.array([0.9 * row[0] + noise[i, 0], 7.0, row[2] + noise[i, 2], 1e9 + noise[i, 3]])
            if gone[i]:
                row[3] = np.nan
            model.update(slots, row, np.full(4, float(begin + i)))
        matrix = np.zeros((4, size, size))
        matrix[:, lower[0], lower[1]] = matrix[:, lower[1], lower[0]] = model.state.packed
        least = min(least, float(np.linalg.eigvalsh(matrix).min()))
    finite = all(
        np.isfinite(part).all() for part in (model.state.packed, model.state.side, model.state.thetas)
    )
    print(
        f"\n{updates} updates of {len(kinds)} models, {1e6 * (time.process_time() - started) / updates / 4:.2f} us each"
    )
    print(f"  all state finite: {finite}; least eigenvalue of an information matrix: {least:.4g}")
    for kind, (y, low, high) in zip(kinds, zip(model.y, model.lo, model.hi, strict=True), strict=True):
        book = model.book(kinds.index(kind))[1]
        width = high[0] - low[0]
        print(f"  {kind:28} forecast {y[0]:12.6g}, width {width:8.3g}, coverage {book['coverage']:.4f}")


def speed(tags: int) -> float:
    """Seconds per tag and update, the best of some scans."""
    model = Predictor([("plant", f"tag{i}") for i in range(tags)], np.ones(tags), horizon=HORIZON)
    values = np.cumsum(np.random.default_rng(2).normal(size=(80, tags)), axis=0)
    slots, best = np.arange(tags), np.inf
    for i, row in enumerate(values):
        started = time.perf_counter()
        for part in Predictor.parts(tags):
            model.update(slots[part], row[part], np.full(part.stop - part.start, float(i)))
        if i > 40:
            best = min(best, time.perf_counter() - started)
    print(f"  {tags:6} tags: {1e3 * best:8.3f} ms per scan, {1e6 * best / tags:.2f} us per tag, all horizons")
    return best / tags


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=here.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="no peers")
    parser.add_argument(
        "--long", type=int, metavar="N", help="N updates each of four models, and nothing else"
    )
    args = parser.parse_args()
    print(f"kernels: {kernelcache.backend()}")
    if args.long:
        long(args.long)
        return
    real = real_series(args.data)
    if real:
        accuracy(real, "Real")
    else:
        print(f"no real series in {args.data}")
    accuracy(synthetic_series(), "Synthetic")
    print("\nSpeed")
    for tags in (1, 10, 100, 1000, 10_000):
        speed(tags)
    if not args.quick:
        peers(real or synthetic_series())


if __name__ == "__main__":
    main()

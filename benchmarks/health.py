"""The health score on labelled faults: events inside the windows of Numenta's benchmark, false rows outside.

    python benchmarks/health.py --data FOLDER

Each series runs through predictor and score as in the daemon, at its own period (5 min, 1 h, 3 min), with the default
hold of 10 s. Once with the default limit of 0.5; once with the limit under which 5 rows in 1000 outside the windows
lie: what a person who knows those rows would set as `alarm`. Needs nab_*.csv, nab_windows.json and tep_d00_te.csv;
what is not there is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from predict import NAB, column

from agent.config.types import Config, Device, HealthConfig, Tag, Url
from agent.predict.health import Health
from agent.predict.predictor import Predictor

Floats = NDArray[np.float64]
WINDOW_KEY = "realKnownCause/{}_temperature_system_failure.csv"
PERIOD = {"machine": 300.0, "ambient": 3600.0}
FALSE_ROWS = 0.005


def scored(
    values: Floats, names: list[str], period: float, *, alarm: float = 0.5, warmup: int = 400
) -> tuple[Floats, list[int]]:
    """Device score at each row, and the rows at which an event was raised."""
    tags = {name: Tag(name, "holding", 0, type="float64", every=period) for name in names}
    device = Device("plant", Url("tcp://h", "tcp"), tags=tags)
    health = {"plant": HealthConfig(tags=tuple(names), warmup=warmup, alarm=alarm)}
    keys = [("plant", name) for name in names]
    model = Predictor(keys, np.full(len(keys), period), horizon=(1, 5, 20))
    scorer = Health(Config("", None, None, devices={"plant": device}, health=health), keys, model)
    slots, scores, raised = np.arange(len(keys)), np.full(len(values), np.nan), []
    for i, row in enumerate(values):
        model.update(slots, row, np.full(len(keys), i * period))
        events = scorer.update(slots, row, i * period)
        raised += [i for event in events if event.name == "health_low" and event.state == "raised"]
        score = scorer.views()["plant"].score
        scores[i] = np.nan if score is None else score
    return scores, raised


def windows(data: Path, name: str) -> tuple[Floats, NDArray[np.bool_]]:
    """A series of Numenta's and, for each labelled window, which rows lie in it."""
    path = data / f"nab_{name}_temperature_system_failure.csv"
    stamps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    spans = json.loads((data / "nab_windows.json").read_text())[WINDOW_KEY.format(name)]
    inside = [[begin[:19] <= stamp <= end[:19] for stamp in stamps] for begin, end in spans]
    return column(path, 1), np.array(inside)


def labelled(data: Path, name: str) -> None:
    values, inside = windows(data, name)
    limit = 0.5
    for label in ("default limit", "chosen limit"):
        scores, raised = scored(values[:, None], ["value"], PERIOD[name], alarm=limit)
        known = np.isfinite(scores)
        outside = known & ~inside.any(0)
        hits = sum(any(window[i] for i in raised) for window in inside)
        false = sum(not inside[:, i].any() for i in raised)
        rate = 1000 * float(np.mean(scores[outside] < limit))
        print(
            f"  {name:8} {label} {limit:.3g}: {hits} of {len(inside)} windows raise an event; outside them "
            f"{rate:.1f} rows in 1000 under the limit, {false} events"
        )
        limit = float(np.sort(scores[outside])[int(FALSE_ROWS * outside.sum())])


def normal(data: Path) -> None:
    path = data / "tep_d00_te.csv"
    names = path.read_text().splitlines()[0].split(",")[1:]
    values = np.column_stack([column(path, i + 1) for i in range(len(names))])
    scores, raised = scored(values, names, 180.0)
    rows = int(np.isfinite(scores).sum())
    rate = 1000 * len(raised) / rows
    print(
        f"  Tennessee Eastman, normal run, {len(names)} tags: {len(raised)} false events in {rows} rows, "
        f"{rate:.1f} in 1000"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    data = parser.parse_args().data
    print("Health, commissioned on the first 400 rows")
    for name in NAB:
        if (data / f"nab_{name}_temperature_system_failure.csv").exists():
            labelled(data, name)
    if (data / "tep_d00_te.csv").exists():
        normal(data)


if __name__ == "__main__":
    main()

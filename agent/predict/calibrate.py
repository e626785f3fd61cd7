"""From an alert to a probability: the health score's logistic fitted to labelled rows, and how good it then is.

p(fault) = 1 / (1 + exp(-(a z + b))) by Platt (1999) with its smoothed targets, found by Newton's method with a line
search as in Lin, Lin and Weng (2007), "A note on Platt's probabilistic outputs". Rows of one fault resemble each
other, so the figures come from blocks that were left out whole: a fault lies in one block only. Pure.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.predict.replay import BadRow, Floats, Replay, Sample, seconds

Flags = NDArray[np.bool_]

BINS = 10
BLOCKS = 10
NEWTON_STEPS = 100
RIDGE = 1e-12
"""Added to the Hessian's diagonal, so that labels which z parts without error do not make it singular."""
DECREASE = 1e-4
"""Share of the promised decrease that a step must bring (Armijo)."""
CLOSE = 1e-5
FAULTY = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of one device (or, under None, of all of them): single moments, or windows of fault."""

    at: dict[float, bool] = field(default_factory=dict)
    windows: list[tuple[float, float]] = field(default_factory=list)

    def of(self, t: float) -> bool | None:
        """Whether the device was faulty at t; None where that is not known."""
        if self.at:
            return self.at.get(t)
        return any(start <= t <= end for start, end in self.windows)


@dataclass(frozen=True, slots=True)
class Fit:
    """a and b, and what they are worth on rows that they were not fitted to; None where one fault leaves no such row.

    brier: mean square of p - label; brier_base: of the best constant; ece: expected calibration error over `bins`,
    each (mean p, share of faults, rows).
    """

    a: float
    b: float
    rows: int
    faults: int
    runs: int
    blocks: int = 0
    brier: float | None = None
    brier_base: float | None = None
    ece: float | None = None
    bins: tuple[tuple[float, float, int], ...] = ()

    def body(self) -> dict[str, Any]:
        """For JSON."""
        bins = [{"p": p, "share": share, "rows": rows} for p, share, rows in self.bins]
        return {
            "a": self.a,
            "b": self.b,
            "rows": self.rows,
            "faults": self.faults,
            "runs": self.runs,
            "blocks": self.blocks,
            "brier": self.brier,
            "brier_base": self.brier_base,
            "ece": self.ece,
            "bins": bins,
        }


class Unfit(ValueError):
    """Labels that give no logistic; the text says why in plain words."""


def read(lines: Iterable[str]) -> dict[str | None, Labels]:
    """The labels of a CSV file, by device. Raises BadRow.

    A header, then either rows of time and 0 or 1 (rows without a label are not used), or, where the header begins
    with start,end, windows of fault (all other rows are good). A third column `device` says whose they are.
    """
    rows = csv.reader(lines)
    header = [name.strip().lower() for name in next(rows, [])]
    if len(header) not in (2, 3) or header[2:] not in ([], ["device"]):
        raise BadRow(
            "line 1: a header of time,label or of start,end is wanted, and device after it if need be"
        )
    windows = header[:2] == ["start", "end"]
    labels: dict[str | None, Labels] = {}
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not cells:
            continue
        try:
            if len(cells) != len(header):
                raise BadRow(f"{len(cells)} cells where the header has {len(header)}")
            device = cells[2] if len(cells) == 3 else None
            one = labels.setdefault(device, Labels())
            if windows:
                start, end = seconds(cells[0]), seconds(cells[1])
                if end < start:
                    raise BadRow("the window ends before it starts")
                one.windows.append((start, end))
            elif cells[1].lower() in FAULTY:
                one.at[seconds(cells[0])] = FAULTY[cells[1].lower()]
            else:
                raise BadRow(f"'{cells[1]}' is no label; 0 or 1 is wanted")
        except BadRow as error:
            raise BadRow(f"line {rows.line_num}: {error}") from None
    if not labels:
        raise BadRow("line 1: no label comes after the header")
    return labels


class Labelled:
    """Collects z and label of each device's rows; `add` is the replay's `take`. Some 9 bytes per row and device."""

    def __init__(self, labels: dict[str | None, Labels]) -> None:
        self._labels = labels
        self._z: dict[str, array[float]] = {}
        self._faulty: dict[str, array[int]] = {}

    def add(self, sample: Sample, one: Replay, foretold: tuple[Floats, Floats, Floats]) -> None:
        """Takes one row, as `Replay.run` hands it out."""
        for device, z in one.health.z().items():
            known = self._labels.get(device) or self._labels.get(None)
            label = known.of(sample.written) if known and math.isfinite(z) else None
            if label is not None:
                self._z.setdefault(device, array("d")).append(z)
                self._faulty.setdefault(device, array("b")).append(label)

    def fits(self) -> tuple[dict[str, Fit], dict[str, str]]:
        """The fit of each device that has labels, and why there is none for the others."""
        found: dict[str, Fit] = {}
        why: dict[str, str] = {}
        for device in dict.fromkeys([*self._z, *(name for name in self._labels if name)]):
            try:
                z, faulty = self._z.get(device, array("d")), self._faulty.get(device, array("b"))
                found[device] = calibrate(np.array(z), np.array(faulty, dtype=bool))
            except Unfit as error:
                why[device] = str(error)
        if not found and not why:
            why["labels"] = (
                "no row of the history has both a label and a score (none comes before the warm-up ends)"
            )
        return found, why


def calibrate(z: Floats, faulty: Flags) -> Fit:
    """The logistic of labelled rows in the order of time, with figures of rows left out. Raises Unfit."""
    if not faulty.any() or faulty.all():
        raise Unfit(
            f"{len(z)} rows have a label and a score, and "
            + ("all of them are faults" if faulty.any() else "none of them is a fault")
            + "; both kinds are wanted"
        )
    a, b = platt(z, faulty)
    if a <= 0.0:
        raise Unfit("the score is higher in the faults than elsewhere: the labels do not fit this history")
    block = blocks(faulty)
    count = int(block.max()) + 1
    fit = Fit(a, b, len(z), int(faulty.sum()), runs(faulty))
    if count < 2 or any(faulty[block != left_out].all() for left_out in range(count)):
        return fit
    p = np.empty(len(z))
    for left_out in range(count):
        rest = block != left_out
        p[~rest] = logistic(*platt(z[rest], faulty[rest]), z[~rest])
    share = float(faulty.mean())
    bins = reliability(p, faulty)
    return Fit(
        a,
        b,
        fit.rows,
        fit.faults,
        fit.runs,
        blocks=count,
        brier=float(np.mean((p - faulty) ** 2)),
        brier_base=share * (1.0 - share),
        ece=sum(rows * abs(mean - part) for mean, part, rows in bins) / len(z),
        bins=bins,
    )


def logistic(a: float, b: float, z: Floats) -> Floats:
    """1 / (1 + exp(-(a z + b))), without overflow."""
    x = a * z + b
    small = np.exp(-np.abs(x))
    return np.where(x >= 0.0, 1.0, small) / (1.0 + small)


def platt(z: Floats, faulty: Flags) -> tuple[float, float]:
    """(a, b) of least cross entropy against Platt's targets, (N+ + 1)/(N+ + 2) and 1/(N- + 2)."""
    faults = int(faulty.sum())
    good = len(z) - faults
    target = np.where(faulty, (faults + 1.0) / (faults + 2.0), 1.0 / (good + 2.0))
    a, b = 0.0, math.log((faults + 1.0) / (good + 1.0))
    loss = _loss(a, b, z, target)
    for _ in range(NEWTON_STEPS):
        p = logistic(a, b, z)
        slope, weight = p - target, p * (1.0 - p)
        down = np.array([np.dot(slope, z), np.sum(slope)])
        if np.max(np.abs(down)) < CLOSE:
            break
        cross = float(np.dot(weight, z))
        curve = np.array([[np.dot(weight, z * z), cross], [cross, np.sum(weight)]]) + RIDGE * np.eye(2)
        step = -np.linalg.solve(curve, down)
        length = 1.0
        while length > 1e-10:
            tried = a + length * float(step[0]), b + length * float(step[1])
            new = _loss(*tried, z, target)
            if new < loss + DECREASE * length * float(np.dot(down, step)):
                break
            length *= 0.5
        else:
            break  # the last digits allow no better
        (a, b), loss = tried, new
    return a, b


def _loss(a: float, b: float, z: Floats, target: Floats) -> float:
    x = a * z + b
    return float(np.sum(np.maximum(x, 0.0) - target * x + np.log1p(np.exp(-np.abs(x)))))


def runs(faulty: Flags) -> int:
    """Faults: runs of rows that are labelled so."""
    return int(np.count_nonzero(np.diff(faulty.astype(np.int8), prepend=0) == 1))


def blocks(faulty: Flags) -> NDArray[np.int64]:
    """The block of each row, from 0: cut half way between two faults, each with about as many of them."""
    change = np.diff(faulty.astype(np.int8), prepend=0, append=0)
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    count = min(BLOCKS, len(starts))
    block = np.zeros(len(faulty), dtype=np.int64)
    for number in range(1, count):
        first = number * len(starts) // count
        block[(ends[first - 1] + starts[first]) // 2 :] = number
    return block


def reliability(p: Floats, faulty: Flags) -> tuple[tuple[float, float, int], ...]:
    """(mean p, share of faults, rows) of each of BINS equal ranges of p that has rows."""
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    found = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            found.append((float(p[inside].mean()), float(faulty[inside].mean()), int(inside.sum())))
    return tuple(found)


def lines(fits: dict[str, Fit]) -> Sequence[str]:
    """The fits as YAML to paste into the configuration, their figures as comments within."""
    said = ["health:"]
    for device, fit in fits.items():
        said += [f"  {device}:", f"    calibrate: {{a: {fit.a:.4g}, b: {fit.b:.4g}}}"]
        said.append(f"    # {fit.rows} labelled rows, {fit.faults} of them in {fit.runs} faults")
        if fit.brier is None:
            said.append(
                "    # one fault alone leaves nothing to judge these by: how good they are is not known"
            )
            continue
        said.append(
            f"    # on rows left out ({fit.blocks} blocks): Brier score {fit.brier:.3f}, of the share of faults alone "
            f"{fit.brier_base:.3f}; expected calibration error {fit.ece:.3f}"
        )
        if fit.brier_base is not None and fit.brier >= fit.brier_base:
            said.append("    # no better than that share alone: not to be used")
        said += [
            f"    # score about {1.0 - p:.2f}: {share:.2f} of {rows} rows are faults, {p:.2f} foretold"
            for p, share, rows in fit.bins
        ]
    return said

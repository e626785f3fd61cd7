"""Forecasts of many tags at once: y(t) = sum a_i x(t - i) + b, refreshed at each sample, at several horizons.

Pure: values and times are handed in, nothing is read or written. Equations and settings: `agent.predict.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, Tag
from agent.kernelcache import choose
from agent.predict import columns as c
from agent.predict import kernels, reference, saved
from agent.predict.saved import StateDamaged as StateDamaged
from agent.predict.state import fresh
from agent.twin.records import Forecasts, Key

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SLICE = 500
"""Tags per call that keep one call under a millisecond; a caller with a deadline yields between slices."""


class Predictor:
    """The models of a set of tags. Positions in `keys` ("slots") address them.

    keys: the tags; periods: seconds between samples of each, shape (n,).
    horizon: steps ahead, in each tag's own period; order: of the AR model, 1 to 32.
    interval: share of samples that the interval shall hold, 0.5 to 0.999.
    quantum: the least step of each tag's value, shape (n,), 0 where not known (then the least change seen counts).
    inputs: exogenous inputs of a tag (ARX); `input_keys` says in which order `update` wants their values.
    shapes: whatever else gives each tag's values their meaning (address, type, scale); a saved model goes on only
    where it is the same. Raises ValueError for an impossible setting.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        periods: Floats,
        *,
        horizon: tuple[int, ...] = (1, 5, 20),
        order: int = 8,
        interval: float = 0.9,
        quantum: Floats | None = None,
        inputs: Mapping[Key, tuple[Key, ...]] | None = None,
        shapes: Sequence[str] | None = None,
    ) -> None:
        if not horizon or min(horizon) < 1:
            raise ValueError("a horizon is at least 1 step")
        if not 1 <= order <= 32:
            raise ValueError("the order is from 1 to 32")
        if not 0.5 <= interval <= 0.999:
            raise ValueError("the interval is from 0.5 to 0.999")
        periods = np.asarray(periods, dtype=np.float64)
        if periods.shape != (len(keys),) or not np.all(periods > 0.0):
            raise ValueError("each tag needs a period above 0")
        self.keys: tuple[Key, ...] = tuple(keys)
        self.horizon = horizon
        self.order = order
        self.interval = interval
        self.inputs = {key: tuple(of) for key, of in (inputs or {}).items() if key in set(self.keys)}
        self.input_keys: tuple[Key, ...] = tuple(
            dict.fromkeys(key for of in self.inputs.values() for key in of)
        )
        # The model always looks one step ahead, asked for or not: health watches the innovation.
        self._horizon = np.array(sorted({1, *horizon}), dtype=np.int64)
        self._shown = np.searchsorted(self._horizon, np.array(horizon))
        most = max((len(of) for of in self.inputs.values()), default=0)
        self._input_count = np.array([len(self.inputs.get(key, ())) for key in self.keys], dtype=np.int64)
        self._input_index = np.zeros((len(self.keys), most), dtype=np.int64)
        for slot, key in enumerate(self.keys):
            for place, of in enumerate(self.inputs.get(key, ())):
                self._input_index[slot, place] = self.input_keys.index(of)
        self.state = fresh(
            len(self.keys), order=order, horizon=tuple(int(h) for h in self._horizon), inputs=most
        )
        self.state.scalars[:, c.PERIOD] = periods
        if quantum is not None:
            self.state.scalars[:, c.QUANTUM] = quantum
        self._y, self._lower, self._upper = (
            np.full((len(self.keys), len(self._horizon)), np.nan) for _ in "123"
        )
        self._no_inputs = np.empty(0)
        self.made = 0
        """Forecasts made so far, all horizons counted."""
        self._shapes = list(shapes) if shapes is not None else [""] * len(self.keys)
        self._step = choose(kernels.step, reference.step)

    def update(self, slots: Ints, value: Floats, t: Floats, *, x: Floats | None = None) -> None:
        """Takes one sample of each of `slots`: its value (NaN: missing) and the monotonic time of its reply (s).

        x: newest values of `input_keys`, NaN where there is none. A sample beyond 1e300 counts as missing; a
        step off the tag's grid by more than 20 % of its period counts as a missing one; a sample that comes within
        half a period of the one before is left out.
        """
        state = self.state
        self._step(
            np.ascontiguousarray(slots, dtype=np.int64),
            np.ascontiguousarray(value, dtype=np.float64),
            np.ascontiguousarray(t, dtype=np.float64),
            self._no_inputs if x is None else np.ascontiguousarray(x, dtype=np.float64),
            self._horizon,
            self.order,
            1.0 - self.interval,
            state.scalars,
            state.lags,
            state.regressors,
            state.packed,
            state.side,
            state.thetas,
            state.ring,
            state.errors,
            state.band,
            state.inputs,
            self._input_index,
            self._input_count,
            self._y,
            self._lower,
            self._upper,
        )
        self.made += int(np.count_nonzero(np.isfinite(self._y[slots])))

    @staticmethod
    def parts(count: int) -> Iterator[slice]:
        """Slices of at most SLICE that cover `count` due tags."""
        return (slice(start, min(start + SLICE, count)) for start in range(0, count, SLICE))

    @property
    def y(self) -> Floats:
        """Forecasts, shape (n, horizons); NaN before the 30th sample."""
        return self._y[:, self._shown]

    @property
    def lo(self) -> Floats:
        """Lower bounds, shape (n, horizons)."""
        return self._lower[:, self._shown]

    @property
    def hi(self) -> Floats:
        """Upper bounds, shape (n, horizons)."""
        return self._upper[:, self._shown]

    @property
    def t(self) -> Floats:
        """Monotonic time of each tag's last step, shape (n,); NaN before the first."""
        return self.state.scalars[:, c.TIME]

    def innovation(self, slots: Ints) -> Floats:
        """The last sample minus what was forecast for it one step before; NaN where there was no such forecast."""
        innovation: Floats = self.state.scalars[slots, c.INNOVATION]
        return innovation

    def ahead(self, slot: int) -> tuple[Floats, Floats, Floats]:
        """(y, lo, hi) of one tag, each of shape (horizons,)."""
        return (
            self._y[slot, self._shown],
            self._lower[slot, self._shown],
            self._upper[slot, self._shown],
        )

    def one_step(self) -> tuple[Floats, Floats, Floats]:
        """(y, lo, hi) one step ahead, each a copy of shape (n,), whichever horizons are asked for."""
        return self._y[:, 0].copy(), self._lower[:, 0].copy(), self._upper[:, 0].copy()

    def seen(self, slot: int) -> int:
        """Real samples of one tag so far."""
        return int(self.state.scalars[slot, c.SEEN])

    def book(self, slot: int) -> dict[int, dict[str, float | None]]:
        """How good the shown forecasts of one tag were so far, by horizon.

        mae; relative_mae: over that of "no change" at the same horizon; mase: over that of "no change" at one step;
        coverage and mean_width of the intervals. None where undefined.
        """
        rows = self.state.band[slot]
        ones, first = rows[0, c.JUDGED_SHOWN], rows[0, c.SUM_LAST]
        book: dict[int, dict[str, float | None]] = {}
        for h, j in zip(self.horizon, self._shown, strict=True):
            n, error, last, inside, width = rows[j, c.JUDGED_SHOWN : c.SUM_WIDTH + 1].tolist()
            book[h] = {
                "mae": error / n if n else None,
                "relative_mae": error / last if last > 0.0 else None,
                "mase": (error / n) / (first / ones) if n and first > 0.0 else None,
                "coverage": inside / n if n else None,
                "mean_width": width / n if n else None,
            }
        return book

    def coefficients(self, slots: Ints) -> tuple[Floats, Floats]:
        """(a, b) in levels of the model of full order: y(t) = sum a_i x(t - i) + b. Shapes (k, order + 1) and (k,).

        Scale and centre are frozen at their present values; b holds what the exogenous inputs add where they stand.
        """
        state, p = self.state, self.order
        theta = state.thetas[slots, 1]
        scale, mean = state.scalars[slots, c.SCALE], state.scalars[slots, c.MEAN]
        a = np.zeros((len(slots), p + 1))
        a[:, 0] = 1.0 + theta[:, 1]
        a[:, :p] += theta[:, 2 : 2 + p]
        a[:, 1:] -= theta[:, 2 : 2 + p]
        b = scale * theta[:, 0] - theta[:, 1] * mean
        b += scale * np.sum(theta[:, 2 + p :] * state.regressors[slots, 2 + p :], axis=1)
        return a, b

    @property
    def a(self) -> Floats:
        """Coefficients a_i of every tag, shape (n, order + 1)."""
        return self.coefficients(np.arange(len(self.keys)))[0]

    @property
    def b(self) -> Floats:
        """Constant b of every tag, shape (n,)."""
        return self.coefficients(np.arange(len(self.keys)))[1]

    def forecasts(self, rows: Ints, slots: Ints | None = None) -> Forecasts:
        """A copy for other threads. rows: the twin's row of each slot (of `slots`; all by default)."""
        chosen = np.arange(len(self.keys)) if slots is None else slots
        a, b = self.coefficients(chosen)
        pick = np.ix_(chosen, self._shown)
        return Forecasts(
            h=self.horizon,
            rows=np.array(rows, dtype=np.int64),
            t=self.state.scalars[chosen, c.TIME],
            y=self._y[pick],
            lo=self._lower[pick],
            hi=self._upper[pick],
            a=a,
            b=b,
        )

    def scores(self) -> dict[str, dict[str, float | int | None]]:
        """How good the shown forecasts of the first horizon were so far: {"device/tag": {"n", "skill", "coverage"}}.

        skill = 1 - mean absolute error / that of "no change"; coverage = share of samples inside the interval.
        """
        book = self.state.band[:, self._shown[0]]
        scores: dict[str, dict[str, float | int | None]] = {}
        for (device, tag), row in zip(self.keys, book, strict=True):
            n, last = int(row[c.JUDGED_SHOWN]), row[c.SUM_LAST]
            scores[f"{device}/{tag}"] = {
                "n": n,
                "skill": float(1.0 - row[c.SUM_ERROR] / last) if last > 0.0 else None,
                "coverage": float(row[c.SUM_INSIDE] / n) if n else None,
            }
        return scores

    def save(self) -> bytes:
        """All models in an envelope with version and checksum; `restore` of an equal predictor goes on bit for bit."""
        return saved.dump(
            self.state, order=self.order, horizon=self._horizon.tolist(), tags=self._identities()
        )

    def restore(self, data: bytes, *, offset: float | None = None) -> int:
        """Takes the models of `save` for the tags that are still the same; returns how many.

        offset: what to add to the saved monotonic times (0.0 in the same process). None: not known, as after a
        restart; then the next sample counts as one after a break. Models of another order or with other inputs
        start anew; with other horizons the coefficients stay. Raises StateDamaged.
        """
        head, other = saved.load(data)
        if head["order"] != self.order:
            return 0
        quantum = self.state.scalars[:, c.QUANTUM].copy()
        same = head["horizon"] == self._horizon.tolist()
        slots = saved.take(self.state, other, mine=self._identities(), theirs=head["tags"], same_horizon=same)
        scalars = self.state.scalars
        scalars[:, c.QUANTUM] = quantum
        if offset is None:
            began = slots[scalars[slots, c.SEEN] > 0]
            scalars[began, c.TIME] = np.nan
            scalars[began, c.MISSING] += 1.0
            self.state.ring[began] = np.nan
        else:
            scalars[slots, c.TIME] += offset
        return len(slots)

    def go_on(self, before: Predictor) -> None:
        """Takes the models, and the forecasts they have made, of the tags that are the same in one before this one."""
        self.restore(before.save(), offset=0.0)
        self.made = before.made
        if before._horizon.tolist() != self._horizon.tolist():
            return
        theirs = {repr(one): slot for slot, one in enumerate(before._identities())}
        for slot, one in enumerate(self._identities()):
            old = theirs.get(repr(one))
            if old is not None:
                self._y[slot], self._lower[slot], self._upper[slot] = (
                    before._y[old],
                    before._lower[old],
                    before._upper[old],
                )

    def _identities(self) -> list[list[Any]]:
        """What a saved model of each tag must agree with to be used."""
        periods = self.state.scalars[:, c.PERIOD].tolist()
        return [
            [*key, period, shape, [list(of) for of in self.inputs.get(key, ())]]
            for key, period, shape in zip(self.keys, periods, self._shapes, strict=True)
        ]


def for_config(config: Config) -> Predictor | None:
    """The predictor of a configuration's `predict:` section; None where nothing is to be forecast."""
    predict = config.predict
    if predict is None or not predict.tags:
        return None
    tags = [config.tag(key) for key in predict.tags]
    return Predictor(
        predict.tags,
        np.array([tag.every for tag in tags]),
        horizon=predict.horizon,
        order=predict.order,
        interval=predict.interval,
        quantum=np.array([quantum(tag) for tag in tags]),
        inputs=predict.inputs,
        shapes=[shape(tag) for tag in tags],
    )


def quantum(tag: Tag) -> float:
    """The least step that a tag's value can make; 0 where it is not known (floats, a scale read from the device)."""
    if tag.type.startswith("float") or tag.scale_from is not None:
        return 0.0
    return abs(float(tag.scale))


def shape(tag: Tag) -> str:
    """What gives a tag's values their meaning: a saved model goes on only where all of it is the same."""
    where = f"{tag.table} {tag.address} {tag.type} {tag.order} bits {tag.bits}"
    return f"{where} x {tag.scale} + {tag.offset} scale from {tag.scale_from} {tag.unit}"

"""Forecasts of many tags at once: y(t) = sum a_i x(t - i) + b, refreshed at each sample, at several horizons.

Pure: values and times are handed in, nothing is read or written. Equations and settings: `agent.predict.kernels`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.kernelcache import choose
from agent.predict import columns as c
from agent.predict import kernels, reference
from agent.sealing import StateDamaged, seal, unseal
from agent.twin.records import Forecasts, Key

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
KIND, VERSION = "models", 1
OF_HORIZON = ("ring", "errors", "band")
"""State that depends on the horizons; the rest outlives a change of them."""
SLICE = 500
"""Tags per call that keep one call under a millisecond; a caller with a deadline yields between slices."""


@dataclass(frozen=True, slots=True)
class State:
    """What the models know: one row per tag. n = order + 2 + 5 per input of the tag that has most of them.

    Every array is C-contiguous, so that a row of any of them is plain bytes (that is how it is saved).
    """

    scalars: Floats  # (tags, columns.SCALARS)
    lags: Floats  # (tags, order): the newest difference first
    regressors: Floats  # (tags, n): of the next step
    packed: Floats  # (tags, n (n + 1) / 2): lower triangle of the information matrix, row by row
    side: Floats  # (tags, n)
    thetas: Floats  # (tags, 2, n): coefficients of the short order and of the full one
    ring: Floats  # (tags, sum of horizons, columns.KEPT): forecasts not judged yet
    errors: Floats  # (tags, horizons, columns.JUDGED): discounted absolute errors
    band: Floats  # (tags, horizons, columns.INTERVAL)
    inputs: Floats  # (tags, inputs, columns.X_STATE)


def fresh(tags: int, *, order: int, horizon: tuple[int, ...], inputs: int) -> State:
    """The state of models that have seen nothing."""
    n = order + 2 + inputs * c.INPUT_TERMS
    scalars = np.zeros((tags, c.SCALARS))
    scalars[:, c.SIGMA] = 1.0
    scalars[:, c.SMALLEST] = np.inf
    scalars[:, c.PERIOD] = 1.0
    scalars[:, c.TIME] = np.nan
    scalars[:, c.INNOVATION] = np.nan
    packed = np.zeros((tags, n * (n + 1) // 2))
    packed[:, [(i + 1) * (i + 2) // 2 - 1 for i in range(n)]] = c.PRIOR
    band = np.zeros((tags, len(horizon), c.INTERVAL))
    band[:, :, c.Q] = c.Q_START
    return State(
        scalars=scalars,
        lags=np.zeros((tags, order)),
        regressors=np.zeros((tags, n)),
        packed=packed,
        side=np.zeros((tags, n)),
        thetas=np.zeros((tags, 2, n)),
        ring=np.full((tags, sum(horizon), c.KEPT), np.nan),
        errors=np.zeros((tags, len(horizon), c.JUDGED)),
        band=band,
        inputs=np.zeros((tags, inputs, c.X_STATE)),
    )


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

    def _identity(self, slot: int) -> list[Any]:
        """What a saved model of this tag must agree with to be used."""
        key = self.keys[slot]
        period = float(self.state.scalars[slot, c.PERIOD])
        return [*key, period, self._shapes[slot], [list(of) for of in self.inputs.get(key, ())]]

    def save(self) -> bytes:
        """All models in an envelope with version and checksum; `restore` of an equal predictor goes on bit for bit."""
        arrays = [(field.name, getattr(self.state, field.name)) for field in fields(State)]
        head = {
            "order": self.order,
            "horizon": [int(h) for h in self._horizon],
            "tags": [self._identity(slot) for slot in range(len(self.keys))],
            "arrays": {name: array.shape for name, array in arrays},
        }
        text = json.dumps(head).encode()
        body = b"".join(array.tobytes() for _, array in arrays)
        return seal(KIND, VERSION, struct.pack("<I", len(text)) + text + body)

    def restore(self, data: bytes, *, offset: float | None = None) -> int:
        """Takes the models of `save` for the tags that are still the same; returns how many.

        offset: what to add to the saved monotonic times (0.0 in the same process). None: not known, as after a
        restart; then the next sample counts as one after a break. Models of another order or with other inputs
        start anew; with other horizons the coefficients stay. Raises StateDamaged.
        """
        head, saved = _open(unseal(KIND, VERSION, data))
        if head["order"] != self.order:
            return 0
        known = {json.dumps(identity): row for row, identity in enumerate(head["tags"])}
        same_horizon = head["horizon"] == [int(h) for h in self._horizon]
        pairs = [
            (slot, known[name])
            for slot in range(len(self.keys))
            if (name := json.dumps(self._identity(slot))) in known
        ]
        if not pairs:
            return 0
        slots, rows = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
        quantum = self.state.scalars[slots, c.QUANTUM]
        for field in fields(State):
            mine, other = getattr(self.state, field.name), saved[field.name]
            if field.name in OF_HORIZON:
                if same_horizon:
                    mine[slots] = other[rows]
            elif field.name == "packed" or mine.ndim < 2 or mine.shape[1:] == other.shape[1:]:
                width = min(mine.shape[1], other.shape[1])
                mine[slots, :width] = other[rows, :width]
            else:  # the tag with most inputs came or went; nobody's own terms are beyond the narrower of both
                common = [min(sizes) for sizes in zip(mine.shape[1:], other.shape[1:], strict=True)]
                cut: tuple[Any, ...] = tuple(slice(0, size) for size in common)
                mine[(slots, *cut)] = other[(rows, *cut)]
        scalars = self.state.scalars
        scalars[slots, c.QUANTUM] = quantum
        if offset is None:
            began = slots[scalars[slots, c.SEEN] > 0]
            scalars[began, c.TIME] = np.nan
            scalars[began, c.MISSING] += 1.0
            self.state.ring[began] = np.nan
        else:
            scalars[slots, c.TIME] += offset
        return len(pairs)


def _open(payload: bytes) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Header and arrays of a saved state, views of its bytes. Raises StateDamaged."""
    try:
        (length,) = struct.unpack_from("<I", payload)
        head = json.loads(payload[4 : 4 + length])
        at = 4 + length
        saved: dict[str, Floats] = {}
        for field in fields(State):
            shape = tuple(int(size) for size in head["arrays"][field.name])
            count = int(np.prod(shape))
            saved[field.name] = np.frombuffer(payload, dtype="<f8", count=count, offset=at).reshape(shape)
            at += 8 * count
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise StateDamaged(f"it does not hold models as this version writes them ({error})") from None
    return head, saved

"""History through the very same models and scores as the daemon's, strictly in order, in constant memory."""

from __future__ import annotations

import csv
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from agent.config.printable import cut, printable
from agent.config.types import Config, Device, HealthConfig, PredictConfig, Tag, Url
from agent.predict.health import Health
from agent.predict.predictor import Predictor, for_config
from agent.twin.records import Event, Key

Floats = NDArray[np.float64]

LOOK_AHEAD = 200
"""Rows read before the first is replayed, to learn how far apart the samples of each column are."""
RECENT = 9
"""Steps in time of which the median is what is usual."""
SET_BACK = 3600.0
"""Seconds that clocks are set back in autumn."""
MISSING = frozenset({"", "nan", "null", "none", "na"})
WORDS = {"true": 1.0, "false": 0.0}
SHOWN = 40
"""Letters of a bad cell that a message shows."""
UNNAMED = "replay"
"""The device of columns that name none and that the configuration does not know."""


class BadRow(ValueError):
    """A row that cannot be taken; the text has the line number and the reason."""


class BadHeader(BadRow):
    """A header that cannot be taken: no row can be either, however lenient one is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the file: its time as written, and one value per column (NaN: missing).

    t counts on through an hour that clocks were set back, in seconds; `written` is what the text alone says.
    """

    text: str
    t: float
    values: Floats
    written: float


@dataclass
class Result:
    """What a replay found; `body` is the JSON of `replay --json`."""

    rows: int = 0
    skipped: int = 0
    seconds: float = 0.0
    updates: int = 0
    notes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    tags: dict[str, dict[str, Any]] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {
            "v": 1,
            "rows": self.rows,
            "skipped": self.skipped,
            "us_per_update": 1e6 * self.seconds / self.updates if self.updates else None,
            "tags": self.tags,
        }


class Reader:
    """Reads the samples of a CSV file: a header, the time first, then one column per tag, the oldest row first.

    lines: the text, line by line. lenient: bad rows are counted in `skipped` and told to `say`, else they raise BadRow.
    A local time without an offset that comes one hour and one sample after the row before, less that hour, is the hour
    that comes twice when clocks are set back: taken as such, and told unless lenient. A time that goes back otherwise
    is a bad row; lenient takes it, and the models begin a new count there.
    """

    def __init__(self, lines: Iterable[str], *, lenient: bool, say: Callable[[str], None]) -> None:
        self._rows = csv.reader(lines)
        self._lenient, self._say = lenient, say
        self.skipped = 0
        header = next(self._rows, None)
        if header is None:
            raise BadHeader("line 1: the file is empty; a header with the time and the tags is wanted")
        self.names = [name.strip() for name in header[1:]]
        if not self.names:
            raise BadHeader(f"line 1: the header names no tag beside the time{_other_comma(header)}")
        double = {name for name in self.names if self.names.count(name) > 1}
        if double or "" in self.names:
            what = f"the tag {min(double)} twice" if double - {""} else "a column without a name"
            raise BadHeader(f"line 1: the header has {what}")

    def samples(self) -> Iterator[Sample]:
        """The samples in the order of the file."""
        self._shift, self._before = 0.0, math.nan
        self._steps: deque[float] = deque(maxlen=RECENT)
        while True:
            try:
                row = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                self._bad(f"line {self._rows.line_num}: {error}")
                continue
            if not row:
                continue
            try:
                sample = self._in_order(self._sample(row))
            except BadRow as error:
                self._bad(f"line {self._rows.line_num}: {error}")
                continue
            yield sample

    def _in_order(self, sample: Sample) -> Sample:
        """The sample with its place in time. Raises BadRow where it has none."""
        written, step = sample.written, sample.written - self._before
        if step <= 0.0 and self._set_back(sample.text, step):
            self._shift += SET_BACK
            if not self._lenient:
                self._say(
                    f"line {self._rows.line_num}: the time goes back to {sample.text}; taken as the hour that comes "
                    "twice when clocks are set back (offsets in the file, such as +01:00, would make it plain)"
                )
        elif step == 0.0:
            raise BadRow(f"the time {sample.text} stood in the row before already")
        elif step < 0.0 and not self._lenient:
            raise BadRow(
                f"the time {sample.text} is before that of the row above; the oldest row comes first"
            )
        elif step > 0.0:
            self._steps.append(step)
        self._before = written
        return replace(sample, t=written + self._shift)

    def _set_back(self, text: str, step: float) -> bool:
        if not self._steps or not _is_local(text):
            return False
        usual = float(np.median(self._steps))
        return abs(step + SET_BACK - usual) <= 0.2 * usual

    def _bad(self, words: str) -> None:
        if not self._lenient:
            raise BadRow(words)
        self.skipped += 1
        self._say(f"{words}; skipped")

    def _sample(self, row: list[str]) -> Sample:
        if len(row) != len(self.names) + 1:
            raise BadRow(f"{len(row)} cells where the header has {len(self.names) + 1}")
        t = seconds(row[0].strip())
        values = np.empty(len(self.names))
        for i, cell in enumerate(row[1:]):
            values[i] = number(cell.strip(), self.names[i])
        return Sample(row[0].strip(), t, values, t)


def seconds(text: str) -> float:
    """Seconds of an ISO 8601 time (without a zone: as if UTC) or of a plain number. Raises BadRow."""
    try:
        plain = float(text)
        if math.isfinite(plain):
            return plain
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    raise BadRow(f"{_quoted(text)} is no time; ISO 8601 or seconds are wanted")


def _quoted(text: str) -> str:
    """A cell as it stands in a message: on one line, and no longer than helps (a quote left open takes in the rest)."""
    return f"'{printable(cut(text, SHOWN))}'"


def _other_comma(header: list[str]) -> str:
    """What to say of a header of one cell that is cut by something else than commas."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if header and mark in header[0]:
            return f"; its columns are separated by {name} where commas are wanted (and a decimal point)"
    return ""


def _is_local(text: str) -> bool:
    """True for a date and time without an offset."""
    try:
        return datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        return False


def number(text: str, name: str) -> float:
    """A cell's value, NaN where it is missing. Raises BadRow."""
    word = text.lower()
    if word in MISSING:
        return math.nan
    try:
        value = WORDS.get(word)
        value = float(text) if value is None else value
    except ValueError:
        raise BadRow(f"{_quoted(text)} in column {name} is no number") from None
    if not math.isfinite(value):
        raise BadRow(f"{_quoted(text)} in column {name} is no finite number")
    return value


def resolve(names: Sequence[str], config: Config) -> list[Key]:
    """The tag of each column; a bare name is the one device's that has it. Raises BadHeader where several have it."""
    keys: list[Key] = []
    for name in names:
        owners = [device.name for device in config.devices.values() if name in device.tags]
        if len(owners) > 1:
            raise BadHeader(f"line 1: several devices have a tag {name}; write {owners[0]}/{name}")
        device, slash, tag = name.partition("/")
        keys.append((owners[0], name) if owners else (device, tag) if slash else (UNNAMED, name))
    if len(set(keys)) < len(keys):
        again = next(names[i] for i, key in enumerate(keys) if key in keys[:i])
        raise BadHeader(f"line 1: {again} names a tag that another column names too")
    return keys


def spacing(samples: Sequence[Sample], columns: int) -> Floats:
    """Median seconds between the values of each column, shape (columns,); NaN where fewer than two are known."""
    t = np.array([sample.t for sample in samples])
    values = np.array([sample.values for sample in samples]).reshape(len(samples), columns)
    apart = np.full(columns, np.nan)
    for column in range(columns):
        steps = np.diff(t[np.isfinite(values[:, column])])
        if np.any(steps > 0.0):
            apart[column] = np.median(steps[steps > 0.0])
    return apart


def with_columns(config: Config, keys: Sequence[Key], periods: Floats) -> Config:
    """The configuration as if it had every column of the file; unknown ones with the defaults."""
    devices, health = dict(config.devices), dict(config.health)
    for (device, tag), period in zip(keys, periods, strict=True):
        known = devices.get(device) or Device(device, Url("tcp://127.0.0.1", "tcp", "127.0.0.1", 502))
        entry = known.tags.get(tag) or Tag(tag, "holding", 0, type="float64")
        devices[device] = replace(known, tags={**known.tags, tag: replace(entry, every=float(period))})
        if config.health and device not in config.devices:  # a section that names none would leave it without
            mine = health.get(device, HealthConfig(tags=()))
            health[device] = replace(mine, tags=(*mine.tags, tag))
    return replace(config, devices=devices, health=health)


def periods_of(
    config: Config, keys: Sequence[Key], names: Sequence[str], apart: Floats
) -> tuple[Floats, list[str]]:
    """The period of each column, and what is to be said where the file's differs from the configuration's."""
    usual = float(np.nanmedian(apart)) if np.isfinite(apart).any() else 1.0
    periods, notes = np.empty(len(keys)), []
    for i, (device, tag) in enumerate(keys):
        known = config.devices[device].tags.get(tag) if device in config.devices else None
        found = apart[i] if math.isfinite(apart[i]) else known.every if known else usual
        periods[i] = found
        if known and math.isfinite(apart[i]) and abs(known.every - found) <= 0.2 * known.every:
            periods[i] = known.every
        elif known and math.isfinite(apart[i]):
            notes.append(
                f"{names[i]}: sampled every {found:g} s in the file, {known.every:g} s in the configuration"
            )
    return periods, notes


class Replay:
    """One run over a file: the models, their health, and how good they were."""

    def __init__(self, config: Config, reader: Reader, *, horizon: tuple[int, ...] | None = None) -> None:
        self.names = reader.names
        self.keys = resolve(self.names, config)
        self._reader = reader
        rows = reader.samples()
        first = list(islice(rows, LOOK_AHEAD))
        self._samples = chain(first, rows)
        self.periods, notes = periods_of(config, self.keys, self.names, spacing(first, len(self.names)))
        self.result = Result(notes=notes)
        whole = with_columns(config, self.keys, self.periods)
        predict = config.predict or PredictConfig()
        known = set(self.keys)
        inputs = {key: of for key, of in predict.inputs.items() if key in known and known.issuperset(of)}
        predict = replace(predict, tags=tuple(self.keys), horizon=horizon or predict.horizon, inputs=inputs)
        self.predictor = cast(
            Predictor, for_config(replace(whole, predict=predict))
        )  # it has tags: never None
        self.health = Health(whole, self.keys, self.predictor)
        self._x_columns = [self.keys.index(key) for key in self.predictor.input_keys]
        self._last = np.full(len(self.keys), -np.inf)
        rows_apart = np.diff([sample.t for sample in first])
        usual = float(np.median(rows_apart[rows_apart > 0.0])) if np.any(rows_apart > 0.0) else math.inf
        # Missing is a value in the row nearest to when it was due: rows of a real scan come a little early or late.
        self._due_after = self.periods - 0.5 * np.minimum(usual, self.periods)

    def run(
        self, take: Callable[[Sample, Replay, tuple[Floats, Floats, Floats]], None] | None = None
    ) -> Result:
        """Replays every row; `take` is called after each with what was foretold for it one row before (y, lo, hi)."""
        result = self.result
        foretold = self.predictor.one_step()
        for sample in self._samples:
            started = time.perf_counter()
            result.updates += self._step(sample)
            result.seconds += time.perf_counter() - started
            result.rows += 1
            if take is not None:
                take(sample, self, foretold)
                foretold = self.predictor.one_step()
        result.skipped = self._reader.skipped
        for slot, name in enumerate(self.names):
            horizons = {str(h): scores for h, scores in self.predictor.book(slot).items()}
            result.tags[name] = {"n": self.predictor.seen(slot), "horizons": horizons}
        return result

    def _step(self, sample: Sample) -> int:
        """One row. An empty cell is a missing sample only where one was due; a clock set back begins a new count."""
        real = np.isfinite(sample.values)
        passed = sample.t - self._last
        due = np.flatnonzero(real | (np.isfinite(self._last) & (np.abs(passed) >= self._due_after)))
        self._last[due] = sample.t
        values = sample.values[due]
        x = sample.values[self._x_columns] if self._x_columns else None
        self.predictor.update(due, values, np.full(len(due), sample.t), x=x)
        self.result.events += self.health.update(due, values, sample.t)
        return len(due)

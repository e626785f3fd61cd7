"""Moves a loop's output on purpose, to find its process: a step, a relay or pseudo-random levels. Pure.

The output stays between two levels, within the loop's limits and rate; whatever is in doubt ends the experiment, and
the output goes back to where it was.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Literal

from agent.config.types import LoopConfig
from agent.control.shape import within
from agent.control.signals import Inputs, Sample

Kind = Literal["step", "relay", "prbs"]
KINDS: tuple[Kind, ...] = ("step", "relay", "prbs")

LEASE = 5.0
"""Seconds for which an experiment goes on without a word from who began it."""
QUIET_SHARE, QUIET_SAMPLES = 0.08, 10
"""At rest before the first move: a share of the time, and samples at least."""
STEP_SHARE = 0.5
"""Of the time after that, the step stays; then it goes back."""
HOLD_SHARE = 0.25
"""Of the time, before the relay begins: a step, for a relay alone tells nothing of the gain at rest."""
NOISES = 4.0
"""Of the PV's standard deviation at rest: how far it must be beyond its middle for the relay to turn."""
SHORTEST_STAY, STAYS = 4.0, 12.0
"""Of the period, and of the time in it: shortest and longest stay of the pseudo-random levels."""
FEWEST_SAMPLES = 60
LEAST_SPAN = 0.5
"""Of the asked move: less room than this within the limits is no experiment."""
MISMATCHES = 3
SEED = 1
SILENT = 5.0
"""Periods without a sample of the PV that end an experiment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The output between `low` and `high` around `base`, for `seconds`, with `period` seconds between samples."""

    kind: Kind
    base: float
    low: float
    high: float
    seconds: float
    period: float


def plan(kind: Kind, loop: LoopConfig, *, base: float, move: float, seconds: float, period: float) -> Plan:
    """The experiment within the loop's limits. Raises ValueError, in words for the user, for one that cannot be."""
    if not (math.isfinite(move) and move > 0.0):
        raise ValueError("the move must be above 0")
    if not math.isfinite(base) or within(base, loop.limits) != base:
        raise ValueError(
            f"the output is at {base:g}, outside the loop's limits {loop.limits[0]:g} to {loop.limits[1]:g}"
        )
    if seconds < FEWEST_SAMPLES * period:
        raise ValueError(
            f"{seconds:g} s are {seconds / period:.0f} samples of the PV; {FEWEST_SAMPLES * period:g} s are the least"
        )
    low, high = max(base - move, loop.limits[0]), min(base + move, loop.limits[1])
    if kind == "step":  # to the side with more room
        low, high = (base, high) if high - base >= base - low else (low, base)
    if high - low < LEAST_SPAN * move:
        raise ValueError(f"from {base:g} the limits leave room for {high - low:g} only")
    return Plan(kind, base, low, high, seconds, period)


@dataclass
class Signal:
    """Where the output is to be, by the plan. `reverse`: a higher output raises the PV."""

    plan: Plan
    reverse: bool
    _rest: list[float] = field(default_factory=list)
    _level: float = math.nan
    _until: float = -math.inf
    _random: random.Random = field(default_factory=lambda: random.Random(SEED))

    @property
    def quiet(self) -> float:
        """Seconds at rest before the first move."""
        return max(QUIET_SHARE * self.plan.seconds, QUIET_SAMPLES * self.plan.period)

    def at(self, elapsed: float, pv: float) -> float:
        """The level that the plan wants `elapsed` seconds after its start, the PV being `pv`."""
        plan = self.plan
        if elapsed < self.quiet:
            self._rest.append(pv)
            return plan.base
        if plan.kind == "step":
            back = self.quiet + STEP_SHARE * (plan.seconds - self.quiet)
            return (plan.high if plan.high > plan.base else plan.low) if elapsed < back else plan.base
        if plan.kind == "relay":
            first = self.quiet + HOLD_SHARE * (plan.seconds - self.quiet)
            return plan.high if elapsed < first else self._relay(pv)
        return self._prbs(elapsed)

    def _relay(self, pv: float) -> float:
        """Turns when the PV has passed its middle by more than the noise."""
        count = max(len(self._rest), 1)
        middle = sum(self._rest) / count
        noise = NOISES * math.sqrt(sum((one - middle) ** 2 for one in self._rest) / count)
        beyond = (pv - middle) if self.reverse else (middle - pv)
        if math.isnan(self._level) or beyond < -noise:
            self._level = self.plan.high
        elif beyond > noise:
            self._level = self.plan.low
        return self._level

    def _prbs(self, elapsed: float) -> float:
        """One of the two levels, for times that differ widely, so that fast and slow processes both are stirred."""
        if elapsed >= self._until:
            plan = self.plan
            shortest = SHORTEST_STAY * plan.period
            longest = max(plan.seconds / STAYS, shortest)
            self._until = elapsed + shortest * (longest / shortest) ** self._random.random()
            self._level = plan.low if self._level == plan.high else plan.high
        return self._level


@dataclass
class Experiment:
    """One experiment from its start to its end.

    rows: (seconds since the start, PV, output from then on). `over`: why it ended; "done" at the end of its time.
    `written`: what the output was put to last. `closing`: it goes back to where it was, at the loop's rate, to end.
    """

    loop: LoopConfig
    plan: Plan
    started: float
    rows: list[tuple[float, float, float]] = field(default_factory=list)
    over: str | None = None
    restores: bool = True
    written: float = math.nan
    heard: float = math.nan
    closing: str | None = None
    _signal: Signal = field(init=False)
    _bad: int = 0
    _mismatches: int = 0
    _sampled: float = math.nan
    _confirmed: float = math.inf
    _read: float = -math.inf

    def __post_init__(self) -> None:
        self._signal = Signal(self.plan, self.loop.action == "reverse")
        self.written = self.plan.base
        self.heard = self._sampled = self._confirmed = self.started

    @property
    def done(self) -> bool:
        """True when all of its time was used."""
        return self.over == "done"

    def hear(self, now: float) -> None:
        """Who began it is still there."""
        self.heard = now

    def close(self, why: str) -> None:
        """Lets it end by itself: first the output goes back at the loop's rate."""
        self.closing = self.closing or why

    def end(self, why: str, *, restores: bool = True) -> None:
        """Ends it, once."""
        if self.over is None:
            self.over, self.restores = why, restores

    def on_tick(self, now: float) -> None:
        """Ends it where nobody asks for it any more, or the PV comes no more."""
        if now - self.heard > LEASE:
            self.end("who began it is gone")
        elif now - self._sampled > max(SILENT * self.plan.period, 1.0):
            self.end("no sample of the PV")

    def on_sample(self, now: float, inputs: Inputs, *, same: bool) -> float | None:
        """The output to be written now; None: none. `same`: whether the output shows what was written last."""
        elapsed, since = now - self.started, now - self._sampled
        self._sampled = now
        problem, ours = self._problem(inputs, same=same)
        if problem is not None:
            self.end(problem, restores=ours)
        elif elapsed >= self.plan.seconds:
            self.close("done")
        if self.closing is not None and self.written == self.plan.base:
            self.end(self.closing)
        if self.over is not None:
            return None
        wanted = self.written
        if self.closing is not None:
            wanted = self.plan.base
        elif inputs.pv.good:
            wanted = self._signal.at(elapsed, inputs.pv.value)
        if self.loop.rate is not None:
            reach = self.loop.rate * since
            wanted = min(max(wanted, self.written - reach), self.written + reach)
        wanted = min(max(wanted, self.plan.low), self.plan.high)
        self.rows.append(
            (inputs.pv.t - self.started, inputs.pv.value if inputs.pv.good else math.nan, wanted)
        )
        return None if wanted == self.written else wanted

    def held_back(self) -> None:
        """What was wanted last cannot go out yet: the output stays."""
        t, pv, _ = self.rows[-1]
        self.rows[-1] = (t, pv, self.written)

    def write_began(self, value: float) -> None:
        """This value goes out now; a reading of the output says nothing until the write was answered."""
        self.written, self._confirmed = value, math.inf

    def write_answered(self, now: float) -> None:
        """The device has what was written."""
        self._confirmed = now

    def _problem(self, inputs: Inputs, *, same: bool) -> tuple[str | None, bool]:
        """(why it must end, whether the output is still ours to be put back)."""
        for key, sample in zip(self.loop.interlock, inputs.interlocks, strict=True):
            if not sample.good or sample.value == 0.0:
                return f"interlock {'/'.join(key)} is {'false' if sample.good else 'not good'}", True
        if self.loop.trip is not None and not self._inside(inputs.pv, self.loop.trip):
            return (
                f"PV trip: {inputs.pv.value:g} is outside {self.loop.trip[0]:g} to {self.loop.trip[1]:g}",
                True,
            )
        self._bad = 0 if inputs.pv.good else self._bad + 1
        if self._bad >= self.loop.fail.after:
            return "PV not good", True
        out = inputs.out
        if out.good and out.t > max(self._confirmed, self._read):  # one from before the write says nothing
            self._read = out.t
            self._mismatches = 0 if same else self._mismatches + 1
        if self._mismatches >= MISMATCHES:
            return "the output reads back different: somebody else writes it", False
        return None, True

    @staticmethod
    def _inside(pv: Sample, limits: tuple[float, float]) -> bool:
        return not math.isfinite(pv.value) or limits[0] <= pv.value <= limits[1]

"""The output moved on purpose: within limits and rate, and back at the first doubt."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest

from agent.config.types import LoopConfig, ModelConfig
from agent.control.excite import KINDS, LEASE, Experiment, Kind, plan
from agent.control.identify import identify
from agent.control.process import Process
from agent.control.record import Record
from agent.control.signals import Inputs, Sample

LOOP = LoopConfig("loop", ("a", "pv"), ("a", "out"), 20.0, (0.0, 100.0))
MODEL = ModelConfig(k=0.5, t1=12, delay=4)


def play(
    kind: Kind,
    loop: LoopConfig = LOOP,
    *,
    move: float = 10.0,
    seconds: float = 400.0,
    model: ModelConfig = MODEL,
) -> Experiment:
    """A whole experiment on a process, the output read back as written."""
    experiment = Experiment(loop, plan(kind, loop, base=50, move=move, seconds=seconds, period=1.0), 0.0)
    process = Process(model, 1.0, pv=20.0, out=50.0)
    now = 0.0
    while experiment.over is None:
        now += 1.0
        experiment.hear(now)
        experiment.on_tick(now)
        inputs = Inputs(
            Sample(process.pv + 0.02 * math.sin(7 * now * now), True, now),
            Sample(experiment.written, True, now),
        )
        value = experiment.on_sample(now, inputs, same=True)
        if value is not None:
            experiment.write_began(value)
            experiment.write_answered(now)
        process.step(experiment.written)
    return experiment


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0.5, -0.5])
def test_each_kind_finds_the_process(kind: Kind, k: float) -> None:
    loop = dataclasses.replace(LOOP, action="reverse" if k > 0 else "direct")
    experiment = play(kind, loop, model=dataclasses.replace(MODEL, k=k), seconds=600)
    assert experiment.done
    t, pv, out = (list(column) for column in zip(*experiment.rows, strict=True))
    import numpy as np

    found = identify(Record(np.array(t), np.array(pv), np.array(out)))
    assert found.grade == "good", found.why
    assert found.model.k == pytest.approx(k, rel=0.1)
    assert found.model.delay == pytest.approx(4, abs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_stays_within_move_limits_and_rate(kind: Kind) -> None:
    loop = dataclasses.replace(LOOP, limits=(45.0, 100.0), rate=2.0)
    outs = [50.0, *(row[2] for row in play(kind, loop, move=8.0).rows)]
    assert min(outs) >= (45.0 if kind != "step" else 50.0)
    assert 53.0 < max(outs) <= 58.0
    assert max(abs(b - a) for a, b in pairwise(outs)) <= 2.0 + 1e-9
    assert outs[:10] == [50.0] * 10


def test_the_relay_swings_to_both_sides() -> None:
    outs = [row[2] for row in play("relay").rows]
    turns = sum(a != b for a, b in pairwise(outs))
    assert turns > 6 and {40.0, 60.0} <= set(outs)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"move": 0.0}, "above 0"),
        ({"move": math.nan}, "above 0"),
        ({"base": 101.0}, "outside the loop's limits"),
        ({"base": math.nan}, "outside the loop's limits"),
        ({"seconds": 30.0}, "60 s are the least"),
        ({"base": 100.0, "move": 500.0, "kind": "relay"}, "room for"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_in_words(changes: dict[str, float], what: str) -> None:
    asked = {"kind": "step", "base": 50.0, "move": 10.0, "seconds": 300.0, "period": 1.0} | changes
    with pytest.raises(ValueError, match=what):
        plan(asked.pop("kind"), LOOP, **asked)  # type: ignore[arg-type]


def test_a_step_goes_to_the_side_with_more_room() -> None:
    up = plan("step", LOOP, base=40, move=70, seconds=300, period=1)
    down = plan("step", LOOP, base=90, move=30, seconds=300, period=1)
    assert (up.low, up.high, down.low, down.high) == (40, 100, 60, 90)


def running() -> Experiment:
    loop = dataclasses.replace(LOOP, trip=(0.0, 90.0), interlock=(("a", "ok"),))
    return Experiment(loop, plan("prbs", loop, base=50, move=10, seconds=300, period=1.0), 100.0)


def inputs(
    pv: float = 20.0, *, good: bool = True, ok: float = 1.0, now: float = 101.0, out: float = 50.0
) -> Inputs:
    return Inputs(Sample(pv, good, now), Sample(out, True, now), interlocks=(Sample(ok, True, now),))


def test_a_trip_or_an_open_interlock_ends_it_at_once() -> None:
    for seen, why in (
        (inputs(95.0), "PV trip"),
        (inputs(ok=0.0), "interlock a/ok"),
        (inputs(95.0, good=False), "PV trip"),
    ):
        experiment = running()
        assert experiment.on_sample(101.0, seen, same=True) is None
        assert experiment.over is not None and why in experiment.over and experiment.restores


def test_a_pv_that_stays_bad_ends_it() -> None:
    experiment = running()
    for i in range(3):
        assert experiment.over is None
        experiment.on_sample(101.0 + i, inputs(good=False, now=101.0 + i), same=True)
    assert experiment.over == "PV not good"


def test_somebody_else_who_writes_ends_it_and_keeps_the_output() -> None:
    experiment = running()
    for i in range(3):
        assert experiment.over is None
        experiment.on_sample(101.0 + i, inputs(now=101.0 + i, out=33.0), same=False)
    assert experiment.over is not None and "somebody else" in experiment.over
    assert not experiment.restores


def test_a_reading_from_before_the_write_says_nothing() -> None:
    experiment = running()
    experiment.write_began(60.0)
    for i in range(5):
        experiment.on_sample(101.0 + i, inputs(now=101.0 + i), same=False)
    assert experiment.over is None


def test_it_ends_when_nobody_asks_for_it_or_no_sample_comes() -> None:
    experiment = running()
    experiment.on_tick(100.0 + LEASE)
    experiment.on_sample(104.0, inputs(), same=True)
    assert experiment.over is None
    experiment.on_tick(100.1 + LEASE)
    assert experiment.over == "who began it is gone"
    silent = running()
    for second in range(1, 8):
        silent.hear(100.0 + second)
        silent.on_tick(100.0 + second)
    assert silent.over == "no sample of the PV"

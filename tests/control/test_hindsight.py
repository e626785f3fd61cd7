"""What came of a change of the setpoint, against what was foretold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agent.config.types import ModelConfig
from agent.control import hindsight
from agent.control.hindsight import Trace, compare, due
from agent.control.process import with_error
from agent.control.whatif import Foretold, Hardware, State, foretell
from tests.control.test_whatif import MODEL, loop

START = State(50.0, 30.0, 50.0)


def foretold(model: ModelConfig = MODEL, start: State = START, seconds: float = 200.0) -> Foretold:
    return foretell(loop(model=model), start, Hardware(1.0), setpoint=60.0, seconds=seconds)


def recorded(found: Foretold, *, late: float = 0.0) -> Trace:
    trace = Trace(1.0)
    for t, pv in zip(found.t.tolist(), found.pv.tolist(), strict=True):
        trace.add(t + late, pv)
    return trace


def test_what_came_as_foretold_has_no_misfit() -> None:
    found = foretold()
    one = compare(found, recorded(found), noise=0.0)
    assert one is not None and one.misfit == 0.0 and one.real == one.foretold == found.step and one.at_rest
    assert hindsight.words(one).endswith("off by 0 on average, 0.0 % of the step")


def test_another_process_than_the_model_is_seen() -> None:
    found, came = foretold(), foretold(with_error(MODEL, gain=1.5, delay=1.2))
    one = compare(found, recorded(came), noise=0.0)
    assert one is not None
    assert one.foretold == found.step and one.real == came.step
    assert one.misfit == pytest.approx(float(np.abs(came.pv - found.pv).mean()))
    assert one.real.overshoot is not None and one.real.overshoot > 5.0 > (one.foretold.overshoot or 0.0)
    told = hindsight.words(one)
    assert "setpoint 50 -> 60: settled after " in told and f"overshoot {one.real.overshoot:.1f} %" in told
    shown = hindsight.body(one)
    assert (shown["from"], shown["to"], shown["seconds"]) == (50.0, 60.0, 200.0)
    assert shown["real"]["settling_s"] == came.step.settling and shown["misfit"] == pytest.approx(
        one.misfit, rel=1e-4
    )


def test_both_are_held_against_the_same_span() -> None:
    found = foretold()
    trace = recorded(foretold(seconds=60.0), late=0.3)
    one = compare(found, trace, noise=0.0)
    assert one is not None and one.seconds == pytest.approx(60.3)
    assert one.foretold.iae < found.step.iae and one.misfit > 0.0


def test_noise_does_not_keep_it_from_settling() -> None:
    found = foretold()
    trace = recorded(found)
    trace.pv = (found.pv + 0.3 * np.sin(np.arange(len(found.pv)))).tolist()
    quiet, noisy = compare(found, trace, noise=0.0), compare(found, trace, noise=0.2)
    assert (
        quiet is not None
        and quiet.real.settling is None
        and "not settled (foretold: settled" in hindsight.words(quiet)
    )
    assert noisy is not None and noisy.real.settling is not None


def test_a_loop_that_was_under_way_says_so() -> None:
    found = foretold(start=dataclasses.replace(START, pv=53.0))
    one = compare(found, recorded(found), noise=0.0)
    assert one is not None and not one.at_rest and "not at rest" in hindsight.words(one)
    settled = compare(found, recorded(found), noise=1.1)
    assert settled is not None and settled.at_rest


def test_it_is_due_a_half_longer_than_foretold() -> None:
    found = foretold()
    assert found.step.settling is not None
    assert due(found) == pytest.approx(1.5 * found.step.settling)
    assert due(foretold(seconds=10.0)) == 10.0  # does not settle in that time
    assert due(foretold(seconds=found.step.settling + 2.0)) == found.step.settling + 2.0


def test_a_record_is_bounded_whatever_its_length() -> None:
    trace = Trace(0.1)
    for k in range(100_000):
        trace.add(0.1 * k, float(k))
    assert (
        len(trace.t) == len(trace.pv) <= hindsight.MOST_SAMPLES and len(trace.t) > hindsight.MOST_SAMPLES // 3
    )
    assert trace.t[0] == 0.0 and trace.t[-1] > 9_900.0
    gaps = np.diff(trace.t)
    assert gaps.max() < 3 * gaps.min() and all(
        pv == pytest.approx(10 * t) for t, pv in zip(trace.t, trace.pv)
    )


def test_too_little_is_not_compared() -> None:
    found = foretold()
    trace = Trace(1.0, t=[0.0, 1.0], pv=[50.0, 50.0])
    assert compare(found, trace, noise=0.0) is None

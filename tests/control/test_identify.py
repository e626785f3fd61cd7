"""What is identified of known processes, how well, and that records with nothing in them are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agent.config.types import ModelConfig
from agent.control.identify import identify
from agent.control.process import Process
from agent.control.record import Record, to_grid
from tests.control.records import PLANTS, recorded

SETTLING = [name for name in PLANTS if not PLANTS[name].integrating]


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("seed", range(3))
def test_open_loop_random_moves_give_gain_and_delay(name: str, seed: int) -> None:
    true = PLANTS[name]
    found = identify(recorded(true, "random", seed=seed))
    assert found.grade == "good", found.why
    assert found.model.integrating == true.integrating
    assert found.model.k == pytest.approx(true.k, rel=0.05)
    assert found.model.delay == pytest.approx(true.delay, abs=1.0)
    assert found.model.t1 + found.model.t2 == pytest.approx(true.t1 + true.t2, abs=0.15 * true.t1 + 0.5)


def test_the_bias_says_where_the_process_rests() -> None:
    settling = identify(recorded(PLANTS["L/T 0.5"], "random", drift=0.0)).model
    assert settling.k * 50 + settling.bias == pytest.approx(20.0, abs=0.05)
    integrating = identify(recorded(PLANTS["integrating"], "random", drift=0.0)).model
    assert integrating.bias == pytest.approx(50.0, abs=0.02)


def test_one_step_by_hand_is_enough() -> None:
    true = PLANTS["L/T 1"]
    found = identify(recorded(true, "bump"))
    assert found.grade == "good", found.why
    assert found.model.k == pytest.approx(true.k, rel=0.05)
    assert found.model.delay == pytest.approx(true.delay, abs=1.0)


@pytest.mark.parametrize("known", [True, False])
def test_setpoint_steps_are_fair_at_best(known: bool) -> None:
    """The gain is right, but the delay may be misjudged where only the loop itself moved the output."""
    record = recorded(PLANTS["L/T 0.5"], "steps")
    found = identify(record if known else dataclasses.replace(record, setpoint=None))
    assert found.grade == "fair"
    assert found.source.kind == "setpoint"
    assert found.model.k == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("kind", ["quiet", "deadband", "coarse"])
@pytest.mark.parametrize("name", PLANTS)
def test_a_quiet_loop_is_refused(name: str, kind: str) -> None:
    found = identify(recorded(PLANTS[name], kind, seed=7))
    assert found.grade == "poor"
    assert any("did not move by itself" in why or "by itself does not stand out" in why for why in found.why)


def test_moves_that_the_pv_does_not_follow_are_not_called_the_controller_s() -> None:
    """A test of the output on a PV that is noise alone: a broken valve, or a wrong tag."""
    record = recorded(PLANTS["L/T 0.5"], "prbs")
    noise = np.random.default_rng(4).normal(size=len(record.pv))
    found = identify(dataclasses.replace(record, pv=noise))
    assert (found.grade, found.source.kind) == ("poor", "outside")
    assert any("by itself does not stand out" in why for why in found.why)
    assert not any("follows from the PV" in why for why in found.why)


@pytest.mark.parametrize("seed", range(20))
def test_a_quiet_loop_is_refused_whatever_its_noise(seed: int) -> None:
    name = list(PLANTS)[seed % len(PLANTS)]
    noise = (0.002, 0.005, 0.02)[seed % 3]
    assert identify(recorded(PLANTS[name], "quiet", seed=seed, noise=noise, samples=400)).grade == "poor"


@pytest.mark.parametrize("seed", range(3))
def test_the_errors_that_it_states_are_those_that_it_makes(seed: int) -> None:
    true = PLANTS["L/T 0.5"]
    found = identify(recorded(true, "random", seed=seed, noise=0.02))
    assert abs(found.model.k - true.k) < 4 * found.k_error < 0.4
    assert abs(found.model.delay - true.delay) < max(4 * found.delay_error, 0.7)


def test_delays_that_cannot_be_told_apart_are_listed() -> None:
    sharp = identify(recorded(PLANTS["L/T 3"], "random")).delays
    vague = identify(recorded(PLANTS["L/T 3"], "steps", noise=0.02)).delays
    assert sharp[-1] - sharp[0] <= 2.0
    assert vague[-1] - vague[0] > sharp[-1] - sharp[0]


def test_missing_samples_and_stamps_that_wander_are_no_trouble() -> None:
    true = PLANTS["L/T 0.5"]
    whole = recorded(true, "random", drift=0.0)
    rng = np.random.default_rng(1)
    pv, out = whole.pv.copy(), whole.out.copy()
    pv[rng.random(len(pv)) < 0.1] = np.nan
    out[rng.random(len(out)) < 0.05] = np.nan
    kept = rng.random(len(pv)) > 0.05
    found = identify(Record(whole.t[kept] + rng.uniform(-0.1, 0.1, kept.sum()), pv[kept], out[kept]))
    assert found.grade == "good", found.why
    assert found.model.k == pytest.approx(true.k, rel=0.05)
    assert found.model.delay == pytest.approx(true.delay, abs=1.0)


def test_the_longest_stretch_between_gaps_counts() -> None:
    whole = recorded(PLANTS["L/T 0.5"], "random")
    out = whole.out.copy()
    out[80:120] = np.nan
    grid = to_grid(dataclasses.replace(whole, out=out))
    assert len(grid.out) == 480
    assert grid.cut == 120


def test_a_cell_of_the_grid_has_the_mean_of_what_was_held_in_it() -> None:
    t = np.array([0.0, *(np.arange(1, 60) + 0.5)])
    out = np.arange(60.0)
    grid = to_grid(Record(t, np.zeros(60), out), period=1.0)
    assert grid.out[:4] == pytest.approx([0.0, 0.5, 1.5, 2.5])
    assert grid.at[:3] == pytest.approx([0.0, 1.5, 2.5])


def test_on_a_coarse_grid_the_samples_of_a_cell_are_taken_together() -> None:
    whole = recorded(PLANTS["L/T 0.5"], "random", samples=900)
    grid = to_grid(whole, period=3.0)
    assert len(grid.out) == len(grid.pv) == 300
    assert grid.at[:2] == pytest.approx([1 / 3, 4 / 3])
    assert grid.pv[5] == pytest.approx(whole.pv[15:18].mean())
    found = identify(whole, period=3.0)
    assert found.model.k == pytest.approx(1.0, rel=0.05)
    assert found.model.delay == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (Record(np.arange(10.0), np.arange(10.0), np.arange(10.0)), "40 are needed"),
        (Record(np.zeros(50), np.arange(50.0), np.arange(50.0)), "rise"),
        (Record(np.arange(50.0), np.arange(50.0), np.ones(50)), "output never moves"),
        (Record(np.arange(50.0), np.ones(50), np.arange(50.0)), "PV never moves"),
        (Record(np.arange(50.0), np.arange(50.0), np.full(50, np.nan)), "0 of the output"),
    ],
)
def test_a_record_with_nothing_in_it_is_refused_in_words(record: Record, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        identify(record)


def test_a_record_too_short_for_its_delay_is_poor() -> None:
    found = identify(recorded(dataclasses.replace(PLANTS["L/T 1"], delay=40), "random", samples=130))
    assert found.grade == "poor"


def test_an_exact_simulation_without_noise_is_found_exactly() -> None:
    found = identify(recorded(PLANTS["two lags"], "random", noise=0.0, drift=0.0)).model
    assert (found.k, found.t1, found.t2, found.delay) == pytest.approx((-2, 8, 4, 2.4), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_oscillates_is_found_as_one(seed: int) -> None:
    """Damping 0.3, a period of 30 s: no two lags do that."""
    rng = np.random.default_rng(seed)
    fast, slow, out, rows = 0.0, 0.0, 0.0, []
    for i in range(600):
        if i >= 25 and i % 5 == 0:
            out = rng.choice([-0.15, 0.15])
        rows.append((slow + 0.005 * rng.normal(), out))
        for _ in range(20):
            fast += 0.05 * ((out - slow) / 25 - 2 * 0.3 / 5 * fast)
            slow += 0.05 * fast
    pv, outs = np.array(rows).T
    found = identify(Record(np.arange(600.0), pv.copy(), outs.copy()))
    model = found.model
    assert found.grade == "good"
    assert (model.k, model.t1, model.damping) == pytest.approx((1.0, 5.0, 0.3), rel=0.03)
    assert (model.t2, model.integrating, model.delay) == (0.0, False, pytest.approx(0.0, abs=0.15))
    assert abs(model.damping - 0.3) < 4 * found.damping_error < 0.03


@pytest.mark.parametrize("damping", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("kind", ["random", "bump", "steps"])
def test_a_swing_is_found_however_the_loop_was_moved(kind: str, damping: float) -> None:
    truth = ModelConfig(k=1.5, t1=6.0, damping=damping, delay=2.3)
    found = identify(recorded(truth, kind))
    assert found.grade == ("fair" if kind == "steps" else "good")
    assert (found.model.k, found.model.t1) == pytest.approx((1.5, 6.0), rel=0.05)
    assert found.model.damping == pytest.approx(damping, abs=0.04)
    assert found.model.delay == pytest.approx(2.3, abs=0.3)


def test_a_swing_with_an_answer_the_wrong_way_is_not_good_for_prediction() -> None:
    """(1 - 6 s) / (25 s^2 + 3 s + 1): the swing is found, what comes before it is told."""
    rng = np.random.default_rng(0)
    fast, slow, out, rows = 0.0, 0.0, 0.0, []
    for i in range(600):
        if i >= 25 and i % 5 == 0:
            out = rng.choice([-0.15, 0.15])
        rows.append((slow - 6.0 * fast + 0.005 * rng.normal(), out))
        for _ in range(20):
            fast += 0.05 * ((out - slow) / 25 - 2 * 0.3 / 5 * fast)
            slow += 0.05 * fast
    pv, outs = np.array(rows).T
    found = identify(Record(np.arange(600.0), pv.copy(), outs.copy()))
    assert found.model.damping < 1.0
    assert found.grade == "fair"
    assert any("the wrong way first" in why for why in found.why)


@pytest.mark.parametrize("lags", [4, 8])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("moved", ["random", "relay"])
def test_many_lags_are_not_taken_for_a_swing(lags: int, seed: int, moved: str) -> None:
    """A swing explains them better than two lags and a delay do, with a slow load and a relay one of damping 0.56."""
    rng = np.random.default_rng(seed)
    chain = [Process(ModelConfig(k=1.0, t1=2.0), 0.1, pv=0.0, out=0.0) for _ in range(lags)]
    out, rows = 0.0, []
    for i in range(500):
        seen = chain[-1].pv + 0.005 * rng.normal()
        if moved == "relay" and i >= 25:
            out = -0.15 if seen > 0.0 else 0.15
        elif i >= 25 and i % (2 * lags) == 0:
            out = rng.choice([-0.15, 0.15])
        rows.append((seen, out))
        for _ in range(10):
            through = out + (0.02 * np.sin(i / 37.0) if moved == "relay" else 0.0)
            for one in chain:
                through = one.step(through)
    pv, outs = np.array(rows).T
    assert identify(Record(np.arange(500.0), pv.copy(), outs.copy())).model.damping == 1.0


def test_a_record_that_something_else_moved_is_poor() -> None:
    record = recorded(PLANTS["L/T 0.5"], "bump")
    pushed = (
        record.pv
        + 3 * np.sin(np.arange(600) / 40)
        + np.cumsum(np.random.default_rng(3).normal(size=600)) / 20
    )
    found = identify(dataclasses.replace(record, pv=pushed))
    assert found.grade == "poor"

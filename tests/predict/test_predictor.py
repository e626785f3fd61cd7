"""What a forecast must be worth, on series whose nature is known, and that nothing brings a model out of its senses."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.config.types import Config, Device, PredictConfig, Tag, Url
from agent.kernelcache import backend
from agent.predict import columns as c
from agent.predict import kernels, reference
from agent.predict.predictor import Predictor, for_config
from tests.predict.series import ar2, predictor, relative_mae, run, walk

Floats = NDArray[np.float64]
N = 3000
HORIZON = (1, 5, 20)


def spikes() -> Floats:
    y = 20 + 0.1 * ar2(N)
    y[::211] += 80.0
    return y


def shift() -> Floats:
    y = 20 + 0.1 * ar2(N)
    y[N // 2 :] += 50.0
    return y


def wakes_up() -> Floats:
    y = ar2(N)
    y[: N // 3] = 7.0
    return y


AWKWARD = {
    "constant": np.full(N, 42.0),
    "zero": np.zeros(N),
    "staircase": np.round(5 * np.sin(np.arange(N) / 200) + 0.3 * walk(N) / 30),
    "boolean": (ar2(N) > 0.0).astype(float),
    "one pulse": np.where(np.arange(N) == 1000, 1.0, 0.0),
    "offset 1e9": 1e9 + ar2(N),
    "float32 steps": (1e6 + ar2(N)).astype(np.float32).astype(float),
    "spikes": spikes(),
    "level shift": shift(),
    "constant, then moving": wakes_up(),
    "ramp": np.arange(N) * 0.25,
    "sawtooth": np.arange(N) % 100.0,
    "denormal": 1e-310 * ar2(N),
    "tiny": 1e-300 * ar2(N),
    "huge": 1e298 * np.clip(ar2(N), -90, 90),
    "tiny and huge": np.where(np.arange(N) % 2 == 0, 1e-300, 1e300),
    "beyond": np.where(np.arange(N) % 50 == 49, 1.7e308, ar2(N)),
    "infinite": np.where(np.arange(N) % 50 == 49, np.inf, ar2(N)),
    "white noise": np.random.default_rng(3).normal(size=N),
    "doubling": np.minimum(2.0 ** (np.arange(N) / 4), 1e300),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_series_stay_finite_and_sane(name: str) -> None:
    y = AWKWARD[name]
    model = predictor()
    forecast, lower, upper = (made[:, 0] for made in run(model, y))
    assert np.isnan(forecast[:29]).all(), "nothing is shown before the 30th sample"
    assert np.isfinite(forecast[60:]).all()
    assert np.isfinite(lower[60:]).all() and np.isfinite(upper[60:]).all()
    assert (lower[60:] <= forecast[60:]).all() and (forecast[60:] <= upper[60:]).all()
    assert np.isfinite(model.a).all() and np.isfinite(model.b).all()
    real = y[np.abs(y) <= c.HUGE]
    span = real.max() - real.min()
    assert (forecast[60:] >= real.min() - span).all() and (forecast[60:] <= real.max() + span).all()


@pytest.mark.parametrize("name", ["constant", "zero"])
def test_a_constant_is_foretold_exactly(name: str) -> None:
    y = AWKWARD[name]
    forecast, lower, upper = run(predictor(), y)
    assert (forecast[100:] == y[0]).all() and (lower[100:] == y[0]).all() and (upper[100:] == y[0]).all()


def test_better_than_the_last_value_where_there_is_something_to_learn() -> None:
    y = ar2(4000)
    forecast = run(predictor(), y)[0][:, 0]
    assert [
        relative_mae(y, forecast[:, j], h) < limit
        for j, (h, limit) in enumerate([(1, 0.5), (5, 0.6), (20, 0.9)])
    ] == [True] * 3


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_no_worse_than_the_last_value_on_a_random_walk(seed: int) -> None:
    y = walk(6000, seed)
    forecast = run(predictor(), y)[0][:, 0]
    for j, h in enumerate(HORIZON):
        assert relative_mae(y, forecast[:, j], h) <= 1.01


@pytest.mark.parametrize(
    "name", ["spikes", "level shift", "white noise", "staircase", "float32 steps", "boolean"]
)
def test_never_much_worse_than_the_last_value(name: str) -> None:
    y = AWKWARD[name]
    forecast = run(predictor(), y)[0][:, 0]
    for j, h in enumerate(HORIZON):
        assert relative_mae(y, forecast[:, j], h) <= 1.04


@pytest.mark.parametrize("interval", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("name", ["ar2", "walk", "white noise", "spikes", "heavy tails", "growing noise"])
def test_intervals_hold_what_they_promise(name: str, interval: float) -> None:
    made = {
        "ar2": ar2(6000),
        "walk": walk(6000),
        "heavy tails": np.cumsum(np.random.default_rng(5).standard_t(3, size=6000)),
        "growing noise": np.random.default_rng(6).normal(size=6000) * np.linspace(1, 20, 6000),
    }
    y = made.get(name, AWKWARD.get(name))
    assert y is not None
    model = predictor(interval=interval)
    _, lower, upper = (one[:, 0] for one in run(model, y))
    for j, h in enumerate(HORIZON):
        inside = (y[400 + h :] >= lower[400:-h, j]) & (y[400 + h :] <= upper[400:-h, j])
        assert abs(inside.mean() - interval) <= 0.015


def test_a_coarse_signal_has_no_interval_narrower_than_its_quantum() -> None:
    y = np.round(ar2(2000) / 10)
    for quantum in (np.array([1.0]), None):
        _, lower, upper = run(predictor(quantum=quantum), y)
        width = (upper - lower)[100:]
        assert width.min() >= 1.0 - 1e-9


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
def test_an_offset_changes_nothing(offset: float) -> None:
    y = np.round(ar2(1500) * 1024) / 1024  # exact in binary at each offset
    plain, shifted = run(predictor(), y)[0], run(predictor(), y + offset)[0]
    assert np.nanmax(np.abs(shifted - offset - plain)) < 1e-5


def test_a_gap_is_bridged_and_widens_the_interval() -> None:
    y = ar2(1200)
    y[1000:1010] = np.nan
    model = predictor()
    forecast, lower, upper = (one[:, 0] for one in run(model, y[:1010]))
    width = upper - lower
    assert width[1005, 0] > 1.5 * width[999, 0]
    assert np.isfinite(forecast[1000:1010]).all()
    before = model.state.packed.copy()
    model.update(np.array([0]), np.array([np.nan]), np.array([1010.0]))
    assert (model.state.packed == before).all(), "nothing is learnt from what was not seen"
    width = np.subtract(*(one[:, 0] for one in run(model, y[1010:], start=1011)[:0:-1]))
    assert width[-1, 0] < 2 * (upper - lower)[999, 0]


def test_missing_samples_cost_little() -> None:
    y = ar2(6000)
    holes = y.copy()
    for start in np.random.default_rng(3).choice(5800, 120, replace=False) + 100:
        holes[start : start + 5] = np.nan
    whole = run(predictor(), y)[0][:, 0]
    forecast = run(predictor(), holes)[0][:, 0]
    seen = ~np.isnan(holes[101:])
    lost = (
        np.abs(y[101:] - forecast[100:-1, 0])[seen].mean() / np.abs(y[101:] - whole[100:-1, 0])[seen].mean()
    )
    assert lost < 1.3


def test_a_late_sample_counts_the_steps_between_as_missing() -> None:
    y = ar2(600)
    gone, late = predictor(), predictor()
    slot = np.array([0])
    for i in range(600):
        absent = 400 <= i < 410
        gone.update(slot, np.array([np.nan if absent else y[i]]), np.array([float(i)]))
        if not absent:
            late.update(slot, np.array([y[i]]), np.array([i + 0.1]))
    assert np.allclose(gone.a, late.a, rtol=1e-9) and np.allclose(gone.b, late.b, rtol=1e-9)


@pytest.mark.parametrize(
    ("late", "learns"), [(0.0, True), (0.15, True), (0.3, False), (-0.15, True), (-0.3, False)]
)
def test_a_sample_off_the_grid_teaches_nothing(late: float, learns: bool) -> None:
    model = predictor()
    run(model, ar2(200))
    before = model.state.packed.copy()
    model.update(np.array([0]), np.array([5.0]), np.array([200.0 + late]))
    assert bool((model.state.packed != before).any()) is learns
    assert model.state.scalars[0, c.REAL] == 5.0


def test_a_second_sample_within_half_a_period_is_left_out() -> None:
    model = predictor()
    run(model, ar2(100))
    before = model.state.scalars.copy()
    model.update(np.array([0]), np.array([5.0]), np.array([99.3]))
    assert np.array_equal(model.state.scalars, before, equal_nan=True)


def test_time_that_jumps_does_no_harm() -> None:
    model = predictor()
    y = ar2(400)
    for i, t in enumerate([*range(200), *range(-3600, -3500), *(10**12 + np.arange(100))]):
        model.update(np.array([0]), y[i : i + 1], np.array([float(t)]))
    assert np.isfinite(model.y).all()


def test_the_published_coefficients_are_the_model_in_levels() -> None:
    y = ar2(1500)
    model = predictor()
    run(model, y)
    model.state.errors[:] = 0.0
    model.state.errors[0, :, :4] = 1e6  # only the full order is left to be believed
    model.state.errors[0, :, c.PLAIN] = 1e6
    model.update(np.array([0]), np.array([np.nan]), np.array([1500.0]))
    a, b = model.a[0], model.b[0]
    filled = model.state.scalars[0, c.Y]
    levels = [filled, *y[: -len(a) : -1]]
    expected = sum(ai * x for ai, x in zip(a, levels, strict=True)) + b
    assert model.y[0, 0] == pytest.approx(expected, abs=1e-3)


def test_an_input_that_drives_the_tag_is_used() -> None:
    rng = np.random.default_rng(7)
    n = 4000
    u = np.repeat(rng.integers(0, 2, n // 40), 40).astype(float)
    y = np.zeros(n)
    for i in range(1, n):
        y[i] = 0.95 * y[i - 1] + 2.0 * u[max(i - 3, 0)] + 0.05 * rng.normal()
    key, heater = ("plant", "tag0"), ("plant", "heater")
    alone = Predictor([key], np.ones(1))
    driven = Predictor([key], np.ones(1), inputs={key: (heater,)})
    assert driven.input_keys == (heater,)
    made = np.empty((2, n, 3))
    for i in range(n):
        alone.update(np.array([0]), y[i : i + 1], np.array([float(i)]))
        driven.update(np.array([0]), y[i : i + 1], np.array([float(i)]), x=u[i : i + 1])
        made[0, i], made[1, i] = alone.y[0], driven.y[0]
    assert relative_mae(y, made[1, :, 0], 1) < 0.8 * relative_mae(y, made[0, :, 0], 1)


def test_the_book_agrees_with_what_was_shown() -> None:
    y = ar2(1000)
    model = predictor()
    forecast, lower, upper = (one[:, 0, 0] for one in run(model, y))
    error = np.abs(y[1:] - forecast[:-1])
    inside = ((y[1:] >= lower[:-1]) & (y[1:] <= upper[:-1]))[~np.isnan(error)]
    known = model.scores()["plant/tag0"]
    assert known["n"] == np.count_nonzero(~np.isnan(error))
    skill = 1 - np.nansum(error) / np.abs(np.diff(y))[~np.isnan(error)].sum()
    assert known["skill"] == pytest.approx(skill) and known["coverage"] == pytest.approx(inside.mean())
    assert model.made == 3 * np.count_nonzero(~np.isnan(forecast))


def test_a_hundred_thousand_updates_keep_the_matrix_well_conditioned() -> None:
    series = np.stack([np.random.default_rng(8).normal(size=100_000), np.full(100_000, 3.0)], axis=1)
    series[:100, 1] = ar2(100)
    model = predictor(2)
    slots = np.arange(2)
    for i, values in enumerate(series):
        model.update(slots, values, np.full(2, float(i)))
    n = model.order + 2
    for packed in model.state.packed:
        whole = reference._unpack(packed[None], n)[0]
        assert np.linalg.eigvalsh(whole).min() >= c.PRIOR * (1 - 1e-9)
    assert np.isfinite(model.state.thetas).all()


def test_forecasts_are_a_copy() -> None:
    model = predictor(3)
    run(model, np.stack([ar2(50, seed) for seed in range(3)], axis=1))
    given_out = model.forecasts(np.array([5, 7, 9]))
    before = given_out.y.copy()
    run(model, np.stack([ar2(50, seed) for seed in range(3)], axis=1), start=50)
    assert (given_out.y == before).all() and (given_out.rows == [5, 7, 9]).all()
    assert given_out.h == HORIZON and given_out.a.shape == (3, 9) and given_out.b.shape == (3,)
    y, lo, hi = model.ahead(1)
    assert (y == model.y[1]).all() and (lo == model.lo[1]).all() and (hi == model.hi[1]).all()


def test_a_configuration_s_predictor() -> None:
    tags = {
        "raw": Tag("raw", "input", 7, type="int16", scale=Decimal("0.01"), every=2.0),
        "real": Tag("real", "holding", 0, type="float32"),
        "power": Tag("power", "holding", 2, type="int16", scale_from="sf"),
    }
    device = Device("press", Url("tcp://h", "tcp"), tags=tags)
    keys = tuple(("press", name) for name in tags)
    predict = PredictConfig(tags=keys, horizon=(2, 4), order=3, interval=0.8, inputs={keys[1]: (keys[0],)})
    config = Config("x", None, None, devices={"press": device}, predict=predict)
    model = for_config(config)
    assert model is not None and model.keys == keys and model.horizon == (2, 4)
    assert (model.order, model.interval, model.input_keys) == (3, 0.8, (keys[0],))
    assert model.state.scalars[:, c.QUANTUM].tolist() == [0.01, 0.0, 0.0]
    assert model.state.scalars[:, c.PERIOD].tolist() == [2.0, 1.0, 1.0]
    assert for_config(replace(config, predict=None)) is None
    rescaled = {**tags, "raw": replace(tags["raw"], scale=Decimal("0.1"))}
    other = for_config(replace(config, devices={"press": replace(device, tags=rescaled)}))
    assert other is not None and other.restore(model.save()) == 2


def test_slices_cover_everything_once() -> None:
    parts = list(Predictor.parts(1201))
    assert [(one.start, one.stop) for one in parts] == [(0, 500), (500, 1000), (1000, 1201)]


@pytest.mark.parametrize(
    "bad",
    [{"horizon": ()}, {"horizon": (0,)}, {"order": 0}, {"order": 99}, {"interval": 1.0}, {"interval": 0.1}],
)
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"horizon|order|interval"):
        predictor(**bad)


def test_compiled_kernels_run_here() -> None:
    assert backend() == "numba"
    assert predictor()._step is kernels.step


def compare(seed: int, tags: int, steps: int, **settings: object) -> None:
    """Runs kernel and reference on the same random story and compares every array they left."""
    rng = np.random.default_rng(seed)
    key = [("plant", f"tag{i}") for i in range(tags)]
    inputs = {key[0]: (key[-1],), key[1]: (("else", "a"), ("else", "b"))}
    pair = [Predictor(key, np.ones(tags), inputs=inputs, **settings) for _ in "12"]  # type: ignore[arg-type]
    pair[1]._step = reference.step
    scale = np.array([1.0, 1e-300, 1e299, 1e-3, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])[:tags]
    t, walk_ = np.zeros(tags), np.zeros(tags)
    for _ in range(steps):
        t = t + np.where(rng.random(tags) < 0.03, rng.uniform(0.1, 40, tags), 1.0)
        walk_ = 0.95 * walk_ + rng.normal(size=tags)
        value = walk_ * scale
        value[4], value[5], value[6] = 42.0, np.round(walk_[5]), 1e9 + walk_[6]
        value[rng.random(tags) < 0.05] = np.nan
        slots = np.flatnonzero(rng.random(tags) < 0.95)
        x = np.where(rng.random(3) < 0.1, np.nan, rng.integers(0, 2, 3).astype(float))
        for model in pair:
            model.update(slots, value[slots], t[slots], x=x)
    one, other = (model.state for model in pair)
    for name in one.__dataclass_fields__:
        left, right = getattr(one, name), getattr(other, name)
        size = np.maximum(np.abs(left), np.abs(right))
        floor = np.nanmax(
            np.where(np.isfinite(size), size, 0.0), axis=tuple(range(1, size.ndim)), keepdims=True
        )
        with np.errstate(invalid="ignore"):
            same = (
                (np.abs(left - right) <= 1e-6 * size + 1e-9 * floor)
                | (left == right)
                | (np.isnan(left) & np.isnan(right))
            )
        assert same.all(), (name, np.argwhere(~same)[:3], left[~same][:3], right[~same][:3])
    assert np.allclose(pair[0].y, pair[1].y, rtol=1e-6, equal_nan=True)
    assert np.allclose(pair[0].hi - pair[0].lo, pair[1].hi - pair[1].lo, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"order": 1},
        {"order": 2},
        {"order": 16},
        {"horizon": (3,)},
        {"horizon": (20, 1, 7)},
        {"interval": 0.99},
    ],
    ids=str,
)
def test_kernel_and_reference_agree(case: dict[str, object]) -> None:
    compare(1, 10, 400, **case)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    order=st.integers(1, 12),
    horizon=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_kernel_and_reference_agree_on_any_story(seed: int, order: int, horizon: list[int]) -> None:
    compare(seed, 10, 120, order=order, horizon=tuple(dict.fromkeys(horizon)))

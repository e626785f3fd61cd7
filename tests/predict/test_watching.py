"""The kernel of health and rules against its plain reference, over series that no plant should send."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.config.types import Config, Device, HealthConfig, Tag, Url
from agent.predict import columns as c
from agent.predict import health as health_module
from agent.predict.health import Health
from agent.predict.predictor import Predictor
from agent.twin.records import Event
from tests.predict.series import ar2

Floats = NDArray[np.float64]
STEPS = 900


def awkward(seed: int) -> dict[str, Floats]:
    """Series by name, each of STEPS samples."""
    rng = np.random.default_rng(seed)
    noise = ar2(STEPS, seed=seed)
    holes = np.where(rng.random(STEPS) < 0.3, np.nan, noise)
    monsters = noise.copy()
    monsters[rng.integers(0, STEPS, 40)] = rng.choice([1e300, -1e300, np.inf, -np.inf, 1e-300, 0.0], 40)
    step = np.where(np.arange(STEPS) < 500, noise, noise + 30.0)
    current = np.clip(12.0 + 0.2 * noise, 4.0, 20.0)
    current[500:620] = rng.choice([3.5, 3.7, 12.0, 20.7, 22.0], 24).repeat(5)
    return {
        "noise": noise,
        "constant": np.full(STEPS, 3.25),
        "stairs": np.floor(np.arange(STEPS) / rng.integers(2, 40)),
        "holes": holes,
        "nothing": np.full(STEPS, np.nan),
        "monsters": monsters,
        "huge": np.where(np.arange(STEPS) % 2, 1e300, -1e300),
        "tiny": 1e-300 * noise,
        "step": step,
        "stuck": np.where((np.arange(STEPS) > 450) & (np.arange(STEPS) < 700), noise[450], noise),
        "ends": np.clip(20.0 * noise, -25.0, 25.0),
        "seldom": np.clip(noise + np.where(np.arange(STEPS) % 300 > 270, 90.0, 0.0), -60.0, 60.0),
        "current": current,
    }


def build(names: list[str], **setting: object) -> tuple[Predictor, Health]:
    """Predictor and health of three devices: the last one is not scored."""
    ranges = {"ends": (-25.0, 25.0), "seldom": (-60.0, 60.0)}
    tags = {
        name: Tag(name, "holding", 0, type="float64", range=ranges.get(name), loop_current=name == "current")
        for name in names
    }
    devices = {name: Device(name, Url("tcp://h", "tcp"), tags=tags) for name in ("a", "b", "c")}
    scored = HealthConfig(tags=tuple(names), **{"warmup": 200, **setting})  # type: ignore[arg-type]
    keys = [(device, name) for device in devices for name in names]
    predictor = Predictor(keys, np.ones(len(keys)))
    config = Config("x", None, None, devices=devices, health={"a": scored, "b": scored})
    return predictor, Health(config, keys, predictor)


def run(predictor: Predictor, health: Health, series: Floats) -> Iterator[tuple[list[Event], Floats]]:
    """Feeds the three devices in turns; the events and the watched columns after each scan."""
    count = series.shape[1]
    for i, values in enumerate(series):
        for device in range(3):
            slots = np.arange(device * count, (device + 1) * count)
            predictor.update(slots, values, np.full(count, float(i)))
            events = health.update(slots, values, float(i))
            yield events, health._watch.copy()


def told(events: list[Event]) -> list[tuple[object, ...]]:
    return [(one.device, one.name, one.state, one.t, one.causes, one.tag) for one in events]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("setting", [{}, {"reference": "slow"}, {"warmup": 1500}, {"calibrate": (2.0, -3.0)}])
def test_kernel_and_reference_agree(
    seed: int, setting: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = awkward(seed)
    series = np.column_stack(list(all_of_them.values()))
    if "warmup" in setting:
        series = np.tile(series, (2, 1))
    monkeypatch.setattr(health_module, "choose", lambda compiled, reference: compiled)
    one = build(list(all_of_them), **setting)
    monkeypatch.setattr(health_module, "choose", lambda compiled, reference: reference)
    two = build(list(all_of_them), **setting)
    count, logs = 0, [c.LOGIT, c.Z]
    plain = [i for i in range(c.WATCH) if i not in logs]
    for (events, watch), (their_events, theirs) in zip(run(*one, series), run(*two, series), strict=True):
        assert told(events) == told(their_events)
        assert np.array_equal(watch[:, plain], theirs[:, plain], equal_nan=True)
        assert np.allclose(watch[:, logs], theirs[:, logs], rtol=1e-13, atol=1e-13, equal_nan=True)
        count += len(events)
    assert count > 10, "the series raise and clear events of every kind"
    assert np.array_equal(one[0].state.health, two[0].state.health, equal_nan=True)
    assert one[1].save() == two[1].save()
    for name, view in one[1].views().items():
        assert view.score == pytest.approx(two[1].views()[name].score, rel=1e-12)
        assert view.causes == two[1].views()[name].causes


def test_more_commissionings_than_one_call_ends_wait_for_the_next_sample() -> None:
    """References are frozen a few at a time, so that no scan is late."""
    names = [f"t{i}" for i in range(25)]
    predictor, health = build(names)
    series = np.column_stack([ar2(203, seed=i) for i in range(25)])
    counts = []
    for _ in run(predictor, health, series):
        counts.append(int(np.count_nonzero(predictor.state.health[:25, c.LEARNT] == 1.0)))
    assert counts[3 * 199 : 3 * 203 : 3] == [10, 20, 25, 25]

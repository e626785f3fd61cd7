"""Keys of forecasts and health: what they change in the models, the scores and their events."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.config.types import Config
from agent.predict.health import Health
from agent.predict.predictor import Predictor, for_config
from agent.twin.records import Event
from tests.keys.table import configured, effect

Floats = NDArray[np.float64]
NUMERIC = (("d", "t"), ("d", "pv"), ("d", "out"), ("d", "sp"), ("d", "ff"), ("d", "beat"), ("d", "more"))


def predicting(predict: Any = None, health: Any = None) -> Config:
    """A plant with these sections; None: without the section."""
    changes = {"predict": predict, "health": health}
    given = {key: value for key, value in changes.items() if value is not None}
    return configured(given, without=("predict",) if predict is None else ())


def model(predict: Any) -> Predictor:
    found = for_config(predicting(predict))
    assert found is not None
    return found


@cache
def noise(n: int = 600) -> Floats:
    """An autoregressive signal around 50."""
    rng = np.random.default_rng(5)
    x = np.zeros(n)
    for i in range(1, n):
        x[i] = 0.8 * x[i - 1] + rng.normal()
    return 50.0 + x


def fed(predictor: Predictor, series: Floats, x: Floats | None = None) -> Predictor:
    """The model of one tag after a series, a sample a second."""
    for i, value in enumerate(series):
        inputs = None if x is None else x[i : i + 1]
        predictor.update(np.array([0]), np.array([value]), np.array([float(i)]), x=inputs)
    return predictor


@effect("predict")
def test_predict_off() -> None:
    assert for_config(predicting("off")) is None
    assert for_config(predicting()) is not None


@effect("predict.tags")
def test_tags() -> None:
    assert model({"horizon": [1]}).keys == NUMERIC
    assert model({"tags": ["d/pv"]}).keys == (("d", "pv"),)
    assert model({"tags": ["d/p*", "d/o*"]}).keys == (("d", "pv"), ("d", "out"))


@effect("predict.horizon")
def test_horizon() -> None:
    y, _, _ = fed(model({"tags": ["d/pv"], "horizon": [2, 7]}), noise(100)).ahead(0)
    assert len(y) == 2 and np.isfinite(y).all()
    assert len(model({"tags": ["d/pv"], "horizon": [4]}).ahead(0)[0]) == 1


@effect("predict.interval")
def test_interval() -> None:
    def width(interval: float) -> float:
        _, low, high = fed(model({"tags": ["d/pv"], "interval": interval}), noise()).ahead(0)
        return float(high[0] - low[0])

    assert width(0.5) < 0.7 * width(0.9) < 0.7 * width(0.98)


@effect("predict.order")
def test_order() -> None:
    def coefficients(order: int) -> Floats:
        a, _ = fed(model({"tags": ["d/pv"], "order": order}), noise(100)).coefficients(np.array([0]))
        return a

    assert coefficients(3).shape == (1, 4)
    assert coefficients(8).shape == (1, 9)


@pytest.mark.parametrize("wrong", [{"order": 33}, {"interval": 0.3}, {"interval": 0.9999}])
def test_what_the_models_do_not_take_is_refused_by_check(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="predict"):
        predicting(wrong)


@effect("predict.inputs")
def test_inputs() -> None:
    rng = np.random.default_rng(8)
    x = rng.choice([0.0, 10.0], size=500)
    y = np.concatenate([[50.0], 50.0 + x[:-1]]) + 0.01 * rng.normal(size=500)
    alone = {"tags": ["d/pv"], "horizon": [1]}
    driven = model(alone | {"inputs": {"d/pv": ["d/ff"]}})
    assert driven.input_keys == (("d", "ff"),)

    def skill(predictor: Predictor) -> float:
        error = predictor.book(0)[1]["relative_mae"]
        assert error is not None
        return error

    assert skill(fed(driven, y, x)) < 0.5 * skill(fed(model(alone), y))


# -- health ---------------------------------------------------------------------------------------------------------


class Scored:
    """The health of device d over its tag pv, after a warmup like always and then a shift by `shift`."""

    def __init__(self, *, usual: int = 450, odd: int = 40, shift: float = 40.0, **health: Any) -> None:
        config = predicting({"tags": ["d/pv", "d/ff"]}, {"d": {"tags": ["pv"], **health}} if health else None)
        predictor = for_config(config)
        assert predictor is not None
        self.health = Health(config, predictor.keys, predictor)
        self.events: list[tuple[int, Event]] = []
        self.scores: list[float | None] = []
        slots = np.arange(2)
        series = np.concatenate([noise()[:usual], noise()[usual : usual + odd] + shift])
        for i, value in enumerate(series):
            values = np.array([value, noise()[-1 - i]])
            predictor.update(slots, values, np.full(2, float(i)))
            found = self.health.update(slots, values, float(i))
            self.events += [(i, event) for event in found if event.name == "health_low"]
            self.scores.append(self.health.views()["d"].score)

    @property
    def first_score(self) -> int:
        """The sample with which the score began to count."""
        return next(i for i, score in enumerate(self.scores) if score is not None)


@effect("health.*.tags")
def test_health_tags() -> None:
    assert set(Scored(odd=1).health.views()["d"].tags) == {"pv", "ff"}
    assert set(Scored(odd=1, alarm=0.5).health.views()["d"].tags) == {"pv"}


@effect("health.*.warmup")
def test_warmup() -> None:
    assert Scored(odd=1, alarm=0.5).first_score == 399
    assert Scored(odd=1, warmup=100).first_score == 99


@effect("health.*.hold")
def test_hold() -> None:
    def raised(hold: str) -> int:
        return Scored(hold=hold).events[0][0]

    assert raised("20s") == raised("10s") + 10


@effect("health.*.alarm")
def test_alarm() -> None:
    """The score sinks as the level moves: a higher limit is met sooner."""
    slight: dict[str, Any] = {"usual": 450, "odd": 140, "shift": 2.5}
    high, low = Scored(alarm=0.97, **slight), Scored(alarm=0.02, **slight)
    assert [event.limit for _, event in high.events[:1]] == [0.97]
    assert low.events == []


@effect("health.*.reference")
def test_reference() -> None:
    """A slow reference has moved a little towards a level that stays."""

    def last(**reference: str) -> float:
        found = Scored(usual=450, odd=140, shift=2.5, **reference).scores[-1]
        assert found is not None
        return found

    assert last(reference="slow") > last(reference="frozen") + 0.001
    assert last(reference="frozen") == last(hold="1s")


@effect("health.*.calibrate.a", "health.*.calibrate.b")
def test_calibrate() -> None:
    def score(a: float, b: float) -> float:
        found = Scored(odd=1, shift=0.0, calibrate={"a": a, "b": b}).scores[-1]
        assert found is not None
        return found

    assert score(0, 0) == 0.5
    assert score(0, -3.1) == pytest.approx(1 - 1 / (1 + np.exp(3.1)))
    assert score(1, -3.1) != score(0, -3.1)

"""Health: quiet when all is as always, low when it is not, and the rules that need no model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.config.types import Config, Device, HealthConfig, Heartbeat, LoopConfig, Tag, Url
from agent.predict import columns as c
from agent.predict.health import Health
from agent.predict.predictor import Predictor
from agent.predict.saved import StateDamaged, seal, unseal
from agent.twin.records import Event
from tests.predict.series import ar2

Floats = NDArray[np.float64]
WARMUP = 400


class Plant:
    """One device, its models and its health, fed once a second."""

    def __init__(self, tags: Mapping[str, Tag], health: HealthConfig | None = None) -> None:
        device = Device("press", Url("tcp://h", "tcp"), tags=tags)
        self.config = Config(
            "x", None, None, devices={"press": device}, health={"press": health} if health else {}
        )
        self.keys = [("press", name) for name in tags]
        self.predictor = Predictor(self.keys, np.ones(len(tags)))
        self.health = Health(self.config, self.keys, self.predictor)
        self.t = 0.0

    def feed(self, series: Floats) -> tuple[list[float], list[Event]]:
        slots = np.arange(len(self.keys))
        scores, events = [], []
        for values in series.reshape(len(series), -1):
            self.predictor.update(slots, values, np.full(len(slots), self.t))
            events += self.health.update(slots, values, self.t)
            score = self.health.views()["press"].score
            scores.append(math.nan if score is None else score)
            self.t += 1.0
        return scores, events


def tag(name: str, **more: object) -> Tag:
    return Tag(name, "holding", 0, type="float32", **more)  # type: ignore[arg-type]


def steady(n: int, tags: int = 1, seed: int = 1) -> Floats:
    rng = np.random.default_rng(seed)
    x = np.zeros((n, tags))
    for i in range(1, n):
        x[i] = 0.7 * x[i - 1] + rng.normal(size=tags)
    return 50.0 + x


def plant(tags: int = 1, **health: object) -> Plant:
    names = [f"tag{i}" for i in range(tags)]
    setting = HealthConfig(tags=tuple(names), **{"warmup": WARMUP, **health})  # type: ignore[arg-type]
    return Plant({name: tag(name) for name in names}, setting)


def low(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.name, event.state) for event in events if event.name == "health_low"]


def test_no_score_while_learning_then_near_one() -> None:
    one = plant(3)
    scores, _ = one.feed(steady(WARMUP + 300, 3))
    assert all(math.isnan(score) for score in scores[: WARMUP - 1])
    later = np.array(scores[WARMUP + 20 :])
    assert np.isfinite(later).all() and np.median(later) > 0.9
    assert np.mean(later < 0.5) < 0.05
    view = one.health.views()["press"]
    assert set(view.tags) == {"tag0", "tag1", "tag2"}


@pytest.mark.parametrize("tags", [1, 10, 50])
def test_a_long_quiet_run_raises_nothing(tags: int) -> None:
    _, events = plant(tags, warmup=1000).feed(steady(4000, tags))
    assert low(events) == []


def test_a_slow_drift_is_seen_and_named() -> None:
    series = steady(1500, 4)
    series[900:, 2] += np.linspace(0, 12, 600)
    one = plant(4)
    scores, events = one.feed(series)
    assert low(events) == [("health_low", "raised")]
    event = next(event for event in events if event.name == "health_low")
    assert event.causes[0] == "tag2" and event.alarm and event.severity == "warning" and event.limit == 0.5
    assert event.t > 900 and event.text.startswith("maintenance required") and "tag2" in event.text
    assert scores[-1] < 0.05
    view = one.health.views()["press"]
    assert view.causes[0] == "tag2"
    assert view.tags["tag2"] is not None and view.tags["tag2"] < 0.05


def test_a_change_of_the_noise_is_seen_by_the_fast_part() -> None:
    series = steady(1300)
    rng = np.random.default_rng(4)
    series[900:] += 12.0 * rng.normal(size=(400, 1)) * np.where(np.arange(400) < 60, 1, 0)[:, None]
    scores, events = plant().feed(series)
    assert min(scores[900:960]) < 0.2 and low(events)[0] == ("health_low", "raised")


def test_the_alarm_has_a_hold_time_and_hysteresis() -> None:
    series = steady(1400)
    series[800:806] += 40.0  # shorter than the hold time
    series[1000:1100] += 40.0
    _, events = plant(hold=30.0).feed(series)
    assert low(events) == [("health_low", "raised"), ("health_low", "cleared")]
    raised, cleared = (event.t for event in events if event.name == "health_low")
    assert 1028 <= raised <= 1035 and cleared >= 1128


def test_the_logistic_takes_given_coefficients() -> None:
    calm, strict = plant(calibrate=(2.0, -9.0)), plant(calibrate=(2.0, 2.0))
    series = steady(700)
    assert np.nanmedian(calm.feed(series)[0]) > 0.95
    assert np.nanmedian(strict.feed(series)[0]) < 0.5
    z = float(strict.health._z[0])
    assert strict.health.views()["press"].score == pytest.approx(1 - 1 / (1 + math.exp(-(2.0 * z + 2.0))))


def test_given_coefficients_hold_for_each_tag_too() -> None:
    """The device's score is its worst tag's, and the cause is the tag that has it."""
    one = plant(3, calibrate=(2.0, -1.0))
    one.feed(steady(WARMUP - 1, 3))
    assert np.isnan(one.health.scores()).all()
    series = steady(200, 3)
    series[100:, 1] += 12.0
    one.feed(series)
    view, z = one.health.views()["press"], one.health._z
    assert one.health.scores() == pytest.approx(1 - 1 / (1 + np.exp(-(2.0 * z - 1.0))))
    assert list(view.tags.values()) == one.health.scores().tolist()
    assert view.score == view.tags["tag1"] == min(one.health.scores()) < 0.5
    assert view.causes[0] == "tag1"


def test_a_loop_s_heartbeat_is_no_sign_of_health_unless_it_is_named() -> None:
    """It stops and starts anew with the loop's modes."""
    keys = [("press", "a"), ("press", "beat")]
    loop = LoopConfig("l", keys[0], keys[0], 0.0, (0.0, 1.0), heartbeat=Heartbeat(keys[1], 3.0))
    device = Device("press", Url("tcp://h", "tcp"), tags={name: tag(name) for _, name in keys})
    plain = Config("x", None, None, devices={"press": device}, loops={"l": loop})
    named = Config(
        "x",
        None,
        None,
        devices={"press": device},
        loops={"l": loop},
        health={"press": HealthConfig(tags=("a", "beat"))},
    )
    found = [Health(one, keys, Predictor(keys, np.ones(2))).views()["press"].tags for one in (plain, named)]
    assert [list(tags) for tags in found] == [["a"], ["a", "beat"]]


def test_two_quantiles_set_the_logistic() -> None:
    one = plant(warmup=2000)
    one.feed(steady(2000))
    row = one.predictor.state.health[0]
    assert row[c.LEARNT] == 1.0
    assert row[c.GAIN] * (-row[c.BIAS] / row[c.GAIN]) + row[c.BIAS] == pytest.approx(0.0)
    later = np.array([one.feed(steady(1, seed=i) + 0.0)[0][0] for i in range(3)])
    assert np.isfinite(later).all()


def test_missing_samples_say_nothing_of_health() -> None:
    one = plant(2)
    series = steady(600, 2)
    series[500:520] = np.nan
    scores, events = one.feed(series)
    assert all(math.isnan(score) for score in scores[500:520]) and np.isfinite(scores[521:]).all()
    assert low(events) == []


def test_a_tag_that_never_moves_is_still_learning() -> None:
    series = np.column_stack([steady(900)[:, 0], np.full(900, 3.0)])
    one = plant(2)
    scores, events = one.feed(series)
    assert one.health.views()["press"].tags["tag1"] is None and np.isfinite(scores[-1]) and events == []


def test_without_a_section_every_device_has_it_over_its_predicted_tags() -> None:
    one = Plant({"a": tag("a"), "b": tag("b")})
    one.feed(steady(450, 2))
    assert set(one.health.views()["press"].tags) == {"a", "b"}
    assert one.health.views()["press"].score is not None


def test_relearning_forgets_the_reference_and_clears_its_alarm() -> None:
    one = plant()
    one.feed(steady(500))
    scores, events = one.feed(steady(60, seed=2) + 30.0)
    assert scores[-1] < 0.1 and [event.state for event in events] == ["raised"]
    assert one.health.relearn("nobody", one.t) is None and one.health.warmup("nobody") == 0
    cleared = one.health.relearn("press", one.t)
    assert cleared is not None and [(e.state, e.text) for e in cleared] == [
        ("cleared", "press is commissioned anew")
    ]
    assert one.health.warmup("press") == WARMUP and one.health.views()["press"].score is None
    scores, events = one.feed(steady(500, seed=3) + 30.0)
    assert math.isnan(scores[0]) and math.isnan(scores[WARMUP - 2]) and np.median(scores[WARMUP + 10 :]) > 0.8
    assert events == [] and one.health.relearn("press", one.t) == [], "nothing was raised"


def test_what_was_learnt_outlives_a_restart() -> None:
    one, two = plant(), plant()
    one.feed(steady(600))
    two.predictor.restore(one.predictor.save())
    two.t = one.t
    scores, _ = two.feed(steady(50, seed=5) + 30.0)
    assert np.isfinite(scores[0]) and scores[-1] < 0.1


def test_a_slow_reference_follows_the_season_and_still_sees_a_fault() -> None:
    """A drift that every plant has over the year: 0.1 of the signal's own spread in a thousand samples."""
    season = steady(9000) + np.linspace(0.0, 1.2, 9000)[:, None] * 4.0
    season[8950:] += 12.0
    calm, strict = plant(reference="slow"), plant()
    scores, events = calm.feed(season)
    rigid, _ = strict.feed(season)
    assert np.median(scores[8000:8950]) > 0.9 and np.median(rigid[8000:8950]) < 0.5
    assert scores[-1] < 0.2 and [event.state for event in events][-1:] == ["raised"]


def test_a_slow_reference_moves_by_a_bounded_step() -> None:
    one = plant(reference="slow")
    series = steady(600)
    series[500] = 1e300
    one.feed(series)
    level, spread = one.predictor.state.health[0, [c.REF_LEVEL, c.REF_SPREAD]]
    assert abs(level - 50.0) < 1.0 and 0.5 < spread < 3.0


def restarted(one: Plant, **health: object) -> tuple[Plant, int]:
    """Another process with what one saved; and how many commissionings went on in it."""
    two = plant(len(one.keys), **health)
    two.predictor.restore(one.predictor.save(), offset=0.0)
    found = two.health.restore(one.health.save())
    two.t = one.t
    return two, found


@pytest.mark.parametrize("warmup", [WARMUP, 3500])
def test_half_a_commissioning_goes_on_after_a_restart(warmup: int) -> None:
    one = plant(2, warmup=warmup)
    series = steady(warmup + 100, 2)
    one.feed(series[: warmup - 50])
    two, found = restarted(one, warmup=warmup)
    assert found == 2
    rest, events = one.feed(series[warmup - 50 :])
    again, their_events = two.feed(series[warmup - 50 :])
    assert np.array_equal(rest, again, equal_nan=True) and np.isfinite(again[60:]).all()
    assert np.array_equal(one.predictor.state.health, two.predictor.state.health)
    assert events == their_events


def test_half_a_commissioning_goes_on_in_another_configuration() -> None:
    one, two = plant(2), plant(2)
    series = steady(WARMUP + 100, 2)
    one.feed(series[:300])
    two.predictor.go_on(one.predictor)
    two.health.go_on(one.health, {"press"})
    two.t = one.t
    rest, _ = one.feed(series[300:])
    again, _ = two.feed(series[300:])
    assert np.array_equal(rest, again, equal_nan=True) and np.isfinite(again[-1])


def test_a_commissioning_of_another_age_or_length_begins_anew() -> None:
    one = plant()
    one.feed(steady(100))
    old = one.health.save()
    one.feed(steady(100))
    two = plant()
    two.predictor.restore(one.predictor.save(), offset=0.0)
    assert two.health.restore(old) == 0, "the power went between the writing of both files"
    assert restarted(one, warmup=300)[1] == 0
    three = plant()
    assert three.health.restore(one.health.save()) == 0, "its models are not the same any more"
    scores, _ = three.feed(steady(WARMUP + 1))
    assert all(math.isnan(score) for score in scores[: WARMUP - 1]) and np.isfinite(scores[-1])


def test_what_is_learnt_is_not_among_the_unfinished() -> None:
    one = plant()
    one.feed(steady(WARMUP + 1))
    assert len(one.health.save()) < 100 and restarted(one)[1] == 0


def test_damaged_commissionings_are_told() -> None:
    one = plant()
    one.feed(steady(100))
    data = one.health.save()
    cut = seal("commissioning", 1, unseal("commissioning", 1, data)[:-8])
    for bad in (b"", data[:-1], cut, seal("commissioning", 1, b"\x05\0\0\0[1,2]")):
        with pytest.raises(StateDamaged):
            plant().health.restore(bad)


def test_a_long_commissioning_keeps_a_bounded_window() -> None:
    one = plant(warmup=3500)
    scores, _ = one.feed(steady(3600))
    assert math.isnan(scores[3400]) and np.isfinite(scores[-1])


@pytest.mark.parametrize("tags", [1, 50])
def test_many_tags_share_what_is_kept_while_learning(tags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a gateway with 10,000 tags, each of which keeps every fourth sample: the score serves all the same."""
    monkeypatch.setattr("agent.predict.health.WINDOWS_TOGETHER", 100 * tags)
    one = plant(tags)
    assert one.health._window.shape == (tags, 100, 3)
    scores, events = one.feed(steady(2500, tags))
    assert np.median(scores[WARMUP + 20 :]) > 0.9 and low(events) == []
    _, events = one.feed(steady(600, tags) + np.linspace(0, 12, 600)[:, None])
    assert low(events) == [("health_low", "raised")]


@pytest.mark.parametrize("value", [1e300, -1e300, np.inf, 1e-300])
def test_monstrous_values_leave_a_score(value: float) -> None:
    one = plant()
    series = steady(600)
    series[500::7] = value
    one.feed(series)
    score = one.health.views()["press"].score
    assert score is not None and 0.0 <= score <= 1.0


def test_a_stuck_sensor_is_told_by_a_rule_though_its_score_is_fine() -> None:
    one = plant()
    series = steady(700)
    series[500:600] = series[500]
    _, events = one.feed(series)
    stuck = [event for event in events if event.name == "sensor_stuck_tag0"]
    assert [event.state for event in stuck] == ["raised", "cleared"]
    assert 525 <= stuck[0].t <= 540 and stuck[1].t == 600.0
    assert stuck[0].text.startswith("failure: press/tag0 has not moved") and stuck[0].tag == "tag0"


def test_a_signal_that_often_rests_is_not_stuck() -> None:
    series = np.repeat(ar2(60), 20)
    _, events = plant().feed(np.append(series, np.full(90, series[-1])))
    assert [event for event in events if event.name.startswith("sensor_stuck")] == []


def test_the_end_of_the_range_is_out_of_specification() -> None:
    one = Plant({"level": tag("level", range=(0.0, 100.0), unit="%")})
    series = steady(700)
    series[600:610] = 100.0
    series[620:622] = 100.0  # too short
    _, events = one.feed(series)
    ends = [(event.name, event.state) for event in events if event.name.startswith("range")]
    assert ends == [("range_high_level", "raised"), ("range_high_level", "cleared")]
    assert next(e for e in events if e.name == "range_high_level").text.startswith("out of specification")


def test_an_end_of_the_range_where_the_tag_lives_is_normal() -> None:
    one = Plant({"flow": tag("flow", range=(0.0, 100.0))})
    series = np.maximum(steady(900) - 50.0, 0.0)
    _, events = one.feed(series)
    assert [event for event in events if event.name.startswith("range")] == []


@pytest.mark.parametrize(
    ("value", "name", "words"),
    [
        (3.5, "loop_current_failure_level", "failure: press/level is 3.5 mA, below 3.6 mA"),
        (3.7, "loop_current_limit_level", "out of specification: press/level is 3.7 mA, below 3.8 mA"),
        (20.7, "loop_current_limit_level", "out of specification: press/level is 20.7 mA, above 20.5 mA"),
        (22.0, "loop_current_failure_level", "failure: press/level is 22 mA, above 21 mA"),
    ],
)
def test_a_loop_current_outside_ne_43(value: float, name: str, words: str) -> None:
    one = Plant({"level": tag("level", unit="mA", loop_current=True)})
    series = 12.0 + 0.1 * (steady(60) - 50.0)
    series[30:40] = value
    _, events = one.feed(series)
    assert [(event.name, event.state) for event in events] == [(name, "raised"), (name, "cleared")]
    assert events[0].t == 33.0 and events[0].text.startswith(words)

"""Saved models go on bit for bit, only where they still fit, and damaged ones are refused in words."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from agent.predict import columns as c
from agent.predict.predictor import Predictor, StateDamaged
from agent.predict.saved import seal
from agent.predict.state import State
from tests.predict.series import ar2, predictor, run

SERIES = np.stack([ar2(500, seed) for seed in range(3)], axis=1)


def trained(**settings: object) -> Predictor:
    model = predictor(3, **settings)
    run(model, SERIES[:400])
    return model


def test_a_restored_model_goes_on_bit_for_bit() -> None:
    first, second = trained(), predictor(3)
    assert second.restore(first.save(), offset=0.0) == 3
    for one, other in zip(
        run(first, SERIES[400:], start=400), run(second, SERIES[400:], start=400), strict=True
    ):
        assert np.array_equal(one, other, equal_nan=True)
    for field in fields(State):
        assert np.array_equal(
            getattr(first.state, field.name), getattr(second.state, field.name), equal_nan=True
        )


def test_after_a_restart_the_first_sample_follows_a_break() -> None:
    first, second = trained(), predictor(3)
    second.restore(first.save())
    slots = np.arange(3)
    second.update(slots, SERIES[400] + 50.0, np.full(3, 7.0))
    assert np.array_equal(second.state.packed, first.state.packed), "a jump over the break teaches nothing"
    assert np.isfinite(second.y).all() and np.isnan(second.innovation(slots)).all()
    second.update(slots, SERIES[401] + 50.0, np.full(3, 8.0))
    assert not np.array_equal(second.state.packed, first.state.packed)


def test_models_follow_their_tags() -> None:
    data = trained().save()
    other = Predictor([("plant", "tag2"), ("plant", "new"), ("plant", "tag0")], np.ones(3))
    assert other.restore(data, offset=0.0) == 2
    first = trained()
    assert np.array_equal(other.a[[2, 0]], first.a[[0, 2]])
    assert other.state.scalars[1, c.SEEN] == 0


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"order": 4}, 0),
        ({"shapes": ["int16", "", ""]}, 2),
        ({"inputs": {("plant", "tag1"): (("plant", "tag0"),)}}, 2),
        ({"horizon": (1, 3)}, 3),
        ({"interval": 0.8}, 3),
    ],
)
def test_what_shapes_a_model_decides_whether_it_goes_on(change: dict[str, object], kept: int) -> None:
    first = trained()
    other = predictor(3, **change)
    assert other.restore(first.save(), offset=0.0) == kept
    run(other, SERIES[400:], start=400)
    assert np.isfinite(other.y).sum() >= kept * len(other.horizon)


def test_another_period_is_another_model() -> None:
    other = Predictor([("plant", f"tag{i}") for i in range(3)], np.array([1.0, 2.0, 1.0]))
    assert other.restore(trained().save()) == 2


def test_inputs_of_one_tag_leave_the_others_as_they_were() -> None:
    key, by = ("plant", "tag1"), ("plant", "u")
    with_inputs = predictor(3, inputs={key: (by,)})
    for i in range(400):
        with_inputs.update(np.arange(3), SERIES[i], np.full(3, float(i)), x=np.array([float(i % 7)]))
    plain = predictor(3)
    assert plain.restore(with_inputs.save(), offset=0.0) == 2
    again = predictor(3, inputs={key: (by,)})
    assert again.restore(with_inputs.save(), offset=0.0) == 3
    assert np.array_equal(again.state.packed, with_inputs.state.packed)
    assert np.array_equal(plain.a[[0, 2]], with_inputs.a[[0, 2]])


def damaged() -> dict[str, bytes]:
    whole = trained().save()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    return {
        "empty": b"",
        "something else": b"\x89PNG....",
        "cut in the head": whole[:20],
        "cut": whole[:-100],
        "longer": whole + b"x",
        "flipped": bytes(flipped),
        "another version": whole.replace(b"edgetwin models 1", b"edgetwin models 9", 1),
        "another inside": seal("models", 1, b"\x05\x00\x00\x00hello"),
        "arrays missing": seal("models", 1, b"\x02\x00\x00\x00{}"),
    }


@pytest.mark.parametrize("name", damaged())
def test_damage_is_told_in_words(name: str) -> None:
    model = predictor(3)
    with pytest.raises(StateDamaged) as told:
        model.restore(damaged()[name])
    assert len(str(told.value)) > 10 and "\n" not in str(told.value)
    assert model.state.scalars[0, c.SEEN] == 0, "nothing of it was taken"

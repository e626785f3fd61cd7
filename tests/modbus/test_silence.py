"""A silence counts between two signs of life, and only there. (The line that acts on it: test_silent_holes.py.)"""

from __future__ import annotations

from agent.modbus.plan import Request
from agent.modbus.silence import PROOF_HOLDS, SUSPECT_AFTER, Silence
from tests.modbus.plant import request

SHORT, LONG = request("a", 1, 100, 1), request("a", 1, 200, 20)


def suspicious() -> Silence:
    silence = Silence()
    for _ in range(SUSPECT_AFTER):
        silence.answered(SHORT)
        silence.silent(LONG)
    silence.answered(SHORT)
    assert silence.suspects == [LONG]
    return silence


def test_a_dead_device_makes_no_request_suspect() -> None:
    silence = Silence()
    silence.answered(SHORT)
    for _ in range(100):
        silence.silent(LONG)
        silence.silent(SHORT)
    assert silence.suspects == []
    assert silence.good is None


def test_silence_at_times_only_makes_no_request_suspect() -> None:
    silence = Silence()
    for _ in range(100):
        silence.silent(LONG)
        silence.answered(SHORT)
        silence.answered(LONG)
    assert silence.suspects == []


def test_each_silence_is_between_two_signs_of_life() -> None:
    silence = suspicious()
    sent: list[Request] = []
    counted = 0
    now = 0.0
    while counted < 3:
        now += 0.1
        step = silence.step(LONG, now)
        assert step is not None
        sent.append(step)
        if step == LONG:
            silence.was_silent()
        else:
            counted = silence.lives(now, 0.01)
    assert sent == [SHORT, LONG, SHORT, LONG, SHORT, LONG, SHORT]


def test_a_sign_of_life_does_not_last() -> None:
    silence = suspicious()
    assert silence.step(LONG, 0.0) == SHORT
    silence.lives(0.0, 0.01)
    assert silence.step(LONG, PROOF_HOLDS + 0.1) == SHORT


def test_another_trial_begins_with_nothing() -> None:
    silence = suspicious()
    other = request("a", 1, 300, 5)
    silence.step(LONG, 0.0)
    silence.lives(0.0, 0.01)
    assert silence.step(LONG, 0.1) == LONG
    silence.was_silent()
    assert silence.lives(0.2, 0.01) == 1
    assert silence.step(other, 0.3) == other
    silence.was_silent()
    assert silence.lives(0.4, 0.01) == 1


def test_nothing_is_tried_while_no_answer_is_known() -> None:
    silence = Silence()
    assert silence.step(LONG, 0.0) is None
    silence.answered(LONG)
    assert silence.step(LONG, 0.0) is None

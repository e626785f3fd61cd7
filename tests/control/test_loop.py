"""Modes, takeover, setpoint, deadband, heartbeat: what a loop does while nothing is wrong."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest

from agent.config.types import ControllerConfig, FeedForward
from agent.control.loop import STARTING, Loop
from agent.control.signals import Inputs, Sample
from tests.control.bench import FF, SP, Bench, beating, bench, config, failing, on, running

MODES = ("off", "shadow", "manual", "auto")


def test_takes_over_from_the_output_as_it_is_after_three_good_scans() -> None:
    made = bench()
    for _ in range(2):
        made.scan()
        assert made.loop.view().reason == STARTING
        assert not made.loop.engaged
    made.scan()
    assert made.loop.engaged
    assert made.loop.view().reason is None
    made.scan()
    assert made.register == pytest.approx(40.0, abs=1e-7)


@pytest.mark.parametrize("breaks", [{"good": False}, {"running": on(False)}], ids=str)
def test_a_bad_scan_makes_the_start_wait(breaks: dict[str, Any]) -> None:
    made = bench(interlock=(("plc", "running"),))
    made.running = on(True)
    made.scan(2)
    for name, value in breaks.items():
        setattr(made, name, value)
    made.scan(1)
    assert not made.loop.engaged
    made.good, made.running = True, on(True)
    made.scan(3)
    assert made.loop.engaged


def test_does_not_start_from_an_output_that_it_does_not_know() -> None:
    made = bench()
    for _ in range(5):
        made.now += 1.0
        inputs = Inputs(Sample(50.0, True, made.now), Sample())
        made.take(made.loop.on_sample(made.now, inputs))
    assert not made.loop.engaged
    assert made.loop.view().reason == "the output's value is not known"


def test_an_output_outside_the_limits_comes_to_the_nearest() -> None:
    made = bench(limits=(50.0, 90.0))
    made.scan(3)
    assert made.writes == [(made.now, 50.0, False)]


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("between", ["", "fail"])
def test_no_bump_in_any_pair_of_modes(first: str, second: str, between: str) -> None:
    """The PV stands off its setpoint with the integral at rest (ti 0), so that every change is one of the mode."""
    made = bench(
        mode=first,
        setpoint=60.0,
        controller=ControllerConfig(kp=2.0, ti=0.0, td=3.0, b=0.7),
        fail=failing("hold"),
    )
    made.scan(5)
    if between:
        made.good = False
        made.scan(4)
        assert made.mode == ("fail" if first == "auto" else first)
        made.good = True
    before = made.register
    assert made.loop.set_mode(made.now, second)[0] is None
    made.scan(8)
    assert made.mode == second
    assert made.loop.engaged == (second in ("shadow", "auto"))
    assert abs(made.register - before) <= 1e-9 * 100
    assert all(abs(value - before) <= 1e-9 * 100 for _, value, _ in made.writes)


def test_auto_goes_on_from_where_a_person_left_the_output() -> None:
    made = running(controller=ControllerConfig(kp=2.0, ti=0.0))
    made.loop.set_mode(made.now, "manual")
    made.scan(3)
    assert made.loop.view().out == 40.0
    made.register = 63.0
    made.loop.set_mode(made.now, "auto")
    made.scan(5)
    assert made.register == pytest.approx(63.0, abs=1e-7)


def test_an_old_reading_of_the_output_is_not_taken_over() -> None:
    made = running()
    made.loop.set_mode(made.now, "manual")
    made.loop.set_mode(made.now, "auto")
    old = Sample(40.0, True, made.now - 0.5)
    for _ in range(5):
        made.now += 1.0
        made.loop.on_sample(made.now, Inputs(Sample(50.0, True, made.now), old))
    assert not made.loop.engaged


def test_manual_is_a_persons() -> None:
    """Others write the output, the PV and the setpoint's tag are bad: nothing of it is the loop's matter."""
    made = running(setpoint=50.0, trip=(0.0, 350.0), heartbeat=beating())
    made.loop.set_mode(made.now, "manual")
    written, beats = len(made.writes), len(made.beats)
    made.rival = lambda register: (register + 7.0) % 100.0
    made.good = False
    made.scan(20)
    assert made.mode == "manual" and len(made.writes) == written
    assert made.loop.view().out == made.register
    assert len(made.beats) > beats


def test_the_interlock_acts_in_manual_too() -> None:
    made = bench(mode="manual", interlock=(("plc", "running"),), fail=failing(7.0))
    made.running = on(True)
    made.scan(3)
    made.running = on(False)
    made.scan(1)
    assert made.mode == "fail" and made.register == 7.0
    assert made.loop.holds_output
    made.running = on(True)
    made.scan(4)
    assert made.mode == "manual"
    assert not made.loop.holds_output


@pytest.mark.parametrize(
    ("mode", "held"), [("off", False), ("shadow", False), ("manual", False), ("auto", True)]
)
def test_who_may_write(mode: str, held: bool) -> None:
    assert bench(mode=mode).loop.holds_output is held


def test_off_shows_the_pv_and_does_nothing() -> None:
    made = bench(mode="off")
    made.scan(10)
    view = made.loop.view()
    assert (view.mode, view.pv, view.out, made.writes, made.loop.steps) == ("off", 50.0, None, [], 0)


def test_a_mode_that_does_not_exist() -> None:
    made = running()
    why, step = made.loop.set_mode(made.now, "cascade")
    assert why is not None and "off, shadow, manual or auto" in why
    assert step.events == () and made.mode == "auto"


def test_changes_of_the_mode_are_told() -> None:
    made = running()
    made.take(made.loop.set_mode(made.now, "manual")[1])
    assert made.names() == [("loop_mode", "raised")]
    assert made.events[0].text == "loop oven: auto -> manual"
    made.take(made.loop.set_mode(made.now, "manual")[1])
    assert len(made.events) == 1


# -- setpoint -------------------------------------------------------------------------------------------------


def test_the_setpoint_within_its_limits() -> None:
    loop = Loop(config(setpoint_limits=(20.0, 250.0)), pv_period=1.0)
    assert loop.set_setpoint(250.0) is None
    assert loop.view().sp == 250.0
    for value in (251.0, 19.0, math.nan, math.inf):
        assert loop.set_setpoint(value) is not None
    assert loop.view().sp == 250.0


def test_a_setpoint_from_a_tag_is_clipped_and_not_to_be_set() -> None:
    made = Bench(Loop(config(setpoint=SP, setpoint_limits=(20.0, 55.0)), pv_period=1.0))
    made.sp = Sample(500.0, True, 0.0)
    made.scan(4)
    assert made.loop.view().sp == 55.0
    assert "plc/sp" in (made.loop.set_setpoint(30.0) or "")


def test_the_ramp_begins_at_the_pv_and_moves_by_so_much_a_second() -> None:
    made = bench(setpoint=60.0, ramp=2.0, every=0.5)
    made.scan(3)
    assert made.loop.engaged and made.loop.view().sp == 50.0
    made.scan(4)
    assert made.loop.view().sp == pytest.approx(54.0)
    made.scan(20)
    assert made.loop.view().sp == 60.0
    assert made.loop.set_setpoint(59.5) is None
    made.scan(1)
    assert made.loop.view().sp == 59.5


def test_a_setpoint_survives_a_restart_while_the_configuration_is_the_same() -> None:
    made = running(remote=frozenset({"mode", "setpoint"}))
    made.loop.set_setpoint(77.0)
    saved = made.loop.save()
    same = Loop(config(remote=frozenset({"setpoint", "mode"})), pv_period=1.0)
    same.restore(saved, 0.0)
    assert same.view().sp == 77.0
    other = Loop(config(setpoint=51.0), pv_period=1.0)
    other.restore(saved, 0.0)
    assert other.view().sp == 51.0
    outside = Loop(config(), pv_period=1.0)
    outside.restore({"config": saved["config"], "setpoint": "77"}, 0.0)
    assert outside.view().sp == 50.0


def test_the_digest_does_not_hang_on_the_order_of_a_set() -> None:
    one = Loop(config(remote=frozenset(["a", "b"])), pv_period=1.0).save()["config"]
    two = Loop(config(remote=frozenset(["b", "a"])), pv_period=1.0).save()["config"]
    three = Loop(config(remote=frozenset(["a"])), pv_period=1.0).save()["config"]
    assert one == two != three


# -- writing ----------------------------------------------------------------------------------------------------


def test_changes_within_the_deadband_are_not_written() -> None:
    made = running(deadband=3.0, controller=ControllerConfig(kp=1.0, ti=0.0))
    for pv in (49.0, 48.0, 47.5, 50.0, 52.0):
        made.pv = pv
        made.scan()
    assert made.writes == []
    made.pv = 46.0
    made.scan()
    assert [value for _, value, _ in made.writes] == [pytest.approx(44.0)]


def test_less_than_half_a_step_of_the_register_is_not_written() -> None:
    made = Bench(Loop(config(controller=ControllerConfig(kp=1.0, ti=0.0)), pv_period=1.0, quantum=2.0))
    made.scan(4)
    made.pv = 49.1
    made.scan()
    assert made.writes == []
    made.pv = 48.9
    made.scan()
    assert len(made.writes) == 1


def test_a_write_that_did_not_arrive_is_made_again() -> None:
    made = running(controller=ControllerConfig(kp=1.0, ti=0.0))
    made.pv, made.reachable = 45.0, False
    made.scan()
    assert made.register == 40.0
    made.reachable = True
    made.scan(3)
    assert made.register == pytest.approx(45.0, abs=1e-6)


def test_limited_shows() -> None:
    made = running(controller=ControllerConfig(kp=1.0, ti=0.0), rate=2.0)
    made.pv = 45.0
    made.scan()
    assert made.loop.view().limited and made.register == pytest.approx(42.0)
    made.scan(2)
    assert not made.loop.view().limited and made.register == pytest.approx(45.0)


def test_a_pv_scanned_faster_is_stepped_on_the_loops_grid() -> None:
    made = Loop(config(every=1.0), pv_period=0.4)
    now = 1000.0
    for _ in range(250):
        now += 0.4
        made.on_sample(now, Inputs(Sample(50.0, True, now), Sample(40.0, True, now)))
    assert 98 <= made.steps <= 102


def test_a_pv_at_the_loops_own_pace_is_stepped_at_every_sample() -> None:
    made = Loop(config(every=1.0), pv_period=1.0)
    now = 1000.0
    for step in range(100):
        late = 0.3 * (step % 3)
        sample = Sample(50.0, True, now + late)
        made.on_sample(now + late, Inputs(sample, Sample(40.0, True, now + late)))
        now += 1.0
    assert made.steps == 100


def test_a_missing_sample_does_not_kick_the_derivative() -> None:
    """The PV rises by 1 a second; one sample is bad: the slope is the same over two seconds."""
    controller = ControllerConfig(kp=1.0, ti=0.0, td=5.0, n=1e6)
    made = running(controller=controller, limits=(-1000.0, 1000.0))
    for _ in range(4):
        made.pv += 1.0
        made.scan()
    made.pv, made.good = made.pv + 1.0, False
    made.scan()
    before = made.register
    made.pv, made.good = made.pv + 1.0, True
    made.scan()
    assert made.register == pytest.approx(before - 2.0, abs=1e-3)


# -- heartbeat --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_heartbeat_counts_in_auto_and_manual(mode: str) -> None:
    made = bench(mode=mode, heartbeat=beating())
    made.scan(10)
    assert bool(made.beats) == (mode in ("auto", "manual"))
    assert math.isfinite(made.loop.next_beat) == (mode in ("auto", "manual"))


@pytest.mark.parametrize("timeout", [0.6, 3.0, 30.0])
@pytest.mark.parametrize("late", [0.0, 0.005])
def test_heartbeats_are_a_third_of_the_timeout_apart_at_most(timeout: float, late: float) -> None:
    """Woken when it says, up to `late` of a third later."""
    loop = Loop(config(heartbeat=beating(timeout)), pv_period=1.0)
    now, beats = 1000.0, []
    for step in range(300):
        beats.append((now, loop.on_tick(now).heartbeat))
        assert loop.on_tick(now).heartbeat is None
        now = loop.next_beat + late * (step % 2) * timeout / 3
    gaps = [later - sooner for (sooner, _), (later, _) in pairwise(beats)]
    assert max(gaps) <= timeout / 3 + 1e-6
    assert min(gaps) >= 0.98 * timeout / 3
    assert [beat for _, beat in beats] == list(range(1, 301))


def test_beats_that_were_missed_are_not_made_up_for() -> None:
    loop = Loop(config(heartbeat=beating(3.0)), pv_period=1.0)
    assert loop.on_tick(1000.0).heartbeat == 1
    assert loop.on_tick(1060.0).heartbeat == 2
    assert [loop.on_tick(1060.0 + step / 10).heartbeat for step in range(1, 9)] == [None] * 8


@pytest.mark.parametrize(("beats", "counts"), [((0, 1), [1, 0, 1, 0]), ((5, 7), [5, 6, 7, 5])])
def test_the_heartbeat_stays_within_its_register(beats: tuple[int, int], counts: list[int]) -> None:
    loop = Loop(config(heartbeat=beating(3.0)), pv_period=1.0, beats=beats)
    assert [loop.on_tick(1000.0 + 1.0 * k).heartbeat for k in range(4)] == counts


# -- the rest ---------------------------------------------------------------------------------------------------


def test_the_pv_is_not_shown_longer_than_it_is_true() -> None:
    made = bench(mode="off")
    made.scan(3)
    made.pass_time(4.0)
    assert made.loop.view().pv == 50.0
    made.pass_time(2.0)
    assert made.loop.view().pv is None


def test_a_restarted_device_goes_through_the_door_again() -> None:
    made = running()
    made.take(made.loop.restarted(made.now))
    made.register, made.pv = 0.0, 30.0
    made.scan(2)
    assert not made.loop.engaged and made.register == 0.0
    assert ("loop_restart", "raised") in made.names()
    made.scan(1)
    assert made.loop.engaged and made.register == 0.0
    made.scan(3)
    assert made.mode == "auto" and made.register > 0.0


def fed(**block: Any) -> Loop:
    feed_forward = FeedForward(FF, **block)
    return Loop(config(feed_forward=feed_forward, controller=ControllerConfig(kp=1.0, ti=0.0)), pv_period=1.0)


def feed(loop: Loop, values: list[float | None]) -> list[float]:
    now, out = 1000.0, 40.0
    shown = []
    for value in values:
        now += 1.0
        sample = Sample() if value is None else Sample(value, True, now)
        step = loop.on_sample(
            now, Inputs(Sample(50.0, True, now), Sample(out, True, now), feed_forward=sample)
        )
        if step.write is not None:
            out = step.write
            loop.on_write_begin(out)
            loop.on_write_done(now, value=out, ok=True, readback=out, error=None, safety=False)
        shown.append(out)
    return shown


def test_feed_forward_moves_the_output_by_its_gain() -> None:
    assert feed(fed(gain=2.0), [3.0] * 5 + [5.0] * 2)[-3:] == pytest.approx([40.0, 44.0, 44.0])


def test_feed_forward_lags() -> None:
    shown = feed(fed(gain=2.0, lag=10.0), [3.0] * 5 + [5.0] * 60)
    assert shown[4] == pytest.approx(40.0)
    assert 40.3 < shown[5] < 40.5
    assert shown[14] == pytest.approx(40.0 + 4.0 * (1 - math.exp(-1.0)), abs=0.2)
    assert shown[-1] == pytest.approx(44.0, abs=0.05)


def test_feed_forward_that_comes_and_goes_bumps_nothing() -> None:
    shown = feed(fed(gain=2.0), [None] * 5 + [30.0] * 3 + [None] * 3 + [30.0])
    assert shown == pytest.approx([40.0] * len(shown))


@pytest.mark.parametrize(
    "change",
    [
        {"controller": ControllerConfig(kp=7.0, ti=0.0, td=2.0)},
        {"action": "direct"},
        {"rate": 0.1},
        {"feed_forward": FeedForward(FF, gain=9.0)},
    ],
    ids=str,
)
def test_new_parameters_bump_nothing(change: dict[str, Any]) -> None:
    made = running(setpoint=55.0, controller=ControllerConfig(kp=1.0, ti=0.0))
    made.scan(3)
    before = made.register
    assert made.loop.set_parameters(dataclasses.replace(made.loop.config, **change)) is None
    made.scan(5)
    assert made.register == pytest.approx(before, abs=1e-7)
    made.pv = 51.0
    made.scan(2)
    assert abs(made.register - before) > 0.05


@pytest.mark.parametrize("change", [{"every": 2.0}, {"out": ("plc", "other")}, {"mode": "off"}], ids=str)
def test_what_needs_a_new_start_is_refused(change: dict[str, Any]) -> None:
    made = running()
    before = made.loop.config
    assert f"{next(iter(change))} changed" == made.loop.set_parameters(dataclasses.replace(before, **change))
    assert made.loop.config == before

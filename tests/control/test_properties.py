"""Whatever plants, faults and commands do: limits and rate hold, shadow writes nothing, fail values come once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.types import ControllerConfig, Fail, LoopConfig
from agent.control.loop import Loop
from agent.control.signals import Inputs, Sample
from tests.control.bench import RUN, beating, config

number = st.one_of(st.floats(-300, 300), st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
controllers = st.builds(
    ControllerConfig,
    kp=st.floats(0.01, 50),
    ti=st.one_of(st.just(0.0), st.floats(0.1, 100)),
    td=st.one_of(st.just(0.0), st.floats(0.1, 20)),
    b=st.floats(0, 1),
    c=st.floats(0, 1),
    n=st.floats(2, 20),
)
action = st.one_of(st.just("hold"), st.just("release"), st.floats(-20, 120))
fails = st.builds(
    Fail,
    after=st.integers(1, 4),
    to=action,
    on_stop=action,
    resume=st.one_of(st.none(), st.integers(1, 4)),
)
configs = st.builds(
    config,
    controller=controllers,
    fail=fails,
    mode=st.sampled_from(["off", "shadow", "manual", "auto"]),
    rate=st.one_of(st.none(), st.floats(0.1, 30)),
    ramp=st.one_of(st.none(), st.floats(0.1, 30)),
    trip=st.one_of(st.none(), st.just((-200.0, 200.0))),
    setpoint_limits=st.one_of(st.none(), st.just((0.0, 100.0))),
    deadband=st.sampled_from([0.0, 0.5, 5.0]),
    action=st.sampled_from(["reverse", "direct"]),
    interlock=st.sampled_from([(), (RUN,)]),
    heartbeat=st.just(beating()),
)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("scan"), number),
        st.tuples(st.just("bad"), st.none()),
        st.tuples(st.just("late"), st.floats(0.1, 9.0)),
        st.tuples(st.just("interlock"), st.booleans()),
        st.tuples(st.just("rival"), st.floats(0, 100)),
        st.tuples(st.just("line"), st.booleans()),
        st.tuples(st.just("mode"), st.sampled_from(["off", "shadow", "manual", "auto"])),
        st.tuples(st.just("setpoint"), number),
        st.tuples(st.just("ahead"), number),
        st.tuples(st.just("restarted"), st.none()),
        st.tuples(st.just("fault"), st.none()),
    ),
    max_size=60,
)


class World:
    """A PLC and a loop; every write is judged against what the PLC holds and when that last could move."""

    def __init__(self, made: LoopConfig) -> None:
        self.config = made
        self.loop = Loop(made, pv_period=1.0)
        self.now, self.register = 1000.0, 40.0
        self.line, self.running, self.ahead = True, True, math.nan
        self.moved = self.now
        self.released = False
        self.writes = 0

    def take(self, step: Any) -> None:
        view = self.loop.view()
        if step.heartbeat is not None:
            assert view.mode in ("auto", "manual", "fail")
            assert view.mode != "fail" or self.config.fail.to != "release"
        if step.write is None:
            return
        self.writes += 1
        low, high = self.config.limits
        assert low <= step.write <= high
        if step.safety:
            assert view.mode in ("fail", "off")
        else:
            assert view.mode == "auto"
            assert self.config.rate is None or self.within_rate(step.write, self.config.rate)
        self.loop.on_write_begin(step.write)
        if self.line:
            self.register, self.moved = step.write, self.now
        self.loop.on_write_done(
            self.now,
            value=step.write,
            ok=self.line,
            readback=step.write if self.line else None,
            error=None if self.line else "no connection",
            safety=step.safety,
        )

    def within_rate(self, value: float, rate: float) -> bool:
        return abs(value - self.register) <= rate * (self.now - self.moved) + 1e-6

    def scan(self, value: float, *, good: bool) -> None:
        for _ in range(4):
            self.now += 0.25
            self.take(self.loop.on_tick(self.now))
        self.take(
            self.loop.on_sample(
                self.now,
                Inputs(
                    Sample(value, good and math.isfinite(value), self.now),
                    Sample(self.register, self.line, self.now),
                    interlocks=(Sample(float(self.running), True, self.now),)
                    if self.config.interlock
                    else (),
                    ahead=(self.ahead,),
                ),
            )
        )

    def do(self, what: str, value: Any) -> None:
        match what:
            case "scan":
                self.scan(value, good=True)
            case "bad":
                self.scan(math.nan, good=False)
            case "late":
                self.now += value
                self.take(self.loop.on_tick(self.now))
            case "interlock":
                self.running = value
            case "rival":
                self.register = value
            case "line":
                self.line = value
            case "mode":
                self.take(self.loop.set_mode(self.now, value)[1])
            case "setpoint":
                self.loop.set_setpoint(value)
            case "ahead":
                self.ahead = value
            case "restarted":
                self.take(self.loop.restarted(self.now))
            case "fault":
                self.take(self.loop.fault(self.now, "a fault"))


@given(made=configs, story=happenings)
@settings(deadline=None, max_examples=300)
def test_limits_rate_and_modes_hold_whatever_happens(made: LoopConfig, story: list[tuple[str, Any]]) -> None:
    world = World(made)
    for what, value in [("scan", 50.0)] * 4 + story + [("scan", 50.0)] * 6:
        world.do(what, value)
        view = world.loop.view()
        assert all(one is None or math.isfinite(one) for one in (view.sp, view.pv, view.out))
    world.take(world.loop.stop(world.now))


@given(made=configs, story=happenings)
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_shadow_and_off_write_nothing(mode: str, made: LoopConfig, story: list[tuple[str, Any]]) -> None:
    world = World(dataclasses.replace(made, mode=mode))  # type: ignore[arg-type]
    for what, value in [("scan", 50.0)] * 4 + story + [("scan", 50.0)] * 6:
        if what != "mode":
            world.do(what, value)
        assert world.loop.on_tick(world.now).heartbeat is None
    assert world.loop.stop(world.now).write is None
    assert world.writes == 0


@given(made=configs, story=happenings)
@settings(deadline=None, max_examples=200)
def test_a_fail_value_that_arrives_is_written_once(made: LoopConfig, story: list[tuple[str, Any]]) -> None:
    world = World(made)
    for what, value in [("scan", 50.0)] * 4 + story:
        if what not in ("mode", "line", "restarted"):
            world.do(what, value)
    written = world.writes
    failed = world.loop.view().mode == "fail"
    for _ in range(5):
        world.scan(math.nan, good=False)
    assert not failed or world.writes == written


@given(st.integers(1, 6))
def test_the_walk_reaches_what_it_means_to_judge(kp: int) -> None:
    """A walk with a rate really writes, fails and comes back: the properties above are not empty."""
    world = World(config(controller=ControllerConfig(kp=float(kp), ti=5.0), rate=2.0, fail=Fail(to=7.0)))
    for what, value in [("scan", 30.0)] * 8 + [("bad", None)] * 3:
        world.do(what, value)
    assert world.loop.view().mode == "fail" and world.register == 7.0
    for _ in range(8):
        world.do("scan", 30.0)
    assert world.loop.view().mode == "auto" and 7.0 < world.register <= 7.0 + 2.0 * 8
    assert world.writes >= 8

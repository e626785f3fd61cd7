"""Experiments on a loop: its writes, its mode, and the output that goes back whatever happens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest

from agent.config.types import Config, Fail, ModelConfig
from agent.control.excite import LEASE
from agent.control.process import Process
from agent.runtime.doors import Doors
from agent.runtime.experiments import REASON
from agent.runtime.socket import to_ask
from agent.twin.records import Ask, Outcome
from tests.runtime.rig import OUT, PV, Rig, configuration, heartbeat, play

BEGIN = {"do": "begin", "kind": "prbs", "move": 5.0, "seconds": 120.0}


class Bench:
    """A rig whose PV follows its output through a process; whoever began a test keeps asking while `asks`."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.process = Process(ModelConfig(k=0.5, t1=8, delay=2), 1.0, pv=50.0, out=40.0)
        self.asks = True

    def ask(self, **extra: Any) -> Outcome:
        return self.rig.loops.experiment("oven", {"first": 0, **extra})

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            if self.asks:
                self.ask(do="poll")
            await self.rig.scan(1)
            await self.rig.tick(0.0)
            self.rig.registers[PV] = self.process.step(self.rig.registers[OUT])

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(do="poll").result
        return found


def bench(story: Any, config: Config | None = None) -> Rig:
    async def whole(rig: Rig) -> None:
        one = Bench(rig)
        await one.run(5)
        await story(one)

    return play(whole, config)


@pytest.mark.parametrize("mode", ["off", "shadow", "manual", "auto"])
def test_a_test_runs_and_all_is_as_before(mode: str) -> None:
    async def story(one: Bench) -> None:
        base = one.rig.registers[OUT]
        assert one.ask(**BEGIN).ok
        assert one.rig.mode == "manual"
        assert one.rig.loops.views()["oven"].reason == REASON
        await one.run(135)
        report = one.report
        assert report["done"] and not report["running"] and report["restored"]
        assert report["rows"][-1][2] == base
        if mode != "auto":  # the loop goes on from there
            assert one.rig.registers[OUT] == base
        outs = {row[2] for row in report["rows"]}
        assert outs == {base - 5, base, base + 5}
        assert len(report["rows"]) in (119, 120) and not report["more"]  # the way back is a row
        assert one.rig.mode == mode
        assert one.rig.loops.views()["oven"].reason != REASON

    rig = bench(story, configuration(mode=mode))
    assert [event.state for event in rig.events if event.name == "loop_test"] == ["raised", "cleared"]


def test_begins_from_what_the_loop_wrote_after_the_newest_reading() -> None:
    """A loop at work has moved its output since: a reading from before that is not where the output stands."""

    async def story(one: Bench) -> None:
        one.rig.registers[PV] = 44.0
        await one.run(1)
        held = one.rig.registers[OUT]
        assert held == one.rig.outputs()[-1] != one.rig.twin.sample(OUT).value
        assert one.ask(**BEGIN).ok
        assert (one.report["base"], one.report["low"], one.report["high"]) == (held, held - 5, held + 5)
        await one.run(135)
        assert one.report["done"] and one.report["restored"]

    bench(story, configuration())


def test_the_output_belongs_to_the_test_and_then_to_nobody() -> None:
    async def story(one: Bench) -> None:
        one.ask(**BEGIN)
        assert one.rig.loops.holder_of(OUT) == "oven"
        assert not one.ask(**BEGIN).ok
        await one.run(135)
        assert one.rig.loops.holder_of(OUT) is None

    bench(story, configuration(mode="shadow"))


async def moved(one: Bench, **changes: Any) -> float:
    """Begins a test and lets it run until the output has moved; where it was."""
    base = one.rig.registers[OUT]
    assert one.ask(**{**BEGIN, **changes}).ok
    for _ in range(40):
        await one.run(1)
        if one.rig.registers[OUT] != base:
            return base
    raise AssertionError("the output never moved")


def test_it_goes_back_when_nobody_asks_any_more() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one)
        one.asks = False
        await one.run(int(LEASE) + 2)
        assert one.rig.registers[OUT] == base
        assert "gone" in one.report["over"]
        assert one.rig.asked[-1].safety

    bench(story, configuration(mode="shadow"))


def test_it_goes_back_when_asked_to_stop_at_the_loops_rate() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one, kind="step")
        await one.run(6)
        first = len(one.rig.asked)
        one.ask(do="stop")
        await one.run(8)
        assert one.rig.registers[OUT] == base
        assert one.report["over"] == "stopped" and not one.report["running"]
        values = [asked.value for asked in one.rig.asked[first:]]
        assert len(values) >= 3
        assert all(abs(b - a) <= 2.0 + 1e-9 for a, b in pairwise(values))

    bench(story, configuration(mode="manual", rate=2.0))


def test_a_pv_beyond_its_trip_ends_it_at_once() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one)
        one.rig.registers[PV] = 99.0
        await one.rig.scan(1)
        assert one.rig.registers[OUT] == base
        assert "PV trip" in one.report["over"]

    bench(story, configuration(mode="shadow", trip=(0.0, 90.0)))


def test_samples_that_do_not_come_end_it() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one)
        for _ in range(7):
            one.ask(do="poll")
            await one.rig.tick(1.0)
        assert one.rig.registers[OUT] == base
        assert one.report["over"] == "no sample of the PV"

    bench(story, configuration(mode="shadow"))


def test_an_interlock_ends_it_and_the_fail_value_stands() -> None:
    async def story(one: Bench) -> None:
        await moved(one)
        one.rig.registers[("plc", "other")] = 0.0
        await one.run(2)
        assert one.rig.mode == "fail"
        assert one.rig.registers[OUT] == 7.0
        assert "interlock" in one.report["over"] and not one.report["restored"]

    async def with_interlock(rig: Rig) -> None:
        rig.registers[("plc", "other")] = 1.0
        one = Bench(rig)
        await one.run(5)
        await story(one)

    play(
        with_interlock,
        configuration(mode="manual", interlock=(("plc", "other"),), fail=Fail(to=7.0, resume=None)),
    )


def test_a_mode_that_somebody_asks_for_ends_it() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one)
        one.rig.loops.ask("oven", mode="off", setpoint=None, remote=False)
        await one.run(3)
        assert one.rig.registers[OUT] == base
        assert one.rig.mode == "off"

    bench(story, configuration(mode="auto"))


def test_the_end_of_the_agent_brings_the_output_back() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one)
        await one.rig.loops.stop()
        assert one.rig.registers[OUT] == base

    bench(story, configuration(mode="shadow"))


def test_another_configuration_ends_it() -> None:
    async def story(one: Bench) -> None:
        base = await moved(one)
        await one.rig.loops.end_for(one.rig.config)
        assert one.rig.registers[OUT] == base and not one.report["running"]

    bench(story, configuration(mode="shadow"))


def test_somebody_else_who_writes_keeps_the_output() -> None:
    async def story(one: Bench) -> None:
        await moved(one)
        for _ in range(4):
            one.rig.registers[OUT] = 77.0
            one.ask(do="poll")
            await one.rig.scan(1)
        assert one.rig.registers[OUT] == 77.0
        assert "somebody else" in one.report["over"] and not one.report["restored"]

    bench(story, configuration(mode="shadow"))


def test_a_write_that_fails_ends_it() -> None:
    async def story(one: Bench) -> None:
        assert one.ask(**BEGIN).ok
        one.rig.slow = True
        while not one.rig.asked:
            await one.run(1)
        one.rig.asked[-1].answer.set_result(Outcome(False, error="no answer"))
        await one.rig.settle()
        assert one.report["over"] == "the output could not be written: no answer"
        assert one.rig.asked[-1].safety and one.rig.asked[-1].value == one.report["base"]
        one.rig.asked[-1].answer.set_result(Outcome(True))
        await one.rig.settle()
        assert one.report["restored"] and not one.report["running"]

    bench(story, configuration(mode="shadow"))


def test_the_heartbeat_goes_on_meanwhile() -> None:
    async def story(one: Bench) -> None:
        one.ask(**BEGIN)
        before = len(one.rig.asked)
        await one.run(8)
        assert len(one.rig.asked) - before >= 7

    bench(story, configuration(mode="shadow", heartbeat=heartbeat()))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kind": "jump"}, "there is no test 'jump'"),
        ({"move": -1.0}, "above 0"),
        ({"seconds": 5.0}, "60 s are the least"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], what: str) -> None:
    async def story(one: Bench) -> None:
        refused = one.ask(**{**BEGIN, **changes})
        assert not refused.ok and what in str(refused.error)
        assert one.rig.mode == "shadow"
        assert not one.ask(do="poll").ok

    bench(story, configuration(mode="shadow"))


def test_a_loop_that_failed_or_whose_pv_is_bad_is_not_tested() -> None:
    async def story(one: Bench) -> None:
        await one.rig.scan(1, good=False)
        assert "PV is not good" in str(one.ask(**BEGIN).error)
        await one.rig.scan(4, good=False)
        assert "it has failed" in str(one.ask(**BEGIN).error)

    bench(story, configuration(mode="auto"))


def test_what_an_operator_should_know() -> None:
    async def story(one: Bench) -> None:
        look = one.ask(do="look").result
        assert (look["mode"], look["now"], look["every"], look["on_loss"]) == ("shadow", 40.0, 1.0, "hold")

    bench(story, configuration(mode="shadow"))


@pytest.mark.parametrize(
    ("message", "extra"),
    [
        ({"do": "look"}, {"do": "look"}),
        ({"do": "poll", "first": 7}, {"do": "poll", "first": 7}),
        ({"do": "stop", "first": "x"}, {"do": "stop"}),
        (BEGIN, BEGIN),
    ],
)
def test_a_request_through_the_socket(message: dict[str, Any], extra: dict[str, Any]) -> None:
    ask = to_ask({"op": "tune", "loop": "oven", **message}, 9.0)
    assert (ask.op, ask.loop, ask.source, ask.extra) == ("tune", "oven", "socket", extra)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"do": "jump"},
        {"do": "poll", "first": -1},
        {"do": "poll", "first": True},
        {**BEGIN, "move": "far"},
        {**BEGIN, "seconds": None},
        {**BEGIN, "move": float("inf")},
    ],
)
def test_what_is_no_request_is_not_understood(message: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        to_ask({"op": "tune", "loop": "oven", **message}, 9.0)


@pytest.mark.parametrize(
    ("source", "loop", "why"),
    [("cmd", "oven", "on the spot"), ("page", "oven", "on the spot"), ("socket", "attic", "no loop 'attic'")],
)
def test_the_door_opens_to_the_spot_alone(source: Any, loop: str, why: str) -> None:
    async def story(rig: Rig) -> None:
        doors = Doors(
            rig.config,
            cast(Any, None),
            rig.loops,
            rig.clock,
            status=dict,
            wall_ms=int,
            on_local_change=lambda name: None,
            relearn=lambda device: Outcome(True),
        )
        outcome = await doors.handle(
            Ask("tune", source, rig.clock.mono() + 1, loop=loop, extra={"do": "look"})
        )
        assert not outcome.ok and why in str(outcome.error)
        fine = await doors.handle(
            Ask("tune", "socket", rig.clock.mono() + 1, loop="oven", extra={"do": "look"})
        )
        assert fine.ok

    play(story)

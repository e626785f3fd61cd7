"""Each way into fail and out of it, and what each does to the output and the heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from agent.config.types import ModelConfig
from agent.control.loop import Loop
from agent.control.signals import Sample
from tests.control.bench import RUN, SP, Bench, beating, config, failing, on, running


@dataclass(frozen=True)
class Way:
    """`breaks` starts the fault, within `scans` it must have failed, `mends` ends it."""

    breaks: Callable[[Bench], Any]
    mends: Callable[[Bench], Any]
    reason: str
    scans: int = 1
    settings: tuple[tuple[str, Any], ...] = ()


def set_to(**values: Any) -> Callable[[Bench], Any]:
    return lambda bench: [setattr(bench, name, value) for name, value in values.items()]


WAYS = {
    "pv not good": Way(set_to(good=False), set_to(good=True), "PV not good", scans=3),
    "pv trip": Way(set_to(pv=351.0), set_to(pv=50.0), "PV trip: 351", settings=(("trip", (0.0, 350.0)),)),
    "forecast trip": Way(
        set_to(ahead=(60.0, -1.0)),
        set_to(ahead=(60.0,)),
        "PV trip: -1 is foretold",
        settings=(("trip", (0.0, 350.0)),),
    ),
    "interlock false": Way(
        set_to(running=on(False)),
        set_to(running=on(True)),
        "interlock plc/running is false",
        settings=(("interlock", (RUN,)),),
    ),
    "interlock not good": Way(
        set_to(running=on(True, good=False)),
        set_to(running=on(True)),
        "interlock plc/running is not good",
        settings=(("interlock", (RUN,)),),
    ),
    "setpoint not good": Way(
        set_to(sp=Sample()),
        set_to(sp=on(True)),
        "setpoint not good",
        scans=3,
        settings=(("setpoint", SP),),
    ),
}


def at_work(way: Way, **changes: Any) -> Bench:
    settings = dict(way.settings)
    made = bench_for(settings | changes)
    made.scan(4)
    assert made.loop.engaged
    made.writes.clear()
    made.events.clear()
    return made


def bench_for(settings: dict[str, Any]) -> Bench:
    made = Bench(Loop(config(**settings), pv_period=1.0))
    made.running = on(True) if "interlock" in settings else None
    made.sp = Sample(50.0, True, 0.0) if "setpoint" in settings else None
    return made


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("to", ["hold", "release", 7.0])
def test_into_fail_and_out(name: str, to: Any) -> None:
    way = WAYS[name]
    bench = at_work(way, fail=failing(to), heartbeat=beating())
    held = bench.register
    way.breaks(bench)
    bench.scan(way.scans - 1)
    assert bench.mode == "auto"
    bench.scan()
    assert bench.mode == "fail"
    assert bench.loop.view().reason is not None
    assert way.reason in (bench.loop.view().reason or "")
    assert bench.names() == [("loop_fail_oven", "raised")]
    assert bench.events[0].alarm and bench.events[0].severity == "alarm" and bench.events[0].device == "plc"
    beats = len(bench.beats)
    bench.scan(10)
    assert bench.mode == "fail"
    assert bench.register == (held if isinstance(to, str) else to)
    assert [safety for _, _, safety in bench.writes] == ([] if isinstance(to, str) else [True])
    assert (len(bench.beats) == beats) == (to == "release")
    way.mends(bench)
    bench.scan(2)
    assert bench.mode == "fail"
    bench.scan(2)
    assert bench.mode == "auto" and bench.loop.engaged
    assert bench.names()[-1] == ("loop_fail_oven", "cleared")
    assert bench.loop.view().out == pytest.approx(bench.register, abs=1e-7)


@pytest.mark.parametrize("name", WAYS)
def test_by_hand_means_that_it_stays(name: str) -> None:
    way = WAYS[name]
    bench = at_work(way, fail=failing("hold", resume=None))
    way.breaks(bench)
    bench.scan(3)
    way.mends(bench)
    bench.scan(30)
    assert bench.mode == "fail"
    assert bench.loop.set_mode(bench.now, "auto")[0] is None
    bench.scan(2)
    assert not bench.loop.engaged
    bench.scan(1)
    assert bench.mode == "auto" and bench.loop.engaged


@pytest.mark.parametrize("orderly", [False, True])
def test_a_restart_is_no_hand(orderly: bool) -> None:
    """The process may end in any way: a fail that waits for a person waits for one after it too."""
    first = at_work(WAYS["pv not good"], fail=failing(7.0, resume=None))
    assert first.loop.save()["by_hand"] is None
    first.good = False
    first.scan(3)
    if orderly:
        first.take(first.loop.stop(first.now))
    again = bench_for({"fail": failing(7.0, resume=None), "heartbeat": beating()})
    again.loop.restore(first.loop.save(), again.now)
    assert again.mode == "auto", "another configuration is a person's"
    again = bench_for({"fail": failing(7.0, resume=None)})
    again.loop.restore(first.loop.save(), again.now)
    again.scan(30)
    assert (again.mode, again.writes) == ("fail", [])
    assert again.names() == [("loop_fail_oven", "raised")]
    assert "PV not good; still in fail after a restart" in again.events[0].text
    again.take(again.loop.set_mode(again.now, "auto")[1])
    again.scan(4)
    assert (again.mode, again.loop.engaged, again.loop.save()["by_hand"]) == ("auto", True, None)
    assert again.names()[-1] == ("loop_fail_oven", "cleared")


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_resume_counts_good_scans_in_a_row(count: int) -> None:
    bench = running(fail=failing("hold", resume=count))
    bench.good = False
    bench.scan(3)
    bench.good = True
    bench.scan(count - 1)
    bench.good = False
    bench.scan(1)
    bench.good = True
    bench.scan(count - 1)
    assert bench.mode == "fail"
    bench.scan(1)
    assert bench.mode == "auto"


@pytest.mark.parametrize("after", [1, 3, 7])
def test_after_counts_bad_scans_in_a_row(after: int) -> None:
    bench = running(fail=failing("hold", after=after))
    for _ in range(5):
        bench.good = False
        bench.scan(min(after, 4) - 1)
        bench.good = True
        bench.scan(1)
    assert bench.mode == "auto"
    bench.good = False
    bench.scan(min(after, 5))
    assert bench.mode == ("fail" if after <= 5 else "auto")


def test_a_pv_that_stops_coming_is_noticed_without_a_sample() -> None:
    bench = running(fail=failing(7.0))
    bench.pass_time(4.9)
    assert bench.mode == "auto"
    bench.pass_time(0.4)
    assert bench.mode == "fail" and bench.register == 7.0
    assert bench.loop.view().pv is None
    assert "PV is 5." in (bench.loop.view().reason or "")


def test_a_slow_plant_is_given_half_of_dead_time_and_time_constants() -> None:
    model = ModelConfig(k=1.0, t1=30.0, t2=4.0, delay=6.0)
    bench = running(model=model, fail=failing("hold", after=100))
    bench.pass_time(19.5)
    assert bench.mode == "auto"
    bench.pass_time(1.0)
    assert bench.mode == "fail"


def test_gives_way_to_somebody_else_and_does_not_fight() -> None:
    bench = running(fail=failing("hold"))
    bench.pv, bench.rival = 45.0, lambda _: 80.0
    bench.scan(4)
    assert bench.mode == "fail"
    assert "somebody else" in (bench.loop.view().reason or "")
    written = len(bench.writes)
    assert written <= 3
    bench.scan(30)
    assert len(bench.writes) == written and bench.mode == "fail"
    bench.rival = None
    bench.scan(30)
    assert bench.mode == "fail", "the output still shows the other's value"
    bench.register = bench.writes[-1][1]
    bench.scan(4)
    assert bench.mode == "auto" and bench.loop.engaged


def test_one_hand_on_the_output_is_followed() -> None:
    bench = running()
    bench.register = 70.0
    bench.scan(1)
    assert bench.mode == "auto"
    bench.scan(1)
    assert bench.register == pytest.approx(70.0, abs=0.1)
    bench.scan(20)
    assert bench.mode == "auto"
    assert bench.register == pytest.approx(70.0, abs=0.1)


def test_one_reading_counts_once() -> None:
    """An output that is scanned more seldom than the PV is not counted at each sample of the PV."""
    bench = running()
    bench.register = 70.0
    inputs = bench.inputs()
    for _ in range(5):
        bench.now += 1.0
        step = bench.loop.on_sample(bench.now, type(inputs)(pv=Sample(50.0, True, bench.now), out=inputs.out))
        assert step.events == ()
    assert bench.mode == "auto"


def test_a_read_back_that_the_writer_saw_counts_too() -> None:
    bench = running()
    for step in range(3):
        bench.pv -= 3.0
        bench.now += 1.0
        decided = bench.loop.on_sample(bench.now, bench.inputs())
        assert decided.write is not None, step
        bench.loop.on_write_begin(decided.write)
        bench.loop.on_write_done(
            bench.now, value=decided.write, ok=False, readback=0.0, error="differs", safety=False
        )
    bench.now += 1.0
    bench.take(bench.loop.on_sample(bench.now, bench.inputs()))
    assert bench.mode == "fail"


def test_rounding_by_the_register_is_no_difference() -> None:
    made = Loop(config(), pv_period=1.0, quantum=0.1, same=lambda one, two: abs(one - two) <= 0.05 + 1e-9)
    bench = Bench(made, rival=lambda register: round(register, 1))
    for step in range(60):
        bench.pv = 50.0 + (step % 7) / 10
        bench.scan()
    assert bench.mode == "auto" and len(bench.writes) > 10


def test_a_fail_value_is_written_once_and_again_only_until_it_arrives() -> None:
    bench = running(fail=failing(7.0))
    bench.good, bench.reachable = False, False
    bench.scan(4)
    assert bench.mode == "fail"
    failed = len(bench.writes)
    bench.pass_time(0.5)
    assert len(bench.writes) == failed
    bench.scan(5)
    assert failed < len(bench.writes) <= failed + 6
    bench.reachable = True
    bench.scan(2)
    arrived = len(bench.writes)
    assert bench.register == 7.0
    bench.scan(20)
    assert len(bench.writes) == arrived


def test_does_not_resume_while_its_fail_value_is_not_written() -> None:
    bench = running(fail=failing(7.0))
    bench.good, bench.reachable = False, False
    bench.scan(4)
    bench.good = True
    bench.scan(20)
    assert bench.mode == "fail"
    bench.reachable = True
    bench.scan(4)
    assert bench.mode == "auto"


def test_another_fault_while_failed_keeps_it_there() -> None:
    bench = running(trip=(0.0, 350.0))
    bench.good = False
    bench.scan(3)
    bench.good, bench.pv = True, 400.0
    bench.scan(20)
    assert bench.mode == "fail"
    assert "PV trip" in (bench.loop.view().reason or "")


def test_an_uncertain_pv_beyond_its_trip_fails_at_once() -> None:
    bench = running(trip=(0.0, 350.0))
    inputs = bench.inputs()
    outside = type(inputs)(pv=Sample(500.0, False, bench.now + 1), out=inputs.out)
    bench.take(bench.loop.on_sample(bench.now + 1, outside))
    assert bench.mode == "fail"


def test_a_loop_that_cannot_take_over_says_so() -> None:
    bench = Bench(Loop(config(fail=failing(7.0)), pv_period=1.0), good=False)
    bench.scan(9)
    assert bench.mode == "auto" and bench.writes == [] and bench.events == []
    bench.scan(3)
    assert bench.mode == "fail"
    assert bench.names() == [("loop_fail_oven", "raised")]
    bench.good = True
    bench.scan(5)
    assert bench.mode == "auto" and bench.loop.engaged


def test_a_fault_of_the_program_sends_running_loops_to_fail() -> None:
    bench = running(fail=failing(7.0))
    bench.take(bench.loop.fault(bench.now, "a fault of the agent"))
    assert bench.mode == "fail" and bench.register == 7.0
    idle = running(mode="shadow")
    idle.take(idle.loop.fault(idle.now, "a fault of the agent"))
    assert idle.mode == "shadow" and idle.events == []


def test_an_output_that_cannot_be_written_is_told_once() -> None:
    bench = running()
    bench.reachable = False
    for step in range(12):
        bench.pv = 40.0 - step
        bench.scan()
    assert bench.names().count(("loop_write_oven", "raised")) == 1
    assert "could not be written" in (bench.loop.view().reason or "")
    wound = (bench.loop.view().out or 0.0) - (40.0 + 2.0 * (50.0 - 29.0))
    assert abs(wound) < 2.0, "the integral did not run on while nothing arrived"
    bench.reachable = True
    bench.pv = 20.0
    bench.scan(3)
    assert bench.names().count(("loop_write_oven", "cleared")) == 1
    assert bench.loop.view().reason is None


@pytest.mark.parametrize("to", ["hold", "release", 7.0, 900.0])
def test_on_stop(to: Any) -> None:
    bench = running(fail=failing("hold", on_stop=to), heartbeat=beating())
    bench.take(bench.loop.stop(bench.now))
    assert bench.register == (40.0 if isinstance(to, str) else min(to, 100.0))
    beats, writes = len(bench.beats), len(bench.writes)
    bench.scan(10)
    assert (len(bench.beats), len(bench.writes)) == (beats, writes)


@pytest.mark.parametrize("mode", ["off", "shadow", "manual"])
def test_on_stop_moves_nothing_that_the_loop_did_not_move(mode: str) -> None:
    bench = bench_for({"mode": mode, "fail": failing("hold", on_stop=7.0)})
    bench.scan(5)
    bench.take(bench.loop.stop(bench.now))
    assert bench.writes == []

"""What a loop's writes must not do: come too soon, come after they are no longer wanted, or hold up a fail value."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import pairwise
from typing import Any

import pytest

from agent.config.types import ControllerConfig, Fail, Tag
from agent.runtime.writer import HEARTBEAT
from agent.twin.records import Key, Outcome
from tests.modbus.virtual import LoopClock, in_virtual_time
from tests.runtime.rig import BEAT, OUT, Rig, configuration, heartbeat, play

P_ONLY = ControllerConfig(kp=1.0, ti=0.0)


def test_an_output_that_waits_is_dropped_when_the_loop_holds() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        for pv in (45.0, 44.0):
            rig.registers[("plc", "pv")] = pv
            await rig.scan(1)
        assert len(rig.outputs()) == 1
        await rig.scan(3, good=False)
        assert rig.mode == "fail"
        rig.asked[0].answer.set_result(Outcome(True, readback=45.0))
        await rig.settle()
        await rig.tick(0.2, 10)
        assert len(rig.outputs()) == 1

    play(story, configuration(controller=P_ONLY))


@pytest.mark.parametrize("mode", ["manual", "off", "shadow"])
def test_an_output_that_waits_is_dropped_when_the_mode_changes(mode: str) -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        for pv in (45.0, 44.0):
            rig.registers[("plc", "pv")] = pv
            await rig.scan(1)
        assert rig.loops.ask("oven", mode=mode, setpoint=None, remote=False).ok
        rig.asked[0].answer.set_result(Outcome(True, readback=45.0))
        await rig.tick(0.2, 10)
        assert len(rig.outputs()) == 1

    play(story, configuration(controller=P_ONLY))


def test_a_fail_value_does_not_wait_for_a_write_under_way() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        rig.registers[("plc", "pv")] = 45.0
        await rig.scan(1)
        await rig.scan(3, good=False)
        assert rig.outputs() == [pytest.approx(45.0), 7.0]
        assert rig.asked[-1].safety
        for one in rig.asked:
            one.answer.set_result(Outcome(True))
        await rig.tick(0.2, 10)
        assert len(rig.outputs()) == 2

    play(story, configuration(controller=P_ONLY, fail=Fail(to=7.0)))


def test_a_fail_value_is_written_once_while_its_answer_is_slow() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        await rig.scan(3, good=False)
        await rig.tick(0.2, 8)
        assert rig.outputs() == [7.0]
        rig.asked[-1].answer.set_result(Outcome(True, readback=7.0))
        rig.registers[OUT] = 7.0
        await rig.tick(0.5, 10)
        assert rig.outputs() == [7.0]

    play(story, configuration(fail=Fail(to=7.0)))


def test_a_fail_value_that_did_not_arrive_is_tried_again_once_a_second() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        await rig.scan(3, good=False)
        for _ in range(3):
            rig.asked[-1].answer.set_result(Outcome(False, error="no connection"))
            await rig.settle()
            await rig.tick(0.5, 1)
            before = len(rig.outputs())
            await rig.tick(0.6, 1)
            assert len(rig.outputs()) == before + 1
        assert set(rig.outputs()) == {7.0}
        rig.asked[-1].answer.set_result(Outcome(True))
        await rig.settle()

    play(story, configuration(fail=Fail(to=7.0)))


def test_writes_keep_the_interval_of_the_register_and_take_the_newest() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        for pv in (45.0, 44.0, 43.0, 42.0):
            rig.registers[("plc", "pv")] = pv
            await rig.scan(1)
        assert rig.outputs() == [pytest.approx(45.0)]
        await rig.tick(2.5)
        assert rig.outputs() == [pytest.approx(45.0), pytest.approx(48.0)]

    play(story, configuration(controller=P_ONLY, min_interval=5.0))


def test_somebody_else_is_seen_though_a_newer_output_always_waits() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        for step in range(40):
            rig.registers[("plc", "pv")] = 45.0 - step % 10
            await rig.scan(1)
            rig.registers[OUT] = 90.0
        assert rig.mode == "fail"
        assert "somebody else" in (rig.loops.views()["oven"].reason or "")

    play(story, configuration(controller=P_ONLY, min_interval=2.5))


def test_an_output_that_waits_is_withdrawn_when_it_is_no_longer_wanted() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        for pv in (45.0, 30.0, 45.0):
            rig.registers[("plc", "pv")] = pv
            await rig.scan(1)
        await rig.tick(1.0, 3)
        assert rig.outputs() == [pytest.approx(45.0)]

    play(story, configuration(controller=P_ONLY, min_interval=4.0, deadband=0.1))


def test_stop_is_not_held_up_by_the_interval_or_a_silent_line() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        rig.registers[("plc", "pv")] = 45.0
        await rig.scan(1)
        stopping = asyncio.ensure_future(rig.loops.stop())
        await rig.settle()
        assert rig.outputs() == [pytest.approx(45.0), 7.0]
        await asyncio.wait_for(stopping, 5.0)
        for one in rig.asked:
            one.answer.cancel()

    play(story, configuration(controller=P_ONLY, min_interval=60.0, fail=Fail(on_stop=7.0)))


def test_a_float_register_rounds_and_nobody_is_blamed() -> None:
    async def story(rig: Rig) -> None:
        for step in range(30):
            rig.registers[("plc", "pv")] = 45.0 + (step % 7) / 9
            await rig.scan(1)
            rig.registers[OUT] *= 1 + 3e-8
        assert rig.mode == "auto" and len(rig.outputs()) > 10

    play(story)


def test_the_heartbeat_is_written_beside_the_output_and_not_read_back() -> None:
    sources: set[str] = set()

    class Watching(Rig):
        async def write(self, key: Key, value: float, **options: Any) -> Outcome:
            if key == BEAT:
                sources.add(options["source"])
            return await super().write(key, value, **options)

    async def story() -> None:
        rig = Watching(configuration(heartbeat=heartbeat(3.0)))
        await rig.scan(4)
        rig.slow = True
        rig.registers[("plc", "pv")] = 45.0
        await rig.scan(1)
        rig.asked.clear()
        await rig.tick(1 / 16, 16 * 9)
        beats = [one.value for one in rig.asked if one.key == BEAT]
        assert 9 <= len(beats) <= 10
        assert beats == list(range(int(beats[0]), int(beats[0]) + len(beats)))
        assert sources == {HEARTBEAT}, "which the writer does not read back"

    asyncio.run(story())


def test_a_fault_of_the_writer_is_no_fault_of_the_loops(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Rig):
        async def write(self, key: Key, value: float, **options: Any) -> Outcome:
            raise RuntimeError("boom")

    async def story() -> None:
        rig = Broken(configuration(controller=P_ONLY))
        await rig.scan(4)
        rig.registers[("plc", "pv")] = 45.0
        await rig.scan(2)
        assert rig.mode == "auto"
        assert "could not be written" in (rig.loops.views()["oven"].reason or "")

    asyncio.run(story())
    assert "fault of the program" in caplog.text


def test_a_request_is_done_whole_or_not_at_all() -> None:
    rig = Rig(configuration())
    outcome = rig.loops.ask("oven", mode="cascade", setpoint=60.0, remote=False)
    assert not outcome.ok
    assert rig.loops.views()["oven"].sp == 50.0
    assert not rig.loops.ask("oven", mode=None, setpoint=None, remote=False).ok


def test_a_loop_goes_on_with_other_parameters_without_a_bump() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        before = rig.config.loops["oven"]
        faster = dataclasses.replace(before, controller=ControllerConfig(kp=3.0, ti=0.0))
        changed = dataclasses.replace(rig.config, loops={"oven": faster})
        assert await rig.loops.end_for(changed) == set()
        rig.loops.change(changed, rig.twin)
        await rig.scan(3)
        assert rig.outputs() == []
        rig.registers[("plc", "pv")] = 49.0
        await rig.scan(1)
        assert rig.outputs() == [pytest.approx(43.0)]

    play(story, configuration(controller=P_ONLY))


def test_a_loop_that_cannot_go_on_ends_at_its_stop_value_and_a_new_one_starts() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        before = rig.config.loops["oven"]
        kiln = dataclasses.replace(before, name="kiln", every=5.0)
        changed = dataclasses.replace(rig.config, loops={"kiln": kiln})
        assert await rig.loops.end_for(changed) == {"oven"}
        assert rig.outputs() == [7.0]
        rig.loops.change(changed, rig.twin)
        assert set(rig.loops.views()) == {"kiln"} and rig.loops.holder_of(("plc", "out")) == "kiln"

    play(story, configuration(controller=P_ONLY, fail=Fail(on_stop=7.0)))


def test_a_loop_ends_when_one_of_its_tags_becomes_another_register() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        plc = rig.config.devices["plc"]
        more = dataclasses.replace(plc, tags={**plc.tags, "extra": Tag("extra", "holding", 77)})
        with_more = dataclasses.replace(rig.config, devices={"plc": more})
        assert await rig.loops.end_for(with_more) == set()
        pv = dataclasses.replace(plc.tags["pv"], address=2)
        other = dataclasses.replace(plc, tags={**plc.tags, "pv": pv})
        assert await rig.loops.end_for(dataclasses.replace(rig.config, devices={"plc": other})) == {"oven"}

    play(story, configuration(controller=P_ONLY))


def test_the_loops_wake_up_for_a_heartbeat() -> None:
    """However slow the loop: the heartbeat's time is kept to the millisecond, in virtual time."""
    times: list[float] = []

    async def drive(clock: LoopClock) -> None:
        class Timed(Rig):
            async def write(self, key: Key, value: float, **options: Any) -> Outcome:
                times.append(clock.mono())
                return Outcome(True)

        rig = Timed(configuration(heartbeat=heartbeat(0.7), every=60.0), clock=clock)  # type: ignore[arg-type]
        running = asyncio.ensure_future(rig.loops.run())
        await asyncio.sleep(20.0)
        running.cancel()

    in_virtual_time(drive)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert len(gaps) > 80
    assert min(gaps) >= 0.98 * 0.7 / 3 and max(gaps) <= 0.7 / 3 + 1e-6

"""The runner of the loops: samples in, writes out, requests judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.config.types import ControllerConfig, Fail
from agent.twin.records import Outcome
from tests.runtime.rig import BEAT, OUT, Rig, configuration, heartbeat, play

P_ONLY = ControllerConfig(kp=1.0, ti=0.0)


def test_a_scan_steps_the_loop_and_its_output_is_written() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        assert rig.outputs() == []
        rig.registers[("plc", "pv")] = 45.0
        await rig.scan(1)
        assert rig.outputs() == [pytest.approx(45.0)]
        assert rig.asked[-1].source == "loop" and not rig.asked[-1].safety
        assert rig.asked[-1].deadline > rig.clock.mono()

    play(story, configuration(controller=P_ONLY))


def test_the_same_sample_is_not_stepped_twice() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        steps = rig.loops.status()["oven"]["steps"]
        rig.loops.on_scan("plc")
        rig.loops.on_scan("other device")
        assert rig.loops.status()["oven"]["steps"] == steps == 4

    play(story)


def test_a_newer_output_takes_the_place_of_one_that_waits() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.slow = True
        for pv in (45.0, 44.0, 43.0):
            rig.registers[("plc", "pv")] = pv
            await rig.scan(1)
        assert rig.outputs() == [pytest.approx(45.0)]
        rig.registers[OUT] = 45.0
        rig.asked[-1].answer.set_result(Outcome(True, applied=45.0, readback=45.0))
        await rig.settle()
        await rig.tick(0.1)
        assert rig.outputs() == [pytest.approx(45.0), pytest.approx(47.0)]
        rig.asked[-1].answer.set_result(Outcome(True))
        await rig.settle()

    play(story, configuration(controller=P_ONLY))


def test_shadow_writes_nothing_and_counts_no_heartbeat() -> None:
    async def story(rig: Rig) -> None:
        for pv in range(20):
            rig.registers[("plc", "pv")] = 40.0 + pv
            await rig.scan(1)
            await rig.tick(0.5)

    rig = play(story, configuration(mode="shadow", heartbeat=heartbeat(), fail=Fail(to=7.0, on_stop=7.0)))
    assert rig.asked == [] and rig.loops.views()["oven"].out is not None


@pytest.mark.parametrize(
    ("mode", "holds"), [("off", None), ("shadow", None), ("manual", None), ("auto", "oven")]
)
def test_output_and_heartbeat_belong_to_a_running_loop(mode: str, holds: str | None) -> None:
    rig = Rig(configuration(mode=mode, heartbeat=heartbeat()))
    assert rig.loops.holder_of(OUT) == holds
    assert rig.loops.holder_of(BEAT) == holds
    assert rig.loops.holder_of(("plc", "other")) is None


def test_a_failed_loop_keeps_its_output() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        await rig.scan(3, good=False)
        assert rig.mode == "fail" and rig.loops.holder_of(OUT) == "oven"

    play(story)


def test_a_pv_that_stops_coming_fails_by_ticks_alone() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        await rig.tick(0.5, 12)
        assert rig.mode == "fail"
        assert rig.outputs() == [7.0] and rig.asked[-1].safety
        assert [event.severity for event in rig.events] == ["alarm"]

    play(story, configuration(fail=Fail(to=7.0)))


def test_forecasts_reach_the_trip() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        assert rig.mode == "auto"
        rig.ahead = (np.array([60.0, 400.0]), np.zeros(2), np.zeros(2))
        await rig.scan(1)
        assert rig.mode == "fail"

    play(story, configuration(trip=(0.0, 350.0)))


ASKED: list[tuple[dict[str, Any], frozenset[str], str | None]] = [
    ({"setpoint": 60.0}, frozenset({"setpoint"}), None),
    ({"setpoint": 60.0}, frozenset({"mode"}), "setpoint"),
    ({"mode": "manual"}, frozenset({"mode"}), None),
    ({"mode": "manual"}, frozenset(), "mode"),
    ({"mode": "manual", "setpoint": 60.0}, frozenset({"mode"}), "setpoint"),
    ({"setpoint": 300.0}, frozenset({"setpoint"}), "setpoint_limits"),
    ({"mode": "cascade"}, frozenset({"mode"}), "cascade"),
]


@pytest.mark.parametrize(("asked", "remote", "refused"), ASKED)
def test_requests_from_afar_need_leave(
    asked: dict[str, Any], remote: frozenset[str], refused: str | None
) -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        outcome = rig.loops.ask("oven", **{"mode": None, "setpoint": None, "remote": True, **asked})
        view = rig.loops.views()["oven"]
        if refused is None:
            assert outcome.ok and outcome.error is None
            assert view.mode == asked.get("mode", "auto")
            await rig.scan(1)
            assert rig.loops.views()["oven"].sp == asked.get("setpoint", 50.0)
        else:
            assert not outcome.ok and refused in (outcome.error or "")
            assert (view.mode, view.sp) == ("auto", 50.0)

    play(story, configuration(remote=remote, setpoint_limits=(20.0, 250.0)))


def test_requests_from_here_need_none() -> None:
    async def story(rig: Rig) -> None:
        assert rig.loops.ask("oven", mode="manual", setpoint=60.0, remote=False).ok
        assert rig.mode == "manual"

    play(story)


@pytest.mark.parametrize(
    ("on_loss", "beat", "allowed"),
    [("unknown", None, False), ("hold", None, True), ("unknown", heartbeat(), True)],
)
def test_auto_by_request_keeps_the_rule_of_the_configuration(on_loss: str, beat: Any, allowed: bool) -> None:
    async def story(rig: Rig) -> None:
        outcome = rig.loops.ask("oven", mode="auto", setpoint=None, remote=False)
        assert outcome.ok == allowed
        assert rig.mode == ("auto" if allowed else "shadow")

    play(story, configuration(mode="shadow", on_loss=on_loss, heartbeat=beat))


@pytest.mark.parametrize(("to", "written"), [("hold", []), ("release", []), (7.0, [7.0])])
def test_stop_applies_on_stop(to: Any, written: list[float]) -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        await rig.loops.stop()
        assert rig.outputs() == written
        beats = len(rig.asked)
        await rig.tick(1.0, 5)
        assert len(rig.asked) == beats

    play(story, configuration(fail=Fail(on_stop=to), heartbeat=heartbeat()))


def test_a_setpoint_goes_over_a_restart() -> None:
    rig = Rig(configuration())
    assert rig.loops.ask("oven", mode=None, setpoint=61.0, remote=False).ok
    saved = rig.loops.save()
    again = Rig(configuration())
    again.loops.restore({**saved, "gone": {}, "oven2": 3})
    assert again.loops.views()["oven"].sp == 61.0
    changed = Rig(configuration(every=2.0))
    changed.loops.restore(saved)
    assert changed.loops.views()["oven"].sp == 50.0


def test_what_outlives_a_restart_is_kept_when_it_changes_and_only_then() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        await rig.tick(0.1, 3)
        assert rig.kept == []
        assert rig.loops.ask("oven", mode=None, setpoint=61.0, remote=False).ok
        await rig.tick(0.1, 3)
        assert [one["oven"]["setpoint"] for one in rig.kept] == [61.0]
        await rig.scan(3, good=False)
        await rig.tick(0.1)
        assert rig.mode == "fail" and [one["oven"]["by_hand"] for one in rig.kept] == [None, "PV not good"]

    play(story, configuration(fail=Fail(resume=None)))


def test_a_restarted_device_sends_its_loops_to_the_door() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        rig.loops.restarted("another")
        assert rig.events == []
        rig.loops.restarted("plc")
        assert "restarted" in (rig.loops.views()["oven"].reason or "")
        await rig.scan(4)
        assert rig.loops.views()["oven"].reason is None

    play(story)


def test_status_holds_lateness_as_data() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        await rig.scan(1, every=3.5)
        status = rig.loops.status()["oven"]
        assert status["steps"] == 5 and status["overruns"] == 1
        assert status["late_ms"]["max"] == pytest.approx(2500.0)
        assert status["mode"] == "auto"

    play(story)

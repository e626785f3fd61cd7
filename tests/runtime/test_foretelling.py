"""`cmd/whatif` through the doors: answered off the main loop, from where the loop stands."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import pytest

from agent.config.types import Config, ControllerConfig, ModelConfig
from agent.control import whatif
from agent.control.whatif import Hardware, State, foretell
from agent.runtime import foretelling
from agent.runtime.doors import Doors
from agent.twin.records import Ask, Outcome
from tests.runtime.rig import OUT, PV, Rig, configuration, play

MODEL = ModelConfig(k=1.5, t1=12.0, t2=3.0, delay=4.0, bias=-10.0, grade="good")
PI = ControllerConfig(kp=0.8, ti=14.0, b=0.7)


def modelled(**loop: Any) -> Config:
    return configuration(**{"model": MODEL, "controller": PI, **loop})


async def ask(rig: Rig, **asked: Any) -> Outcome:
    """`within`: seconds to the deadline; the rest is the command's."""
    doors = Doors(
        rig.config,
        None,  # type: ignore[arg-type]
        rig.loops,
        rig.clock,
        dict,
        lambda t: 0,
        on_local_change=lambda name: None,
        relearn=lambda device: Outcome(False),
    )
    setpoint = asked.pop("setpoint", None)
    loop, deadline = asked.pop("loop", "oven"), rig.clock.mono() + asked.pop("within", 30.0)
    return await doors.handle(Ask("whatif", "cmd", deadline, loop=loop, setpoint=setpoint, extra=asked))


def test_it_is_answered_from_where_the_loop_stands() -> None:
    async def story(rig: Rig) -> None:
        rig.registers[PV], rig.registers[OUT] = 47.0, 41.0
        await rig.scan(1)
        outcome = await ask(rig, setpoint=60.0, load=2.0, **{"for": 300.0})
        assert outcome.ok and outcome.error is None
        wanted = foretell(
            rig.config.loops["oven"],
            State(47.0, 41.0, 50.0, reason="waiting for 3 good scans"),
            Hardware(rig.config.devices["plc"].tags["pv"].every),
            setpoint=60.0,
            load=2.0,
            seconds=300.0,
        )
        assert outcome.result == {"loop": "oven", **whatif.body(wanted)}
        assert rig.asked == []  # nothing is written

    play(story, modelled())


def test_the_main_loop_turns_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    real = whatif.foretell

    def seen(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        return real(*args, **kwargs)

    monkeypatch.setattr(whatif, "foretell", seen)

    async def story(rig: Rig) -> None:
        await rig.scan(1)
        turns = 0
        question = asyncio.ensure_future(ask(rig, setpoint=60.0, **{"for": 20_000.0}))
        while not question.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert (await question).ok and turns > 5

    play(story, modelled())
    assert threads and threading.main_thread() not in threads


def test_a_ramp_under_way_goes_on_to_its_end() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(4)
        assert rig.loops.ask("oven", mode=None, setpoint=70.0, remote=False).ok
        await rig.scan(5)
        outcome = await ask(rig)
        assert outcome.result["from"]["setpoint"] == pytest.approx(52.5) and outcome.result["goal"] == 70.0

    play(story, modelled(ramp=0.5))


@pytest.mark.parametrize(
    ("config", "asked", "error"),
    [
        (modelled(model=None), {"setpoint": 60.0}, "has no model: run `edgetwin tune`"),
        (modelled(setpoint_limits=(0.0, 55.0)), {"setpoint": 60.0}, "outside setpoint_limits"),
        (modelled(), {"setpoint": 60.0, "for": 1e6}, "at most 24h"),
        (modelled(), {}, "nothing would change from 50: give setpoint or load"),
        (modelled(), {"setpoint": 60.0, "loop": "kiln"}, "there is no loop 'kiln'"),
    ],
)
def test_what_cannot_be_answered_is_said(config: Config, asked: dict[str, Any], error: str) -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(1)
        outcome = await ask(rig, **asked)
        assert not outcome.ok and error in str(outcome.error)

    play(story, config)


def test_without_a_good_value_there_is_no_answer() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(1, good=False)
        outcome = await ask(rig, setpoint=60.0)
        assert not outcome.ok and outcome.error == "there is no good value of plc/pv now"

    play(story, modelled())


def test_its_deadline_and_the_end_of_the_agent_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(1)
        outcome = await ask(rig, setpoint=60.0, within=0.01, **{"for": 86_400.0})
        assert not outcome.ok and "could not be simulated in time" in str(outcome.error)
        await asyncio.get_running_loop().shutdown_default_executor()  # what ran has ended by itself
        rig.loops.foretelling.close()

    play(story, modelled())

    async def stopped(rig: Rig) -> None:
        await rig.scan(1)
        rig.loops.foretelling.close()
        assert "in time" in str((await ask(rig, setpoint=60.0)).error)

    play(stopped, modelled())


def test_only_some_questions_wait() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(1)
        many = [ask(rig, setpoint=60.0 + k) for k in range(foretelling.WAITING + 2)]
        outcomes = await asyncio.gather(*many)
        assert [one.ok for one in outcomes] == [True] * foretelling.WAITING + [False] * 2
        assert outcomes[-1].error == "too many questions at once"
        assert (await ask(rig, setpoint=60.0)).ok

    play(story, modelled())


def test_the_mode_is_told() -> None:
    async def story(rig: Rig) -> None:
        await rig.scan(2)
        outcome = await ask(rig, setpoint=60.0)
        assert outcome.result["notes"] == ["the loop is in manual: this is what it would do in auto"]
        assert dataclasses.asdict(State(50.0, 40.0, 50.0, "manual")) == outcome.result["from"]

    play(story, modelled(mode="manual"))

"""A setpoint is changed on a running loop: what was foretold, and what came of it. The clock is the test's."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent.config.types import Config, ControllerConfig, LoopConfig, ModelConfig
from agent.control import hindsight
from agent.control.hindsight import MOST_SAMPLES
from agent.control.process import Process, with_error
from agent.runtime.comparing import LINGER
from agent.twin.records import Event
from tests.runtime.rig import OUT, PV, Rig, play
from tests.runtime.test_foretelling import MODEL, modelled

Story = Callable[[Rig], Coroutine[Any, Any, None]]
REST = (50.0, 40.0)


class Plant:
    """The rig with a process between its output and its PV."""

    def __init__(self, rig: Rig, model: ModelConfig = MODEL, period: float = 1.0) -> None:
        self.rig, self.period = rig, period
        self.process = Process(model, period, pv=REST[0], out=REST[1])

    async def turn(self, count: int) -> None:
        for _ in range(count):
            await self.rig.scan(1, every=self.period)
            self.rig.registers[PV] = self.process.step(self.rig.registers[OUT])
            self.rig.loops.tick()
            while self.rig.loops._comparisons._tasks:  # a simulation is under way in its thread
                await asyncio.sleep(0.001)


def compared(rig: Rig) -> dict[str, Any] | None:
    found: dict[str, Any] | None = rig.loops.status()["oven"]["compared"]
    return found


def told(rig: Rig) -> list[Event]:
    return [event for event in rig.events if event.name == "loop_compared"]


def to(rig: Rig, setpoint: float) -> None:
    assert rig.loops.ask("oven", mode=None, setpoint=setpoint, remote=False).ok


def test_what_came_is_held_against_what_was_foretold() -> None:
    async def story(rig: Rig) -> None:
        plant = Plant(rig)
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(60)
        assert told(rig) == [] and compared(rig) is None  # settles after about 59 s: compared after 88
        await plant.turn(40)
        [event], found = told(rig), compared(rig)
        assert found is not None and found["foretold"] == found["real"] and found["at_rest"]
        assert found["misfit"] < 1e-6 and (found["from"], found["to"]) == (50.0, 60.0)
        assert found["seconds"] == pytest.approx(1.5 * found["real"]["settling_s"], abs=1.0)
        assert (event.device, event.tag, event.severity, event.state) == ("plc", "pv", "info", "raised")
        assert (
            event.text.startswith("loop oven: setpoint 50 -> 60: settled after ")
            and event.value == found["misfit"]
        )
        ago = found["ago_s"]
        await plant.turn(20)
        again = compared(rig)
        assert again is not None and again["ago_s"] == ago + 20.0 and len(told(rig)) == 1

    play(story, modelled())


def test_a_process_that_is_another_one_shows() -> None:
    async def story(rig: Rig) -> None:
        plant = Plant(rig, with_error(MODEL, gain=1.4, delay=1.25))
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(120)
        found = compared(rig)
        assert found is not None and found["misfit"] > 0.5
        assert found["real"]["overshoot"] > found["foretold"]["overshoot"] + 5.0

    play(story, modelled())


async def another_setpoint(rig: Rig, plant: Plant) -> None:
    to(rig, 55.0)
    await plant.turn(40)


async def manual(rig: Rig, plant: Plant) -> None:
    assert rig.loops.ask("oven", mode="manual", setpoint=None, remote=False).ok
    await plant.turn(3)
    assert rig.loops.ask("oven", mode="auto", setpoint=None, remote=False).ok


async def failure(rig: Rig, plant: Plant) -> None:
    await rig.scan(5, good=False)
    await plant.turn(10)


async def other_gains(rig: Rig, plant: Plant) -> None:
    loop = rig.config.loops["oven"]
    gains = dataclasses.replace(loop.controller, kp=0.7)
    changed = dataclasses.replace(rig.config, loops={"oven": dataclasses.replace(loop, controller=gains)})
    assert await rig.loops.end_for(changed) == set()
    rig.loops.change(changed, rig.twin)


@pytest.mark.parametrize("cancel", [another_setpoint, manual, failure, other_gains])
@pytest.mark.parametrize("after", [1, 20], ids=["before it is foretold", "after it"])
def test_it_is_called_off(cancel: Callable[[Rig, Plant], Coroutine[Any, Any, None]], after: int) -> None:
    async def story(rig: Rig) -> None:
        plant = Plant(rig)
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(after)
        await cancel(rig, plant)
        await plant.turn(120)
        goals = [event.text.split(":")[1] for event in told(rig)]
        # the later change is compared in its place
        assert goals == ([" setpoint 60 -> 55"] if cancel is another_setpoint else [])

    play(story, modelled())


async def never(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is to be simulated")


@pytest.mark.parametrize(
    "config",
    [
        modelled(model=None),
        modelled(mode="manual"),
        modelled(mode="shadow"),
        modelled(model=dataclasses.replace(MODEL, noise=5.0)),
    ],
    ids=["no model", "manual", "shadow", "less than noise"],
)
def test_what_cannot_be_told_is_not_followed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(rig: Rig) -> None:
        monkeypatch.setattr(rig.loops.foretelling, "run", never)
        plant = Plant(rig)
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(150)
        assert told(rig) == [] and compared(rig) is None

    play(story, config)


def test_a_setpoint_that_moves_on_is_not_simulated_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(rig: Rig) -> None:
        runs = []
        real = rig.loops.foretelling.run

        async def counted(loop: LoopConfig, *args: Any, **kwargs: Any) -> Any:
            runs.append(kwargs["setpoint"])
            return await real(loop, *args, **kwargs)

        monkeypatch.setattr(rig.loops.foretelling, "run", counted)
        plant = Plant(rig)
        rig.registers[("plc", "other")] = 50.0
        await plant.turn(10)
        for k in range(30):
            rig.registers[("plc", "other")] = 50.5 + k / 2
            await plant.turn(1)
        assert runs == [] and LINGER > 1.0
        await plant.turn(150)
        [event] = told(rig)
        assert runs == [65.0] and event.text.endswith("not at rest before")

    play(story, modelled(setpoint=("plc", "other")))


def test_an_hour_of_a_fast_loop_keeps_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hindsight, "due", lambda found: 1e9)

    async def story(rig: Rig) -> None:
        plant = Plant(rig)
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(2 * MOST_SAMPLES)
        change = rig.loops._comparisons._followed["oven"].change
        assert change is not None and len(change.trace.t) <= MOST_SAMPLES

    play(story, modelled())


def test_a_loop_that_is_gone_is_forgotten() -> None:
    async def story(rig: Rig) -> None:
        plant = Plant(rig)
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(120)
        assert compared(rig) is not None
        without = dataclasses.replace(rig.config, loops={})
        assert await rig.loops.end_for(without) == {"oven"}
        rig.loops.change(without, rig.twin)
        assert rig.loops.status() == {}
        rig.loops.change(rig.config, rig.twin)
        assert compared(rig) is None

    play(story, modelled())


def test_what_a_pid_did_in_place_of_the_model_is_not_held_against_it() -> None:
    predictive = modelled(controller=ControllerConfig(type="predictive", kp=0.0))

    async def fell_back(rig: Rig) -> None:
        plant = Plant(
            rig, with_error(MODEL, gain=4.0)
        )  # it oscillates, and a third of the PID's gain takes over
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(200)
        assert any(event.name == "loop_controller" for event in rig.events) and told(rig) == []

    async def went_on(rig: Rig) -> None:
        plant = Plant(rig)
        await plant.turn(10)
        to(rig, 60.0)
        await plant.turn(150)
        assert len(told(rig)) == 1

    play(fell_back, predictive)
    play(went_on, predictive)

"""The predictive controller as a loop has it: when it may run, what happens when its model is wrong, and no bumps."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest

from agent.config.types import ControllerConfig, LoopConfig, ModelConfig
from agent.control.compare import plan, score
from agent.control.design import design
from agent.control.grant import FRAGILE, MOST_OVERSHOOT, MOST_TRAVEL, _grant, grant, prepare
from agent.control.loop import Loop
from agent.control.mpc import Mpc
from agent.control.pid import Pid
from agent.control.predictive import Predictive, controller_for, retuned
from agent.control.process import Process, with_error
from agent.control.signals import Inputs, Sample
from agent.twin.records import Event
from tests.keys.table import configured

MODEL = ModelConfig(k=2.0, t1=10.0, t2=4.0, delay=3.3, grade="good", noise=0.05)


def config(model: ModelConfig | None = MODEL, **changes: Any) -> LoopConfig:
    plain = LoopConfig(
        name="oven",
        pv=("d", "pv"),
        out=("d", "out"),
        setpoint=50.0,
        limits=(0.0, 100.0),
        mode="auto",
        controller=ControllerConfig(type="predictive", kp=0.0),
        model=model,
    )
    return dataclasses.replace(plain, **changes)


def graded(grade: Any) -> ModelConfig:
    return dataclasses.replace(MODEL, grade=grade)


# -- when it may run ------------------------------------------------------------------------------------------------


def test_the_grade_decides() -> None:
    good, fair, poor = (grant(config(graded(grade)), 1.0) for grade in ("good", "fair", "poor"))
    assert good.design is not None and fair.design is not None
    assert fair.design.approach > 2 * good.design.approach
    assert poor.design is None and poor.why == "the model's grade is poor"
    assert grant(config(None), 1.0).why == "there is no model"
    assert "action direct" in (grant(config(action="direct"), 1.0).why or "")


def test_a_model_on_which_a_small_error_counts_much_is_refused() -> None:
    """An integrator, and so much noise that the output must be quiet: too slow for a process that is stronger."""
    brittle = ModelConfig(k=0.2, integrating=True, t2=3.0, delay=4.0, grade="good", noise=4.0)
    given = grant(config(brittle), 1.0)
    assert given.design is None
    assert f"more than {FRAGILE}" in (given.why or "")


def test_moves_cost_more_where_noise_would_make_it_brittle() -> None:
    quiet = grant(config(dataclasses.replace(MODEL, noise=1e-4)), 1.0)
    noisy = grant(config(dataclasses.replace(MODEL, noise=10.0)), 1.0)
    assert quiet.design is not None and noisy.design is not None
    assert noisy.design.penalty > quiet.design.penalty == 1.0
    assert noisy.noise == 10.0
    unknown = grant(config(dataclasses.replace(MODEL, noise=0.0)), 1.0)
    assert unknown.noise == pytest.approx(0.005 * 200.0)


@pytest.mark.parametrize("noise", [1e-3, 0.2, 2.0])
def test_the_output_travels_no_further_than_allowed(noise: float) -> None:
    granted = grant(config(dataclasses.replace(MODEL, noise=noise)), 1.0)
    controllers = [
        Predictive(config(dataclasses.replace(MODEL, noise=noise)), 1.0),
        Pid(config(controller=granted.pid), 1.0),
    ]
    travels = []
    for controller in controllers:
        process, generator = Process(MODEL, 1.0, pv=100.0, out=50.0), np.random.default_rng(3)
        controller.take_over(50.0, 100.0, 100.0, 0.0)
        outs = []
        for k in range(600):
            measured = process.pv + noise * generator.normal()
            outs.append(controller.step(100.0 if k < 10 else 140.0, measured, 0.0, 1.0, 1.0))
            process.step(outs[-1], -10.0 if k > 300 else 0.0)
        travels.append(float(np.abs(np.diff(outs)).sum()))
    assert travels[0] <= 1.15 * MOST_TRAVEL * travels[1]


def test_the_setpoint_is_approached_as_fast_as_an_error_of_the_model_allows() -> None:
    lags = ModelConfig(k=2.0, t1=5.0, t2=5.0, delay=2.0, grade="good", noise=0.05)
    late = ModelConfig(k=2.0, t1=5.0, delay=15.0, grade="good", noise=0.05)
    swing = ModelConfig(k=2.0, t1=5.0, damping=0.3, delay=2.0, grade="good", noise=0.05)
    for model, hurried in ((lags, True), (late, False), (swing, False)):
        found = grant(config(model), 1.0).design
        assert found is not None
        rule = design(model, 1.0, limits=(0.0, 100.0)).approach
        assert (found.approach < 0.8 * rule) == hurried
        runs = plan(config(model), model, 1.0, noise=model.noise)
        scores = score("", functools.partial(Mpc, found), model, runs)
        assert scores.worst <= FRAGILE
        assert scores.overshoot <= (MOST_OVERSHOOT if hurried else 0.08)


def test_gains_that_are_given_are_the_pids() -> None:
    given = ControllerConfig(type="predictive", kp=0.4, ti=33.0)
    assert grant(config(controller=given), 1.0).pid == given
    suited = grant(config(), 1.0).pid
    assert suited.kp > 0.0 and suited.ti != 60.0


def test_the_same_question_is_worked_out_once() -> None:
    assert grant(config(), 1.0) is grant(config(name="other", deadband=3.0), 1.0)
    assert grant(config(), 1.0) is not grant(config(), 2.0)


def test_a_reload_works_it_out_before_the_loops_are_touched() -> None:
    model = {"k": 2.0, "t1": "12s", "delay": "2s", "grade": "good"}
    loaded = configured({"loops.l.controller": {"type": "predictive"}, "loops.l.model": model})
    prepare(loaded)
    before = _grant.cache_info().misses
    Loop(loaded.loops["l"], pv_period=loaded.tag(("d", "pv")).every)
    assert _grant.cache_info().misses == before


# -- as the loop has it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, graded("poor")], ids=["predictive", "pid"])
@pytest.mark.parametrize("output", [0.0, 37.0, 100.0])
def test_taking_over_is_no_bump(model: ModelConfig, output: float) -> None:
    controller = controller_for(config(model), 1.0)
    controller.take_over(output, 80.0, 60.0, 5.0)
    assert controller.step(80.0, 60.0, 5.0, 1.0, 1.0) == pytest.approx(output)


def test_nan_never_enters() -> None:
    controller = controller_for(config(), 1.0)
    controller.take_over(40.0, 80.0, 80.0, 0.0)
    for numbers in ((math.nan, 80.0, 0.0), (80.0, math.nan, 0.0), (80.0, 80.0, math.inf)):
        assert controller.step(*numbers, 1.0, 1.0) == pytest.approx(40.0)
    assert controller.step(80.0, 80.0, 0.0, 1.0, 1.0) == pytest.approx(40.0)


def test_other_parameters_and_another_type_are_no_bump() -> None:
    controller = controller_for(config(), 1.0)
    controller.take_over(40.0, 80.0, 80.0, 0.0)
    for _ in range(5):
        last = controller.step(90.0, 81.0, 0.0, 1.0, 1.0)
    others = (
        config(dataclasses.replace(MODEL, k=3.0)),
        config(controller=ControllerConfig(kp=2.0)),
        config(graded("fair")),
    )
    for other in others:
        controller = retuned(controller, other, 1.0)
        assert isinstance(controller, Predictive) == (other.controller.type == "predictive")
        assert controller.step(90.0, 81.0, 0.0, 1.0, 1.0) == pytest.approx(last)


class Plant:
    """A loop and the process under it, a scan a second."""

    def __init__(self, truth: ModelConfig, loop: LoopConfig) -> None:
        self.loop = Loop(loop, pv_period=1.0)
        self.process = Process(truth, 1.0, pv=80.0, out=40.0)
        self.out, self.t = 40.0, 0.0
        self.events: list[Event] = []
        self.outs: list[float] = []
        self._noise = np.random.default_rng(5)

    def scans(self, count: int, setpoint: float) -> None:
        self.loop.set_setpoint(setpoint)
        for _ in range(count):
            self.t += 1.0
            pv = self.process.step(self.out) + 0.05 * self._noise.normal()
            step = self.loop.on_sample(
                self.t, Inputs(Sample(pv, True, self.t), Sample(self.out, True, self.t))
            )
            if step.write is not None:
                self.loop.on_write_begin(step.write)
                self.out = step.write
                self.loop.on_write_done(
                    self.t, value=step.write, ok=True, readback=step.write, error=None, safety=False
                )
            self.events += [*step.events, *self.loop.on_tick(self.t + 0.01).events]
            self.outs.append(self.out)

    @property
    def told(self) -> list[str]:
        return [event.text for event in self.events if event.name == "loop_controller"]


@pytest.mark.parametrize("error", [(1.0, 1.0), (1.3, 1.3), (0.7, 1.0), (0.4, 1.0)])
def test_a_model_that_is_right_enough_is_kept(error: tuple[float, float]) -> None:
    plant = Plant(with_error(MODEL, gain=error[0], delay=error[1]), config(setpoint=80.0))
    for setpoint in (80.0, 110.0, 70.0, 72.0, 115.0):
        plant.scans(150, setpoint)
    assert plant.told == []
    assert plant.loop.view().reason is None
    assert plant.process.pv == pytest.approx(115.0, abs=2.0)


@pytest.mark.parametrize("error", [(3.0, 1.0), (2.0, 2.0)])
def test_a_wrong_model_is_left_without_a_bump(error: tuple[float, float]) -> None:
    plant = Plant(with_error(MODEL, gain=error[0], delay=error[1]), config(setpoint=80.0))
    plant.scans(10, 80.0)
    scans = 0
    while not plant.told and scans < 400:
        plant.scans(1, 100.0)
        scans += 1
    assert scans < 400
    assert "a PID with a third of its gain runs" in plant.told[0]
    plant.scans(1, 100.0)
    moves = np.abs(np.diff(plant.outs[-10:]))
    assert moves[-1] <= moves[:-1].max()
    plant.scans(1000, 100.0)
    assert plant.process.pv == pytest.approx(100.0, abs=2.0)
    assert len(plant.told) == 1
    assert "not predictive" in (plant.loop.view().reason or "")


def test_only_a_person_brings_the_model_back() -> None:
    plant = Plant(with_error(MODEL, gain=3.0), config(setpoint=80.0))
    plant.scans(60, 100.0)
    assert plant.told
    plant.loop.restarted(plant.t)
    plant.scans(10, 100.0)
    assert "not predictive" in (plant.loop.view().reason or "")
    for mode in ("manual", "auto"):
        plant.loop.set_mode(plant.t, mode)
    plant.scans(4, 100.0)
    assert plant.loop.view().reason is None


def test_a_loop_that_may_not_says_why() -> None:
    plant = Plant(MODEL, config(graded("poor"), setpoint=80.0))
    plant.scans(10, 80.0)
    assert plant.told == ["loop oven: not predictive: the model's grade is poor"]
    assert plant.loop.view().reason == "not predictive: the model's grade is poor"


def test_another_model_on_a_reload_is_judged_and_told() -> None:
    plant = Plant(MODEL, config(setpoint=80.0))
    plant.scans(20, 80.0)
    assert plant.told == []
    assert plant.loop.set_parameters(config(graded("poor"), setpoint=80.0)) is None
    before = plant.outs[-1]
    plant.scans(1, 80.0)
    assert plant.told == ["loop oven: not predictive: the model's grade is poor"]
    assert plant.outs[-1] == pytest.approx(before, abs=0.5)


def test_a_shadow_does_not_judge_the_model_by_outputs_that_nobody_wrote() -> None:
    plant = Plant(with_error(MODEL, gain=-1.0), config(setpoint=80.0, mode="shadow"))
    plant.scans(200, 100.0)
    assert plant.told == []
    assert plant.loop.view().reason is None

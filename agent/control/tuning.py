"""From a record of a loop to the gains that it should have: what `tune` shows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from agent.config.types import LoopConfig, ModelConfig
from agent.control.compare import Plan, Scores, plan, score, score_pid
from agent.control.gains import Gains, amigo_pi, amigo_pid, simc
from agent.control.identify import Identified, identify
from agent.control.predictive import Predictive
from agent.control.record import Record
from agent.control.robust import most_sensitive

DIGITS = 4
PREDICTIVE = "predictive"
RULES = ("simc", "amigo-pi", "amigo-pid", "ms", PREDICTIVE)
"""What may be chosen, in the order of the rows."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was identified and, unless that is poor, a row for each rule; `best` is the rule that suits the grade."""

    loop: LoopConfig
    period: float
    found: Identified
    model: ModelConfig
    rows: dict[str, Scores]
    best: str | None


def tune(record: Record, loop: LoopConfig, period: float) -> Tuning:
    """Identifies the process and compares gains for it. `period`: seconds between two steps of the loop.

    Raises ValueError, in words for the user, for a record with nothing in it to identify.
    """
    found = _doubted(identify(record), loop)
    model = tidied(found.model)
    if found.grade == "poor" or model.k == 0.0:
        return Tuning(loop, period, found, model, {}, None)
    rows = compare(model, plan(loop, model, period, noise=model.noise))
    trusted = found.grade == "good" or model.damping < 1.0
    wanted = "ms" if "ms" in rows and trusted else "simc" if "simc" in rows else None
    return Tuning(loop, period, found, model, rows, wanted)


def _doubted(found: Identified, loop: LoopConfig) -> Identified:
    """No better than fair where the process acts the other way than the configuration says: one of them is wrong.

    A disturbance in step with the output's own moves can turn a gain round, and all errors look small.
    """
    k = found.model.k
    if found.grade == "poor" or k == 0.0 or (k > 0.0) == (loop.action == "reverse"):
        return found
    why = (
        f"the configuration says action: {loop.action}, and by this record it is the other way round; make sure which "
        "is true before a loop acts on it"
    )
    model = dataclasses.replace(found.model, grade="fair")
    return dataclasses.replace(found, model=model, why=(*found.why, why))


def compare(model: ModelConfig, runs: Plan) -> dict[str, Scores]:
    """Rule -> what it gives with the product's own controllers; predictive only where the model is granted that.

    SIMC and AMIGO have no rule for a process that oscillates.
    """
    gains: dict[str, Gains | None] = {}
    if model.damping >= 1.0:
        gains = {
            "simc": simc(model, runs.period),
            "amigo-pi": amigo_pi(model, runs.period),
            "amigo-pid": amigo_pid(model, runs.period),
        }
    gains["ms"] = most_sensitive(model, runs.period)
    rounded = {
        rule: dataclasses.replace(one, kp=tidy(one.kp), ti=tidy(one.ti), td=tidy(one.td))
        for rule, one in gains.items()
        if one is not None
    }
    rows = {rule: score_pid(one, model, runs) for rule, one in rounded.items()}
    loop = predictive(runs.loop, model)
    if Predictive(loop, runs.period).reason is None:
        rows[PREDICTIVE] = score(PREDICTIVE, lambda: Predictive(loop, runs.period), model, runs)
    return rows


def predictive(loop: LoopConfig, model: ModelConfig) -> LoopConfig:
    """The loop with the predictive controller on this model, the PID beneath it with gains that suit the model."""
    controller = dataclasses.replace(loop.controller, type="predictive", kp=0.0)
    action: Literal["reverse", "direct"] = "reverse" if model.k >= 0.0 else "direct"
    return dataclasses.replace(loop, controller=controller, model=model, action=action)


def tidy(value: float) -> float:
    """Rounded to the digits that a gain or a time is worth."""
    return float(f"{value:.{DIGITS}g}")


def tidied(model: ModelConfig) -> ModelConfig:
    """With numbers as they are printed and written."""
    return dataclasses.replace(
        model,
        k=tidy(model.k),
        t1=tidy(model.t1),
        t2=tidy(model.t2),
        delay=tidy(model.delay),
        bias=tidy(model.bias),
        noise=tidy(model.noise),
        damping=tidy(model.damping),
    )


def body(tuning: Tuning) -> dict[str, Any]:
    """The JSON of `tune --json`; numbers that are not finite become null."""
    found, model = tuning.found, tuning.model
    process = {
        **dataclasses.asdict(model),
        "k_error": _plain(found.k_error),
        "lags_error": _plain(found.t_error),
        "delay_error": _plain(found.delay_error),
        "damping_error": _plain(found.damping_error),
        "delays": [tidy(late) for late in found.delays],
        "fit": _plain(found.fit),
        "why": list(found.why),
        "period": found.period,
        "samples": found.samples,
        "left_out": found.cut,
        "moved_by": found.source.kind,
        "excitation": _plain(found.source.total),
    }
    return {
        "v": 1,
        "loop": tuning.loop.name,
        "model": process,
        "gains": {rule: _row(row) for rule, row in tuning.rows.items()},
        "best": tuning.best,
    }


def _row(row: Scores) -> dict[str, Any]:
    gains = row.gains
    return {
        "name": row.name,
        "kp": None if gains is None else abs(gains.kp),
        "ti": None if gains is None else gains.ti,
        "td": None if gains is None else gains.td,
        "b": None if gains is None else gains.b,
        "action": None if gains is None else gains.action,
        "iae_setpoint": _plain(row.iae_setpoint),
        "iae_load": _plain(row.iae_load),
        "overshoot": _plain(row.overshoot),
        "travel": _plain(row.travel),
        "ms": None if row.ms is None else _plain(row.ms),
        "worst": _plain(row.worst),
    }


def _plain(value: float) -> float | None:
    return tidy(value) if math.isfinite(value) else None

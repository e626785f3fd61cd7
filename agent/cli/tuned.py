"""What `tune` found, as a table of plain text, as lines for the configuration, and as a picture."""

from __future__ import annotations

import math

from agent.config.types import ModelConfig
from agent.control.compare import Scores
from agent.control.identify import Identified
from agent.control.tuning import Tuning
from agent.plot import Band, Line, Panel, Rule, chart

TITLE_GRADES = {
    "good": "good: it may be controlled by this model",
    "fair": "fair: enough for a PID, not for predictive control",
    "poor": "poor: no gains are given",
}


def report(found: Tuning, chosen: str | None, source: str) -> str:
    """The whole text; `chosen`: the rule whose gains are written out, `source`: where the record is from."""
    identified, model = found.found, found.model
    lines = [
        f"loop {found.loop.name}, {source}: {identified.samples} samples, {identified.period:.4g} s apart"
        + (f", {identified.cut} beside a gap left out" if identified.cut else ""),
    ]
    if found.rows:
        lines += _found(identified, model)
    lines.append(f"grade {TITLE_GRADES[identified.grade]}")
    lines += [f"  {why}" for why in identified.why]
    if not found.rows:
        return "\n".join(lines)
    lines += ["", *_table(found, chosen)]
    row = found.rows.get(chosen or "")
    if row is not None:
        lines += ["", f"for the configuration ({row.name}):"]
        lines += [f"    {key}: {flow(value)}" for key, value in settings(found, row).items()]
    return "\n".join(lines)


def _found(identified: Identified, model: ModelConfig) -> list[str]:
    """The process and how well it is known."""
    lines = [
        f"process: {_process(model)}",
        f"  gain  {model.k:g} +- {identified.k_error:.2g}{' per second' if model.integrating else ''}",
        f"  delay {model.delay:g} s +- {identified.delay_error:.2g} s",
        _lags(identified, model),
        f"  explains {100 * max(identified.fit, 0.0):.0f} % of what the PV did; noise {model.noise:.2g}",
    ]
    if len(identified.delays) > 1:
        lines.append(
            "  delays that explain it alike: " + ", ".join(f"{late:.3g}" for late in identified.delays) + " s"
        )
    return lines


def _lags(identified: Identified, model: ModelConfig) -> str:
    if model.damping < 1.0:
        return (
            f"  swing t1 {model.t1:g} s +- {identified.t_error:.2g} s, "
            f"damping {model.damping:g} +- {identified.damping_error:.2g}"
        )
    return f"  lags  {model.t1:g} s and {model.t2:g} s, together +- {identified.t_error:.2g} s"


def _process(model: ModelConfig) -> str:
    below = "s " if model.integrating else ""
    lags = [lag for lag in ((model.t2,) if model.integrating else (model.t1, model.t2)) if lag > 0.0]
    if model.damping < 1.0:
        below, lags = f"({model.t1**2:.4g} s² + {2 * model.damping * model.t1:.4g} s + 1)", []
    below += "".join(f"({lag:g} s + 1)" for lag in lags)
    late = f" e^(-{model.delay:g} s)" if model.delay else ""
    return f"{model.k:g}{' / ' + below.strip() if below else ''}{late}"


def _table(found: Tuning, chosen: str | None) -> list[str]:
    """Each rule's gains, and what they gave; the chosen one is marked."""
    head = ("kp", "ti s", "td s", "IAE setp.", "IAE load", "overshoot", "travel", "Ms", "worst")
    lines = [f"  {'':12}" + "".join(f"{word:>11}" for word in head)]
    for rule, row in found.rows.items():
        mark = "* " if rule == chosen else "  "
        lines.append(f"{mark}{row.name:12}" + "".join(f"{cell:>11}" for cell in _cells(row)))
    lines.append(
        "  IAE: integrated error after a step of the setpoint and after a load; travel: way of the output;"
    )
    lines.append("  worst: error with gain and delay 30 % off, over that without")
    if found.model.damping < 1.0:
        lines[-1] += ", or with a t1 15 % off"
        lines.append("  SIMC and AMIGO have no rule for a process that oscillates")
    return lines


def _cells(row: Scores) -> list[str]:
    gains = row.gains
    three = ["-"] * 3 if gains is None else [f"{abs(gains.kp):.4g}", f"{gains.ti:.4g}", f"{gains.td:.4g}"]
    return [
        *three,
        f"{row.iae_setpoint:.4g}",
        f"{row.iae_load:.4g}",
        f"{100 * row.overshoot:.0f} %",
        f"{row.travel:.4g}",
        "-" if row.ms is None else f"{row.ms:.2f}",
        f"{row.worst:.2f}" if math.isfinite(row.worst) else "unstable",
    ]


def settings(found: Tuning, row: Scores) -> dict[str, str | dict[str, str]]:
    """What the loop should say, as YAML: controller, model, and action where it differs."""
    gains, loop, model = row.gains, found.loop, found.model
    kept = {"c": f"{loop.controller.c:g}", "n": f"{loop.controller.n:g}"}
    if gains is None:
        controller, action = {"type": "predictive"}, "reverse" if model.k > 0.0 else "direct"
    else:
        controller = {
            "type": "pid",
            "kp": f"{abs(gains.kp):g}",
            "ti": f"{gains.ti:g}s",
            "td": f"{gains.td:g}s",
            "b": f"{gains.b:g}",
        }
        action = gains.action
    entries: dict[str, str | dict[str, str]] = {"controller": controller | kept, "model": model_keys(model)}
    return entries | ({"action": action} if action != loop.action else {})


def model_keys(model: ModelConfig) -> dict[str, str]:
    """The keys of `model:`."""
    return {
        "k": f"{model.k:g}",
        "t1": f"{model.t1:g}s",
        "t2": f"{model.t2:g}s",
        "damping": f"{model.damping:g}",
        "delay": f"{model.delay:g}s",
        "bias": f"{model.bias:g}",
        "integrating": str(model.integrating).lower(),
        "grade": model.grade,
        "noise": f"{model.noise:g}",
    }


def flow(value: str | dict[str, str]) -> str:
    """A value of `settings` on one line."""
    if isinstance(value, str):
        return value
    return "{" + ", ".join(f"{key}: {text}" for key, text in value.items()) + "}"


def picture(found: Tuning, chosen: str | None) -> str:
    """The record with the process over it, and each rule's response, as SVG."""
    identified = found.found
    t = identified.t.tolist()
    panels = [
        Panel(
            [
                Line(t, identified.pv.tolist(), "measured"),
                Line(t, identified.simulated.tolist(), "the process found", colour=1),
            ],
            title="record",
            height=200.0,
        )
    ]
    if found.rows:
        rows = list(found.rows.items())
        first = rows[0][1].run
        half = float(first.t[len(first.t) // 2])
        order = [(colour, rule, row) for colour, (rule, row) in enumerate(rows)]
        pv: list[Line | Band | Rule] = [
            Line(first.t.tolist(), first.setpoint.tolist(), "setpoint", colour=5, step=True, dashed=True),
            *(
                Line(row.run.t.tolist(), row.run.pv.tolist(), _name(row, rule, chosen), colour=n)
                for n, rule, row in order
            ),
            Rule(half, "load", upright=True),
        ]
        out = [
            Line(row.run.t.tolist(), row.run.out.tolist(), _name(row, rule, chosen), colour=n, step=True)
            for n, rule, row in order
        ]
        panels += [
            Panel(pv, title="expected PV, from rest", height=200.0),
            Panel(out, title="expected output"),
        ]
    return chart(panels, title=f"loop {found.loop.name}: {_process(found.model)}, {identified.grade}")


def _name(row: Scores, rule: str, chosen: str | None) -> str:
    return f"{row.name} (chosen)" if rule == chosen else row.name

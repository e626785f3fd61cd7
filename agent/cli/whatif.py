"""`edgetwin whatif CONFIG LOOP`: what a loop would do with another setpoint or a load, before the plant sees it."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail
from agent.cli.tune import loop_of
from agent.config.paths import socket_candidates
from agent.config.scalars import Wrong, duration
from agent.config.types import Config, LoopConfig

if TYPE_CHECKING:
    from agent.control.whatif import Foretold, State

HELP = (
    "Run a loop's controller against its identified model (`model:`, as tune writes it) and tell what to expect of "
    "another setpoint or of a load. It starts from where the running agent has the loop, or where no agent runs with "
    "this configuration from rest at the configured setpoint. The process counts as at rest at the start, feed-forward "
    "and interlocks stay as they are, and nothing is written to a device."
)
EXAMPLE = "edgetwin whatif config.yaml oven --setpoint 200 --plot oven.svg"
PATIENCE = 5.0
ROWS = 12
"""Lines of the table."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument("loop", metavar="LOOP", help="the loop's name")
    parser.add_argument(
        "--setpoint", metavar="V", type=float, help="what if the setpoint goes to V, in the PV's unit"
    )
    parser.add_argument(
        "--load",
        metavar="V",
        type=float,
        default=0.0,
        help="what if a load comes at half time that is like V more of the output",
    )
    parser.add_argument(
        "--for",
        metavar="10m",
        dest="seconds",
        type=_duration,
        help="how far to look, 24h at most (default: as long as the model's lags and the ramp ask for)",
    )
    parser.add_argument("--csv", metavar="OUT", type=Path, help="write setpoint, PV and output of every step")
    parser.add_argument("--plot", metavar="OUT.svg", type=Path, help="draw setpoint, PV and output")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _duration(text: str) -> float:
    try:
        return duration(text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(wrong.words) from None


def main(args: argparse.Namespace) -> int:
    """Exit status 1 where there is no model, or the loop would refuse what is asked."""
    from agent.control import whatif

    config = load_or_fail(args.config)
    loop = loop_of(config, args.loop)
    try:
        whatif.model_of(loop)
        start = _now(config, loop)
        running = start is not None
        if start is None:
            start = whatif.at_rest(loop, _resting_setpoint(config, loop))
        wanted = start.setpoint if args.setpoint is None else args.setpoint
        if args.load == 0.0 and wanted == start.setpoint == start.pv:
            raise Failure(f"nothing would change from {wanted:g}: give --setpoint or --load", status=2)
        found = whatif.foretell(
            loop,
            start,
            whatif.hardware_of(config, loop),
            setpoint=args.setpoint,
            load=args.load,
            seconds=args.seconds,
        )
    except ValueError as error:
        raise Failure(str(error)) from None
    if args.json:
        print(json.dumps(whatif.body(found), ensure_ascii=False))
    else:
        print("\n".join(as_text(config, loop, found, running=running)))
    if args.csv is not None:
        write_csv(args.csv, loop, found)
    if args.plot is not None:
        args.plot.write_text(picture(config, loop, found), encoding="utf-8")
    return 0


def _now(config: Config, loop: LoopConfig) -> State | None:
    """Where the running agent has the loop; None where none runs with this configuration. Raises Failure."""
    from agent.control.whatif import State
    from agent.runtime.socket import ask_daemon

    look = {"op": "tune", "loop": loop.name, "do": "look"}
    answer = ask_daemon(socket_candidates(config), look, timeout=PATIENCE, config_path=config.path)
    if answer is None:
        return None
    if not answer.get("ok"):
        raise Failure(str(answer.get("error")))
    seen = answer["result"]
    if seen["pv"] is None or seen["now"] is None:
        missing = loop.pv if seen["pv"] is None else loop.out
        raise Failure(f"the running agent has no good value of {'/'.join(missing)} now")
    setpoint = seen["pv"] if seen["sp"] is None else seen["sp"]
    return State(seen["pv"], seen["now"], setpoint, seen["mode"], seen["reason"])


def _resting_setpoint(config: Config, loop: LoopConfig) -> float:
    """The configured setpoint; of one that is a tag, the middle of its limits or ranges. Raises Failure."""
    if not isinstance(loop.setpoint, tuple):
        return float(loop.setpoint)
    for limits in (loop.setpoint_limits, config.tag(loop.setpoint).range, config.tag(loop.pv).range):
        if limits is not None:
            return (float(limits[0]) + float(limits[1])) / 2.0
    where = "/".join(loop.setpoint)
    raise Failure(f"nothing says where loop {loop.name} rests: {where} has no range, and no agent runs")


def as_text(config: Config, loop: LoopConfig, found: Foretold, *, running: bool) -> list[str]:
    """A summary and a table, in plain words."""
    pv_unit, out_unit = (f" {unit}" if (unit := config.tag(key).unit) else "" for key in (loop.pv, loop.out))
    start, step = found.start, found.step
    whence = f"now, in {start.mode}" if running else "rest"
    kind = "the predictive controller" if found.controller == "predictive" else "the PID"
    lines = [
        f"loop {loop.name}, {kind} on a model graded {found.grade}",
        f"from {whence}: PV {start.pv:.5g}{pv_unit}, output {start.out:.5g}{out_unit}, setpoint {start.setpoint:.5g}",
    ]
    if step.overshoot is not None:
        settles = "not" if step.settling is None else f"after {step.settling:.4g} s"
        lines += [
            f"to {found.goal:.5g}{pv_unit}:",
            f"  settles        {settles} (within 2 % of the step)",
            f"  overshoot      {step.overshoot:.1f} %",
            f"  IAE            {step.iae:.4g}",
        ]
    if found.disturbed is not None:
        one = found.disturbed
        settles = "not" if one.settling is None else f"after {one.settling:.4g} s"
        lines += [
            f"load of {found.load:g}{out_unit} at {found.t[-1] / 2:.4g} s:",
            f"  goes off by    {one.peak:.4g}{pv_unit}",
            f"  settles        {settles} (within a tenth of that)",
            f"  IAE            {one.iae:.4g}",
        ]
    bound = "do not bind" if found.limited == 0.0 else f"bind in {100 * found.limited:.0f} % of the steps"
    lines += [
        f"largest move     {found.move:.4g}{out_unit}",
        f"limits and rate  {bound}",
        *(f"note: {note}" for note in found.notes),
        "",
        *_table(found),
    ]
    return lines


def _table(found: Foretold) -> list[str]:
    from agent.control.whatif import thinned

    rows = [f"{'time s':>10}{'setpoint':>12}{'PV':>12}{'output':>12}"]
    for k in thinned(len(found.t), ROWS):
        cells = (found.setpoint[k], found.pv[k], found.out[k])
        rows.append(f"{found.t[k]:>10.5g}" + "".join(f"{cell:>12.5g}" for cell in cells))
    return rows


def write_csv(path: Path, loop: LoopConfig, found: Foretold) -> None:
    """A row for each step; the columns are named as `tune` and `replay` take them. Raises OSError."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["time", "setpoint", "/".join(loop.pv), "/".join(loop.out)])
        columns = (found.t, found.setpoint, found.pv, found.out)
        lines.writerows([f"{cell:.9g}" for cell in row] for row in zip(*columns, strict=True))


def picture(config: Config, loop: LoopConfig, found: Foretold) -> str:
    """PV with its setpoint above, the output within its limits below, as SVG."""
    from agent.plot import Band, Line, Panel, Rule, chart

    t = found.t.tolist()
    ends = [t[0], t[-1]]

    seen = [*found.setpoint.tolist(), *found.pv.tolist()]
    least, most = min(seen), max(seen)
    margin = 0.1 * (most - least) or 1.0

    def between(limits: tuple[float, float], name: str) -> Band:
        return Band(ends, [limits[0]] * 2, [limits[1]] * 2, name, colour=5)

    pv: list[Line | Band | Rule] = []
    if loop.setpoint_limits is not None:
        pv.append(between(loop.setpoint_limits, "setpoint limits"))
    pv += [
        Line(t, found.setpoint.tolist(), "setpoint", colour=1, step=True, dashed=True),
        Line(t, found.pv.tolist(), "PV foretold"),
    ]
    out: list[Line | Band | Rule] = [
        between(loop.limits, "limits"),
        Line(t, found.out.tolist(), "output", colour=2, step=True),
    ]
    if found.disturbed is not None:
        half = t[len(t) // 2]
        pv.append(Rule(half, "load", upright=True))
        out.append(Rule(half, "", upright=True))
    panels = [
        Panel(
            pv,
            title="/".join(loop.pv),
            unit=config.tag(loop.pv).unit or "",
            # the limits are drawn as far as the PV goes: they may be far away
            low=least - margin,
            high=most + margin,
            height=220.0,
        ),
        Panel(out, title="/".join(loop.out), unit=config.tag(loop.out).unit or ""),
    ]
    asked = f"setpoint to {found.goal:g}" if found.step.overshoot is not None else f"setpoint {found.goal:g}"
    load = f", load {found.load:g}" if found.disturbed is not None else ""
    return chart(panels, title=f"loop {loop.name}: {asked}{load}")

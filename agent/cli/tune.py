"""`edgetwin tune CONFIG LOOP [DATA.csv]`: a loop's process, how far to trust it, and gains."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail
from agent.config.scalars import Wrong, duration
from agent.config.types import Config, LoopConfig

if TYPE_CHECKING:
    from agent.control.record import Record

HELP = (
    "Identify a loop's process from recorded data or from a test, say how far the result can be trusted, and print "
    "gains with what they give in simulation. DATA.csv has a header; the first column is the time (ISO 8601 or "
    "seconds), the others are tags (device/tag); the loop's pv and out are needed, its setpoint helps (a column "
    "`setpoint` where it is no tag). The output must have been moved by hand, by a test or by steps of the setpoint: "
    "from quiet running nothing can be told, and no gains are printed. A test goes through the running agent, within "
    "the loop's limits and rate; the output goes back to where it was at its end, on Ctrl-C, and at any doubt."
)
EXAMPLE = "edgetwin tune config.yaml oven history.csv --plot oven.svg"
SETPOINT = "setpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument("loop", metavar="LOOP", help="the loop's name")
    parser.add_argument("data", metavar="DATA.csv", type=Path, nargs="?", help="what was recorded")
    test = parser.add_argument_group("a test through the running agent, in place of DATA.csv")
    kinds = test.add_mutually_exclusive_group()
    for kind, what in (
        ("step", "one step of the output, and back"),
        ("relay", "the output to one side or the other, against the PV"),
        ("prbs", "the output to two levels in turn, at pseudo-random times"),
    ):
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=what)
    test.add_argument(
        "--max-move", metavar="X", type=float, help="the output moves by this much at most, in its unit"
    )
    test.add_argument("--for", metavar="10m", dest="seconds", type=_duration, default=600.0, help="how long")
    test.add_argument("--yes", action="store_true", help="do not ask")
    test.add_argument("--record", metavar="OUT.csv", type=Path, help="keep what was recorded")
    parser.add_argument(
        "--use",
        metavar="RULE",
        choices=["simc", "amigo-pi", "amigo-pid", "ms", "predictive"],
        help="what to recommend: simc, amigo-pi, amigo-pid, ms (by maximum sensitivity) or predictive",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the model and the recommended gains into the configuration file",
    )
    parser.add_argument("--plot", metavar="OUT.svg", type=Path, help="draw the record and the responses")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _duration(text: str) -> float:
    try:
        return duration(text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def main(args: argparse.Namespace) -> int:
    """Exit status 1 where the record tells too little for gains."""
    from agent.control import tuning

    config = load_or_fail(args.config)
    loop = loop_of(config, args.loop)
    record = _record(args, config, loop)
    source = args.data.name if args.data else f"test ({args.kind})"
    try:
        found = tuning.tune(record, loop, step_period(config, loop))
    except ValueError as error:
        raise Failure(f"{source}: {error}") from None
    chosen = args.use or found.best
    if found.rows and chosen not in found.rows:
        raise Failure(f"{chosen} is nothing for this model; there are {', '.join(found.rows)}")
    if args.json:
        print(json.dumps({**tuning.body(found), "best": chosen if found.rows else None}))
    else:
        from agent.cli.tuned import report

        print(report(found, chosen, source))
    if args.plot is not None:
        from agent.cli.tuned import picture

        args.plot.write_text(picture(found, chosen), encoding="utf-8")
    if args.write and chosen in found.rows:
        from agent.cli.tuned import settings

        write_settings(config, loop, settings(found, found.rows[chosen]))
        print(f"written to {args.config}; the running agent takes it with a reload", file=sys.stderr)
    elif args.write:
        print("edgetwin: nothing was written", file=sys.stderr)
    return 0 if found.rows else 1


def _record(args: argparse.Namespace, config: Config, loop: LoopConfig) -> Record:
    """From the file, or from a test. Raises Failure, OSError, KeyboardInterrupt."""
    if (args.data is None) == (args.kind is None):
        raise Failure("give DATA.csv, or one of --step, --relay and --prbs for a test", status=2)
    if args.data is not None:
        return read_record(args.data, config, loop)
    if args.max_move is None:
        raise Failure("say by --max-move how far the test may move the output", status=2)
    import numpy as np

    from agent.cli import experiment
    from agent.control.record import Record

    wanted = experiment.Wanted(args.kind, args.max_move, args.seconds)
    ask = experiment.through_agent(config, loop)
    if not args.yes:
        experiment.confirm(ask, loop, wanted, unit=config.tag(loop.out).unit or "")
    seen = experiment.carry_out(ask, wanted)
    if args.record is not None:
        experiment.write_record(args.record, loop, seen)
    rows = np.array([(t, np.nan if pv is None else pv, out) for t, pv, out in seen.rows], dtype=np.float64)
    return Record(rows[:, 0].copy(), rows[:, 1].copy(), rows[:, 2].copy())


def loop_of(config: Config, name: str) -> LoopConfig:
    """The loop of that name. Raises Failure."""
    if name in config.loops:
        return config.loops[name]
    known = ", ".join(config.loops) or "the configuration has none"
    raise Failure(f"there is no loop {name!r}: {known}", status=2)


def step_period(config: Config, loop: LoopConfig) -> float:
    """Seconds between two steps: the loop's own, or the PV's where that comes less often."""
    return max(loop.every, config.tag(loop.pv).every)


def write_settings(config: Config, loop: LoopConfig, entries: dict[str, str | dict[str, str]]) -> None:
    """Puts these keys into the loop in its file. Raises Failure, OSError; the file is then untouched."""
    from agent.config.edit import CannotEdit, edited
    from agent.config.load import parse
    from agent.statefile import write_atomic

    path = Path(config.path).resolve()
    before = path.read_bytes()
    mark = b"\xef\xbb\xbf" if before.startswith(b"\xef\xbb\xbf") else b""
    text = before[len(mark) :].decode("utf-8")
    try:
        after = edited(text, ("loops", loop.name), entries)
    except CannotEdit as why:
        raise Failure(f"{config.path}: not written: {why}") from None
    was, now = parse(text, config.path).config, parse(after, config.path)
    if now.config is None:
        raise Failure(f"{config.path}: not written, for it would be wrong: {now.problems[0]}")
    changed = now.config.loops[loop.name]
    same = dataclasses.replace(
        loop, controller=changed.controller, model=changed.model, action=changed.action
    )
    if was is None or dataclasses.replace(now.config, loops=was.loops) != was or changed != same:
        raise Failure(f"{config.path}: not written, for more than this loop's gains would change")
    stat = path.stat()
    write_atomic(path, mark + after.encode(), mode=stat.st_mode & 0o7777)
    with contextlib.suppress(PermissionError):
        os.chown(path, stat.st_uid, stat.st_gid)


def read_record(path: Path, config: Config, loop: LoopConfig) -> Record:
    """What a CSV file tells of the loop. Raises Failure, OSError."""
    import numpy as np

    from agent.control.record import Record
    from agent.predict.replay import UNNAMED, BadRow, Reader, resolve

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = Reader(file, lenient=False, say=lambda words: None)
            keys = resolve(reader.names, config)
            samples = list(reader.samples())
    except BadRow as error:
        raise Failure(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise Failure(f"{path}: this is no UTF-8 text") from None
    columns = {}
    setpoint = loop.setpoint if isinstance(loop.setpoint, tuple) else (UNNAMED, SETPOINT)
    for what, key in (("pv", loop.pv), ("out", loop.out), (SETPOINT, setpoint)):
        if key in keys:
            columns[what] = np.array([sample.values[keys.index(key)] for sample in samples], dtype=np.float64)
        elif what != SETPOINT:
            raise Failure(
                f"{path}: there is no column {'/'.join(key)}, the {what} of loop {loop.name}; the columns are "
                f"{', '.join(reader.names)}"
            )
    t = np.array([sample.t for sample in samples], dtype=np.float64)
    return Record(t, columns["pv"], columns["out"], columns.get(SETPOINT))

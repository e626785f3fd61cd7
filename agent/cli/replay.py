"""`edgetwin replay CONFIG DATA.csv`: history through the same models and scores as the daemon's."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from agent.cli.fault import Failure

if TYPE_CHECKING:
    from agent.config.types import Config
    from agent.predict.calibrate import Labelled
    from agent.predict.curves import Curves
    from agent.predict.replay import Floats, Replay, Result, Sample

    Foretold = tuple[Floats, Floats, Floats]
    Take = Callable[[Sample, Replay, Foretold], None]

HELP = (
    "Run history through the very same models and health scores as the agent's, strictly in order, each row "
    "predicted before it is seen. The CSV has a header; the first column is the time (ISO 8601 or seconds), every "
    "other one a tag (device/tag, or a bare tag where only one device has it). An empty cell is a missing value."
)
EXAMPLE = "edgetwin replay config.yaml history.csv --horizon 1,5,20 --out forecasts.csv"
PROGRESS_EVERY = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument("data", metavar="DATA.csv", type=Path, help="the history")
    parser.add_argument(
        "--out", metavar="OUT.csv", type=Path, help="write forecast, interval and health of each value"
    )
    parser.add_argument(
        "--plot", metavar="OUT.svg", type=Path, help="draw values, forecasts and health of each tag"
    )
    parser.add_argument(
        "--labels",
        metavar="LABELS.csv",
        type=Path,
        help="fit the health score to known faults: rows of time and 0 or 1, or of start,end",
    )
    parser.add_argument(
        "--horizon", metavar="1,5,20", type=_horizon, help="steps ahead, instead of the configured ones"
    )
    parser.add_argument(
        "--lenient", action="store_true", help="skip bad rows and count them, instead of stopping"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _horizon(text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or min(steps) < 1 or max(steps) > 10_000 or len(set(steps)) < len(steps):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no list of different steps from 1 to 10000, such as 1,5,20"
        )
    return steps


def main(args: argparse.Namespace) -> int:
    """Replays the file and prints how good the forecasts were."""
    from agent.cli.load import load_or_fail
    from agent.predict.replay import BadHeader, BadRow, Reader, Replay

    config = load_or_fail(args.config)
    for written in (args.out, args.plot):
        for kept in (args.data, args.config, args.labels):
            if written and kept and written.exists() and Path(kept).exists() and written.samefile(kept):
                raise Failure(f"{written} is read here and would be overwritten; name another file")
    labelled = _labelled(args.labels) if args.labels else None
    try:
        with args.data.open(encoding="utf-8-sig", newline="") as file:
            replay = Replay(config, Reader(file, lenient=args.lenient, say=_say), horizon=args.horizon)
            for note in replay.result.notes:
                _say(note)
            curves = _curves(replay, config) if args.plot else None
            result = _run(replay, args.out, [one.add for one in (curves, labelled) if one])
    except BadHeader as error:
        raise Failure(f"{args.data}: {error}") from None
    except BadRow as error:
        raise Failure(f"{args.data}: {error} (--lenient skips bad rows)") from None
    except UnicodeDecodeError:
        raise Failure(f"{args.data}: this is no UTF-8 text") from None
    fits, unfit = labelled.fits() if labelled else ({}, {})
    for name, why in unfit.items():
        _say(f"{name}: {why}")
    if args.json:
        more = {"calibrate": {name: fit.body() for name, fit in fits.items()}} if labelled else {}
        print(json.dumps(result.body() | more))
    else:
        _table(result.body())
        for event in result.events:
            print(f"{event.state} at {event.t:.0f} s: {event.text}")
        if fits:
            from agent.predict.calibrate import lines

            print(*lines(fits), sep="\n")
    if curves:
        _draw(curves, replay, args)
    return 0


def _run(replay: Replay, out: Path | None, takers: list[Take]) -> Result:
    """Replays the file; each row goes to every taker, to the output file and to the count of rows on a terminal."""
    with ExitStack() as stack:
        if out is not None:
            takers = [*takers, _writer(stack.enter_context(out.open("w", encoding="utf-8", newline="")))]
        if sys.stderr.isatty():
            progress = _progress()
            takers = [*takers, lambda *_: next(progress)]

        def take(sample: Sample, one: Replay, foretold: Foretold) -> None:
            for taker in takers:
                taker(sample, one, foretold)

        return replay.run(take if takers else None)


def _labelled(path: Path) -> Labelled:
    from agent.predict.calibrate import Labelled, read
    from agent.predict.replay import BadRow

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return Labelled(read(file))
    except BadRow as error:
        raise Failure(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise Failure(f"{path}: this is no UTF-8 text") from None


def _curves(replay: Replay, config: Config) -> Curves:
    from agent.predict.curves import TAGS, Curves

    units = [
        config.tag(key).unit or ""
        if key[0] in config.devices and key[1] in config.devices[key[0]].tags
        else ""
        for key in replay.keys
    ]
    if len(units) > TAGS:
        _say(f"the picture shows the first {TAGS} of {len(units)} tags")
    return Curves(replay.names, units)


def _draw(curves: Curves, replay: Replay, args: argparse.Namespace) -> None:
    from agent.plot import chart

    text = chart(curves.panels(replay), title=f"replay of {args.data.name}")
    args.plot.write_text(text, encoding="utf-8")


def _writer(file: TextIO) -> Take:
    """A function that writes one sample's lines: time, tag, value, forecast, lower, upper, health."""
    lines = csv.writer(file)
    lines.writerow(["time", "tag", "value", "forecast", "lower", "upper", "health"])

    def cell(value: float) -> str:
        return repr(float(value)) if value == value else ""

    def write(sample: Sample, one: Replay, foretold: Foretold) -> None:
        scores = one.health.scores()
        columns = zip(one.names, sample.values, *foretold, scores, strict=True)
        lines.writerows([sample.text, name, *map(cell, numbers)] for name, *numbers in columns)

    return write


def _progress() -> Iterator[None]:
    """Shows the count of rows on a terminal, once a second."""
    shown = time.perf_counter()
    rows = 0
    while True:
        rows += 1
        if rows % 256 == 0 and time.perf_counter() - shown >= PROGRESS_EVERY:
            shown = time.perf_counter()
            print(f"\r{rows} rows", end="\r", file=sys.stderr, flush=True)
        yield


def _table(body: dict[str, Any]) -> None:
    print(f"{body['rows']} rows, {body['skipped']} skipped, {body['us_per_update'] or 0:.2f} us per value")
    print(f"{'tag':30} {'h':>4} {'mae':>10} {'relative':>9} {'mase':>7} {'coverage':>9} {'width':>10}")
    for name, tag in body["tags"].items():
        for h, scores in tag["horizons"].items():
            cells = (
                ("mae", "10.4g"),
                ("relative_mae", "9.3f"),
                ("mase", "7.3f"),
                ("coverage", "9.3f"),
                ("mean_width", "10.4g"),
            )
            shown = " ".join(
                f"{scores[key]:{form}}" if scores[key] is not None else "-".rjust(int(form.split(".")[0]))
                for key, form in cells
            )
            print(f"{name:30} {h:>4} {shown}")


def _say(words: str) -> None:
    print(f"edgetwin: {words}", file=sys.stderr)

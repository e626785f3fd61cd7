"""`edgetwin probe`: what one unit lets one read, and what its words may mean."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

from agent.cli.fault import Failure
from agent.cli.scan import HIGHEST_UNIT, INTERRUPTED, busy_words, line_url, pacing, refuse_broadcast, span_of

if TYPE_CHECKING:
    from agent.config.types import Table
    from agent.modbus.survey import Survey

HELP = (
    "Find out which addresses a unit lets one read, the longest request it takes, how fast it answers, and what each "
    "pair of registers would mean by type and word order. Reads only, with a pause after each request, and stops on "
    "Ctrl-C with what it knows. Without a range: holding and input 0-200."
)
EXAMPLE = "edgetwin probe tcp://10.0.0.5:502 --unit 1 --holding 0-200 --coil 0-31 --yaml"
TABLES: tuple[Table, ...] = ("holding", "input", "coil", "discrete")
DEFAULT_SPAN = (0, 200)
HIGHEST_ADDRESS = 65535


def configure(parser: argparse.ArgumentParser) -> None:
    """The unit and its ranges."""
    parser.add_argument(
        "url", metavar="URL", type=line_url, help="tcp://HOST:502, rtu:///dev/ttyUSB0?baud=9600 …"
    )
    parser.add_argument("--unit", metavar="N", type=_unit, required=True, help="unit id, 0 to 255")
    for table in TABLES:
        parser.add_argument(
            f"--{table}",
            metavar="0-200",
            type=_range,
            nargs="+",
            help=f"addresses of the table {table}, from 0",
        )
    pacing(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--yaml", action="store_true", help="print a device block to start from")


def _unit(text: str) -> int:
    first, after = span_of(text, HIGHEST_UNIT)
    if after - first != 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is more than one unit; `edgetwin scan` finds those that answer"
        )
    return first


def _range(text: str) -> tuple[int, int]:
    first, after = span_of(text, HIGHEST_ADDRESS)
    return first, after - 1


def main(args: argparse.Namespace) -> int:
    """Probes, then prints; exit 1 when nothing could be read."""
    from agent.cli.borrow import asker_for
    from agent.modbus.discover import Unreachable
    from agent.modbus.survey import Survey

    refuse_broadcast(args.url, [args.unit])
    ranges: dict[Table, list[tuple[int, int]]] = {t: getattr(args, t) for t in TABLES if getattr(args, t)}
    asker = asker_for(args.url, timeout=args.timeout, pause=args.pause)
    survey = Survey(asker, args.unit, ranges or {"holding": [DEFAULT_SPAN], "input": [DEFAULT_SPAN]})
    complete = True
    try:
        asyncio.run(_run(asker, survey, chain=args.yaml))
    except KeyboardInterrupt:
        complete = False
    except Unreachable as why:
        if not survey.rtts:
            raise Failure(busy_words(str(why))) from None
        complete = False
        survey.notes.append(str(why))
    _print(args, survey, complete)
    if not complete:
        return INTERRUPTED
    return 0 if any(survey.values.values()) or survey.chain is not None else 1


async def _run(asker: Any, survey: Survey, *, chain: bool) -> None:
    try:
        await survey.run()
        if chain:
            await survey.walk()
    finally:
        asker.close()


def _print(args: argparse.Namespace, survey: Survey, complete: bool) -> None:
    if args.yaml:
        from agent.modbus.guesses import device_block
        from agent.modbus.sunspec import profile_of

        profile = None if survey.chain is None else profile_of(survey.chain)
        block = device_block(f"unit{args.unit}", args.url.text, args.unit, survey.shape, profile=profile)
        notes = survey.notes if complete else [*survey.notes, "not all was read"]
        print("".join(f"# {note}\n" for note in notes) + block, end="")
        return
    body = {"v": 1, "url": args.url.text, "unit": args.unit, "complete": complete, **survey.as_json()}
    print(json.dumps(body) if args.json else "\n".join(_text(body)))


def _text(body: dict[str, Any]) -> list[str]:
    lines = [
        f"{body['url']} unit {body['unit']}" + ("" if body["complete"] else "  (stopped: not all was read)")
    ]
    rtt = body["rtt_ms"]
    if rtt["n"]:
        lines.append(f"{rtt['n']} answers, half of them within {rtt['p50']} ms, the slowest {rtt['max']} ms")
    else:
        lines.append("no answer at all")
    if body["refusals"]:
        lines.append("refused by: " + ", ".join(f"{words} ({n})" for words, n in body["refusals"].items()))
    lines += body["notes"]
    for table, found in body["tables"].items():
        lines += ["", *_table_text(table, found)]
    return lines


def _table_text(table: str, found: dict[str, Any]) -> list[str]:
    if not found["readable"]:
        return [f"{table}: nothing can be read"]
    lines = [f"{table}: readable {', '.join(found['readable'])}"]
    if found["refused"]:
        lines.append(f"  refused {', '.join(found['refused'])}")
    least = "" if found["longest_is_limit"] else "at least "
    lines.append(f"  longest request: {least}{found['longest']}")
    if "bits" in found:
        on = [address for address, bit in found["bits"].items() if bit]
        return [*lines, f"  on: {', '.join(on) if on else 'none'}"]
    for pair in found["pairs"]:
        if pair["plausible"]:
            lines.append(f"  {pair['address']:>5}  {' '.join(pair['raw'])}  {'  '.join(_shown(pair))}")
    return lines


def _shown(pair: dict[str, Any]) -> list[str]:
    """The plausible readings, each value once: 670 (int32 ABCD, uint32 ABCD)."""
    marks: dict[str, list[str]] = {}
    for mark in pair["plausible"]:
        kind, order = mark.split()
        value = pair["values"][kind][order]
        text = f"{value:.7g}" if isinstance(value, float) else str(value)
        marks.setdefault(text, []).append(kind if kind.endswith("16") and order == "ABCD" else mark)
    return [f"{text} ({', '.join(kinds)})" for text, kinds in marks.items()]

"""`edgetwin scan`: which units answer on a line or host, and who they say they are."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from agent.cli.fault import Failure

if TYPE_CHECKING:
    from agent.config.types import Url
    from agent.modbus.discover import Found

HELP = (
    "Ask each unit of a line or host whether it is there, and who it says it is (functions 43/14 and 17). Reads only. "
    "Stops on Ctrl-C with what it knows. Where the running agent holds the line, it asks, in the time that its own "
    "reads leave."
)
EXAMPLE = "edgetwin scan 'rtu:///dev/ttyUSB0?baud=9600&parity=N' --units 1-20"
HIGHEST_UNIT = 255
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    """The line and its units."""
    parser.add_argument(
        "url", metavar="URL", type=line_url, help="tcp://HOST:502, rtu:///dev/ttyUSB0?baud=9600 …"
    )
    parser.add_argument(
        "--units",
        metavar="1-20",
        type=units_of,
        default=list(range(1, 21)),
        help="units to ask, as 1-20 or 1,5,100-110",
    )
    pacing(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def pacing(parser: argparse.ArgumentParser) -> None:
    """How long to wait for a device, and how long to leave it alone."""
    parser.add_argument(
        "--timeout", metavar="500ms", type=seconds, default=0.5, help="how long a reply may take (500ms)"
    )
    parser.add_argument(
        "--pause",
        metavar="20ms",
        type=seconds,
        default=0.02,
        help="between a reply and the next request (20ms)",
    )


def line_url(text: str) -> Url:
    """A device's URL; raises ArgumentTypeError in plain words."""
    from agent.config.scalars import Wrong
    from agent.config.urls import device_url

    try:
        url = device_url(text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(wrong.words) from None
    if url.scheme == "udp":
        raise argparse.ArgumentTypeError("udp:// is not built yet; use tcp://")
    return url


def seconds(text: str) -> float:
    """A duration as in the configuration; raises ArgumentTypeError."""
    from agent.config import scalars

    try:
        value = scalars.duration(text)
    except scalars.Wrong as wrong:
        raise argparse.ArgumentTypeError(wrong.words) from None
    if not 0 <= value <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0s and 1m")
    return value


def units_of(text: str) -> list[int]:
    """Unit ids of 1-20 or 1,5,100-110, each once; raises ArgumentTypeError."""
    units: dict[int, None] = {}
    for part in text.split(","):
        units |= dict.fromkeys(range(*span_of(part, HIGHEST_UNIT)))
    return list(units)


def span_of(text: str, most: int) -> tuple[int, int]:
    """(first, after the last) of 1-20 or 7; raises ArgumentTypeError."""
    from agent.config import scalars

    try:
        low, high = scalars.span(text)
    except scalars.Wrong as wrong:
        raise argparse.ArgumentTypeError(wrong.words) from None
    if low < 0 or high > most:
        raise argparse.ArgumentTypeError(
            f"'{text}' goes beyond {most}" if low >= 0 else f"'{text}' is below 0"
        )
    return low, high + 1


def main(args: argparse.Namespace) -> int:
    """Prints each unit as it is found; exit 1 when nobody answers."""
    from agent.modbus.discover import Unreachable, ignores_units

    refuse_broadcast(args.url, args.units)
    found: list[Found] = []
    complete = True

    def take(one: Found) -> None:
        found.append(one)
        if not args.json:
            print("\n".join(_lines(one)), flush=True)

    try:
        asyncio.run(_scan(args, take))
    except KeyboardInterrupt:
        complete = False
    except Unreachable as why:
        raise Failure(busy_words(str(why))) from None
    if args.json:
        print(json.dumps(_body(args, found, complete)))
    else:
        print(_summary(found, len(args.units), complete))
        if ignores_units(found, len(args.units)):
            print("All of them answer alike: this host mostly does not look at the unit.")
    return INTERRUPTED if not complete else 0 if found else 1


def refuse_broadcast(url: Url, units: list[int]) -> None:
    """Unit 0 of a serial line is everybody, and nobody answers it. Raises Failure with status 2."""
    if 0 in units and url.scheme in ("rtu", "rtu+tcp"):
        raise Failure("unit 0 is the broadcast address of a serial line; units go from 1 to 247", status=2)


def busy_words(words: str) -> str:
    """Why there is no connection, with what to do where another program has the port."""
    if "holds this port" in words:
        return (
            f"{words}; if it is an agent with a state folder of its own, set RUNTIME_DIRECTORY to that folder, and it "
            "asks for you"
        )
    return words


async def _scan(args: argparse.Namespace, take: Any) -> None:
    from agent.cli.borrow import asker_for
    from agent.modbus.discover import scan

    asker = asker_for(args.url, timeout=args.timeout, pause=args.pause)
    show = sys.stderr.isatty() and not args.json

    def asked() -> Any:
        for unit in args.units:
            if show:
                print(f"\runit {unit} …  \r", end="", file=sys.stderr, flush=True)
            yield unit

    try:
        await scan(asker, asked(), take)
    finally:
        asker.close()


def _lines(one: Found) -> list[str]:
    rtt = "" if one.rtt is None else f"  {1000 * one.rtt:.1f} ms"
    lines = [f"unit {one.unit}: {one.answer}{rtt}"]
    lines += [f"  {name}: {text}" for name, text in one.identity.items()]
    if one.server_id is not None:
        lines.append(f"  server id: {one.server_id}")
    return lines


def _summary(found: list[Found], asked: int, complete: bool) -> str:
    count = f"{len(found)} of {asked} units answer" if len(found) != 1 else f"1 of {asked} units answers"
    return count if complete else f"stopped: {count} so far"


def _body(args: argparse.Namespace, found: list[Found], complete: bool) -> dict[str, Any]:
    return {
        "v": 1,
        "url": args.url.text,
        "asked": args.units,
        "complete": complete,
        "units": [one.as_json() for one in found],
    }

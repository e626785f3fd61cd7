"""`edgetwin write`: one write, read back."""

from __future__ import annotations

import argparse
import asyncio
import sys

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail
from agent.cli.read import lines_of, resolve
from agent.config.paths import socket_candidates
from agent.config.printable import printable
from agent.config.types import Config, Tag
from agent.twin.records import Key, Outcome, Plain

HELP = (
    "Write one tag and read it back. Asks first unless --yes. Goes through the running agent when one runs."
)
EXAMPLE = "edgetwin write config.yaml press1/target 185"
PATIENCE = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument("tag", metavar="DEVICE/TAG", help="the tag to write")
    parser.add_argument(
        "value", metavar="VALUE", help="in the tag's unit; true or false for a bit; the name of a state"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--simulated", metavar="N", type=int, help="write to `edgetwin simulate CONFIG --port N` instead"
    )


def main(args: argparse.Namespace) -> int:
    config = load_or_fail(args.config, simulated=args.simulated)
    if "/" not in args.tag:
        raise Failure(f"{args.tag!r} names no tag; write DEVICE/TAG", status=2)
    [key] = resolve(config, [args.tag])
    value = parse_value(config.tag(key), args.value)
    if not args.yes and not _agreed(config, key, value):
        raise Failure("nothing was written")
    outcome = None if args.simulated is not None else _through_daemon(config, key, value)
    if outcome is None:
        outcome = asyncio.run(_direct(config, key, value))
    if not outcome.ok:
        raise Failure(outcome.error or "not written")
    shown = f", read back {printable(str(outcome.readback))}" if outcome.readback is not None else ""
    print(f"{args.tag} = {outcome.applied}{shown}")
    return 0


def parse_value(tag: Tag, text: str) -> Plain:
    """The value that a person typed. Raises Failure with status 2 where it cannot be one of the tag's."""
    if tag.boolean:
        named = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        if text.lower() not in named:
            raise Failure(f"{text!r} is neither true nor false", status=2)
        return named[text.lower()]
    if tag.type == "string" or text in tag.states.values():
        return text
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        names = f" or one of {', '.join(tag.states.values())}" if tag.states else ""
        raise Failure(f"{text!r} is no number{names}", status=2) from None


def _agreed(config: Config, key: Key, value: Plain) -> bool:
    if not sys.stdin.isatty():
        raise Failure("say --yes to write without being asked", status=2)
    tag, device = config.tag(key), config.devices[key[0]]
    place = f"{tag.table} {tag.address}"
    if tag.sunspec is not None:
        place = f"register {tag.sunspec.offset} of SunSpec model {tag.sunspec.first}-{tag.sunspec.last}"
    where = f"{place} of {device.url.text} unit {device.unit}"
    return input(f"write {value} {tag.unit or ''} to {'/'.join(key)} ({where})? [y/N] ").strip().lower() in (
        "y",
        "yes",
    )


def _through_daemon(config: Config, key: Key, value: Plain) -> Outcome | None:
    from agent.runtime.socket import ask_daemon

    message = {"op": "write", "device": key[0], "tag": key[1], "value": value}
    answer = ask_daemon(socket_candidates(config), message, config_path=config.path, timeout=PATIENCE)
    if answer is None:
        return None
    return Outcome(bool(answer.get("ok")), answer.get("applied"), answer.get("readback"), answer.get("error"))


async def _direct(config: Config, key: Key, value: Plain) -> Outcome:
    from agent.runtime.clock import SystemClock
    from agent.runtime.poll import poll_keys
    from agent.runtime.writer import Writer
    from agent.twin.layout import build_layout
    from agent.twin.quality import WORDS
    from agent.twin.table import Twin

    clock = SystemClock()
    deadline = clock.mono() + PATIENCE
    twin = Twin(build_layout(config))
    async with lines_of(config, {key[0]}) as line_of:
        source = config.tag(key).scale_from
        if source is not None:
            polled = await poll_keys(config, line_of, [(key[0], source)], deadline=deadline)
            power = polled.values[(key[0], source)]
            if power.plain is None:
                why = polled.devices[key[0]].error or WORDS[power.quality]
                return Outcome(
                    False, error=f"{'/'.join(key)}: its power of ten ({source}) was not read: {why}"
                )
            twin.plain[twin.layout.row[(key[0], source)]] = power.plain
        writer = Writer(config, twin, line_of, clock, lambda event: None)
        return await writer.write(key, value, source="socket", deadline=deadline)

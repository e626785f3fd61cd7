"""`edgetwin read`: one real poll, shown with its raw words."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail
from agent.config.paths import socket_candidates
from agent.config.printable import printable
from agent.config.types import Config
from agent.twin.records import Key

HELP = (
    "Poll devices once and show raw words, values, units, qualities and round trips. Goes through the running agent "
    "when one runs with this configuration. Exit 1 when an asked tag is neither good nor uncertain."
)
EXAMPLE = "edgetwin read config.yaml press1 meter/energy --orders"
PATIENCE = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument(
        "what", metavar="DEVICE[/TAG]", nargs="*", help="all of a device, or one tag (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--orders", action="store_true", help="show every type and word order side by side")
    parser.add_argument(
        "--simulated", metavar="N", type=int, help="read `edgetwin simulate CONFIG --port N` instead"
    )


def main(args: argparse.Namespace) -> int:
    config = load_or_fail(args.config, simulated=args.simulated)
    keys = resolve(config, args.what)
    body = None if args.simulated is not None else _from_daemon(config, keys)
    if body is None:
        body = asyncio.run(_from_devices(config, keys))
    if args.orders:
        _add_orders(body)
    print(
        json.dumps(body, ensure_ascii=False) if args.json else "\n".join(_as_text(config, body, args.orders))
    )
    return 0 if _all_have_values(body) else 1


def resolve(config: Config, words: Sequence[str]) -> list[Key]:
    """The tags that `DEVICE` and `DEVICE/TAG` words name; all of them for none.

    Raises Failure with status 2 for a word that names nothing.
    """
    if not words:
        words = list(config.devices)
    keys: list[Key] = []
    for word in words:
        device, _, tag = word.partition("/")
        if device not in config.devices:
            raise Failure(f"there is no device {device!r}; there are: {', '.join(config.devices)}", status=2)
        tags = config.devices[device].tags
        if tag and tag not in tags:
            raise Failure(f"device {device!r} has no tag {tag!r}; it has: {', '.join(tags)}", status=2)
        keys += [(device, tag)] if tag else [(device, name) for name in tags]
    return keys


def _from_daemon(config: Config, keys: Sequence[Key]) -> dict[str, Any] | None:
    from agent.runtime.socket import ask_daemon

    message = {"op": "read", "tags": [list(key) for key in keys], "full": True}
    answer = ask_daemon(socket_candidates(config), message, config_path=config.path, timeout=PATIENCE)
    if answer is None:
        return None
    if not answer.get("ok"):
        raise Failure(str(answer.get("error")))
    result: dict[str, Any] = answer["result"]
    return result


async def _from_devices(config: Config, keys: Sequence[Key]) -> dict[str, Any]:
    from agent.runtime.clock import Anchor, SystemClock
    from agent.runtime.poll import poll_keys

    clock = SystemClock()
    async with lines_of(config, {device for device, _ in keys}) as line_of:
        polled = await poll_keys(config, line_of, keys, deadline=clock.mono() + PATIENCE)
    return polled.as_json(config, Anchor(clock).ms)


@contextlib.asynccontextmanager
async def lines_of(config: Config, devices: set[str]) -> AsyncIterator[Mapping[str, Any]]:
    """Lines without scans for the named devices, connected on demand, closed at the end."""
    from agent.modbus.line import Line
    from agent.runtime.clock import SystemClock

    by_url: dict[str, list[str]] = {}
    for name in devices:
        by_url.setdefault(config.devices[name].url.text, []).append(name)
    lines = []
    for names in by_url.values():
        chosen = [config.devices[name] for name in names]
        lines.append(
            Line(
                chosen[0].url,
                chosen,
                {},
                clock=SystemClock(),
                on_reply=lambda request, reply: None,
                on_scan=lambda done: None,
                on_event=lambda event: None,
                rng=random.Random(),
            )
        )
    tasks = [asyncio.create_task(line.run()) for line in lines]
    try:
        yield {device: line for line in lines for device in line.devices}
    finally:
        for line in lines:
            await line.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _add_orders(body: dict[str, Any]) -> None:
    from agent.modbus.orders import readings

    for device in body["devices"].values():
        for tag in device["tags"].values():
            words = [int(word, 16) for word in tag["raw"]]
            tag["orders"] = readings(words) if words else {}


def _all_have_values(body: dict[str, Any]) -> bool:
    return all(tag["v"] is not None for device in body["devices"].values() for tag in device["tags"].values())


def _as_text(config: Config, body: dict[str, Any], orders: bool) -> list[str]:
    lines = []
    for name, device in body["devices"].items():
        where = config.devices[name]
        state = "ok" if device["ok"] else device["error"]
        said = state.removeprefix(f"{where.url.text}: ")
        lines.append(f"{name}  {where.url.text} unit {where.unit}: {said}")
        for request in device["requests"]:
            rtt = "-" if request["rtt_ms"] is None else f"{request['rtt_ms']:.1f} ms"
            fault = f", exception {request['exception']}" if request["exception"] else ""
            lines.append(f"  {request['table']} {request['address']} x {request['count']}: {rtt}{fault}")
        width = max((len(tag) for tag in device["tags"]), default=0)
        for tag, one in device["tags"].items():
            shown = "-" if one["v"] is None else _shown(one["v"], where.tags[tag].states)
            age = time.strftime("%H:%M:%S", time.localtime(one["t"] / 1000))
            raw = " ".join(one["raw"])
            lines.append(
                f"  {tag:<{width}}  {shown} {one['unit'] or ''}".rstrip() + f"  [{one['q']}]  {raw}  {age}"
            )
            if orders:
                lines += [
                    f"    {kind:<8} "
                    + "  ".join(f"{order}={_shown(value, {})}" for order, value in by_order.items())
                    for kind, by_order in one["orders"].items()
                ]
    return lines


def _shown(value: Any, states: Mapping[int, str]) -> str:
    if isinstance(value, str):
        return printable(value)
    text = states.get(value) if isinstance(value, int) else None
    return f"{value} ({text})" if text else str(value)

"""`edgetwin watch`: the central side on a terminal."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.fault import Failure

if TYPE_CHECKING:
    from agent.cloud.watch import Subscriber, View

HELP = (
    "Subscribe to one or all gateways, show their twins live, and say what was lost, doubled or out of order."
)
EXAMPLE = "edgetwin watch mqtt://127.0.0.1:1883 --gateway line4"
REDRAW = 0.5
QUIET_EVERY = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", metavar="BROKER_URL", help="mqtt://[user:password@]host[:port], mqtts, ws, wss, unix"
    )
    parser.add_argument("--gateway", metavar="ID", help="one gateway (default: all)")
    parser.add_argument("--root", default="edgetwin", help="first level of the topics")
    parser.add_argument("--share", metavar="GROUP", help="take part in a shared subscription (MQTT 5)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificate authorities, for mqtts and wss")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="a client certificate")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key")
    parser.add_argument("--json", action="store_true", help="print a line of JSON per message")


def main(args: argparse.Namespace) -> int:
    from agent.cloud.watch import NoBroker, Subscriber, View
    from agent.config.types import MqttConfig

    for word in (args.gateway, args.root, args.share):
        if word is not None and (not word or set(word) & set("+#")):
            raise Failure(f"{word!r} cannot be part of a subscription", status=2)
    tls = MqttConfig(ca=args.ca, cert=args.cert, key=args.key)
    try:
        subscriber = Subscriber(args.url, root=args.root, gateway=args.gateway, share=args.share, tls=tls)
    except NoBroker as error:
        raise Failure(str(error)) from None
    view = View(shared=args.share is not None)
    try:
        if args.json:
            _print_messages(subscriber, view)
        else:
            _show(subscriber, view)
    finally:
        subscriber.close()
    return 0


def _print_messages(subscriber: Subscriber, view: View) -> None:
    """A line of JSON per message, for ever: what it is, what is wrong with it, and the gateway's counts after it."""
    while True:
        for message in subscriber.messages(timeout=REDRAW):
            note, gateway = view.take(message), message.gateway
            lost, awaited = view.missing(gateway)
            line = {
                "topic": message.topic,
                "retained": message.retained,
                "note": note,
                "lost": lost,
                "awaited": awaited,
                "duplicates": view.books.doubled(gateway),
                "out_of_order": view.books.out_of_order(gateway),
                "body": message.body,
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)


def _show(subscriber: Subscriber, view: View) -> None:
    """Draws the twins again and again, on a terminal in place."""
    terminal = sys.stdout.isatty()
    due = 0.0
    while True:
        for message in subscriber.messages(timeout=REDRAW):
            view.take(message)
            if time.monotonic() > due + QUIET_EVERY:
                break  # more comes than is shown
        now = time.monotonic()
        if now < due:
            continue
        due = now + (REDRAW if terminal else QUIET_EVERY)
        lines = view.lines(round(time.time() * 1000)) or ["nothing yet"]
        if subscriber.trouble:
            lines.insert(0, f"{subscriber.trouble}; what is published now will be missing here")
        _draw(lines, terminal)


def _draw(lines: list[str], terminal: bool) -> None:
    if not terminal:
        print("\n".join(lines), flush=True)
        return
    size = shutil.get_terminal_size()
    if len(lines) >= size.lines:
        hidden = len(lines) - size.lines + 2
        lines = [*lines[: size.lines - 2], f"… {hidden} more lines"]
    print("\x1b[H\x1b[2J" + "\n".join(line[: size.columns] for line in lines), flush=True)

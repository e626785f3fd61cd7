"""`edgetwin watch`: the central side on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
import time

from agent.cli.fault import Failure

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
    parser.add_argument("--json", action="store_true", help="print a line of JSON per message")


def main(args: argparse.Namespace) -> int:
    from agent.cloud.watch import NoBroker, Subscriber, View

    try:
        subscriber = Subscriber(args.url, root=args.root, gateway=args.gateway, share=args.share)
    except NoBroker as error:
        raise Failure(str(error)) from None
    view, drawn = View(), 0.0
    try:
        while True:
            for message in subscriber.messages(timeout=REDRAW):
                told = view.take(message)
                if args.json:
                    line = {
                        "topic": message.topic,
                        "retained": message.retained,
                        "note": told or message.fault,
                        "lost": view.books.lost(message.gateway),
                        "body": message.body,
                    }
                    print(json.dumps(line, ensure_ascii=False), flush=True)
            now = time.monotonic()
            if not args.json and now - drawn >= (REDRAW if sys.stdout.isatty() else QUIET_EVERY):
                drawn = now
                _draw(view.lines() or ["nothing yet"])
    finally:
        subscriber.close()


def _draw(lines: list[str]) -> None:
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
    print(clear + "\n".join(lines), flush=True)

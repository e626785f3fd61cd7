"""`edgetwin demo`: everything at once, nothing to install or configure first."""

from __future__ import annotations

import argparse
import importlib.util

from agent.cli.fault import Failure

HELP = (
    "Runs a simulated plant behind a real Modbus server, an MQTT broker on loopback, the agent with forecasts, health "
    "and a control loop, and a central side that checks what arrives against the plant's own books."
)
EXAMPLE = "edgetwin demo --for 30s"
SHORTEST = 20.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for", dest="seconds", metavar="TIME", help="end by itself after this (30s, 2m; at least 20s)"
    )
    parser.add_argument("--port", type=int, metavar="N", help="ports N to N+3 instead of free ones")


def main(args: argparse.Namespace) -> int:
    seconds = None if args.seconds is None else _seconds(args.seconds)
    if args.port is not None and not 1 <= args.port <= 65532:
        raise Failure(f"--port {args.port}: give a port from 1 to 65532", status=2)
    if importlib.util.find_spec("iotcore") is None:
        raise Failure("the demo needs its broker: pip install 'edgetwin[demo]'")
    from agent.demo.run import DemoFailed, run_demo

    try:
        return run_demo(seconds, args.port)
    except DemoFailed as failed:
        raise Failure(str(failed)) from None


def _seconds(text: str) -> float:
    from agent.config.scalars import duration

    try:
        seconds = duration(text)
    except ValueError as error:
        raise Failure(f"--for {text}: {error}", status=2) from None
    if seconds < SHORTEST:
        raise Failure(f"--for {text}: the demo needs {SHORTEST:.0f}s at least", status=2)
    return seconds

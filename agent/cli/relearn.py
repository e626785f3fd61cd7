"""`edgetwin relearn`: the running agent takes what a machine does from now on as the reference of its health."""

from __future__ import annotations

import argparse

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail
from agent.config.paths import socket_candidates

HELP = (
    "After a repair, a refit or another product: the running agent forgets how a device behaved when it was "
    "commissioned, and takes what it does from now on as the reference of its health score. Until it has seen enough "
    "(health.DEVICE.warmup samples of each tag) the device has no score. Forecasts go on untouched."
)
EXAMPLE = "edgetwin relearn config.yaml press1"
PATIENCE = 20.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument("device", metavar="DEVICE", help="the device whose reference is set anew")


def main(args: argparse.Namespace) -> int:
    """Asks the running agent, and says how long it will take."""
    from agent.runtime.socket import ask_daemon

    config = load_or_fail(args.config)
    if args.device not in config.devices:
        raise Failure(f"there is no device {args.device!r} in {args.config}", status=2)
    message = {"op": "relearn", "device": args.device}
    answer = ask_daemon(socket_candidates(config), message, config_path=config.path, timeout=PATIENCE)
    if answer is None:
        raise Failure(f"no agent runs with {args.config}; one that starts goes on with what it had learnt")
    if not answer.get("ok"):
        raise Failure(answer.get("error") or "the agent did not do it")
    result = answer["result"]
    count = len(result["tags"])
    what = "1 tag is" if count == 1 else f"{count} tags are"
    each = "" if count == 1 else " of each"
    print(
        f"{args.device}: {what} learnt anew; its health score is back after {result['warmup']} samples{each}"
    )
    return 0

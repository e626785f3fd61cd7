"""`edgetwin check`: validates a configuration without touching the network."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

HELP = (
    "Validates a configuration without touching the network. Every problem at once, each as "
    "file:line:column: path: what is wrong; what would be right. Exit 78 when there is an error; warnings alone exit 0."
)
EXAMPLE = "edgetwin check /etc/edgetwin/config.yaml --plan"


def configure(parser: argparse.ArgumentParser) -> None:
    """The file, and what to show beside its problems."""
    parser.add_argument("config", metavar="CONFIG", help="the configuration")
    parser.add_argument("--plan", action="store_true", help="show each device's read requests and their time")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def main(args: argparse.Namespace) -> int:
    """Prints the problems; what only `run` would refuse is a warning here."""
    from agent.config.load import for_run, load
    from agent.config.types import Problem

    loaded = load(args.config)
    problems = list(loaded.problems)
    problems += [
        dataclasses.replace(problem, severity="warning", what=f"{problem.what} (run refuses it)")
        for problem in for_run(loaded)
    ]
    plan: dict[str, Any] = {}
    lines: list[str] = []
    if loaded.config is not None:
        from agent.modbus import plan as planner

        for device, words in planner.warnings(loaded.config):
            place = loaded.places.get(f"devices.{device}", (1, 1))
            problems.append(
                Problem(
                    args.config, *place, f"devices.{device}", words, "read less, or less often", "warning"
                )
            )
        if args.plan:
            plan = planner.describe(loaded.config)
            lines = planner.text(loaded.config)
    problems.sort(key=lambda one: (one.file != args.config, one.file, one.line, one.column))
    ok = not any(problem.severity == "error" for problem in problems)
    if args.json:
        shown = [dataclasses.asdict(problem) for problem in problems]
        body = {"v": 1, "ok": ok, "problems": shown} | ({"plan": plan} if args.plan else {})
        print(json.dumps(body))
    else:
        for problem in problems:
            print(problem, file=sys.stderr)
        for line in lines:
            print(line)
        if ok and not lines:
            print(_summary(args.config, loaded.config))
    return 0 if ok else 78


def _summary(path: str, config: Any) -> str:
    tags = sum(len(device.tags) for device in config.devices.values())
    counts = ((len(config.devices), "device"), (tags, "tag"), (len(config.loops), "loop"))
    return f"{path}: fine: {', '.join(_count(number, word) for number, word in counts)}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

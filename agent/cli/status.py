"""`edgetwin status`: asks the running daemon."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from agent.cli.fault import Failure
from agent.config.load import load
from agent.config.paths import socket_candidates
from agent.config.types import Config

HELP = (
    "Ask the running agent how it is. Exit 0 healthy, 1 not running or not healthy; a dead PLC or broker is a problem "
    "that it lists, not ill health."
)
EXAMPLE = "edgetwin status config.yaml --json"
DEFAULT = "/etc/edgetwin/config.yaml"
PATIENCE = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help=f"the configuration file (default: {DEFAULT})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", action="store_true", help="again each second, until Ctrl-C")


def main(args: argparse.Namespace) -> int:
    candidates = candidates_of(args.config)
    while True:
        try:
            status = _ask(candidates, args.config)
        except Failure as failure:
            if not args.watch:
                raise
            print(_clear() + str(failure), flush=True)
        else:
            if args.json:
                print(json.dumps(status, ensure_ascii=False), flush=True)
            else:
                print((_clear() if args.watch else "") + "\n".join(as_text(status)), flush=True)
            if not args.watch:
                return 0 if status.get("healthy") else 1
        time.sleep(1.0)


def _clear() -> str:
    return "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""


def candidates_of(config: str | None) -> list[Path]:
    """Where the socket may be. A file that is wrong by now is no obstacle: the agent runs on with what it had."""
    path = Path(config or DEFAULT)
    if config is not None and not path.exists():
        raise Failure(f"{config}: there is no such file", status=78)
    loaded = load(path).config
    if loaded is None:
        loaded = Config(str(path), None, _stated_dir(path))
    return socket_candidates(loaded)


def _stated_dir(path: Path) -> Path | None:
    """The state folder that a wrong file names, as far as that can be seen."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^state_dir:[ \t]*([^\s#]+)", text, re.MULTILINE)
    return Path(found[1].strip("\"'")) if found else None


def _ask(candidates: list[Path], config: str | None) -> dict[str, Any]:
    """The status of the agent that runs with `config`, or of any that is found. Raises Failure."""
    from agent.runtime.socket import ask_daemon

    answer = ask_daemon(candidates, {"op": "status"}, timeout=PATIENCE, config_path=config)
    if answer is None:
        for path in candidates:
            if _forbidden(path):
                raise Failure(
                    f"this user may not ask the agent on {path}: join the group edgetwin, or use sudo"
                )
        with_it = f" with {config}" if config else ""
        raise Failure(f"no agent{with_it} answers on {' or '.join(str(path) for path in candidates)}")
    if not answer.get("ok"):
        raise Failure(str(answer.get("error")))
    status: dict[str, Any] = answer["result"]
    return status


def _forbidden(path: Path) -> bool:
    """True where the rights of a file or of its folders keep this user from a socket."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.W_OK)


def as_text(status: dict[str, Any]) -> list[str]:
    """One screen."""
    uplink, outbox = status["uplink"], status["outbox"]
    health = "healthy" if status["healthy"] else "NOT HEALTHY"
    lines = [
        f"{status['gateway']}  {health}  edgetwin {status['version']}  kernels {status['kernels']}  "
        f"clock {status['clock']}",
        f"broker  {uplink['state']} (MQTT {uplink['protocol']}), {uplink['unacked']} unacknowledged; "
        f"outbox {outbox['batches']} batches, {outbox['bytes']} bytes, {outbox['dropped']} dropped",
    ]
    lines += [f"problem  {problem}" for problem in status["problems"]]
    for url, line in status["lines"].items():
        rtt = line["rtt_ms"]
        errors = (
            ", ".join(f"{count} {name}" for name, count in line["errors"].items() if count) or "no errors"
        )
        lines.append(
            f"{url}  {line['state']}, {line['requests']} requests, {errors}, p50 {_number(rtt['p50'])} ms, "
            f"{100 * line['utilisation']:.0f} % busy"
        )
        for name, device in line["devices"].items():
            retry = f", next try in {device['retry_s']} s" if device.get("retry_s") else ""
            lines.append(f"  {name}  {device['state']}{retry}")
            lines += [f"    learnt: {learnt}" for learnt in device["learnt"]]
    for name, scan in status["scans"].items():
        late = scan["late_ms"]
        lines.append(
            f"scan {name}  {scan['done']} done, {scan['overruns']} overruns, late p99 {_number(late['p99'])} ms"
        )
    for name, loop in status["loops"].items():
        reason = f"  ({loop['reason']})" if loop["reason"] else ""
        lines.append(
            f"loop {name}  {loop['mode']}  sp {_number(loop['sp'])}  pv {_number(loop['pv'])}  "
            f"out {_number(loop['out'])}{reason}"
        )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

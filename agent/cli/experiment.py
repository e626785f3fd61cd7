"""`tune --step | --relay | --prbs`: a test of the loop through the running agent, watched from the terminal."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.cli.fault import Failure
from agent.config.paths import socket_candidates
from agent.config.types import Config, LoopConfig

ANSWERS_WITHIN = 10.0
POLL_EVERY = 1.0
"""Seconds; well within the time after which the agent ends a test that nobody asks for."""
Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A test as asked for on the command line; seconds, and the move in the output's unit."""

    kind: str
    move: float
    seconds: float


@dataclass
class Seen:
    """What came of it: rows of (seconds, PV or None, output)."""

    rows: list[tuple[float, float | None, float]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, report: dict[str, Any]) -> None:
        self.last = report
        self.rows += [(row[0], row[1], row[2]) for row in report["rows"]]


def through_agent(config: Config, loop: LoopConfig) -> Ask:
    """A function that asks the running agent about tests of this loop. It raises Failure."""
    candidates = socket_candidates(config)

    def ask(message: Mapping[str, Any]) -> dict[str, Any]:
        whole = {"op": "tune", "loop": loop.name, **message}
        answer = ask_daemon(candidates, whole, config_path=config.path, timeout=ANSWERS_WITHIN)
        if answer is None:
            raise Failure(
                "no agent runs with this configuration; a test goes through the running agent alone"
            )
        if not answer.get("ok"):
            raise Failure(str(answer.get("error") or "the agent refused without a reason"))
        found: dict[str, Any] = answer["result"]
        return found

    from agent.runtime.socket import ask_daemon

    return ask


def confirm(ask: Ask, loop: LoopConfig, wanted: Wanted, *, unit: str) -> None:
    """Tells what will happen, and asks. Raises Failure where the answer is no."""
    look = ask({"do": "look"})
    now = look["now"]
    low, high = loop.limits
    print(f"loop {loop.name} is in {look['mode']}; {'/'.join(loop.out)} is at {_number(now)} {unit}".rstrip())
    if now is not None:
        around = f"{max(now - wanted.move, low):g} to {min(now + wanted.move, high):g}"
        rate = (
            f", at {loop.rate:g} per second at most"
            if loop.rate is not None
            else ", in steps (no `rate` is set)"
        )
        print(f"a test ({wanted.kind}) moves it within {around}{rate}, for {wanted.seconds:g} s")
    ends = [f"the PV beyond {loop.trip[0]:g} to {loop.trip[1]:g}"] if loop.trip is not None else []
    ends += ["/".join(key) + " off" for key in loop.interlock]
    print(f"it ends early by {', '.join([*ends, 'a bad PV or Ctrl-C'])}; then the output goes back")
    if loop.trip is None:
        print("warning: the loop has no `trip`: nothing but you watches how far the PV goes")
    if look["on_loss"] == "unknown" and loop.heartbeat is None:
        print(
            f"warning: nothing says what {loop.out[0]} does with the output when the agent is lost (`on_loss`)"
        )
    if not sys.stdin.isatty():
        raise Failure("say --yes to test without being asked", status=2)
    if input("begin? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Failure("nothing was moved")


def carry_out(ask: Ask, wanted: Wanted) -> Seen:
    """Begins the test and watches it to its end. Ctrl-C ends it; the output is back when this returns or raises.

    Raises Failure where the test did not run to its end, KeyboardInterrupt where it was ended by hand.
    """
    seen = Seen()
    begin = {"do": "begin", "kind": wanted.kind, "move": wanted.move, "seconds": wanted.seconds}
    seen.take(ask(begin))
    try:
        _watch(ask, seen)
    except KeyboardInterrupt:
        print("\nending the test: the output goes back", file=sys.stderr)
        ask({"do": "stop"})
        _watch(ask, seen)
        print(_end(seen), file=sys.stderr)
        raise
    if not seen.last["done"]:
        raise Failure(_end(seen))
    return seen


def _watch(ask: Ask, seen: Seen) -> None:
    """Asks until the test is over."""
    while seen.last["running"] or seen.last["more"]:
        if not seen.last["more"]:
            _progress(seen)
            time.sleep(POLL_EVERY)
        seen.take(ask({"do": "poll", "first": len(seen.rows)}))
    _progress(seen)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _progress(seen: Seen) -> None:
    if not sys.stderr.isatty() or not seen.rows:
        return
    _, pv, out = seen.rows[-1]
    left = max(seen.last["seconds"] - seen.last["elapsed"], 0.0)
    text = f"{left:6.0f} s to go   PV {_number(pv):>10}   output {out:>10.4g}"
    print(f"\r{text}", end="", file=sys.stderr, flush=True)


def _end(seen: Seen) -> str:
    last = seen.last
    where = (
        f"the output is back at {last['base']:g}" if last["restored"] else "the output was NOT brought back"
    )
    return f"the test ended early: {last['over']}; {where}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.5g}"


def write_record(path: Path, loop: LoopConfig, seen: Seen) -> None:
    """The rows as a CSV file that `tune` and `replay` take. Raises OSError."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["time", "/".join(loop.pv), "/".join(loop.out)])
        lines.writerows([f"{t:.3f}", "" if pv is None else repr(pv), repr(out)] for t, pv, out in seen.rows)

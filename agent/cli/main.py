"""The command line: picks a command, hands it its arguments, turns what goes wrong into one line and an exit status.

Each command is a module `agent.cli.<name>` (`MODULES` names those called otherwise) with `HELP`, `EXAMPLE`,
`configure(parser)` and `main(args) -> int`, imported only when it is the one that runs, so that `check` pays for
nothing but YAML.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import platform
import signal
import struct
import sys
from typing import NoReturn

from agent import __version__
from agent.cli.fault import Failure, tell

COMMANDS = {
    "demo": "show everything at once: a simulated plant, a broker, the agent, a central side",
    "try": "from nothing to values at a broker in one line: a device, its tags and a broker",
    "run": "run the agent",
    "check": "validate a configuration without touching the network",
    "read": "poll devices once and show raw words and values",
    "write": "write one tag and read it back",
    "scan": "commissioning: find the units that answer on a line or host",
    "probe": "commissioning: find what a unit lets one read, and what its words may mean",
    "simulate": "serve a configuration's devices as simulated ones",
    "replay": "run history through the models and scores of the agent",
    "relearn": "set the reference of a device's health score anew",
    "tune": "identify a loop's process from recorded data and find its gains",
    "whatif": "foretell what a loop would do with another setpoint or a load",
    "status": "ask the running agent how it is",
    "watch": "the central side: show live twins, count what is lost, doubled or out of order",
    "warm": "compile the kernels into the cache",
    "schema": "print the JSON Schema of the configuration or of the MQTT bodies",
}
MODULES = {"try": "trial"}
"""A command whose name is a word of Python -> its module."""
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 0, 1, 2, 78


def unsupported_platform() -> str | None:
    """Why this machine cannot run the agent, in plain words; None where it can."""
    if not sys.platform.startswith("linux") or struct.calcsize("P") != 8:
        return (
            f"this is {platform.system()} on {struct.calcsize('P') * 8} bit; Edgetwin needs a 64-bit Linux "
            "(on a Raspberry Pi: install the 64-bit Raspberry Pi OS)"
        )
    return None


class Parser(argparse.ArgumentParser):
    """Tells wrong usage in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser with the options of one command; the others are only named, so that nothing is imported for them."""
    parser = Parser(prog="edgetwin", description="Edge agent: Modbus, digital twins, MQTT.")
    parser.add_argument("--version", action="version", version=f"edgetwin {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"agent.cli.{MODULES.get(name, name)}")
        chosen = subparsers.add_parser(
            name,
            help=summary,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        chosen.add_argument("-v", "--verbose", action="store_true", help="show more")
        chosen.add_argument(
            "--log-level", choices=["error", "warning", "info", "debug"], help="how much to log"
        )
        module.configure(chosen)
        chosen.set_defaults(main=module.main)
    return parser


def chosen_command(argv: list[str]) -> str | None:
    """The first word of argv that is a command."""
    return next((word for word in argv if word in COMMANDS), None)


def run(argv: list[str]) -> int:
    """Runs one command; returns its exit status."""
    why = unsupported_platform()
    if why:
        tell(f"edgetwin: {why}")
        return EXIT_FAILED
    args = build_parser(chosen_command(argv)).parse_args(argv)
    try:
        return int(args.main(args))
    except Failure as failure:
        tell(f"edgetwin: {failure}")
        return failure.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # a reader that left is no error of ours
        return EXIT_DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        tell(f"edgetwin: {where}{error.strerror or error}")
        return EXIT_FAILED


def entry() -> NoReturn:
    """The console script. What the terminal's encoding lacks (a unit in °C, a file's odd name) is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))

"""`edgetwin simulate`: a configuration's devices as simulated ones."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from typing import TYPE_CHECKING

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail

if TYPE_CHECKING:
    from agent.config.types import Config

HELP = (
    "Serve every device of CONFIG as a simulated Modbus device on 127.0.0.1: the k-th distinct url, in the order of "
    "the file and serial ones too, on port N + k. `run`, `read` and `write` with --simulated N go there."
)
EXAMPLE = "edgetwin simulate config.yaml --port 5020"
LAST_PORT = 65535


def configure(parser: argparse.ArgumentParser) -> None:
    from agent.modbus.simulated import FIRST_PORT

    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument(
        "--port", type=int, default=FIRST_PORT, metavar="N", help=f"the first port ({FIRST_PORT})"
    )


def main(args: argparse.Namespace) -> int:
    from agent.modbus.simulated import ports

    config = load_or_fail(args.config)
    if not config.devices:
        raise Failure(f"{args.config}: there are no devices to simulate", status=78)
    needed = len(ports(config, args.port))
    if not 1 <= args.port <= LAST_PORT + 1 - needed:
        words = f"ports go from 1 to {LAST_PORT}, and {needed} are needed from {args.port} on"
        raise Failure(f"{words}; give another first port by --port", status=2)
    asyncio.run(_serve(config, args.port))
    return 0


async def _serve(config: Config, first: int) -> None:
    """Until SIGINT or SIGTERM."""
    from agent.modbus.server import ModbusServer
    from agent.modbus.simulated import HOST, ports
    from agent.modbus.simulator import Simulation
    from agent.runtime.clock import SystemClock

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    simulation = Simulation(config, SystemClock().mono)
    servers: list[ModbusServer] = []
    try:
        for url, port in ports(config, first).items():
            server = ModbusServer(simulation.line(url))
            try:
                await server.start(HOST, port)
            except OSError as error:
                words = f"port {port} cannot be used: {os.strerror(error.errno or 0).lower()}"
                raise Failure(f"{words}; give another first port by --port") from None
            servers.append(server)
        for url, port in ports(config, first).items():
            units = ", ".join(f"{unit} ({', '.join(names)})" for unit, names in simulation.lines[url].items())
            print(f"{HOST}:{port}  {url}  unit {units}", flush=True)
        await stop.wait()
    finally:
        for server in servers:
            await server.stop()

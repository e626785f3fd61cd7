"""`edgetwin simulate`: a configuration's devices as simulated ones."""

from __future__ import annotations

import argparse
import asyncio
import signal

from agent.cli.fault import Failure
from agent.cli.load import load_or_fail

HELP = (
    "Serve every device of CONFIG as a simulated Modbus device on 127.0.0.1: the k-th distinct url, in the order of "
    "the file and serial ones too, on port N + k. `run`, `read` and `write` with --simulated N go there."
)
EXAMPLE = "edgetwin simulate config.yaml --port 5020"


def configure(parser: argparse.ArgumentParser) -> None:
    from agent.modbus.simulated import FIRST_PORT

    parser.add_argument("config", metavar="CONFIG", help="the configuration file")
    parser.add_argument(
        "--port", type=int, default=FIRST_PORT, metavar="N", help=f"the first port ({FIRST_PORT})"
    )


def main(args: argparse.Namespace) -> int:
    config = load_or_fail(args.config)
    if not config.devices:
        raise Failure(f"{args.config}: there are no devices to simulate", status=78)
    asyncio.run(_serve(config, args.port))
    return 0


async def _serve(config: object, first: int) -> None:
    from agent.config.types import Config
    from agent.modbus.server import ModbusServer
    from agent.modbus.simulated import HOST, ports
    from agent.modbus.simulator import Line
    from agent.runtime.clock import SystemClock

    assert isinstance(config, Config)
    clock = SystemClock()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers = []
    for url, port in ports(config, first).items():
        line = Line(config, url, clock.mono)
        server = ModbusServer(line.answer)
        try:
            await server.start(HOST, port)
        except (OSError, OverflowError) as error:
            words = error.strerror if isinstance(error, OSError) else "ports go from 1 to 65535"
            raise Failure(f"port {port} cannot be used: {words}; give another first port by --port") from None
        servers.append(server)
        units = ", ".join(f"{unit} ({device.device.name})" for unit, device in line.units.items())
        print(f"{HOST}:{port}  {url}  unit {units}", flush=True)
    await stop.wait()
    for server in servers:
        await server.stop()

"""How late does a control loop of 10 ms step, while the rest of the agent works, waits or fails?

The daemon as it is shipped, in a process of its own: one loop in auto at 10 ms on a PLC of its own, beside 1,000 tags
at 1 s on two other devices, forecasts, health, outbox and page. Beside it, in another process and at the same time, a
bare asyncio ticker of 10 ms: what it is late is the machine's doing. Situations, one after the other:

    plain      the broker takes everything
    broker     the broker is stopped
    full disk  the broker is stopped, and the daemon may write no file beyond some KiB (RLIMIT_FSIZE)
    page       the broker is back, and the page answers 50 requests a second

    python benchmarks/jitter.py [--seconds 100] [--only plain broker ...]

Printed in ms: when a scan begins after its grid, when its step of the loop is done (with the PLC's answer, its own time
included), and the ticker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
PERIOD = 0.01
SETTLED = 8.0
"""Seconds at the start that do not count."""
CHANGED = 2.0
"""Seconds at the start of a situation that do not count."""
FULL = 64 * 1024
"""Bytes: the largest file while the disk is full."""
REQUESTS = 50
"""A second, of the page."""
ALLOWED_MS = 2.0
SITUATIONS = ("plain", "broker", "full disk", "page")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
Floats = NDArray[np.float64]

CONFIG = """
gateway: bench
state_dir: {folder}/state
log: {{level: error}}
mqtt: {{url: "mqtt://127.0.0.1:{broker}", outbox: {{batch: 1s, min_free: 1MiB}}}}
page: {{listen: "127.0.0.1:{page}"}}
devices:
  fast:
    url: tcp://127.0.0.1:{plc}
    every: 10ms
    on_loss: hold
    tags:
      level: {{holding: 3, range: [0, 500]}}
      valve: {{holding: 4, every: 1s, write: {{range: [0, 500], min_interval: 0s}}}}
{others}
loops:
  level: {{pv: fast/level, out: fast/valve, setpoint: 100, mode: auto, controller: {{kp: 0.1, ti: 2s}}}}
"""


# -- processes of their own -----------------------------------------------------------------------------------------


def daemon(config: Path, out: Path) -> int:
    """`edgetwin run`, with a note of each step: when it was due, when its scan began, when all was done."""
    from agent.cli.main import entry
    from agent.runtime.pipeline import Pipeline

    steps: list[tuple[float, float, float]] = []
    plain = Pipeline.on_scan

    def noted(self: Any, done: Any) -> None:
        plain(self, done)
        if done.every == PERIOD:
            steps.append((done.due, done.started, time.monotonic()))

    Pipeline.on_scan = noted  # type: ignore[method-assign]
    sys.argv = ["edgetwin", "run", str(config)]
    try:
        entry()
    finally:
        np.save(out, np.array(steps))
    return 0


def ticker(out: Path) -> None:
    """A task that sleeps until each tick of a grid, and nothing else, until SIGTERM."""
    ticks: list[tuple[float, float]] = []

    async def tick() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        due = time.monotonic()
        while not stop.is_set():
            due += PERIOD
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            ticks.append((due, time.monotonic()))

    asyncio.run(tick())
    np.save(out, np.array(ticks))


@contextlib.contextmanager
def process(*words: str, ready: bool = False, end: int = signal.SIGTERM) -> Iterator[tuple[int, str]]:
    """(pid, first line that it prints, where one is waited for) of a process that ends with the block."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as one:
        assert one.stdin is not None and one.stdout is not None
        try:
            yield one.pid, one.stdout.readline().strip() if ready else ""
        finally:
            one.send_signal(end)
            one.stdin.close()
            one.wait(timeout=30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


# -- the situations -------------------------------------------------------------------------------------------------


class Broker:
    """A mosquitto that can be stopped and started on one port; nothing where it is not installed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if MOSQUITTO is not None and self._process is None:
            words = [MOSQUITTO, "-p", str(self.port)]
            self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@dataclass(frozen=True)
class Rig:
    """What the situations act on."""

    broker: Broker
    daemon: int
    page: int

    def begin(self, situation: str) -> None:
        full = situation == "full disk"
        limit = FULL if full else resource.RLIM_INFINITY
        resource.prlimit(self.daemon, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if situation in ("broker", "full disk"):
            self.broker.stop()
        else:
            self.broker.start()

    def wait(self, situation: str, seconds: float) -> int:
        """Lets the time pass; how often the page answered meanwhile."""
        if situation != "page":
            time.sleep(seconds)
            return 0
        start, answers = time.monotonic(), 0
        while (now := time.monotonic()) < start + seconds:
            if now < start + answers / REQUESTS:
                time.sleep(start + answers / REQUESTS - now)
            self._ask("/api/twin" if answers % 2 else "/metrics")
            answers += 1
        return answers

    def _ask(self, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.page, timeout=5.0)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"the page answered {answer.status} to {path}")


def others(port: int) -> str:
    """1,000 tags at 1 s on two devices."""
    lines = []
    for unit in (1, 2):
        lines += [
            f"  slow{unit}:",
            f"    url: tcp://127.0.0.1:{port}",
            f"    unit: {unit}",
            "    every: 1s",
            "    tags:",
        ]
        lines += [f"      t{tag}: {{holding: {2 * tag}, type: float32}}" for tag in range(500)]
    return "\n".join(lines)


def measure(situations: list[str], seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plc, page, broker = free_port(), free_port(), Broker(free_port())
        python, here = sys.executable, str(Path(__file__))
        _, port = stack.enter_context(
            process(python, str(ROOT / "benchmarks/plain_server.py"), ready=True, end=signal.SIGTERM)
        )
        words = ["--port", str(plc), "--epoch", "1", "--journal", str(folder / "journal")]
        stack.enter_context(process(python, str(ROOT / "tests/plc.py"), *words, ready=True))
        broker.start()
        stack.callback(broker.stop)
        config = folder / "config.yaml"
        config.write_text(
            CONFIG.format(folder=folder, broker=broker.port, page=page, plc=plc, others=others(int(port)))
        )
        os.environ["RUNTIME_DIRECTORY"] = str(folder)
        windows: dict[str, tuple[float, float]] = {}
        with (
            process(python, here, "--daemon", str(config), str(folder / "steps.npy")) as (pid, _),
            process(python, here, "--ticker", str(folder / "ticks.npy")),
        ):
            rig = Rig(broker, pid, page)
            wait_for_loop(folder)
            for situation in situations:
                rig.begin(situation)
                time.sleep(CHANGED)
                start = time.monotonic()
                answers = rig.wait(situation, seconds)
                windows[situation] = (start, time.monotonic())
                status = ask_status(folder)
                print(f"{situation:10} uplink {status['uplink']['state']}, outbox {status['outbox']}", end="")
                print(f", loop {status['loops']['level']['mode']}", end="")
                print(f", {answers} answers of the page" if answers else "")
            rig.begin("plain")
        show(windows, np.load(folder / "steps.npy"), np.load(folder / "ticks.npy"))


def ask_status(folder: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "agent", "status", str(folder / "config.yaml"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return found


def wait_for_loop(folder: Path) -> None:
    """Returns once the loop has stepped for a while."""
    end = time.monotonic() + 90.0
    while time.monotonic() < end:
        status = ask_status(folder)
        if status and status["loops"]["level"]["steps"] > SETTLED / PERIOD:
            return
        time.sleep(0.5)
    raise SystemExit("the loop did not run within 90 s")


# -- what is printed ------------------------------------------------------------------------------------------------


def show(windows: dict[str, tuple[float, float]], steps: Floats, ticks: Floats) -> None:
    print(f"\n{'':10} {'':24}{'n':>8}{'p50':>8}{'p99':>8}{'p99.9':>8}{'max':>8}   p99.9 over the ticker's")
    for situation, (start, end) in windows.items():
        mine = steps[(steps[:, 0] >= start) & (steps[:, 0] < end)]
        bare = ticks[(ticks[:, 0] >= start) & (ticks[:, 0] < end)]
        late = {
            "scan begins": mine[:, 1] - mine[:, 0],
            "step is done": mine[:, 2] - mine[:, 0],
            "bare asyncio ticker": bare[:, 1] - bare[:, 0],
        }
        of_ticker = np.quantile(late["bare asyncio ticker"], 0.999) * 1000
        for name, seconds in late.items():
            figures = np.quantile(seconds, (0.5, 0.99, 0.999, 1.0)) * 1000
            print(f"{situation:10} {name:24}{len(seconds):8}", *(f"{one:7.2f}" for one in figures), end="")
            above = figures[2] - of_ticker
            verdict = "" if name.startswith("bare") else f"   {above:+.2f}"
            print(verdict + ("" if above <= ALLOWED_MS else f", more than {ALLOWED_MS:g}"))
        missed = round((end - start) / PERIOD) - len(mine)
        print(f"{situation:10} {'periods without a scan':24}{max(missed, 0):8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--only", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--daemon", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ticker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.daemon is not None:
        sys.path.insert(0, str(ROOT))
        raise SystemExit(daemon(*args.daemon))
    if args.ticker is not None:
        ticker(args.ticker)
        return
    if MOSQUITTO is None:
        print("mosquitto is not installed: the broker is away in every situation")
    print(f"{args.seconds:g} s each; load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    measure(args.only, args.seconds)


if __name__ == "__main__":
    main()

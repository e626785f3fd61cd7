"""`edgetwin demo`: starts the plant, the broker, the agent and the central side, shows them, and judges the run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import string
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from agent.demo.broker import start_broker
from agent.demo.child import Child
from agent.demo.judge import summary

OLD_SETPOINT, NEW_SETPOINT = 120.0, 160.0
START_PATIENCE = 60.0
"""Seconds for the first poll: a first start compiles the kernels."""
END_PATIENCE = 10.0
"""Seconds for the central side to settle its books."""
QUIET_EVERY = 5.0
"""Seconds between lines where the output is no terminal."""


class DemoFailed(Exception):
    """The demo cannot go on; the message says why in plain words."""


@dataclass(frozen=True, slots=True)
class Ports:
    modbus: int
    mqtt: int
    mqtt_311: int
    page: int

    @classmethod
    def choose(cls, first: int | None) -> Ports:
        """Four ports from `first` on, or four free ones."""
        if first is not None:
            return cls(*range(first, first + 4))
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
            return cls(*(one.getsockname()[1] for one in sockets))


@dataclass
class Demo:
    """One run. `seconds` None: until Ctrl-C."""

    seconds: float | None
    ports: Ports
    folder: Path
    live: dict[str, Any] = field(default_factory=dict)
    first_poll: float | None = None
    step: tuple[float, float, float] | None = None
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event) -> dict[str, Any] | None:
        """Runs it; the summary with `seconds`, None without or when stopped early. Raises DemoFailed."""
        async with self._processes() as (plant, central, agent):
            listeners = [
                asyncio.create_task(self._listen(name, child))
                for name, child in (("plant", plant), ("central", central))
            ]
            children = {"plant": plant, "central side": central, "agent": agent}
            await self._until_the_end(stop, central, children)
            end = time.monotonic()
            status = await self._status()
            await agent.stop(patience=15.0)
            central.tell({"do": "end"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(central.process.wait(), END_PATIENCE)
            await plant.stop(patience=5.0)
            await central.stop(patience=5.0)
            await asyncio.gather(*listeners)
        if self.seconds is None or stop.is_set():
            return None
        for name, child in (("plant", plant), ("central", central)):
            if name not in self.reports:
                raise DemoFailed(f"the {name} side gave no account of itself: {child.last_words()}")
        return summary(
            seconds=end - (self.first_poll or end),
            plant=self.reports["plant"],
            central=self.reports["central"],
            status=status,
            step=self.step,
            end=end,
        )

    async def _until_the_end(self, stop: asyncio.Event, central: Child, children: dict[str, Child]) -> None:
        """Returns when it is time or asked for. Raises DemoFailed when a process ends before."""
        stopped = asyncio.create_task(stop.wait())
        script = asyncio.create_task(self._script(central))
        show = asyncio.create_task(self._show())
        lives = {asyncio.create_task(child.process.wait()): name for name, child in children.items()}
        try:
            done, _ = await asyncio.wait({stopped, script, *lives}, return_when=asyncio.FIRST_COMPLETED)
            for name in (name for task, name in lives.items() if task in done):
                raise DemoFailed(f"the {name} ended by itself: {children[name].last_words()}")
            if script in done:
                script.result()
        finally:
            for task in (stopped, script, show, *lives):
                task.cancel()
            await asyncio.gather(stopped, script, show, *lives, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _processes(self) -> AsyncIterator[tuple[Child, Child, Child]]:
        try:
            broker = await asyncio.to_thread(start_broker, self.folder, self.ports.mqtt, self.ports.mqtt_311)
        except (OSError, RuntimeError) as error:
            raise DemoFailed(f"the broker does not start: {error}") from None
        children: list[Child] = []
        try:
            for module, args in (
                ("agent.demo.plant", ["--port", str(self.ports.modbus)]),
                ("agent.demo.central", ["--port", str(self.ports.mqtt)]),
                ("agent", ["run", str(self._configure())]),
            ):
                children.append(await Child.start(self.folder, module, *args))
            plant, central, agent = children
            self._tell_where()
            yield plant, central, agent
        finally:
            for child in reversed(children):
                await child.stop(patience=5.0)
            await asyncio.to_thread(broker.stop)

    def _configure(self) -> Path:
        template = string.Template(
            resources.files("agent.demo").joinpath("demo.yaml").read_text(encoding="utf-8")
        )
        path = self.folder / "demo.yaml"
        path.write_text(
            template.substitute(
                state=self.folder / "state",
                modbus=self.ports.modbus,
                mqtt=self.ports.mqtt,
                page=self.ports.page,
            ),
            encoding="utf-8",
        )
        return path

    def _tell_where(self) -> None:
        ports = self.ports
        print(f"plant    tcp://127.0.0.1:{ports.modbus} (Modbus units 1 and 2)")
        print(
            f"broker   mqtt://127.0.0.1:{ports.mqtt} (MQTT 5), :{ports.mqtt_311} (3.1.1), topics edgetwin/v1/demo/#"
        )
        print(f"page     http://127.0.0.1:{ports.page}/")
        print(f"agent    {self.folder / 'demo.yaml'}", flush=True)

    async def _listen(self, name: str, child: Child) -> None:
        async for line in child.lines():
            if "first_poll" in line:
                self.first_poll = line["first_poll"]
            elif "live" in line:
                self.live = line["live"]
            elif "step_sent" in line:
                self.step = (OLD_SETPOINT, NEW_SETPOINT, line["step_sent"])
            elif "port" not in line:
                self.reports[name] = line

    async def _script(self, central: Child) -> None:
        """What happens when: the setpoint changes at half time (or back and forth each minute), and the end comes."""
        started = time.monotonic()
        while self.first_poll is None:
            if time.monotonic() - started > START_PATIENCE:
                raise DemoFailed(f"no poll within {START_PATIENCE:.0f} s")
            await asyncio.sleep(0.02)
        if self.seconds is not None:
            await asyncio.sleep(self.first_poll + self.seconds / 2 - time.monotonic())
            central.tell({"do": "setpoint", "value": NEW_SETPOINT})
            await asyncio.sleep(self.first_poll + self.seconds - time.monotonic())
            return
        while True:
            for value in (NEW_SETPOINT, OLD_SETPOINT):
                await asyncio.sleep(15.0)
                central.tell({"do": "setpoint", "value": value})

    async def _show(self) -> None:
        terminal = sys.stdout.isatty()
        shown = -QUIET_EVERY
        while True:
            if self.live and (terminal or time.monotonic() - shown >= QUIET_EVERY):
                shown = time.monotonic()
                text = live_line(self.live, shown - (self.first_poll or shown))
                if terminal:  # a line that wraps could not be written over
                    text = text[: shutil.get_terminal_size().columns - 1]
                print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", flush=True)
            await asyncio.sleep(0.25)

    async def _status(self) -> dict[str, Any]:
        from agent.runtime.socket import ask_daemon

        candidates = [self.folder / "state" / "edgetwin.sock"]
        answer = await asyncio.to_thread(ask_daemon, candidates, {"op": "status"}, timeout=3.0)
        if answer is None or not answer.get("ok"):
            raise DemoFailed("the agent does not answer on its socket")
        status: dict[str, Any] = answer["result"]
        return status


def live_line(live: dict[str, Any], seconds: float) -> str:
    """One line of what the central side knows."""

    def number(name: str, unit: str, digits: int = 1) -> str:
        value = live.get(name)
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    return (
        f"{seconds:6.1f} s  vessel {number('temperature', ' °C')} → {number('setpoint', ' °C')}"
        f"  in 1 s {number('forecast', ' °C')} ± {number('halfwidth', '')}  heater {number('heater', ' %')}"
        f"  loop {live.get('mode', '-')}  health {number('health', '', 2)}"
        f"  | {live.get('messages', 0)} messages, {live.get('readings', 0)} readings, {live.get('lost', 0)} lost"
    )


def run_demo(seconds: float | None, port: int | None) -> int:
    """Runs the demo to its end; returns the exit status."""
    import signal

    async def main() -> dict[str, Any] | None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        return await Demo(seconds, Ports.choose(port), Path(folder)).run(stop)

    with tempfile.TemporaryDirectory(prefix="edgetwin-demo-") as folder:
        body = asyncio.run(main())
    print(flush=True)
    if body is None:
        return 0 if seconds is None else 128 + signal.SIGINT
    print(json.dumps(body), flush=True)
    return 0 if body["ok"] else 1

"""A tool at work: its processes, the link to the broker that can be cut, and all that arrives behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from peer import Command, Job, Peer, Published
from plc import Plc

from tests.brokers import Mosquitto, TcpProxy, free_port

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
RESTART_AFTER = 2.0
"""Seconds after which a supervisor starts again what ended, as systemd's RestartSec would."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the subscriber had it, and the values in it. `t` in monotonic seconds."""

    t: float
    topic: str
    body: bytes
    retained: bool
    values: tuple[Published, ...]


class Subscriber:
    """Everything that the broker passes on, straight from the broker: it is never cut off."""

    def __init__(self, peer: Peer, port: int) -> None:
        self._raw: list[tuple[float, paho.MQTTMessage]] = []
        self._peer = peer
        self._read = 0
        self.messages: list[Message] = []
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="bench-reader", protocol=MQTTProtocolVersion.MQTTv5
        )
        self.client.on_message = self._on_message
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=2)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _on_message(self, client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        self._raw.append((time.monotonic(), message))
        reply = self._peer.reply(message.topic, message.payload)
        if reply is not None:
            client.publish(reply.topic, reply.body, qos=1)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def take(self) -> list[Message]:
        """What came since the last time, read; also added to `messages`."""
        new = self._raw[self._read :]
        self._read += len(new)
        taken = [
            Message(t, raw.topic, raw.payload, raw.retain, tuple(self._peer.values(raw.topic, raw.payload)))
            for t, raw in new
        ]
        self.messages += taken
        return taken


class Process:
    """The tool's own process and all that it starts; started again by `watch` when it ends by itself."""

    def __init__(self, command: Command, folder: Path) -> None:
        self._command, self._folder = command, folder
        self._log = (folder / "log").open("ab")
        self._popen: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._ended_at = 0.0

    def start(self) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self._popen = subprocess.Popen(
            self._command.argv,
            cwd=self._folder,
            env=env | self._command.env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.starts += 1
        self._ended_at = 0.0

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def watch(self) -> None:
        """To be called now and then: starts it again `RESTART_AFTER` after its end."""
        if self.alive:
            return
        if not self._ended_at:
            self._ended_at = time.monotonic()
        elif time.monotonic() - self._ended_at > RESTART_AFTER:
            self.start()

    def kill(self) -> None:
        """SIGKILL to it and all that it started."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)
        self._log.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._popen = self._popen, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def usage(self) -> tuple[float, float]:
        """CPU seconds (user and system) and resident MiB of the whole tree of processes."""
        return usage(self.pid)


def usage(root: int) -> tuple[float, float]:
    """CPU seconds and resident MiB of a process and all below it, ended children with it."""
    parents: dict[int, int] = {}
    spent: dict[int, tuple[float, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            ticks = sum(int(one) for one in fields[11:15])
            spent[int(entry.name)] = ticks / TICKS, int(fields[21]) * PAGE / 2**20

    def below(pid: int) -> bool:
        while pid and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    mine = [spent[pid] for pid in parents if below(pid)]
    return sum(cpu for cpu, _ in mine), sum(memory for _, memory in mine)


class Rig:
    """A tool with its PLC, broker and subscriber; `plc` of the first host, `others` of further ones."""

    def __init__(self, peer: Peer, folder: Path, plc: Plc, broker: Mosquitto) -> None:
        self.peer, self.folder, self.plc, self.broker = peer, folder, plc, broker
        self.link: TcpProxy | None = None
        self.port = free_port()
        self.subscriber = Subscriber(peer, broker.port)
        self.process: Process | None = None

    def connect(self) -> None:
        """The tool's way to the broker is open."""
        self.link = TcpProxy(self.broker.port, self.port)

    def cut(self) -> None:
        """Connections are closed and new ones refused, as where the broker's machine restarts."""
        if self.link is not None:
            self.link.close()
        self.link = None

    def run(self, job: Job) -> Process:
        return self.start(self.peer.configure(self.folder, job))

    def start(self, command: Command) -> Process:
        self.process = Process(command, self.folder)
        self.process.start()
        return self.process

    def publish(self, topic: str, body: bytes) -> None:
        self.subscriber.client.publish(topic, body, qos=1).wait_for_publish(5.0)

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Lets time pass; the supervisor is at work. True as soon as `until` holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process is not None:
                self.process.watch()
            self.subscriber.take()
            if until():
                return True
            time.sleep(0.02)
        return until()

    def settle(self, patience: float = 60.0) -> float:
        """Waits for the first value of the counter; seconds it took. Raises TimeoutError."""
        begin = time.monotonic()
        if not self.wait(patience, lambda: bool(self.counted())):
            raise TimeoutError(f"no value within {patience:g} s")
        return self.counted()[0][0] - begin

    def counted(self, device: str | None = None, since: float = 0.0) -> list[tuple[float, str, int]]:
        """(arrival, topic, value) of every counter that came, of one device (the first unless named)."""
        name = device or "d1"
        return [
            (message.t, message.topic, int(one.value))
            for message in self.subscriber.messages
            if message.t >= since and not message.retained
            for one in message.values
            if one.register == 1 and one.device == name and isinstance(one.value, float)
        ]

    def close(self) -> None:
        if self.process is not None:
            self.process.stop()
        self.subscriber.close()
        self.cut()


@contextlib.contextmanager
def rig(peer: Peer, folder: Path) -> Iterator[Rig]:
    """All of it, begun and ended; the link to the broker is open. Every file lies in `folder`."""
    folder.mkdir(parents=True)
    (folder / "broker").mkdir()
    with Mosquitto(folder / "broker") as broker, Plc(free_port(), free_port()) as plc:
        bench = Rig(peer, folder, plc, broker)
        bench.connect()
        try:
            yield bench
        finally:
            bench.close()

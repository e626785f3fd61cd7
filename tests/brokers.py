"""A real mosquitto of one's own on loopback, and a TCP proxy that can cut, stall and refuse.

    with Mosquitto(tmp_path) as broker:            # a port of its own, MQTT 3.1.1 and 5, anonymous
        with TcpProxy(broker.port) as proxy: ...

Both are started here and ended here, by their own process ids and sockets.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import pytest

from tests.ports import free_port

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
PATIENCE = 30.0
CHUNK = 65536

needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")


def wait_for_port(port: int, patience: float = PATIENCE) -> None:
    """Returns once something accepts on the port. Raises TimeoutError."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on 127.0.0.1:{port}")


class Mosquitto:
    """One broker process. `config_lines` are added to the listener's part of its configuration.

    With `persistence` (a folder) queued and retained messages outlive a restart; without it a restart forgets them.
    `listener` replaces the listener lines (for TLS, websockets or a unix socket); it may hold `{port}`.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        config_lines: Iterable[str] = (),
        *,
        persistence: bool = False,
        anonymous: bool = True,
        listener: str = "listener {port} 127.0.0.1",
    ) -> None:
        assert PROGRAM is not None, "mosquitto is not installed"
        self.folder = folder
        self.port = port or free_port()
        self.log = folder / "mosquitto.log"
        self.process: subprocess.Popen[bytes] | None = None
        store = folder / "broker"
        store.mkdir(exist_ok=True)
        lines = [
            listener.format(port=self.port),
            f"allow_anonymous {'true' if anonymous else 'false'}",
            *config_lines,
            f"persistence {'true' if persistence else 'false'}",
            f"persistence_location {store}/",
            "log_dest stderr",
            "log_type all",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # it would drop to a user that cannot read the test's folder
        self.config = folder / "mosquitto.conf"
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it accepts connections. Raises TimeoutError with its last words."""
        assert self.process is None and PROGRAM is not None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "-c", str(self.config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            wait_for_port(self.port)
        except TimeoutError:
            self.kill()
            raise TimeoutError(f"mosquitto does not start: {self.last_words()}") from None

    def stop(self) -> None:
        """Ends it in order (SIGTERM): with persistence it saves first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it with SIGKILL: what it had not saved is gone."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops it from answering (SIGSTOP); the kernel still accepts connections for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log.exists() else ""

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class TcpProxy:
    """Passes connections on to 127.0.0.1:`target`, until it is told to cut, stall or refuse them."""

    def __init__(self, target: int, port: int | None = None) -> None:
        self.target = target
        self._server = socket.create_server(("127.0.0.1", port or 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flows = threading.Event()
        self._flows.set()
        self._refusing = False
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Closes every connection at once; new ones are let through unless `refuse` was called."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def stall(self) -> None:
        """Passes nothing on any more while connections stay open: a half-open link."""
        self._flows.clear()

    def flow(self) -> None:
        """Ends `stall`."""
        self._flows.set()

    def refuse(self) -> None:
        """Cuts every connection, and each new one at once."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Ends `refuse`."""
        self._refusing = False

    def close(self) -> None:
        self._closed = True
        self._flows.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def greet(self, near: socket.socket) -> socket.socket:
        """What a connection becomes before anything is passed on. Raises OSError for one that is not wanted."""
        return near

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                near = self.greet(near)
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5.0)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._flows.wait()
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterable[Mosquitto]:
    """A running broker that anybody may use, without persistence."""
    with Mosquitto(tmp_path) as broker:
        yield broker

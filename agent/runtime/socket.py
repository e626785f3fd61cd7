"""The control socket: JSON lines over a unix socket, so that commands go through the running daemon and its limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.runtime.clock import Clock
from agent.twin.records import Ask, Key, Outcome, Plain

log = logging.getLogger("edgetwin")

LONGEST_REQUEST = 256 * 1024
READ_PATIENCE, WORK_PATIENCE = 5.0, 15.0
MOST_CLIENTS = 16
MODE = 0o660

Future = concurrent.futures.Future[Outcome]


class SocketTaken(Exception):
    """Another daemon answers on the socket; one line of plain words."""


class ControlSocket:
    """Serves requests in whatever loop `serve` is awaited in. `ask` hands them to the main loop."""

    def __init__(self, path: Path, *, config_path: str, ask: Callable[[Ask], Future], clock: Clock) -> None:
        self._path = path
        self._config_path = str(Path(config_path).resolve())
        self._ask = ask
        self._clock = clock
        self._clients = 0

    async def serve(self) -> asyncio.Server:
        """Listens; a socket file that nobody answers on is replaced. Raises SocketTaken, OSError."""
        if self._path.exists():
            if _answers(self._path):
                raise SocketTaken(f"another agent runs here: it answers on {self._path}")
            self._path.unlink()
        old = os.umask(0o777 & ~MODE)
        try:
            server = await asyncio.start_unix_server(self._talk, str(self._path), limit=LONGEST_REQUEST)
        finally:
            os.umask(old)
        return server

    def remove(self) -> None:
        """Takes the socket file away at the end."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MOST_CLIENTS:
                await _say(writer, {"ok": False, "error": "too many clients at once"})
                return
            while True:
                try:
                    line = await asyncio.wait_for(reader.readline(), READ_PATIENCE)
                except (TimeoutError, ValueError):
                    await _say(writer, {"ok": False, "error": "the request is too slow or too long"})
                    return
                if not line:
                    return
                await _say(writer, await self._answer(line))
        except ConnectionError:
            pass
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
            if message.get("config") not in (None, self._config_path):
                return {"ok": False, "other_config": self._config_path}
            ask = to_ask(message, self._clock.mono() + WORK_PATIENCE)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            return {"ok": False, "error": "the request is not understood"}
        try:
            outcome = await asyncio.wait_for(asyncio.wrap_future(self._ask(ask)), WORK_PATIENCE)
        except TimeoutError:
            return {"ok": False, "error": "the agent's main loop does not answer"}
        return {
            "ok": outcome.ok,
            "applied": outcome.applied,
            "readback": outcome.readback,
            "error": outcome.error,
            "result": outcome.result,
        }


def to_ask(message: Mapping[str, Any], deadline: float) -> Ask:
    """The request in a message. Raises KeyError, TypeError or ValueError for one that is none."""
    op = message["op"]
    match op:
        case "status":
            return Ask("status", "socket", deadline)
        case "read":
            keys = tuple(_key(*pair) for pair in message.get("tags", ()))
            return Ask("read", "socket", deadline, keys=keys, extra={"full": bool(message.get("full"))})
        case "write":
            return Ask(
                "write",
                "socket",
                deadline,
                key=_key(message["device"], message["tag"]),
                value=_plain(message["value"]),
            )
        case "loop":
            return Ask(
                "loop",
                "socket",
                deadline,
                loop=str(message["loop"]),
                mode=_text(message.get("mode")),
                setpoint=_number(message.get("setpoint")),
            )
    raise ValueError(op)


def _plain(value: Any) -> Plain:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError("a value is a number, a text, true or false")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("a mode is a text")


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("a setpoint is a number")
    return float(value)


def _key(device: Any, tag: Any) -> Key:
    if not isinstance(device, str) or not isinstance(tag, str):
        raise TypeError("a tag is two texts")
    return device, tag


def _say(writer: asyncio.StreamWriter, body: Mapping[str, Any]) -> Awaitable[None]:
    writer.write(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    return writer.drain()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def ask_daemon(
    candidates: Sequence[Path], message: Mapping[str, Any], *, timeout: float, config_path: str | None = None
) -> dict[str, Any] | None:
    """The answer of the first daemon that listens on one of the paths; None when none does.

    With `config_path` only a daemon that runs with this configuration counts. A daemon that listens and does not
    answer is an answer with ok false.
    """
    wanted = dict(message)
    if config_path is not None:
        wanted["config"] = str(Path(config_path).resolve())
    for path in candidates:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout)
            try:
                client.connect(str(path))
            except OSError:
                continue
            try:
                client.sendall(json.dumps(wanted).encode() + b"\n")
                with client.makefile("rb") as stream:
                    answer = json.loads(stream.readline())
            except (OSError, ValueError):
                return {"ok": False, "error": f"the agent on {path} does not answer"}
            if "other_config" not in answer:
                return dict(answer)
    return None

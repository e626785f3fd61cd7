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

from agent.config.urls import device_url
from agent.runtime.clock import Clock
from agent.twin.records import Ask, Key, Outcome, Plain

log = logging.getLogger("edgetwin")

LONGEST_REQUEST = 256 * 1024
READ_PATIENCE, WORK_PATIENCE = 5.0, 15.0
MOST_CLIENTS = 16
GONE_EVERY = 0.1
"""Seconds after which it is noticed that the asker of a long question went away."""
MODE = 0o660
READS_OF = {1: 4, 2: 4, 3: 4, 4: 4, 17: 0, 43: 3}
"""Function -> length of its body: the four reads, server id, device identification. Nothing else passes."""
DEVICE_IDENTIFICATION = 14
"""The MEI type; the other one of function 43, CANopen, can write."""
LONGEST_TIMEOUT = 60.0

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
                await _say(writer, await self._answer(line, reader))
        except ConnectionError:
            pass
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, line: bytes, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            message = json.loads(line)
            if message.get("config") not in (None, self._config_path):
                return {"ok": False, "other_config": self._config_path}
            ask = to_ask(message, self._clock.mono() + WORK_PATIENCE)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            return {"ok": False, "error": "the request is not understood"}
        try:
            async with asyncio.timeout(ask.deadline - self._clock.mono()):
                waiting = asyncio.wrap_future(self._ask(ask))
                if ask.op == "ask":
                    await _until_done_or_gone(waiting, reader)
                outcome = await waiting
        except TimeoutError:
            return {"ok": False, "error": "the agent's main loop does not answer"}
        except ConnectionError:
            raise
        except Exception:
            log.exception("a request to %r failed; this is a fault of the program", ask.op)
            return {"ok": False, "error": "a fault of the program; the log has it (journalctl -u edgetwin)"}
        return {
            "ok": outcome.ok,
            "applied": outcome.applied,
            "readback": outcome.readback,
            "error": outcome.error,
            "result": outcome.result,
        }


async def _until_done_or_gone(waiting: asyncio.Future[Outcome], reader: asyncio.StreamReader) -> None:
    """Cancels what nobody waits for any more. Raises ConnectionError then."""
    while not (await asyncio.wait([waiting], timeout=GONE_EVERY))[0]:
        if reader.at_eof():
            waiting.cancel()
            raise ConnectionResetError("the asker went away")


def to_ask(message: Mapping[str, Any], deadline: float) -> Ask:
    """The request in a message. Raises KeyError, TypeError or ValueError for one that is none."""
    op = message["op"]
    match op:
        case "status":
            return Ask("status", "socket", deadline)
        case "read":
            keys = tuple(_key(*pair) for pair in message.get("tags", ()))
            return Ask("read", "socket", deadline, keys=keys, extra={"full": bool(message.get("full"))})
        case "holds":
            return Ask("holds", "socket", deadline, extra={"url": device_url(message["url"])})
        case "ask":
            extra = _single_read(message)
            return Ask("ask", "socket", deadline + extra["timeout"], extra=extra)
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
        case "tune":
            return Ask("tune", "socket", deadline, loop=str(message["loop"]), extra=_experiment(message))
        case "relearn":
            device, _ = _key(message["device"], "")
            return Ask("relearn", "socket", deadline, extra={"device": device})
    raise ValueError(op)


def _single_read(message: Mapping[str, Any]) -> dict[str, Any]:
    """The url, unit and bytes of an `ask`. Raises KeyError, TypeError or ValueError where it is no read."""
    unit, function, timeout = message["unit"], message["function"], message["timeout"]
    body = bytes.fromhex(message["body"])
    if type(unit) is not int or not 0 <= unit <= 255:
        raise ValueError("a unit is a number from 0 to 255")
    if READS_OF.get(function) != len(body) or (function == 43 and body[0] != DEVICE_IDENTIFICATION):
        raise ValueError("only reads")
    if isinstance(timeout, bool) or not (math.isfinite(timeout) and 0 <= timeout <= LONGEST_TIMEOUT):
        raise ValueError("a timeout is a number of seconds")
    url = device_url(message["url"])
    if unit == 0 and url.scheme in ("rtu", "rtu+tcp"):
        raise ValueError("unit 0 is everybody")
    return {"url": url, "unit": unit, "function": function, "body": body, "timeout": float(timeout)}


def _experiment(message: Mapping[str, Any]) -> dict[str, Any]:
    """What `tune` asks of a loop. Raises KeyError, TypeError or ValueError where it is nothing of that."""
    match message["do"]:
        case "look" | "stop":
            return {"do": message["do"]}
        case "poll":
            first = message["first"]
            if type(first) is not int or first < 0:
                raise ValueError("a row has a number from 0")
            return {"do": "poll", "first": first}
        case "begin":
            move, seconds = _number(message["move"]), _number(message["seconds"])
            if move is None or seconds is None:
                raise TypeError("move and seconds are numbers")
            return {"do": "begin", "kind": str(message["kind"]), "move": move, "seconds": seconds}
    raise ValueError(message["do"])


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

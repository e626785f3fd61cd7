"""A line that the running agent holds, asked through its control socket: for `scan` and `probe`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.cli.fault import Failure
from agent.cli.status import candidates_of
from agent.config.types import Url
from agent.modbus.discover import CONNECT_TRIES, CONNECT_WAIT, Asker, Asks, Avoided, Unreachable
from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.runtime.clock import Clock, SystemClock
from agent.runtime.socket import ask_daemon
from agent.twin.quality import Quality

HOLDS_PATIENCE = 5.0


def asker_for(url: Url, *, timeout: float, pause: float) -> Asks:
    """Who asks the units of `url`: the running agent where it holds it, else a connection of our own.

    Raises Failure when an agent holds the same port or host in another way.
    """
    clock = SystemClock()
    for path in candidates_of(None):
        answer = ask_daemon([path], {"op": "holds", "url": url.text}, timeout=HOLDS_PATIENCE)
        if answer is None:
            continue
        if not answer.get("ok"):
            raise Failure(str(answer.get("error")))
        if answer.get("result") is not None:
            return Borrowed(path, str(answer["result"]), clock=clock, timeout=timeout, pause=pause)
    return Asker(url, clock=clock, timeout=timeout, pause=pause)


class Borrowed:
    """Asks as discover.Asker does, by the agent that listens on `path`. Each request is a connection of its own: when
    it ends, as by Ctrl-C, the agent drops the request."""

    def __init__(self, path: Path, url: str, *, clock: Clock, timeout: float, pause: float) -> None:
        self.late: set[int] = set()
        self._path = path
        self._url = url
        self._clock = clock
        self._timeout = timeout
        self._pause = pause
        self._next = 0.0
        self._least = timeout  # the shortest time that a silent unit had

    async def ask(self, unit: int, function: int, body: bytes) -> Answer:
        """As discover.Asker.ask; raises Avoided too, for what a device's configuration says to avoid."""
        await asyncio.sleep(max(0.0, self._next - self._clock.mono()))
        message = {
            "op": "ask",
            "url": self._url,
            "unit": unit,
            "function": function,
            "body": body.hex(),
            "timeout": self._timeout,
        }
        try:
            return await self._answer(unit, message)
        finally:
            self._next = self._clock.mono() + self._pause

    async def _answer(self, unit: int, message: Mapping[str, Any]) -> Answer:
        for left in range(CONNECT_TRIES - 1, -1, -1):
            result = await self._say(message)
            if result["late"]:
                self.late.add(unit)
            match result.get("fault"):
                case None:
                    payload = result["payload"]
                    data = None if payload is None else bytes.fromhex(payload)
                    return Answer(data, result["exception"], self._clock.mono(), result["rtt"])
                case "avoided":
                    raise Avoided(result["words"])
                case "timeout":
                    self._least = min(self._least, result["limit"])
                    raise LinkFault(result["words"], Quality.TIMEOUT)
                case "link":
                    raise LinkFault(result["words"])
            if left:
                await asyncio.sleep(CONNECT_WAIT)
        raise Unreachable(result["words"])

    async def _say(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path))
        except OSError:
            raise Unreachable(f"the agent on {self._path} is gone") from None
        try:
            writer.write(json.dumps(message).encode() + b"\n")
            answer = json.loads(await reader.readline())
        except (OSError, ValueError):
            raise Unreachable(f"the agent on {self._path} is gone") from None
        finally:
            writer.close()
        if not answer.get("ok"):
            raise Unreachable(str(answer.get("error")))
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        """Says so where the agent's own reads left less time for an answer than was asked for."""
        if self._least < self._timeout:
            words = f"the running agent's own reads left {1000 * self._least:.0f} ms for an answer"
            print(f"{words}, not {1000 * self._timeout:.0f}", file=sys.stderr)

"""A small HTTP/1.1 server for the page: GET, one POST for the loops, and server-sent events. Everything is bounded."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import logging
import math
import os
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from agent.config.types import PageConfig
from agent.page import metrics, view, wire
from agent.page.tokens import TokenGuard
from agent.page.view import Sources
from agent.page.wire import Answer, Refused, Request
from agent.twin.records import Ask

log = logging.getLogger("edgetwin.page")

READ_PATIENCE = 5.0
MOST_CONNECTIONS, MOST_STREAMS = 16, 8
"""Open pages take half of the connections at most: the rest is for monitoring."""
LIVE_EVERY = 1.0
STATUS_FRESH = 0.9
WORK_PATIENCE = 10.0
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


@dataclass
class Page:
    """Answers requests. `port` is the bound one, for the check of the Host header."""

    config: PageConfig
    sources: Sources
    guard: TokenGuard | None
    port: int = 0
    limit: int = wire.HEADER_LIMIT
    _connections: int = 0
    _streams: int = 0
    _status_at: float = -math.inf
    _status_task: asyncio.Task[dict[str, Any]] | None = None
    _files: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, then it is closed (server-sent events last)."""
        self._connections += 1
        head_only = False
        try:
            if self._connections > MOST_CONNECTIONS:
                raise Refused(503, "too many connections")
            peer = writer.get_extra_info("peername") or ("",)  # none: it is gone already
            request = await asyncio.wait_for(wire.read(reader, client=str(peer[0])), READ_PATIENCE)
            head_only = request.method == "HEAD"
            self._check_host(request)
            if request.path == "/events" and request.method == "GET":
                await self._stream(request, writer)
            else:
                wire.send(writer, await self._answer(request), head_only=head_only)
        except Refused as refusal:
            wire.send(writer, wire.as_text(refusal.status, str(refusal)), head_only=head_only)
            await wire.linger(reader, writer)
        except TimeoutError:
            wire.send(writer, wire.as_text(408, "too slow"))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # gone, or the agent stops: nobody waits for this task
        except Exception:  # a fault of ours costs one answer
            log.exception("a fault while answering a request for the page")
            wire.send(writer, wire.as_text(500, "a fault of the agent; its log says more"))
        finally:
            self._connections -= 1
            try:
                await asyncio.wait_for(writer.drain(), READ_PATIENCE)
            except (TimeoutError, ConnectionError):
                writer.transport.abort()
            writer.close()

    def _check_host(self, request: Request) -> None:
        """A foreign name in Host means that a browser was led here by another site (DNS rebinding).

        A page that listens on every address answers to any address, and to the machine's own name alone.
        """
        host = request.headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if host.count(":") == 1 or host.startswith("[") else host
        if host.startswith("[") and host.endswith("]"):
            name = host
        listens = self.config.host.lower().strip("[]")
        own = {"localhost", "127.0.0.1", "[::1]", listens, f"[{listens}]"}
        if listens in ("0.0.0.0", "::", ""):
            machine = os.uname().nodename.lower()
            own |= {machine, f"{machine.split('.')[0]}.local"}
            if _is_address(name.strip("[]")):
                return
        if not name or name not in own:
            raise Refused(403, "this page is not served under that name")

    # -- answers ------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> Answer:
        if request.method == "POST" and request.path == "/api/loop":
            return wire.as_json(200, await self._loop(request))
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "only GET is answered here")
        if request.path in STATIC:
            return self._static(request)
        match request.path:
            case "/api/twin":
                snapshot = self.sources.snapshot()
                if snapshot is None:
                    raise Refused(503, "starting")
                return Answer(200, view.twin_json(snapshot, self.sources.ms), "application/json")
            case "/api/status":
                return wire.as_json(200, await self._status())
            case "/api/history":
                return wire.as_json(200, self._history(request))
            case "/metrics":
                text = metrics.text(await self._status(), self.sources.snapshot())
                return Answer(200, text.encode(), metrics.CONTENT_TYPE)
            case "/healthz":
                status = await self._status()
                healthy = bool(status.get("healthy"))
                body = {"healthy": healthy, "problems": status.get("problems", [])}
                return wire.as_json(200 if healthy else 503, body)
        raise Refused(404, "there is nothing here")

    def _static(self, request: Request) -> Answer:
        name, kind = STATIC[request.path]
        if name not in self._files:
            data = resources.files("agent.page").joinpath("static", name).read_bytes()
            self._files[name] = (data, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        data, tag = self._files[name]
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Answer(304, b"", kind, headers)
        return Answer(200, data, kind, headers)

    def _history(self, request: Request) -> dict[str, Any]:
        snapshot = self.sources.snapshot()
        device, _, tag = request.query.get("tag", "").partition("/")
        row = None if snapshot is None else snapshot.layout.row.get((device, tag))
        if snapshot is None or row is None:
            raise Refused(404, "there is no such tag")
        return view.past_and_future(snapshot, self.sources, row)

    async def _status(self) -> dict[str, Any]:
        """The main loop makes it, once a second at most however many ask; waiting for it holds nobody up."""
        now = self.sources.clock.mono()
        if self._status_task is None or (self._status_task.done() and now - self._status_at >= STATUS_FRESH):
            self._status_at = now
            self._status_task = asyncio.create_task(asyncio.to_thread(self.sources.status))
        return await asyncio.shield(self._status_task)

    async def _stream(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Server-sent events: the whole picture that this page shows, once a second."""
        if self._streams >= MOST_STREAMS:
            raise Refused(503, "too many pages are open")
        self._streams += 1
        try:
            head = "".join(f"{name}: {value}\r\n" for name, value in wire.SECURITY.items())
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{head}Connection: close\r\n\r\n"
                "retry: 2000\n\n".encode()
            )
            look = view.Look(self.sources, request.query)
            while True:
                body = look.live(await self._status())
                body["control"] = self.config.control
                writer.write(b"data: " + wire.encode(body) + b"\n\n")
                await asyncio.wait_for(writer.drain(), READ_PATIENCE)
                await asyncio.sleep(LIVE_EVERY)
        finally:
            self._streams -= 1

    # -- control ------------------------------------------------------------------------------------------------

    async def _loop(self, request: Request) -> dict[str, Any]:
        """Changes a loop's mode or setpoint: only with `control: true`, the token, and from this page itself."""
        if not self.config.control or self.guard is None:
            raise Refused(403, "this page is read-only (page.control)")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
            raise Refused(403, "a request from another site")
        given = request.headers.get("authorization", "").partition(" ")[2]
        self.guard.check(given, request.client, self.sources.clock.mono())
        loop, mode, setpoint = _wish(request.body)
        deadline = self.sources.clock.mono() + WORK_PATIENCE
        ask = Ask("loop", "page", deadline, by="page", loop=loop, mode=mode, setpoint=setpoint)
        try:
            outcome = await asyncio.wait_for(asyncio.wrap_future(self.sources.ask(ask)), WORK_PATIENCE)
        except TimeoutError:
            raise Refused(503, "the agent does not answer") from None
        return {"ok": outcome.ok, "error": outcome.error}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _wish(body: bytes) -> tuple[str, str | None, float | None]:
    """(loop, mode, setpoint) of a POST. Raises Refused."""
    try:
        wish = json.loads(body)
        loop, mode, setpoint = wish["loop"], wish.get("mode"), wish.get("setpoint")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(400, "the request is not understood") from None
    if not isinstance(loop, str) or not (mode is None or isinstance(mode, str)):
        raise Refused(400, "loop and mode are texts")
    if setpoint is None:
        return loop, mode, None
    if isinstance(setpoint, bool) or not isinstance(setpoint, int | float) or not math.isfinite(setpoint):
        raise Refused(400, "a setpoint is a number")
    return loop, mode, float(setpoint)

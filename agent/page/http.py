"""A small HTTP/1.1 server for the page: GET, one POST for the loops, and server-sent events. Everything is bounded."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from agent.config.types import PageConfig
from agent.page import metrics, view
from agent.page.view import Sources
from agent.twin.records import Ask

HEADER_LIMIT = 8 * 1024
BODY_LIMIT = 4 * 1024
READ_PATIENCE = 5.0
MOST_CONNECTIONS = 16
LIVE_EVERY = 1.0
WORK_PATIENCE = 10.0
WRONG_TOKENS, LOCKED_FOR = 5, 60.0
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
REASONS = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Page:
    """Answers requests. `port` is the bound one, for the check of the Host header."""

    config: PageConfig
    sources: Sources
    token: str | None
    port: int = 0
    limit: int = HEADER_LIMIT
    _connections: int = 0
    _wrong: list[float] = field(default_factory=list)
    _files: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, then it is closed (server-sent events last)."""
        self._connections += 1
        try:
            if self._connections > MOST_CONNECTIONS:
                raise Refused(503, "too many connections")
            request = await asyncio.wait_for(_read(reader), READ_PATIENCE)
            self._check_host(request)
            if request.path == "/events" and request.method == "GET":
                await self._stream(request, writer)
            else:
                await self._answer(request, writer)
        except Refused as refusal:
            _write(writer, refusal.status, str(refusal).encode() + b"\n", "text/plain; charset=utf-8")
        except TimeoutError:
            _write(writer, 408, b"too slow\n", "text/plain; charset=utf-8")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections -= 1
            try:
                await asyncio.wait_for(writer.drain(), READ_PATIENCE)
            except (TimeoutError, ConnectionError):
                pass
            writer.close()

    def _check_host(self, request: Request) -> None:
        """A foreign name in Host means that a browser was led here by another site (DNS rebinding)."""
        host = request.headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if host.count(":") == 1 or host.startswith("[") else host
        own = {"localhost", "127.0.0.1", "[::1]", self.config.host.lower()}
        listens_wide = self.config.host in ("0.0.0.0", "::", "")
        literal = name.strip("[]").replace(".", "").replace(":", "")
        if name in own or (
            listens_wide and literal.isalnum() and all(ch in "0123456789abcdef" for ch in literal)
        ):
            return
        raise Refused(403, "this page is not served under that name")

    # -- answers ------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST" and request.path == "/api/loop":
            _json(writer, 200, await self._loop(request))
            return
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "only GET is answered here")
        if request.path in STATIC:
            self._static(request, writer)
            return
        match request.path:
            case "/api/twin":
                snapshot = self.sources.snapshot()
                if snapshot is None:
                    raise Refused(503, "starting")
                _json(writer, 200, view.twin(snapshot, self.sources.ms))
            case "/api/status":
                _json(writer, 200, await self._status())
            case "/api/history":
                _json(writer, 200, self._history(request))
            case "/metrics":
                text = metrics.text(await self._status(), self.sources.snapshot())
                _write(writer, 200, text.encode(), metrics.CONTENT_TYPE)
            case "/healthz":
                status = await self._status()
                healthy = bool(status.get("healthy"))
                _json(
                    writer,
                    200 if healthy else 503,
                    {"healthy": healthy, "problems": status.get("problems", [])},
                )
            case _:
                raise Refused(404, "there is nothing here")

    def _static(self, request: Request, writer: asyncio.StreamWriter) -> None:
        name, kind = STATIC[request.path]
        if name not in self._files:
            data = resources.files("agent.page").joinpath("static", name).read_bytes()
            self._files[name] = (data, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        data, tag = self._files[name]
        if request.headers.get("if-none-match") == tag:
            _write(writer, 304, b"", kind, {"ETag": tag, "Cache-Control": "no-cache"})
        else:
            _write(writer, 200, data, kind, {"ETag": tag, "Cache-Control": "no-cache"})

    def _history(self, request: Request) -> dict[str, Any]:
        snapshot = self.sources.snapshot()
        device, _, tag = request.query.get("tag", "").partition("/")
        row = None if snapshot is None else snapshot.layout.row.get((device, tag))
        if snapshot is None or row is None:
            raise Refused(404, "there is no such tag")
        return view.past_and_future(snapshot, self.sources, row)

    async def _status(self) -> dict[str, Any]:
        """The main loop makes it; asking for it must not hold this loop up."""
        return await asyncio.to_thread(self.sources.status)

    async def _stream(self, request: Request, writer: asyncio.StreamWriter) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in SECURITY.items())
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{head}Connection: close\r\n\r\n".encode()
        )
        while True:
            body = view.live(self.sources.snapshot(), await self._status(), self.sources, request.query)
            body["control"] = self.config.control
            writer.write(b"data: " + _encode(body) + b"\n\n")
            await asyncio.wait_for(writer.drain(), READ_PATIENCE)
            await asyncio.sleep(LIVE_EVERY)

    # -- control ------------------------------------------------------------------------------------------------

    async def _loop(self, request: Request) -> dict[str, Any]:
        """Changes a loop's mode or setpoint: only with `control: true`, the token, and from this page itself."""
        if not self.config.control or not self.token:
            raise Refused(403, "this page is read-only (page.control)")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
            raise Refused(403, "a request from another site")
        self._check_token(request.headers.get("authorization", "").removeprefix("Bearer "))
        try:
            wish = json.loads(request.body)
            loop, mode, setpoint = str(wish["loop"]), wish.get("mode"), wish.get("setpoint")
            given = None if setpoint is None else float(setpoint)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused(400, "the request is not understood") from None
        deadline = self.sources.clock.mono() + WORK_PATIENCE
        ask = Ask("loop", "page", deadline, loop=loop, mode=mode, setpoint=given)
        outcome = await asyncio.wrap_future(self.sources.ask(ask))
        return {"ok": outcome.ok, "error": outcome.error}

    def _check_token(self, given: str) -> None:
        now = self.sources.clock.mono()
        self._wrong = [t for t in self._wrong if now - t < LOCKED_FOR]
        if len(self._wrong) >= WRONG_TOKENS:
            raise Refused(429, "locked for a minute after five wrong tokens")
        assert self.token is not None
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            self._wrong.append(now)
            raise Refused(403, "wrong token")


async def _read(reader: asyncio.StreamReader) -> Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refused(413, "the header is too long") from None
    if len(head) > HEADER_LIMIT:
        raise Refused(413, "the header is too long")
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[1].startswith("/") or not parts[2].startswith("HTTP/1."):
        raise Refused(400, "no HTTP request")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_LIMIT or "transfer-encoding" in headers:
        raise Refused(413, "the body is too long")
    body = await reader.readexactly(int(length)) if length != "0" else b""
    url = urlsplit(parts[1])
    return Request(parts[0], url.path, dict(parse_qsl(url.query)), headers, body)


def _encode(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def _json(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    _write(writer, status, _encode(body), "application/json")


def _write(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str, more: Mapping[str, str] | None = None
) -> None:
    headers = {
        **SECURITY,
        **(more or {}),
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\n{head}\r\n".encode() + body)

"""HTTP/1.1 as far as the page needs it: a bounded request in, an answer out, then the connection is closed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HEADER_LIMIT = 8 * 1024
BODY_LIMIT = 4 * 1024
LINGER, LINGER_BYTES = 0.5, 64 * 1024
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
    500: "Internal Server Error",
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
    client: str = ""  # the address that it came from


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    kind: str
    headers: Mapping[str, str] = field(default_factory=dict)


async def read(reader: asyncio.StreamReader, *, client: str) -> Request:
    """One request of `client`, an address.

    Raises Refused for one that is none or too long, IncompleteReadError for one that breaks off.
    """
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
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_LIMIT or "transfer-encoding" in headers:
        raise Refused(413, "the body is too long")
    body = await reader.readexactly(int(length)) if length != "0" else b""
    try:
        url = urlsplit(parts[1])
        query = dict(parse_qsl(url.query, max_num_fields=20))
    except ValueError:
        raise Refused(400, "no address of this page") from None
    return Request(parts[0], url.path, query, headers, body, client)


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads what is still under way, so that the refusal is not lost in a reset of the connection."""
    try:
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(LINGER):
            left = LINGER_BYTES
            while left > 0 and (chunk := await reader.read(4096)):
                left -= len(chunk)
    except (TimeoutError, OSError):
        pass


def encode(body: Any) -> bytes:
    """Compact JSON in UTF-8; what is no number (NaN, infinite) as null."""
    try:
        return _dumps(body).encode()
    except ValueError:
        return _dumps(_finite(body)).encode()


def _dumps(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, default=str, allow_nan=False)


def _finite(body: Any) -> Any:
    if isinstance(body, float):
        return body if math.isfinite(body) else None
    if isinstance(body, Mapping):
        return {key: _finite(one) for key, one in body.items()}
    if isinstance(body, list | tuple):
        return [_finite(one) for one in body]
    return body


def as_json(status: int, body: Any) -> Answer:
    return Answer(status, encode(body), "application/json")


def as_text(status: int, words: str) -> Answer:
    return Answer(status, words.encode() + b"\n", "text/plain; charset=utf-8")


def send(writer: asyncio.StreamWriter, answer: Answer, *, head_only: bool = False) -> None:
    headers = {
        **SECURITY,
        **answer.headers,
        "Content-Type": answer.kind,
        "Content-Length": str(len(answer.body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\n{head}\r\n".encode())
    if not head_only:
        writer.write(answer.body)

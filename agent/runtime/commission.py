"""What `edgetwin scan` and `probe` ask of a line that this agent holds: single reads, in the line's spare time."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Any

from agent.config.types import Url
from agent.modbus.line import Line
from agent.modbus.plan import TABLE_OF
from agent.twin.quality import Quality
from agent.twin.records import Outcome

MARGIN = 1.0
"""Seconds before the deadline that a request is given up here, so that what came of it can still be told."""


def held(lines: Iterable[Line], url: Url) -> Outcome:
    """The url of the line that holds the host or port of `url`, None when none does; not ok where they disagree."""
    line = _at(lines, url)
    if line is None:
        return Outcome(True)
    if _ways(line.url) != _ways(url):
        return Outcome(False, error=f"the running agent holds this as {line.url.text}; ask with that url")
    return Outcome(True, result=line.url.text)


async def ask_unit(
    lines: Iterable[Line], url: Url, unit: int, function: int, body: bytes, *, timeout: float, deadline: float
) -> Outcome:
    """One read. Its result: `payload` (hex) or `exception` with `rtt`, else `fault` (timeout, link, unreachable or
    avoided) with `words`; `limit`: seconds that the unit had; `late`: an earlier answer of it came after its time."""
    line = _at(lines, url)
    if line is None:
        return Outcome(False, error=f"the agent does not hold {url.text} any more")
    if words := _avoided(line, unit, function, body):
        return Outcome(True, result={"fault": "avoided", "words": words, "limit": timeout, "late": False})
    until = deadline - timeout - MARGIN
    heard = await line.guest(unit, function, body, timeout=timeout, deadline=until)
    result: dict[str, Any] = {"limit": heard.limit, "late": heard.late}
    if heard.answer is not None:
        payload = heard.answer.payload
        result |= {
            "payload": None if payload is None else payload.hex(),
            "exception": heard.answer.exception,
            "rtt": heard.answer.rtt,
        }
    elif heard.fault is not None:
        kind = "timeout" if heard.fault.quality is Quality.TIMEOUT else "link"
        result |= {"fault": "unreachable" if heard.unreachable else kind, "words": heard.fault.words}
    return Outcome(True, result=result)


def _at(lines: Iterable[Line], url: Url) -> Line | None:
    return next((line for line in lines if _place(line.url) == _place(url)), None)


def _place(url: Url) -> tuple[str, int]:
    return (os.path.realpath(url.path), 0) if url.scheme == "rtu" else (url.host, url.port)


def _ways(url: Url) -> tuple[Any, ...]:
    return url.scheme, url.baud, url.parity, url.stopbits


def _avoided(line: Line, unit: int, function: int, body: bytes) -> str | None:
    """Why a configured unit is not asked for these addresses, or None."""
    if function not in TABLE_OF:
        return None
    first, count = struct.unpack(">HH", body)
    for device in line.devices.values():
        for avoid in device.avoid if device.unit == unit else ():
            if avoid.table == TABLE_OF[function] and first <= avoid.last and avoid.first < first + count:
                return f"{device.name} is configured to avoid {avoid.table} {avoid.first}-{avoid.last}"
    return None

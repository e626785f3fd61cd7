"""One real poll of some tags, beside the scans: what `edgetwin read` shows and `cmd/read` answers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.config.types import Config, Device
from agent.modbus.chains import standing_in
from agent.modbus.codec import Decoder, power_of
from agent.modbus.faults import LinkFault
from agent.modbus.line import Line, Reply
from agent.modbus.plan import Request, plan_device, request_for
from agent.modbus.sunspec import has_places
from agent.twin.quality import WORDS, Quality
from agent.twin.records import Key, Plain


@dataclass(frozen=True, slots=True)
class TagPoll:
    """One tag as it was read: its raw words (or bits), value, quality and monotonic time."""

    raw: tuple[int, ...]
    plain: Plain
    quality: Quality
    t: float


@dataclass(slots=True)
class DevicePoll:
    replies: list[tuple[Request, Reply]] = field(default_factory=list)
    tags: dict[str, TagPoll] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        """The first fault in words; None where every tag was answered, if not by the first request for it."""
        read = {tag for request, reply in self.replies if reply.payload is not None for tag in request.tags}
        return next(
            (
                reply.words
                for request, reply in self.replies
                if reply.payload is None and not read.issuperset(request.tags)
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class Polled:
    devices: Mapping[str, DevicePoll]

    @property
    def values(self) -> dict[Key, TagPoll]:
        return {(name, tag): one for name, device in self.devices.items() for tag, one in device.tags.items()}

    def as_json(self, config: Config, wall_ms: Callable[[float], int]) -> dict[str, Any]:
        """The body of `edgetwin read --json`."""
        return {
            "v": 1,
            "devices": {
                name: _device_json(config.devices[name], poll, wall_ms) for name, poll in self.devices.items()
            },
        }


def _device_json(device: Device, poll: DevicePoll, wall_ms: Callable[[float], int]) -> dict[str, Any]:
    return {
        "ok": poll.error is None,
        "error": poll.error,
        "requests": [
            {
                "table": request.table,
                "address": request.address,
                "count": request.count,
                "rtt_ms": None if reply.rtt is None else round(reply.rtt * 1000, 2),
                "exception": reply.exception,
            }
            for request, reply in poll.replies
            if request.count
        ],
        "tags": {
            name: {
                "raw": [f"0x{word:04X}" for word in one.raw],
                "v": one.plain,
                "unit": device.tags[name].unit,
                "q": WORDS[one.quality],
                "t": wall_ms(one.t),
            }
            for name, one in poll.tags.items()
        },
    }


async def poll_keys(
    config: Config, line_of: Mapping[str, Line], keys: Iterable[Key], *, deadline: float
) -> Polled:
    """Reads the tags named by `keys`, devices side by side. Faults become qualities; nothing is raised for them."""
    wanted: dict[str, list[str]] = {}
    for device, tag in keys:
        wanted.setdefault(device, []).append(tag)
    polls = await asyncio.gather(
        *(_poll_device(config.devices[name], line_of[name], tags, deadline) for name, tags in wanted.items())
    )
    return Polled(dict(zip(wanted, polls)))


async def _poll_device(device: Device, line: Line, names: Sequence[str], deadline: float) -> DevicePoll:
    powers = {device.tags[name].scale_from for name in names} - {None}
    absent: tuple[Request, ...] = ()
    readable = device.tags
    if has_places(device):
        with contextlib.suppress(LinkFault):  # the reads below tell it, each for itself
            await line.placed(device.name, deadline=deadline)
        placement = line.placements[device.name]
        asked = {*names, *powers}
        absent = tuple(one for one in standing_in(placement) if not asked.isdisjoint(one.tags))
        device = placement.device
        readable = placement.readable.tags
    chosen = {name: tag for name, tag in readable.items() if name in names or name in powers}
    narrowed = dataclasses.replace(device, tags=chosen)
    replies = await line.read((*plan_device(narrowed), *absent), deadline=deadline)
    alone = [
        request_for(device, (tag,))
        for request, reply in replies
        if reply.exception is not None and len(request.tags) > 1
        for tag in request.tags
    ]
    if alone:  # one illegal address must not hide its neighbours
        replies += await line.read(alone, deadline=deadline)
    poll = DevicePoll(list(replies))
    decode_replies(device, poll)
    poll.tags = {name: poll.tags[name] for name in names if name in poll.tags}
    return poll


def decode_replies(device: Device, poll: DevicePoll) -> None:
    """Fills `poll.tags` from `poll.replies`; powers of ten that stand in another reply are looked up there."""
    found: dict[str, Plain] = {}
    for _ in range(2):  # the second pass knows the powers of the first
        for request, reply in poll.replies:
            if reply.payload is None:
                for name in request.tags:
                    poll.tags.setdefault(name, TagPoll((), None, reply.quality, reply.t))
                continue
            decoder = Decoder(request, device)
            powers = {
                name: power_of(found.get(device.tags[name].scale_from or "")) for name in decoder.elsewhere
            }
            decoded = decoder.decode(reply.payload, powers)
            for position, name in enumerate(request.tags):
                found[name] = decoded.plain[position]
                raw = raw_words(request, device, name, reply.payload)
                quality = Quality(int(decoded.quality[position]))
                poll.tags[name] = TagPoll(raw, decoded.plain[position], quality, reply.t)


def raw_words(request: Request, device: Device, name: str, payload: bytes) -> tuple[int, ...]:
    """The words (or bits) of one tag as they came over the wire."""
    tag = device.tags[name]
    start = tag.address - request.address
    if tag.table in ("coil", "discrete"):
        return tuple(payload[bit // 8] >> bit % 8 & 1 for bit in range(start, start + tag.count))
    pairs = (payload[2 * word : 2 * word + 2] for word in range(start, start + tag.count))
    return tuple(int.from_bytes(pair, "big") for pair in pairs)

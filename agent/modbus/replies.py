"""What a line hands on: replies and finished scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from agent.modbus.faults import exception_quality, exception_words
from agent.modbus.framers import Answer
from agent.twin.quality import Quality


class Reply(NamedTuple):
    """What became of one request. `payload` is its data bytes, None when `quality` is not GOOD.

    `t` is the monotonic time at which the reply arrived or the failure was known; `rtt` None when nothing was sent.
    """

    t: float
    rtt: float | None
    payload: bytes | None
    quality: Quality
    exception: int | None = None
    words: str | None = None


@dataclass(frozen=True, slots=True)
class ScanDone:
    """One pass over the requests of one device and period, answered or not. Times are monotonic seconds."""

    device: str
    every: float
    k: int
    due: float
    started: float
    finished: float
    ok: int
    failed: int


def reply_of(answer: Answer) -> Reply:
    """An answer as a Reply: data, or the quality of an exception."""
    if answer.exception is None:
        return Reply(answer.t, answer.rtt, answer.payload, Quality.GOOD)
    code = answer.exception
    return Reply(answer.t, answer.rtt, None, exception_quality(code), code, exception_words(code))


def failed(t: float, quality: Quality, words: str) -> Reply:
    """A Reply of a request that was not answered, or not sent at all."""
    return Reply(t, None, None, quality, None, words)


def answered_after(seconds: float) -> str:
    """How long a reply took, in words."""
    return f"answered after {seconds * 1000:.0f} ms"

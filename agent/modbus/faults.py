"""What can go wrong on a line, by who must act: the line (LinkFault) or the device and its user (DeviceFault)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from agent.twin.quality import Quality

EXCEPTIONS: Mapping[int, str] = MappingProxyType(
    {
        1: "illegal function",
        2: "illegal address",
        3: "illegal value",
        4: "device failure",
        5: "accepted, still working",
        6: "busy",
        7: "refused",
        8: "memory parity error",
        10: "gateway: no path to the unit",
        11: "gateway: the unit does not answer",
    }
)
"""Exception codes of the Modbus application protocol, section 7."""

REFUSED = frozenset({1, 2, 3})
"""The address, the function or the length of the request is wrong: asking again gives the same."""
BUSY = frozenset({5, 6})
"""Asking again soon may do."""
ABSENT = frozenset({10, 11})
"""A gateway speaks for a unit that does not answer: counts against the unit, not against the line."""


def exception_words(code: int) -> str:
    """What an exception code says, in plain words."""
    return f"exception {code} ({EXCEPTIONS.get(code, 'of the maker')})"


def exception_quality(code: int) -> Quality:
    """The quality of the values that an exception answers: illegal, timeout (the unit is not there) or device."""
    if code in REFUSED:
        return Quality.ILLEGAL
    return Quality.TIMEOUT if code in ABSENT else Quality.DEVICE


class LinkFault(Exception):
    """No right reply came: there is no connection (LINK), or it did not come in time (TIMEOUT)."""

    def __init__(self, words: str, quality: Literal[Quality.LINK, Quality.TIMEOUT] = Quality.LINK) -> None:
        super().__init__(words)
        self.words = words
        self.quality = quality


class DeviceFault(Exception):
    """The device answered with an exception `code`."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.words = exception_words(code)
        self.quality = exception_quality(code)
        super().__init__(self.words)

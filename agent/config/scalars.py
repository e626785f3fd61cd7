"""Raw text of a scalar -> the value that is meant. The expected type decides, never YAML's own guess.

Each function raises `Wrong` (a ValueError) with plain words and, where one is known, what would be right.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation

from agent.config.printable import cut, printable

_INTEGER = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|[0-9][0-9_]*)")
_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+(?![.eE0-9_])")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")
_MEASURE = re.compile(r"([-+]?[0-9._eE+-]*[0-9.])\s*([A-Za-zµ]*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
NULL = frozenset({"", "~", "null", "Null", "NULL"})
SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SIZE_UNITS |= {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MOST_DIGITS = 80
MOST_SHOWN = 40
"""Characters of a text that a message shows."""


class Wrong(ValueError):
    """A scalar that is not what is meant; str() is what is wrong, `hint` what would be right."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.hint = hint

    @property
    def words(self) -> str:
        """What is wrong and, where it is known, what would be right."""
        return f"{self}; {self.hint}" if self.hint else str(self)


def shown(text: str) -> str:
    """Text for a message: on one line, cut where too long, in quotes."""
    return f'"{printable(cut(text, MOST_SHOWN))}"'


def boolean(text: str) -> bool:
    """true, yes and on are True; false, no and off are False."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise Wrong(f"{shown(text)} is neither true nor false", "write true or false")


def _refuse_traps(text: str) -> None:
    if _BASE_60.fullmatch(text):
        raise Wrong(
            f"{shown(text)} is no number: YAML 1.1 reads it in base 60",
            "write a plain number, or a duration as 45s or 12m",
        )
    if _LEADING_ZERO.fullmatch(text):
        plain = text.lstrip("+-").replace("_", "").lstrip("0") or "0"
        try:
            octal = f" (YAML 1.1 reads {int(plain, 8)}, octal)"
        except ValueError:
            octal = ""
        raise Wrong(f"{shown(text)} begins with a zero{octal}", f"write {plain}, or 0x… for hexadecimal")


def integer(text: str) -> int:
    """A whole number: decimal, 0x…, 0b…, 0o…, digits grouped by _; 1e3 and 20.0 too, being whole."""
    _refuse_traps(text)
    if len(text) > MOST_DIGITS:
        raise Wrong(f"{shown(text)} is too long for a number")
    try:
        if _INTEGER.fullmatch(text):
            return int(text.replace("_", ""), 0)
        value = decimal(text)
    except Wrong:
        raise Wrong(f"{shown(text)} is no whole number") from None
    except ValueError:
        raise Wrong(f"{shown(text)} is no whole number") from None
    if value != value.to_integral_value():
        raise Wrong(f"{shown(text)} is no whole number")
    if value.adjusted() > MOST_DIGITS:
        raise Wrong(f"{shown(text)} is too large")
    return int(value)


def decimal(text: str) -> Decimal:
    """A number exactly as written (scale and offset of a tag)."""
    _refuse_traps(text)
    if len(text) > MOST_DIGITS:
        raise Wrong(f"{shown(text)} is too long for a number")
    if SPECIAL.fullmatch(text):
        raise Wrong(f"{shown(text)} is no finite number")
    try:
        if _INTEGER.fullmatch(text):
            return Decimal(int(text.replace("_", ""), 0))
        if _NUMBER.fullmatch(text):
            value = Decimal(text.replace("_", ""))
            if value and not -400 < value.adjusted() < 400:
                raise Wrong(f"{shown(text)} is too large or too small")
            return value
    except (InvalidOperation, ValueError) as error:
        if isinstance(error, Wrong):
            raise
    advice = None
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+", text):
        advice = f"write {text.replace(',', '.')}"
    raise Wrong(f"{shown(text)} is no number", advice)


def number(text: str) -> float:
    """A finite number."""
    value = float(decimal(text))
    if not math.isfinite(value):
        raise Wrong(f"{shown(text)} is too large")
    return value


def duration(text: str) -> float:
    """Seconds of 500ms, 1s, 5m, 2h, 7d. A plain 0 is 0 seconds. Raises Wrong for anything else."""
    return _measure(
        text.strip(), DURATION_UNITS, "duration", "write a number and ms, s, m, h or d, as 500ms or 5m"
    )


def duration_text(seconds: float) -> str:
    """Seconds as the configuration writes them, in the largest unit that is whole: 50ms, 1s, 5m, 2h, 7d."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= DURATION_UNITS[unit] and seconds % DURATION_UNITS[unit] == 0:
            return f"{seconds / DURATION_UNITS[unit]:.12g}{unit}"
    return f"{1000 * seconds:.12g}ms"


def size(text: str) -> int:
    """Bytes of 512B, 64KiB, 256MiB, 2GiB (powers of 1024) or kB, MB, GB (of 1000)."""
    value = _measure(text.strip(), SIZE_UNITS, "size", "write a number and KiB, MiB or GiB, as 64MiB")
    return round(value)


def _measure(text: str, units: dict[str, float] | dict[str, int], what: str, advice: str) -> float:
    if _BASE_60.fullmatch(text):
        raise Wrong(f"{shown(text)} is no {what}: YAML 1.1 reads it as a number in base 60", advice)
    match = _MEASURE.fullmatch(text) if len(text) <= MOST_DIGITS else None
    if match is None:
        raise Wrong(f"{shown(text)} is no {what}", advice)
    digits, unit = match.groups()
    try:
        value = number(digits)
    except Wrong as wrong:
        raise Wrong(f"{shown(text)} is no {what}: {wrong}", advice) from None
    if not unit and value == 0:
        return 0.0
    if not unit:
        first = "s" if "s" in units else "MiB"
        raise Wrong(f"{shown(text)} has no unit", f"write {digits}{first}" if first == "s" else advice)
    if unit not in units:
        raise Wrong(f"{shown(text)} has a unit that is not known", advice)
    result = value * units[unit]
    if unit == "ms":
        result = value / 1000.0  # 500ms is exactly 0.5
    if abs(result) > 1e15:
        raise Wrong(f"{shown(text)} is too large")
    return result


def span(text: str) -> tuple[int, int]:
    """First and last of `8-11`, or of a single number. Raises Wrong where the end is before the start."""
    first, dash, last = text.partition("-")
    try:
        low = integer(first.strip())
        high = integer(last.strip()) if dash else low
    except Wrong as wrong:
        raise Wrong(f"{shown(text)} is no range", wrong.hint or "write first-last, as 8-11") from None
    if high < low:
        raise Wrong(f"{shown(text)} ends before it begins", f"write {high}-{low}")
    return low, high


def read_otherwise(text: str) -> str | None:
    """What YAML would read plain text as, where not as text: "true or false", "a number", …; None for text.

    Both versions of YAML count, since programs that read the same file differ (1e3 is text in 1.1, a number in 1.2).
    """
    if text in TRUE or text in FALSE:
        return "true or false"
    if text in NULL:
        return "nothing"
    if _BASE_60.fullmatch(text):
        return "a number in base 60"
    if _INTEGER.fullmatch(text) or _NUMBER.fullmatch(text) or SPECIAL.fullmatch(text):
        return "a number"
    if _DATE.fullmatch(text):
        return "a date"
    return None


def name(text: str, *, plain: bool) -> str:
    """A name of a device, tag or loop. `plain`: it stands in the file without quotes."""
    other = read_otherwise(text) if plain else None
    if other is not None:
        hint = f'write "{text}" in quotes' if _NAME.fullmatch(text) else "write a name"
        raise Wrong(f"the name {shown(text)} is read as {other} by YAML unless it stands in quotes", hint)
    if not _NAME.fullmatch(text):
        raise Wrong(
            f"{shown(text)} is no name",
            "names begin with a letter or digit and hold letters, digits, _ and -",
        )
    if len(text) > 64:
        raise Wrong(f"the name {shown(text)} is longer than 64 characters", "write a shorter one")
    return text

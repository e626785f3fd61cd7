"""How much of the log one flapping device may fill: the first lines of each kind, then a count of what was left out."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 600.0
"""Seconds, from a first line on, over which lines of one kind are counted."""
MOST = 10
"""Lines of one kind that are told in a window; a fault and its end are two."""

Kind = tuple[str | None, str, str | None]
"""A device (None: the gateway), the name of an event, and its tag if it has one."""


@dataclass(slots=True)
class _Window:
    end: float
    told: int = 0
    left_out: int = 0
    last: str = ""


class Calm:
    """Takes lines and says which are to be told. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._windows: dict[Kind, _Window] = {}

    def admits(self, kind: Kind, text: str, now: float) -> bool:
        """True where this line is to be told; one that is not is counted for `due`."""
        window = self._windows.get(kind)
        if window is None or (now >= window.end and not window.left_out):
            window = self._windows[kind] = _Window(now + WINDOW)
        if window.told < MOST:
            window.told += 1
            return True
        window.left_out += 1
        window.last = text
        return False

    def due(self, now: float) -> list[str]:
        """A line for each window that has ended with lines left out; such a kind goes on with its count used up.

        So what does not stop is one line a window, and what has stopped begins anew with all its lines.
        """
        lines = []
        for kind, window in list(self._windows.items()):
            if now < window.end:
                continue
            if not window.left_out:
                del self._windows[kind]
                continue
            lines.append(
                f"{window.left_out} more lines of this kind were left out in {WINDOW / 60:.0f} minutes, "
                f"the last: {window.last}"
            )
            self._windows[kind] = _Window(now + WINDOW, told=MOST)
        return lines

"""What time it is for the cloud side, and whether that can be believed."""

from __future__ import annotations

from dataclasses import dataclass

from agent import RELEASED_MS
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.runtime.clock import Anchor, Clock

LATEST_FACT = "latest_ms"
KEEP_LATEST_EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a look at the clock showed. moved: seconds by which the wall clock stepped; set: it became believable."""

    moved: float
    set: bool


class Calendar:
    """UTC times for bodies. Only for the cloud thread.

    The clock is not set while it shows a time before this version's release or before the newest that the outbox keeps;
    once it was set it stays so.
    """

    def __init__(self, clock: Clock, boot: str) -> None:
        self.boot = boot
        self._clock = clock
        self._anchor = Anchor(clock)
        self._outbox: Outbox | None = None
        self._latest = 0
        self.synced = False

    def open(self, outbox: Outbox) -> None:
        """From here on the newest time is kept in this outbox, which may know one already."""
        self._outbox = outbox
        self._latest = int(outbox.get(LATEST_FACT) or 0)
        self.synced = self._believable()

    def wall_ms(self) -> int:
        """The wall clock, UTC in ms, as it is."""
        return round(self._clock.wall() * 1000)

    def ms(self, mono: float) -> int:
        """UTC in ms of a monotonic time of this boot."""
        return self._anchor.ms(mono)

    def stamp(self) -> Stamp:
        """What every body carries."""
        return Stamp(self.boot, self._anchor.ms, self.synced)

    def look(self) -> Change:
        """Follows the wall clock; once in an hour the newest time is kept."""
        moved = self._anchor.refresh()
        became = not self.synced and self._believable()
        self.synced = self.synced or became
        if self.synced and self.wall_ms() - self._latest > 1000 * KEEP_LATEST_EVERY:
            self.keep()
        return Change(moved, became)

    def keep(self) -> None:
        """Keeps the time as the newest, where it can be believed: now and then, and at the end."""
        if self.synced and self._outbox is not None:
            self._latest = self.wall_ms()
            self._outbox.put(LATEST_FACT, self._latest)

    def _believable(self) -> bool:
        return self.wall_ms() >= max(RELEASED_MS, self._latest)

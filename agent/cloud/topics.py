"""The topic tree: <root>/v1/<gateway>/…"""

from __future__ import annotations

from dataclasses import dataclass

GATEWAY = "_gateway"
"""Stands for a device in the topics of events that belong to the gateway itself."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one gateway. `part` is the number of a body that was split by tags, from 2 on."""

    root: str
    gateway: str

    @property
    def base(self) -> str:
        return f"{self.root}/v1/{self.gateway}"

    @property
    def state(self) -> str:
        return f"{self.base}/state"

    @property
    def desired(self) -> str:
        return f"{self.base}/desired"

    @property
    def desired_ack(self) -> str:
        return f"{self.base}/desired/ack"

    @property
    def commands(self) -> str:
        """Filter of all commands."""
        return f"{self.base}/cmd/+"

    def response(self, command: str) -> str:
        return f"{self.base}/resp/{command}"

    def of(self, kind: str, device: str, part: int = 1) -> str:
        """meta, twin, forecast, data, backfill, gap, flat of a device."""
        return f"{self.base}/{kind}/{device}" + (f"/{part}" if part > 1 else "")

    def event(self, device: str | None) -> str:
        return f"{self.base}/event/{device or GATEWAY}"

    def alarm(self, device: str | None, name: str) -> str:
        return f"{self.base}/alarm/{device or GATEWAY}/{name}"

    def operation(self, topic: str) -> str | None:
        """The <op> of a cmd topic; None for another topic."""
        start = f"{self.base}/cmd/"
        return topic[len(start) :] if topic.startswith(start) and "/" not in topic[len(start) :] else None


@dataclass(frozen=True, slots=True)
class Address:
    """A topic of any gateway, taken apart: what a central system needs to know of it."""

    gateway: str
    kind: str
    rest: tuple[str, ...]


def parse(topic: str, root: str) -> Address | None:
    """<root>/v1/<gateway>/<kind>/… taken apart; None for a topic of something else."""
    start = f"{root}/v1/"
    if not topic.startswith(start):
        return None
    gateway, _, path = topic[len(start) :].partition("/")
    kind, *rest = path.split("/")
    return Address(gateway, kind, tuple(rest)) if gateway and kind else None

"""Outboxes for tests: batches as the agent makes them, a process that is killed, and the accounts that must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.cloud.batch import Batch
from agent.cloud.outbox import Outbox
from agent.config.types import OutboxConfig

NOW = 1_800_000_000_000
ROOT = Path(__file__).parents[2]


def make(
    folder: Path, devices: Sequence[str] = ("a",), *, now: int = NOW, machine: str = "m", **config: Any
) -> Outbox:
    """An outbox whose wall clock stands at `now`. `config`: keys of OutboxConfig."""
    options = OutboxConfig(**({"min_free": 0} | config))
    return Outbox(folder, options, devices, wall_ms=lambda: now, machine=machine)


def batch(outbox: Outbox, device: str = "a", *, fill: int = 0, ms: int = NOW, synced: bool = True) -> Batch:
    """A batch under the device's next number; `fill`: hexadecimal digits that hardly compress."""
    seq = outbox.next_seq(device)
    return numbered(outbox.stream, device, seq, fill=fill, ms=ms, synced=synced)


def numbered(
    stream: str, device: str, seq: int, *, fill: int = 0, ms: int = NOW, synced: bool = True
) -> Batch:
    noise = "".join(f"{(seq * 2654435761 + i * 40503) * 2246822519 % 2**32:08x}" for i in range(fill // 8))
    body = {"v": 1, "boot": "0badcafe", "ts": ms, "stream": stream, "seq": seq, "groups": [], "noise": noise}
    return Batch(device, seq, ms, 10, json.dumps(body, separators=(",", ":")).encode(), "0badcafe", synced)


def waiting(outbox: Outbox, device: str = "a") -> list[int]:
    """Numbers of the batches of a device that wait, oldest first."""
    return [one.seq for _, one in outbox.oldest(1_000_000) if one.device == device]


def named(outbox: Outbox, device: str = "a") -> set[int]:
    """Numbers that gaps name."""
    return {seq for gap in outbox.gaps() if gap.device == device for seq in range(gap.first, gap.last + 1)}


def spans(outbox: Outbox) -> list[tuple[str, int, int, str]]:
    return [(gap.device, gap.first, gap.last, gap.reason) for gap in outbox.gaps()]


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """A process that runs Python with these arguments; its output is read by lines."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )

"""A file -> Loaded: the configuration, or every problem with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from agent.config import build, nodes, profiles
from agent.config.fields import NOT_BUILT, NOT_BUILT_SCHEMES, ROOT
from agent.config.files import MOST_BYTES as MOST_BYTES
from agent.config.files import content
from agent.config.kinds import Block
from agent.config.types import Config, Problem
from agent.config.walker import Findings, Place, read

COMMON_NAMES = ("raspberrypi", "localhost", "debian")
"""What machines are called when nobody gave them a name; two gateways of one name overwrite each other."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """`config` is None where there is an error among `problems`.

    only_run: what `run` refuses beyond them; places: line and column of each device, by its path.
    """

    config: Config | None
    problems: list[Problem]
    only_run: tuple[Problem, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)


def load(path: str | Path) -> Loaded:
    """Reads and checks a configuration. Never raises for what a file can hold: each thing wrong is a Problem."""
    file = str(path)
    got = content(file)
    if isinstance(got, Problem):
        return Loaded(None, [got])
    text, exposed = got
    return parse(text, file, exposed=exposed)


def parse(text: str, file: str, *, exposed: bool = False) -> Loaded:
    """As load, from text; `file` is what the problems call it. `exposed`: every user of the machine may read it."""
    try:
        root = nodes.parse(text)
    except nodes.Unreadable as unreadable:
        where = unreadable.line, unreadable.column
        return Loaded(None, [Problem(file, *where, "", str(unreadable), unreadable.hint)])
    if root is None:
        return Loaded(
            None, [Problem(file, 1, 1, "", "the file is empty", "begin with gateway: and devices:")]
        )
    found = Findings(file, exposed=exposed)
    block = read(ROOT, root, "", found)
    if not isinstance(block, Block):
        return Loaded(None, found.sorted())
    if found.full:
        return Loaded(None, found.sorted())
    profiles.merge(block, file, found)
    config = build.config(block, file, found)
    only_run = (*_gateway(block, file), *_not_built(block, file))
    devices: Block = block.get("devices", Block("devices", block.here))
    places = {f"devices.{name}": place for name, place in devices.keys_at.items()}
    return Loaded(None if found.errors else config, found.sorted(), only_run, places)


def for_run(loaded: Loaded) -> list[Problem]:
    """What `run` alone refuses: no name of the gateway or a common one, and features that are not built yet."""
    return list(loaded.only_run)


def _gateway(block: Block, file: str) -> list[Problem]:
    if "gateway" not in block:
        if "gateway" in block.bad:
            return []
        return [
            Problem(
                file, 1, 1, "gateway", "the gateway has no name", "add gateway: and a name that no other has"
            )
        ]
    name = cast(str, block["gateway"])
    if name.lower() not in COMMON_NAMES:
        return []
    what = f"{name} is what many machines are called, and two gateways of one name overwrite each other"
    return [Problem(file, *block.at["gateway"], "gateway", what, "give a name that no other has, as line4")]


def _not_built(block: Block, file: str) -> list[Problem]:
    problems = []
    for path, fine in NOT_BUILT.items():
        for holder, key in build.pick(block, path):
            if holder[key] != fine:
                hint = (
                    "leave the key out"
                    if fine is None
                    else f"write {str(fine).lower()}, or leave the key out"
                )
                what = "this feature is not built yet"
                problems.append(Problem(file, *holder.at[key], f"{holder.path}.{key}", what, hint))
    for holder, key in build.pick(block, "devices.*.url"):
        scheme = str(holder[key]).partition("://")[0]
        if scheme in NOT_BUILT_SCHEMES:
            what = f"{scheme}:// is not built yet"
            problems.append(Problem(file, *holder.at[key], f"{holder.path}.{key}", what, "use tcp://"))
    return problems

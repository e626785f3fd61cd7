"""Profiles: tags and defaults of one make of device, in a file of their own. What the configuration says wins.

A profile is merged into the blocks of its devices before anything is built from them, so that every later check sees
whole devices; what comes from a profile keeps its place in that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.config import nodes
from agent.config.fields import PLACES, PROFILE
from agent.config.files import content
from agent.config.kinds import Block
from agent.config.nodes import Node
from agent.config.types import Problem
from agent.config.walker import ElsewhereIn, Findings, nearest, read

SHIPPED = Path(__file__).parent.parent / "profiles"
EXCLUSIVE = (PLACES, ("bit", "bits"))
"""Keys of a tag that stand for one another: one in the configuration leaves out all of the profile's."""


def merge(root: Block, file: str, found: Findings) -> None:
    """Adds to each device of `root` what its profile says and the device does not."""
    read_once: dict[Path, Node | Problem] = {}
    for device in root.get("devices", {}).values():
        if "profile" not in device:
            continue
        path = _path(device["profile"], file)
        if path is None:
            names = sorted(shipped())
            guess = nearest(device["profile"], names)
            what = f"there is no profile {device['profile']}"
            hint = (
                f"did you mean {guess}?" if guess else f"there are {', '.join(names)}; a file is ./FILE.yaml"
            )
            _refuse(device, what, hint, found)
            continue
        if path not in read_once:
            read_once[path] = _nodes(path)
        node = read_once[path]
        if isinstance(node, Problem):
            if (node.line, node.column) == (1, 1):
                _refuse(device, f"{path}: {node.what}", node.hint, found)
            else:
                device.bad.add("profile")
                _tell(node, found)
            continue
        _merge_device(device, node, str(path), found)


def shipped() -> dict[str, Path]:
    """Name -> file of the profiles that come with the product."""
    return {path.stem: path for path in SHIPPED.glob("*.yaml")}


def _path(text: str, file: str) -> Path | None:
    """The file that `profile` names; None for a name that is none of the shipped ones."""
    if "/" in text or text.endswith((".yaml", ".yml")):
        return Path(file).parent / text
    return shipped().get(text)


def _nodes(path: Path) -> Node | Problem:
    got = content(str(path))
    if isinstance(got, Problem):
        return got
    try:
        root = nodes.parse(got[0])
    except nodes.Unreadable as unreadable:
        return Problem(str(path), unreadable.line, unreadable.column, "", str(unreadable), unreadable.hint)
    return root or Problem(str(path), 1, 1, "", "the file is empty", "write tags: and what they are")


def _refuse(device: Block, what: str, hint: str | None, found: Findings) -> None:
    found.add(device.at["profile"], f"{device.path}.profile", what, hint)
    device.bad.add("profile")


def _tell(problem: Problem, found: Findings) -> None:
    place = ElsewhereIn.of((problem.line, problem.column), problem.file)
    found.add(place, problem.path, problem.what, problem.hint, problem.severity)


def _merge_device(device: Block, node: Node, file: str, found: Findings) -> None:
    own = Findings(file)
    block = read(PROFILE, node, device.path, own)
    for problem in own.problems:
        _tell(problem, found)
    if not isinstance(block, Block):
        device.bad.add("profile")
        return
    _fill(device, _placed(block, file))


def _placed(value: Any, file: str) -> Any:
    """What was read, with every place in it told to be in `file`."""
    if isinstance(value, Block):
        made = Block(value.path, ElsewhereIn.of(value.here, file))
        made.update((key, _placed(one, file)) for key, one in value.items())
        made.at = {key: ElsewhereIn.of(place, file) for key, place in value.at.items()}
        made.keys_at = {key: ElsewhereIn.of(place, file) for key, place in value.keys_at.items()}
        made.bad = set(value.bad)
        return made
    if (
        isinstance(value, tuple) and value and isinstance(value[0], tuple)
    ):  # items of a list, each with its place
        return tuple((_placed(one, file), ElsewhereIn.of(place, file)) for one, place in value)
    return value


def _fill(block: Block, other: Block) -> None:
    """Adds the keys of `other` that `block` does not have; mappings that both have are filled in turn."""
    given = set(block.keys_at)
    taken = {key for group in EXCLUSIVE if given & set(group) for key in group}
    for key in other.keys_at:
        if key in given:
            mine, theirs = block.get(key), other.get(key)
            if isinstance(mine, Block) and isinstance(theirs, Block) and key != "states":
                _fill(mine, theirs)
        elif key not in taken:
            block.keys_at[key], block.at[key] = other.keys_at[key], other.at[key]
            if key in other:
                block[key] = other[key]
            if key in other.bad:
                block.bad.add(key)

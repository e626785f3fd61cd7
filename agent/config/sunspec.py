"""Tags that stand in a model of a SunSpec chain: what `sunspec: 101-103+14` says, and where they are as long as
nobody has walked the chain: as if it began at 40000 with a common model of 66 registers.

A chain is "SunS", then models one after the other, each its ID, the length of its body and the body (SunSpec Device
Information Model Specification, 6.2; lengths from the public model files, json/model_1.json and its neighbours).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from agent.config.scalars import Wrong
from agent.config.types import SunSpec, Tag

BASE = 40000
MARKER = (0x5375, 0x6E53)
"""The words of "SunS"."""
HEADER = 2
"""Registers of a model's ID and length."""
END = 0xFFFF
"""The ID of the end of a chain."""
COMMON = 1
LENGTHS = {COMMON: 66, 101: 50, 102: 50, 103: 50, 111: 60, 112: 60, 113: 60}
"""Registers in the body of a model, where it is always the same."""
FORM = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\+([0-9]{1,4})")


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A model in a chain: the address of its ID register, and how many registers follow its header."""

    id: int
    address: int
    length: int


def place(text: str) -> SunSpec:
    """What `103+14` or `101-103+14` says. Raises Wrong."""
    match = FORM.fullmatch(text)
    if match is None:
        raise Wrong(f"{text} names no register of a model", "write 103+14, or 101-103+14 for any of them")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last < END:
        raise Wrong(
            f"there is no model {text.partition('+')[0]}", f"models are 1 to {END - 1}, the lower first"
        )
    return SunSpec(first, last, int(match[3]))


def usual(tags: Iterable[Tag]) -> tuple[Model, ...]:
    """The models that SunSpec tags name, one after the other from 40002: the common one is always there.

    Ranges that overlap name the same model, and a range stands for its last one.
    """
    places = [(tag.sunspec, tag.count) for tag in tags if tag.sunspec is not None]
    groups: list[tuple[int, int]] = [(COMMON, COMMON)]
    for where in sorted({(one.first, one.last) for one, _ in places}):
        if where[0] <= groups[-1][1]:
            groups[-1] = (groups[-1][0], max(groups[-1][1], where[1]))
        else:
            groups.append(where)
    models, address = [], BASE + len(MARKER)
    for first, last in groups:
        needed = [one.offset + count - HEADER for one, count in places if first <= one.first <= last]
        length = max([LENGTHS.get(last, 1), *needed])
        models.append(Model(last, address, length))
        address += HEADER + length
    return tuple(models)


def at_usual_places(tags: Mapping[str, Tag]) -> dict[str, Tag]:
    """The same tags, those of a chain at the addresses that they have in the usual one."""
    models = usual(tags.values())
    placed = dict(tags)
    for name, tag in tags.items():
        where = tag.sunspec
        if where is not None:
            model = next(one for one in models if one.id >= where.last)
            placed[name] = dataclasses.replace(tag, address=model.address + where.offset)
    return placed

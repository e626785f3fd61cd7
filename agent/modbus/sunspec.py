"""A device's own SunSpec chain: reading it from its words, and giving its tags the addresses that it says. Pure.

The marker "SunS" stands at 40000, 50000 or 0; models follow it, each its ID, the length of its body and the body, and
then an ID of 0xFFFF (SunSpec Device Information Model Specification, 6.2). Where a model is depends on the lengths of
those before it: the common model alone comes with 65 or 66 registers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agent.config.sunspec import END, HEADER, MARKER, Model
from agent.config.types import Device, SunSpec, Tag

BASES = (40000, 50000, 0)
MOST_MODELS = 128
"""A longer chain is none: something else answers there."""
NO_MARKER = "no SunSpec marker at 40000, 50000 or 0"
TWINS = (("sunspec", 101, 103), ("sunspec-float", 111, 113))
"""Profiles, and the inverter models that each reads."""

Words = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chain:
    """The models of a device in their order. `base` is the marker's address, None without one; `fault` says what is
    wrong with it, and the models found before that count all the same."""

    base: int | None
    models: tuple[Model, ...] = ()
    fault: str | None = None

    @property
    def after(self) -> int:
        """The address after the end of the chain, its header included."""
        last = self.models[-1] if self.models else None
        start = last.address + HEADER + last.length if last is not None else (self.base or 0) + len(MARKER)
        return start + HEADER

    def find(self, where: SunSpec) -> Model | None:
        """The first model whose ID is in the range of a place."""
        return next((one for one in self.models if where.first <= one.id <= where.last), None)


@dataclass(frozen=True, slots=True)
class Placement:
    """A device whose tags are where its chain says. `absent` ones cannot be read: name -> why; their addresses mean
    nothing."""

    device: Device
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def readable(self) -> Device:
        """The device without its absent tags."""
        if not self.absent:
            return self.device
        tags = {name: tag for name, tag in self.device.tags.items() if name not in self.absent}
        return dataclasses.replace(self.device, tags=MappingProxyType(tags))

    def why(self) -> list[str]:
        """Each reason once, in the order of the tags."""
        return list(dict.fromkeys(self.absent.values()))


def has_places(device: Device) -> bool:
    """True when some tags of a device are where its chain says."""
    return any(tag.sunspec is not None for tag in device.tags.values())


def walk(known: int | None = None) -> Generator[int, Words | None, Chain]:
    """The addresses of the two registers to be read next; sent in are their words, None where the device refuses them.

    `known` is the base where the chain began the last time: it is tried first.
    """
    bases = (known, *(base for base in BASES if base != known)) if known is not None else BASES
    for base in bases:
        if (yield base) == MARKER:
            return (yield from _models(base))
    return Chain(None, fault=NO_MARKER)


def _models(base: int) -> Generator[int, Words | None, Chain]:
    models: list[Model] = []
    address = base + len(MARKER)

    def broken(words: str) -> Chain:
        return Chain(base, tuple(models), f"the SunSpec chain at {base} is broken: {words}")

    while True:
        header = yield address
        if header is None:
            return broken(f"the device refuses {address}, where a model or the end should be")
        number, length = header
        if number == END or length == 0:
            return Chain(base, tuple(models), None if models else f"the SunSpec chain at {base} is empty")
        after = address + HEADER + length
        if after + HEADER > 65536:
            return broken(f"model {number} at {address} would run past 65535 with its {length} registers")
        models.append(Model(number, address, length))
        if len(models) > MOST_MODELS:
            return broken(f"more than {MOST_MODELS} models and no end")
        address = after


def marks(base: int, models: tuple[Model, ...]) -> dict[int, int]:
    """Address -> word of all of a chain but the bodies: marker, headers, end."""
    end = Chain(base, models).after - HEADER
    spans = [(base, MARKER), *((one.address, (one.id, one.length)) for one in models), (end, (END, 0))]
    return {first + k: word for first, words in spans for k, word in enumerate(words)}


def placed(device: Device, chain: Chain) -> Placement:
    """A device with each tag of a model at its wire address; tags of other places stay as they are."""
    tags: dict[str, Tag] = dict(device.tags)
    absent: dict[str, str] = {}
    for name, tag in device.tags.items():
        if tag.sunspec is None:
            continue
        model = chain.find(tag.sunspec)
        if model is None:
            absent[name] = _missing(tag.sunspec, chain)
            continue
        made = dataclasses.replace(tag, address=model.address + tag.sunspec.offset)
        if tag.sunspec.offset + tag.count > HEADER + model.length:
            absent[name] = f"model {model.id} is only {model.length} registers long"
        elif _avoided(device, made):
            absent[name] = f"avoid holds what model {model.id} has at {made.address}"
        else:
            tags[name] = made
    for name, tag in device.tags.items():
        if tag.scale_from in absent:  # without its power of ten a value is none
            absent.setdefault(name, absent[tag.scale_from])
    return Placement(dataclasses.replace(device, tags=MappingProxyType(tags)), MappingProxyType(absent))


def _avoided(device: Device, tag: Tag) -> bool:
    return any(
        avoid.table == tag.table and tag.address <= avoid.last and avoid.first < tag.address + tag.count
        for avoid in device.avoid
    )


def _missing(where: SunSpec, chain: Chain) -> str:
    if not chain.models:
        return chain.fault or NO_MARKER
    asked = f"{where.first}" if where.first == where.last else f"{where.first}-{where.last}"
    words = (
        f"no model {asked} in the SunSpec chain; there are {', '.join(str(one.id) for one in chain.models)}"
    )
    twin = _twin_of(where, chain)
    words += f"; profile {twin} has them" if twin else ""
    return f"{words}; {chain.fault}" if chain.fault else words


def _twin_of(where: SunSpec, chain: Chain) -> str | None:
    """The profile that reads an inverter model of the chain, where a tag wants the other kind."""
    for wanted, found in (TWINS, TWINS[::-1]):
        if wanted[1] <= where.first and where.last <= wanted[2] and chain.find(SunSpec(*found[1:], 0)):
            return found[0]
    return None


def profile_of(chain: Chain) -> str | None:
    """The shipped profile that reads the inverter of a chain; None where there is none."""
    return next((name for name, first, last in TWINS if chain.find(SunSpec(first, last, 0))), None)

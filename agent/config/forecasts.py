"""Which tags are forecast and which devices have a health score: patterns resolved to tags."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from agent.config.kinds import Block
from agent.config.loops import TagNames
from agent.config.types import Device, HealthConfig, PredictConfig
from agent.config.walker import Place, nearest

Key = tuple[str, str]


def predict(given: Block | str | None, names: TagNames) -> PredictConfig | None:
    """What is forecast; None for `predict: off`. Without the section, or without its tags: every numeric tag."""
    if given == "off":
        return None
    block = given if isinstance(given, Block) else Block("predict", (1, 1))
    devices = names.devices
    if "tags" in block:
        tags = _resolve(block["tags"], names, f"{block.path}.tags")
    else:
        tags = tuple(
            (name, tag.name)
            for name, device in devices.items()
            for tag in device.tags.values()
            if tag.numeric
        )
    plain: dict[str, Any] = {key: block[key] for key in ("interval", "order") if key in block}
    if "horizon" in block:
        plain["horizon"] = tuple(dict.fromkeys(sorted(step for step, _ in block["horizon"])))
    inputs = _inputs(block["inputs"], names, set(tags)) if "inputs" in block else MappingProxyType({})
    return PredictConfig(tags=tags, inputs=inputs, **plain)


def _resolve(patterns: Iterable[tuple[str, Place]], names: TagNames, path: str) -> tuple[Key, ...]:
    """The numeric tags that patterns `device/tag` name, each once, in the order of the file."""
    chosen: dict[Key, None] = {}
    for pattern, place in patterns:
        if not any(c in pattern for c in "*?["):
            tag = names.find(pattern, place, path)
            if tag is not None and not tag.numeric:
                what = f"{pattern} is no number, so it cannot be forecast"
                names.found.add(place, path, what, "name a numeric tag")
            elif tag is not None:
                chosen[pattern.partition("/")[0], tag.name] = None
            continue
        matches = re.compile(fnmatch.translate(pattern)).match
        hits = [
            ((name, tag.name), tag.numeric)
            for name, device in names.devices.items()
            for tag in device.tags.values()
            if matches(f"{name}/{tag.name}")
        ]
        if not any(numeric for _, numeric in hits):
            kind = "no numeric tag" if hits else "no tag"
            guess = nearest(pattern, [f"{name}/*" for name in names.devices])
            hint = f"did you mean {guess}?" if guess and not hits else "patterns are device/tag, as press1/*"
            names.found.add(place, path, f"{kind} matches {pattern}", hint)
        chosen.update((key, None) for key, numeric in hits if numeric)
    return tuple(chosen)


def _inputs(block: Block, names: TagNames, predicted: set[Key]) -> Mapping[Key, tuple[Key, ...]]:
    inputs: dict[Key, tuple[Key, ...]] = {}
    for text, drivers in block.items():
        place = block.keys_at[text]
        target = names.find(text, place, f"{block.path}.{text}")
        if target is None:
            continue
        key = (text.partition("/")[0], target.name)
        if key not in predicted:
            what = f"{text} is not forecast"
            names.found.add(
                place, f"{block.path}.{text}", what, "add it to predict.tags, or leave it out here"
            )
        mine: list[Key] = []
        for driver, where in drivers:
            tag = names.find(driver, where, f"{block.path}.{text}")
            if tag is None:
                continue
            if not tag.numeric or driver == text:
                what = f"{driver} is the tag itself" if driver == text else f"{driver} is no number"
                names.found.add(where, f"{block.path}.{text}", what, "name another numeric tag")
            mine.append((driver.partition("/")[0], tag.name))
        inputs[key] = tuple(dict.fromkeys(mine))
    return MappingProxyType(inputs)


def health(
    blocks: Block | None, names: TagNames, predicted: PredictConfig | None
) -> Mapping[str, HealthConfig]:
    """The health section by device. Without the section: every device with forecasts, over all of them."""
    mine: dict[str, list[str]] = {}
    for owner, tag in predicted.tags if predicted is not None else ():
        mine.setdefault(owner, []).append(tag)
    if blocks is None:
        return MappingProxyType({owner: HealthConfig(tags=tuple(tags)) for owner, tags in mine.items()})
    result = {}
    for name, block in blocks.items():
        device = names.devices.get(name)
        if device is None:
            if name not in names.blocks.keys_at:
                guess = nearest(name, names.devices)
                hint = f"did you mean {guess}?" if guess else "name a device, as under devices:"
                names.found.add(
                    blocks.keys_at[name], f"{blocks.path}.{name}", f"there is no device {name}", hint
                )
            continue
        result[name] = _one(block, device, mine.get(name, []), names)
    return MappingProxyType(result)


def _one(block: Block, device: Device, predicted: list[str], names: TagNames) -> HealthConfig:
    given: dict[str, Any] = {
        key: block[key] for key in ("alarm", "hold", "warmup", "reference") if key in block
    }
    if "calibrate" in block:
        given["calibrate"] = (block["calibrate"].get("a", 1.0), block["calibrate"].get("b", 0.0))
    if "tags" not in block:
        if not predicted:
            what = f"no tag of {device.name} is forecast, so it has no health"
            names.found.add(block.here, block.path, what, "leave it out, or add its tags to predict.tags")
        return HealthConfig(tags=tuple(predicted), **given)
    path = f"{block.path}.tags"
    tags: list[str] = []
    for text, place in block["tags"]:
        pattern = text if "/" in text else f"{device.name}/{text}"
        for owner, tag in _resolve([(pattern, place)], names, path):
            if owner != device.name:
                names.found.add(place, path, f"{owner}/{tag} is no tag of {device.name}", "name its own tags")
            elif tag not in predicted:
                what = f"{owner}/{tag} is not forecast, so it has no health"
                names.found.add(place, path, what, "add it to predict.tags, or leave it out here")
            else:
                tags.append(tag)
    return HealthConfig(tags=tuple(dict.fromkeys(tags)), **given)

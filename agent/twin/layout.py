"""Which row of the twin's columns is which tag."""

from __future__ import annotations

from types import MappingProxyType

from agent.config.types import Config
from agent.twin.records import Key, Layout


def build_layout(config: Config) -> Layout:
    """One row per tag, devices and tags in the order of the file."""
    keys: list[Key] = []
    of_device: dict[str, range] = {}
    for device in config.devices.values():
        start = len(keys)
        keys.extend((device.name, tag) for tag in device.tags)
        of_device[device.name] = range(start, len(keys))
    return Layout(
        keys=tuple(keys),
        tags=tuple(config.tag(key) for key in keys),
        row=MappingProxyType({key: row for row, key in enumerate(keys)}),
        of_device=MappingProxyType(of_device),
    )

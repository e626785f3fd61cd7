"""The same configuration with every device behind `edgetwin simulate`: the k-th distinct URL is at port N + k."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from agent.config.types import Config, Url

HOST = "127.0.0.1"
FIRST_PORT = 5020


def ports(config: Config, first: int) -> dict[str, int]:
    """URL text -> port, in the order of the file, serial lines too."""
    urls = dict.fromkeys(device.url.text for device in config.devices.values())
    return {url: first + k for k, url in enumerate(urls)}


def redirect(config: Config, first: int) -> Config:
    """The configuration with devices' URLs replaced by those of the simulation."""
    places = ports(config, first)
    devices = {}
    for name, device in config.devices.items():
        port = places[device.url.text]
        devices[name] = dataclasses.replace(device, url=Url(f"tcp://{HOST}:{port}", "tcp", HOST, port))
    return dataclasses.replace(config, devices=MappingProxyType(devices))

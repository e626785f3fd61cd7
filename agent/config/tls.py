"""The key `tls` of devices: certificates for tls:// and what devices of one url must agree about."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agent.config.kinds import Block
from agent.config.types import Device, TlsConfig, Url
from agent.config.walker import Findings

FILES = ("ca", "cert", "key")


def build(block: Block | None, url: Url | None, at: Block, found: Findings) -> TlsConfig:
    """The certificates of the device whose block is `at`; what is wrong with them is told."""
    if block is None:
        return TlsConfig()
    files = {key: Path(block[key]) for key in FILES if key in block}
    for key, path in files.items():
        what = _unreadable(path)
        if what:
            found.add(block.at[key], f"{block.path}.{key}", what, "write the path of a PEM file")
    if ("cert" in block) != ("key" in block):
        there, missing = ("cert", "key") if "cert" in block else ("key", "cert")
        if missing not in block.bad:
            place, path_of = block.keys_at[there], f"{block.path}.{there}"
            found.add(place, path_of, f"{there} without {missing}", f"add {missing}:")
    if url is not None and url.scheme != "tls":
        what = f"tls has a meaning for tls:// alone, not for {url.scheme}://"
        found.add(at.keys_at["tls"], block.path, what, "use tls:// in url, or leave it out")
    return TlsConfig(name=block.get("name"), **files)


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            os.fstat(file.fileno())
    except PermissionError:
        return None  # the agent runs as another user, mostly
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def check_agreement(devices: Mapping[str, Device], blocks: Block, found: Findings) -> None:
    """Devices with one url share one connection, so one set of certificates."""
    first: dict[str, Device] = {}
    for device in devices.values():
        if device.url.scheme != "tls":
            continue
        other = first.setdefault(device.url.text, device)
        if other.tls == device.tls:
            continue
        block = blocks[device.name]
        key = "tls" if "tls" in block.keys_at else "url"
        line = blocks[other.name].place("tls")[0]
        what = f"{device.url.text} has other certificates here than at {other.name} (line {line})"
        found.add(block.keys_at[key], f"{block.path}.{key}", what, "write the same tls: in both")

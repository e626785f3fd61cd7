"""Blocks of the file -> Devices, and what several of them must agree about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from agent.config import sunspec, tls
from agent.config import tags as tag_builder
from agent.config.kinds import Block
from agent.config.scalars import Wrong
from agent.config.types import Device, Limits, Retry, Tag, Url
from agent.config.urls import device_url
from agent.config.walker import ElsewhereIn, Findings, Place, nearest

RESERVED = "loop"
"""No device's name: `loop/…` names a loop where a tag could stand too."""


def build(blocks: Block, found: Findings) -> Mapping[str, Device]:
    """All devices, those with errors too as far as they go, so that loops and patterns can be judged."""
    devices: dict[str, Device] = {}
    for name, block in blocks.items():
        if name == RESERVED:
            found.add(
                blocks.keys_at[name],
                f"{blocks.path}.{name}",
                '"loop" is no name for a device',
                "take another",
            )
        device = _device(name, block, found)
        if device is not None:
            devices[name] = device
    _check_lines(devices, blocks, found)
    tls.check_agreement(devices, blocks, found)
    _warn_same_unit(devices, blocks, found)
    _check_shared_bits(devices, blocks, found)
    return MappingProxyType(devices)


def _device(name: str, block: Block, found: Findings) -> Device | None:
    url = _url(block, found)
    tags: dict[str, Tag] = {}
    tag_blocks: Block = block.get("tags", Block("", (0, 0)))
    for tag_name, tag_block in tag_blocks.items():
        tag = tag_builder.build(tag_name, tag_block, block, found)
        if tag is not None:
            tags[tag_name] = tag
    tags = sunspec.at_usual_places(tags)
    if "tags" not in block.bad and not tag_blocks and not tag_blocks.bad and "profile" not in block.bad:
        found.add(block.here, block.path, "no tags: nothing is read from it", "add tags:", "warning")
    plain = {key: block[key] for key in ("unit", "every", "timeout", "order", "on_loss") if key in block}
    device = Device(
        name=name,
        url=url or Url("", "tcp"),
        limits=_limits(block.get("limits"), found),
        retry=_retry(block.get("retry"), found),
        tls=tls.build(block.get("tls"), url, block, found),
        avoid=tuple(avoid for avoid, _ in block.get("avoid", ())),
        accept=tuple(dict.fromkeys(word for word, _ in block.get("accept", ()))),
        tags=MappingProxyType(tags),
        **plain,
    )
    _check_powers(device, tag_blocks, found)
    _check_reach(device, tag_blocks, found)
    if url is None:
        return device
    if device.accept and url.scheme not in ("tcp", "tls"):
        what = f"accept has a meaning for tcp alone, not for {url.scheme}"
        found.add(block.keys_at["accept"], f"{block.path}.accept", what, "leave it out")
    if url.scheme == "rtu" and device.unit == 0:
        what = "unit 0 is the broadcast address of a serial line: no device answers it"
        found.add(block.at["unit"], f"{block.path}.unit", what, "write 1 to 247")
    return device


def _url(block: Block, found: Findings) -> Url | None:
    if "url" not in block:
        return None
    try:
        return device_url(block["url"])
    except Wrong as wrong:
        found.add(block.at["url"], f"{block.path}.url", str(wrong), wrong.hint)
        return None


def _limits(block: Block | None, found: Findings) -> Limits:
    if block is None:
        return Limits()
    given: dict[str, Any] = dict(block)
    gap = given.pop("gap", "auto")
    return Limits(gap=None if gap == "auto" else int(gap.replace("_", ""), 0), **given)


def _retry(block: Block | None, found: Findings) -> Retry:
    retry = Retry(**block) if block is not None else Retry()
    if block is not None and retry.first > retry.max:
        place = block.place("first" if "first" in block else "max")
        what = f"first ({retry.first:g} s) is longer than max ({retry.max:g} s)"
        found.add(place, block.path, what, "write first up to max")
    return retry


def _check_powers(device: Device, blocks: Block, found: Findings) -> None:
    """A `scale_from` names an integer of the same device that is read as it is."""
    for tag in device.tags.values():
        if tag.scale_from is None:
            continue
        block = blocks[tag.name]
        place, path = block.at["scale_from"], f"{block.path}.scale_from"
        power = device.tags.get(tag.scale_from)
        if power is None:
            if tag.scale_from in blocks.keys_at:
                continue  # it is there and wrong, which is told already
            guess = nearest(tag.scale_from, device.tags)
            hint = f"did you mean {guess}?" if guess else "name a tag of the same device"
            found.add(place, path, f"{device.name} has no tag {tag.scale_from}", hint)
        elif power is tag:
            found.add(place, path, "a tag cannot scale itself", "name another tag")
        elif power.type not in tag_builder.INTEGERS or power.bit is not None or power.scale_from is not None:
            what = f"{power.name} is no plain integer, so no power of ten"
            found.add(place, path, what, "name an int16 that holds a power of ten")


def _check_reach(device: Device, blocks: Block, found: Findings) -> None:
    """Each tag fits into one request, and lies outside of what is to be avoided."""
    for tag in device.tags.values():
        block = blocks[tag.name]
        registers = tag.table in ("holding", "input")
        most = device.limits.registers if registers else device.limits.bits
        if tag.count > most:
            what = f"it takes {tag.count} registers, and limits.registers of the device is {most}"
            found.add(block.here, block.path, what, "raise the limit, or leave the tag out")
        if tag.sunspec is not None and tag.address + tag.count > 65536:
            what = "the models of its device, one after the other from 40002, run past 65535"
            found.add(block.here, block.path, what, "mend the offsets of its sunspec tags")
        for avoid in device.avoid:
            if (
                tag.sunspec is None
                and avoid.table == tag.table
                and tag.address <= avoid.last
                and avoid.first < tag.address + tag.count
            ):
                what = f"it lies in what is to be avoided, {avoid.table} {avoid.first}-{avoid.last}"
                found.add(block.here, block.path, what, "mend avoid or the address")


def _check_lines(devices: Mapping[str, Device], blocks: Block, found: Findings) -> None:
    """Devices on one serial port, or one port of a host, must describe it in the same way."""
    first: dict[object, Device] = {}
    for device in devices.values():
        url = device.url
        if not url.text:
            continue
        line: object = url.path if url.scheme == "rtu" else (url.host, url.port, url.scheme == "udp")
        other = first.setdefault(line, device)
        if other.url.text == url.text:
            continue
        place, path = blocks[device.name].at["url"], f"devices.{device.name}.url"
        where = f"line {blocks[other.name].at['url'][0]}"
        if url.scheme == "rtu":
            what = (
                f"{url.path} is described otherwise by {other.name} ({where}): {_difference(other.url, url)}"
            )
            found.add(place, path, what, "one serial line has one setting; write the same in both")
        else:
            what = (
                f"{url.host}:{url.port} is {url.scheme} here and {other.url.scheme} at {other.name} ({where})"
            )
            found.add(place, path, what, "write the same in both")


def _warn_same_unit(devices: Mapping[str, Device], blocks: Block, found: Findings) -> None:
    """Two names for one unit: mostly a copied block whose unit was left as it was."""
    first: dict[tuple[str, int], Device] = {}
    for device in devices.values():
        block = blocks[device.name]
        if not device.url.text or "unit" in block.bad:
            continue
        other = first.setdefault((device.url.text, device.unit), device)
        if other is not device:
            key = "unit" if "unit" in block else "url"
            line = blocks[other.name].at["url"][0]
            what = f"{other.name} (line {line}) is unit {device.unit} of {device.url.text} too"
            hint = "mend unit or url, or put the tags into one device"
            found.add(block.at[key], f"{block.path}.{key}", what, hint, "warning")


def _difference(one: Url, other: Url) -> str:
    pairs = [
        (key, getattr(one, key), getattr(other, key)) for key in ("baud", "parity", "stopbits", "local_echo")
    ]
    return ", ".join(
        f"{key}={str(theirs).lower() if key == 'local_echo' else theirs} there, "
        f"{str(mine).lower() if key == 'local_echo' else mine} here"
        for key, theirs, mine in pairs
        if theirs != mine
    )


def _check_shared_bits(devices: Mapping[str, Device], blocks: Block, found: Findings) -> None:
    """No bit of a register is written by two tags."""
    owners: dict[tuple[str, int, str, int], list[tuple[int, str, str]]] = {}
    for device in devices.values():
        for tag in device.tags.values():
            if tag.write is None or tag.table not in tag_builder.WRITABLE:
                continue
            told: set[tuple[str, str]] = set()
            for address, mask in written_bits(tag):
                taken = owners.setdefault(
                    (device.url.text or device.name, device.unit, tag.table, address), []
                )
                for other_mask, other_device, other in taken:
                    if mask & other_mask and (other_device, other) not in told:
                        told.add((other_device, other))
                        _tell_shared(device.name, tag, other_device, other, blocks, found)
                taken.append((mask, device.name, tag.name))


def written_bits(tag: Tag) -> Iterator[tuple[int, int]]:
    """(address, mask of bits) that a write to the tag changes."""
    if tag.table == "coil":
        yield tag.address, 1
        return
    if tag.bit is None and tag.bits is None:
        yield from ((tag.address + k, 0xFFFF) for k in range(tag.count))
        return
    low, high = tag.bits if tag.bits is not None else (tag.bit or 0, tag.bit or 0)
    for word in range(low // 16, high // 16 + 1):
        from_bit, to_bit = max(low, 16 * word) - 16 * word, min(high, 16 * word + 15) - 16 * word
        mask = (1 << to_bit + 1) - (1 << from_bit)
        if tag.order in ("BADC", "DCBA"):
            mask = mask >> 8 | (mask & 0xFF) << 8
        yield tag.address + (word if tag.order in ("CDAB", "DCBA") else tag.count - 1 - word), mask


def line_of(place: Place) -> str:
    """A line for a message, with its file where that is another one."""
    return f"line {place[0]}" + (f" of {place.file}" if isinstance(place, ElsewhereIn) else "")


def _tell_shared(
    device: str, tag: Tag, other_device: str, other: str, blocks: Block, found: Findings
) -> None:
    block = blocks[device]["tags"][tag.name]
    line = line_of(blocks[other_device]["tags"][other].here)
    name = other if other_device == device else f"{other_device}/{other}"
    register = "register" if tag.bits is None and tag.bit is None else "bit of a register"
    found.add(
        block.here,
        block.path,
        f"it writes a {'coil' if tag.table == 'coil' else register} that {name} ({line}) writes too",
        "let one tag write it",
    )

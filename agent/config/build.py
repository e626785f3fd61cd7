"""What was read -> the Config, with every check that needs more than one value."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.config import devices, forecasts, loops
from agent.config.kinds import Block
from agent.config.scalars import Wrong
from agent.config.types import CommandsConfig, Config, MqttConfig, OutboxConfig, PageConfig, Secret
from agent.config.urls import check_broker, host_port
from agent.config.walker import Findings


def config(root: Block, file: str, found: Findings) -> Config:
    """The whole configuration; where something is wrong, it is told and the result is not to be used."""
    device_blocks: Block = root.get("devices", Block("devices", root.here))
    built = devices.build(device_blocks, found)
    if not device_blocks.keys_at and "devices" not in root.bad:
        found.add(root.place("devices"), "devices", "no devices: nothing is read", "add devices:", "warning")
    names = loops.TagNames(built, device_blocks, found)
    predicted = forecasts.predict(root.get("predict"), names)
    return Config(
        path=file,
        gateway=root.get("gateway"),
        state_dir=Path(root["state_dir"]) if "state_dir" in root else None,
        log_level=root["log"].get("level", "info") if "log" in root else "info",
        mqtt=_mqtt(root.get("mqtt"), found),
        commands=_commands(root.get("commands"), found),
        page=_page(root.get("page"), found),
        devices=built,
        predict=predicted,
        health=forecasts.health(root.get("health"), names, predicted),
        loops=loops.build(root.get("loops", Block("loops", root.here)), names),
    )


def _secret(block: Block, key: str, found: Findings) -> Secret | None:
    """The place of a secret. A plain one is taken, and warned about."""
    given = block.get(key)
    if given is None:
        return None
    path = f"{block.path}.{key}"
    if not isinstance(given, Block):
        what = "a secret in plain text: whoever reads this file has it"
        hint = "use {credential: NAME}, {env: NAME} or {file: PATH}"
        if found.exposed:
            what = "a secret in plain text, in a file that every user of this machine may read"
            hint += ", or at least take the file from the others (chmod o-r)"
        found.add(block.at[key], path, what, hint, "warning")
        return Secret("plain", given)
    if len(given) + len(given.bad) != 1:
        what = "one place is meant" if given else "no place"
        found.add(given.here, path, what, "write {credential: NAME}, {env: NAME} or {file: PATH}")
        return None
    if not given:
        return None
    kind, name = next(iter(given.items()))
    if kind == "credential" and ("/" in name or name in (".", "..")):
        found.add(given.at[kind], f"{path}.{kind}", "a credential has a name, no path", "use {file: PATH}")
    return Secret(kind, name)  # type: ignore[arg-type]  # one of the three keys of the table


def _mqtt(block: Block | None, found: Findings) -> MqttConfig:
    if block is None:
        return MqttConfig()
    given: dict[str, Any] = {k: v for k, v in block.items() if k not in ("sparkplug", "homeassistant")}
    for key in ("ca", "cert", "key"):
        if key in given:
            given[key] = Path(given[key])
    given["password"] = _secret(block, "password", found)
    given["outbox"] = OutboxConfig(**block.get("outbox", {}))
    if "url" in block:
        try:
            check_broker(block["url"])
        except Wrong as wrong:
            found.add(block.at["url"], "mqtt.url", str(wrong), wrong.hint)
    if ("cert" in block) != ("key" in block):
        there, missing = ("cert", "key") if "cert" in block else ("key", "cert")
        if missing not in block.bad:
            found.add(block.keys_at[there], f"mqtt.{there}", f"{there} without {missing}", f"add {missing}:")
    if "password" in block and "username" not in block:
        what = "a password without a username, which MQTT 3.1.1 does not allow"
        found.add(block.keys_at["password"], "mqtt.password", what, "add username:", "warning")
    encrypted = str(block.get("url", "mqtt:")).startswith(("mqtts:", "wss:"))
    for key in ("ca", "cert", "key"):
        if key in block and not encrypted and "url" not in block.bad:
            what = f"{key} has no meaning for a connection that is not encrypted"
            found.add(block.keys_at[key], f"mqtt.{key}", what, "use mqtts:// or wss://, or leave it out")
    return MqttConfig(**given)


def _commands(block: Block | None, found: Findings) -> CommandsConfig:
    if block is None:
        return CommandsConfig()
    given = dict(block)
    hmac = given.pop("hmac", None)
    secret = _secret(block, "hmac", found) if isinstance(hmac, Block) else None
    return CommandsConfig(hmac=secret, **given)


def _page(block: Block | str | None, found: Findings) -> PageConfig | None:
    if block == "off":
        return None
    if not isinstance(block, Block):
        return PageConfig()
    listen = block.get("listen", "127.0.0.1:8080")
    try:
        host, port = host_port(listen, None, "127.0.0.1:8080")
    except Wrong as wrong:
        found.add(block.at["listen"], "page.listen", str(wrong), wrong.hint)
        host, port = "127.0.0.1", 8080
    token = _secret(block, "token", found)
    control = block.get("control", False)
    if control:
        if "token" not in block.keys_at:
            what = "a page that may change things needs a token"
            found.add(block.at["control"], "page.control", what, "add token: {credential: page}")
        if not _loopback(host):
            what = f"a page that may change things must listen on loopback, not on {host}"
            found.add(block.place("listen"), "page.listen", what, "write 127.0.0.1:8080")
    return PageConfig(host, port, control, token)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def pick(root: Mapping[str, Any], path: str) -> list[tuple[Block, str]]:
    """(block, key) of every place where a dotted path with `*` stands in what was read."""
    *way, last = path.split(".")
    blocks: list[Any] = [root]
    for step in way:
        blocks = [
            child
            for block in blocks
            for key, child in block.items()
            if (step == "*" or key == step) and isinstance(child, Block)
        ]
    return [(block, last) for block in blocks if last in block]

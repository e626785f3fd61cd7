"""Blocks of the file -> control loops. Every tag that a loop names exists, and nothing is written by two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from agent.config import scalars
from agent.config.kinds import Block
from agent.config.scalars import Wrong, shown
from agent.config.tags import INTEGERS, more_than_held
from agent.config.types import (
    ControllerConfig,
    Device,
    Fail,
    FeedForward,
    Heartbeat,
    LoopConfig,
    ModelConfig,
    Tag,
)
from agent.config.walker import Findings, Place, nearest

Key = tuple[str, str]


class TagNames:
    """Finds tags by `device/tag`, and offers the nearest where there is none."""

    def __init__(self, devices: Mapping[str, Device], blocks: Block, found: Findings) -> None:
        self.devices = devices
        self.blocks = blocks
        self.found = found

    def find(self, text: str, place: Place, path: str) -> Tag | None:
        """The tag; None where it is not there (told) or is wrong itself (told where it stands)."""
        device_name, _, tag_name = text.partition("/")
        device = self.devices.get(device_name)
        tag = device.tags.get(tag_name) if device is not None else None
        if tag is not None:
            return tag
        block = self.blocks.get(device_name)
        if device_name in self.blocks.bad or (block is not None and _there_but_wrong(block, tag_name)):
            return None
        every = [f"{name}/{tag}" for name, device in self.devices.items() for tag in device.tags]
        guess = nearest(text, every)
        if "/" not in text and guess is None:
            same = [name for name in every if name.endswith(f"/{text}")]
            guess = same[0] if same else None
        hint = f"did you mean {guess}?" if guess else "write device/tag, as under devices:"
        self.found.add(place, path, f"there is no tag {text}", hint)
        return None


def _there_but_wrong(device: Block, tag: str) -> bool:
    tags: Any = device.get("tags")
    return bool(device.bad & {"tags", "profile"}) or (isinstance(tags, Block) and tag in tags.keys_at)


def build(blocks: Block, names: TagNames) -> Mapping[str, LoopConfig]:
    """All loops that name their tags rightly; what is wrong is told."""
    loops = {}
    written: list[tuple[str, str, Key]] = []
    for name, block in blocks.items():
        draft = _Loop(name, block, names)
        loop = draft.build()
        if loop is not None:
            loops[name] = loop
        written += [(name, key, tag) for key, tag in draft.written.items()]
    _check_shared(written, blocks, names.found)
    _warn_on_loss(loops, names)
    return MappingProxyType(loops)


class _Loop:
    """One loop while it is put together."""

    def __init__(self, name: str, block: Block, names: TagNames) -> None:
        self.name = name
        self.block = block
        self.names = names
        self.found = names.found
        self.written: dict[str, Key] = {}

    def tell(self, key: str, what: str, hint: str | None = None) -> None:
        self.found.add(self.block.place(key), f"{self.block.path}.{key}", what, hint)

    def tag(self, key: str, block: Block | None = None) -> tuple[Key, Tag] | None:
        """The tag that a key names, with its (device, tag) pair."""
        block = self.block if block is None else block
        if key not in block:
            return None
        return self._find(block[key], block.at[key], f"{block.path}.{key}")

    def _find(self, text: str, place: Place, path: str) -> tuple[Key, Tag] | None:
        tag = self.names.find(text, place, path)
        device = text.partition("/")[0]
        return ((device, tag.name), tag) if tag is not None else None

    def number(self, key: str, block: Block | None = None) -> tuple[Key, Tag] | None:
        """As `tag`, and it must be a numeric one."""
        given = self.tag(key, block)
        if given is not None and not given[1].numeric:
            block = self.block if block is None else block
            what = f"{'/'.join(given[0])} is no number, so a loop cannot use it here"
            self.found.add(block.at[key], f"{block.path}.{key}", what, "name a numeric tag")
            return None
        return given

    def build(self) -> LoopConfig | None:
        block = self.block
        pv, out = self.number("pv"), self.number("out")
        setpoint = self._setpoint()
        limits = self._limits(out)
        heartbeat = self._heartbeat()
        fail = self._fail(limits)
        feed_forward = self._feed_forward()
        interlock = self._interlock()
        controller, model = self._controller(), self._model()
        if out is not None:
            self.written["out"] = out[0]
            self._check_output(out, heartbeat)
        if heartbeat is not None:
            self.written["heartbeat"] = heartbeat.tag
        if pv and out and pv[0] == out[0]:
            self.tell("out", "pv and out are the same tag", "name the tag that is written")
        if pv is None or out is None or setpoint is None or limits is None:
            return None
        plain = {
            key: block[key]
            for key in ("mode", "setpoint_limits", "ramp", "action", "rate", "deadband", "trip")
            if key in block
        }
        return LoopConfig(
            name=self.name,
            pv=pv[0],
            out=out[0],
            setpoint=setpoint,
            limits=limits,
            every=block.get("every", pv[1].every),
            controller=controller,
            model=model,
            feed_forward=feed_forward,
            fail=fail,
            heartbeat=heartbeat,
            interlock=interlock,
            remote=frozenset(word for word, _ in block.get("remote", ())),
            **plain,
        )

    def _controller(self) -> ControllerConfig:
        given = self.block.get("controller", {})
        if given and given.get("type") == "predictive":
            if "model" not in self.block.keys_at:
                what = "predictive, and there is no model to predict with"
                self.found.add(
                    given.at["type"], f"{given.path}.type", what, "add model: {k: 1.2, t1: 40s, delay: 5s}"
                )
            return ControllerConfig(**{"kp": 0.0, **given})  # 0: the gains that suit the model
        return ControllerConfig(**given)

    def _model(self) -> ModelConfig | None:
        given: Block | None = self.block.get("model")
        if given is None:
            return None
        model = ModelConfig(**given)
        path = f"{given.path}.k"
        wants = self.block.get("action", "reverse") == "reverse"
        if "k" in given and "action" not in self.block.bad and (model.k > 0.0) != wants:
            action = "direct" if model.k > 0.0 else "reverse"
            other = "reverse" if model.k > 0.0 else "direct"
            what = f"a gain of {model.k:g} does not go with action {action}"
            self.found.add(given.at["k"], path, what, f"write action: {other}, or mend the sign")
        if model.t1 == 0.0 and not model.integrating and "integrating" not in given.bad:
            what, hint = "0s is no time at all for a process that settles", "write more than 0s"
            self.found.add(given.at["t1"], f"{given.path}.t1", what, hint)
            model = replace(model, t1=1.0)
        if model.damping < 1.0 and (model.integrating or model.t2 > 0.0):
            key = "integrating" if model.integrating else "t2"
            what = f"with a damping of {model.damping:g} a model has neither t2 nor an integrator"
            self.found.add(given.at[key], f"{given.path}.{key}", what, f"leave out {key}, or damping")
            model = replace(model, damping=1.0)
        controller = self.block.get("controller", {})
        if controller and controller.get("type") == "predictive" and model.grade == "poor":
            what = "the model's grade is poor, so this loop runs its PID"
            hint = "let edgetwin tune find a better model"
            self.found.add(given.place("grade"), f"{given.path}.grade", what, hint, "warning")
        return model

    def _setpoint(self) -> float | Key | None:
        if "setpoint" not in self.block:
            return None
        text: str = self.block["setpoint"]
        if "/" in text:
            given = self.number("setpoint")
            if given is not None and given[0] == tuple(str(self.block.get("out")).split("/")):
                self.tell(
                    "setpoint", "a loop's own output cannot be its setpoint", "name another tag or a number"
                )
            return given[0] if given else None
        try:
            value = scalars.number(text)
        except Wrong as wrong:
            self.tell("setpoint", str(wrong), wrong.hint or "write a number or device/tag")
            return None
        bounds = self.block.get("setpoint_limits")
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            what = f"{value:g} is outside of setpoint_limits, {bounds[0]:g} to {bounds[1]:g}"
            self.tell("setpoint", what, "mend one of them")
        return value

    def _limits(self, out: tuple[Key, Tag] | None) -> tuple[float, float] | None:
        """Of the output: the loop's own, else those of the tag's `write`."""
        if "limits" in self.block.bad:
            return None
        given: tuple[float, float] | None = self.block.get("limits")
        allowed = out[1].write.range if out is not None and out[1].write is not None else None
        if given is None:
            if allowed is None and out is not None and not self._write_is_wrong(out[0], "range"):
                what = "no limits of the output, and its tag has no write.range"
                self.found.add(self.block.here, self.block.path, what, "add limits: [0, 100]")
            return allowed
        if allowed is not None and (given[0] < allowed[0] or given[1] > allowed[1]):
            what = (
                f"{given[0]:g} to {given[1]:g} is more than its write.range, {allowed[0]:g} to {allowed[1]:g}"
            )
            self.tell("limits", what, "stay within it")
        elif allowed is None and out is not None and out[1].numeric:
            wrong = more_than_held(out[1], *given)
            if wrong is not None:
                self.tell("limits", *wrong)
        return given

    def _write_is_wrong(self, tag: Key, key: str | None = None) -> bool:
        """True where the tag's `write`, or the key in it, is there and told already: no more is to be told of it."""
        block: Block = self.names.blocks[tag[0]]["tags"][tag[1]]
        write = block.get("write")
        return "write" in block.bad or (isinstance(write, Block) and key in write.bad)

    def _check_output(self, out: tuple[Key, Tag], heartbeat: Heartbeat | None) -> None:
        key, tag = out
        if tag.write is None and not self._write_is_wrong(key):
            self.tell("out", f"{'/'.join(key)} is not writable", "add write: {range: [0, 100]} to the tag")
        elif tag.write is not None and tag.write.nonvolatile:
            what = f"{'/'.join(key)} is kept in the device's flash, which a loop would wear out"
            self.tell("out", what, "name a register that may be written often")
        if self.block.get("mode") == "auto" and heartbeat is None and "heartbeat" not in self.block.keys_at:
            device = self.names.devices[key[0]]
            if device.on_loss == "unknown":
                what = f"auto, though nothing says what {key[0]} does when nobody talks to it"
                self.tell("mode", what, f"give the loop a heartbeat, or {key[0]} an on_loss")

    def _heartbeat(self) -> Heartbeat | None:
        given = self.block.get("heartbeat")
        if given is None:
            return None
        block = given if isinstance(given, Block) else self.block
        key = "tag" if isinstance(given, Block) else "heartbeat"
        found = self.tag(key, block)
        if found is None:
            return None
        name, tag = found
        path = f"{block.path}.{key}"
        if tag.type not in INTEGERS or tag.bit is not None or tag.bits is not None:
            what = f"{'/'.join(name)} is no integer register, so nothing can be counted in it"
            self.found.add(block.at[key], path, what, "name a holding register")
        elif tag.write is None and not self._write_is_wrong(name):
            self.found.add(
                block.at[key], path, f"{'/'.join(name)} is not writable", "add write: true to the tag"
            )
        elif tag.write is not None and tag.write.nonvolatile:
            what = f"{'/'.join(name)} is kept in the device's flash, which a heartbeat would wear out"
            self.found.add(block.at[key], path, what, "name a register that may be written often")
        timeout = {"timeout": given["timeout"]} if isinstance(given, Block) and "timeout" in given else {}
        return Heartbeat(name, **timeout)

    def _fail(self, limits: tuple[float, float] | None) -> Fail:
        given = self.block.get("fail")
        if given is None:
            return Fail()
        resume = given.get("resume", "3")
        count: int | None = None
        if resume != "hand":
            count = self._resume(resume, given)
        return Fail(
            after=given.get("after", 3),
            to=self._on_fail("to", given, limits),
            on_stop=self._on_fail("on_stop", given, limits),
            resume=count,
        )

    def _resume(self, text: str, given: Block) -> int:
        try:
            count = scalars.integer(text)
        except Wrong:
            count = 0
        if not 1 <= count <= 1000:
            what = f"{shown(text)} is no number of scans"
            self.found.add(given.at["resume"], f"{given.path}.resume", what, "write 1 to 1000, or hand")
        return count

    def _on_fail(
        self, key: str, given: Block, limits: tuple[float, float] | None
    ) -> float | Literal["hold", "release"]:
        text = given.get(key, "hold")
        if text == "hold" or text == "release":
            return "hold" if text == "hold" else "release"
        path = f"{given.path}.{key}"
        try:
            value = scalars.number(text)
        except Wrong:
            guess = nearest(text, ("hold", "release"))
            hint = f"did you mean {guess}?" if guess else "write hold, release or a number"
            self.found.add(given.at[key], path, f"{shown(text)} is not known here", hint)
            return "hold"
        if limits is not None and not limits[0] <= value <= limits[1]:
            what = f"{value:g} is outside of the output's limits, {limits[0]:g} to {limits[1]:g}"
            self.found.add(given.at[key], path, what, "stay within them")
        return value

    def _feed_forward(self) -> FeedForward | None:
        given = self.block.get("feed_forward")
        named = self.number("tag", given) if given is not None else None
        if given is None or named is None:
            return None
        return FeedForward(named[0], **{key: given[key] for key in ("gain", "lag") if key in given})

    def _interlock(self) -> tuple[Key, ...]:
        keys = []
        for text, place in self.block.get("interlock", ()):
            given = self._find(text, place, f"{self.block.path}.interlock")
            if given is None:
                continue
            keys.append(given[0])
            if not given[1].boolean:
                what = f"{text} is neither true nor false"
                self.found.add(
                    place, f"{self.block.path}.interlock", what, "name a coil, a discrete or a bit"
                )
        return tuple(keys)


def _check_shared(written: list[tuple[str, str, Key]], blocks: Block, found: Findings) -> None:
    """An output and a heartbeat belong to one loop each. `written`: (loop, key, tag)."""
    owners: dict[Key, tuple[str, str]] = {}
    for name, key, tag in written:
        if tag not in owners:
            owners[tag] = (name, key)
            continue
        other, use = owners[tag]
        use = "output" if use == "out" else use
        line = blocks[other].at[owners[tag][1]][0]
        what = f"{'/'.join(tag)} is the {use} of {other} (line {line}) already"
        found.add(blocks[name].at[key], f"{blocks[name].path}.{key}", what, "let one loop write it")


def _warn_on_loss(loops: Mapping[str, LoopConfig], names: TagNames) -> None:
    for device in dict.fromkeys(loop.out[0] for loop in loops.values()):
        if names.devices[device].on_loss != "unknown":
            continue
        block = names.blocks[device]
        writers = ", ".join(name for name, loop in loops.items() if loop.out[0] == device)
        what = f"on_loss is not known, and the loop {writers} writes to this device"
        hint = "find out what its outputs do when nobody talks to it: hold, zero or stops"
        names.found.add(block.place("on_loss"), f"{block.path}.on_loss", what, hint, "warning")

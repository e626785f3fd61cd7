"""Keys of a tag: what they change in the plan, in what a reply means, in the frames of a write and in the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agent.cloud.payload import meta_of
from agent.config.types import Config
from agent.modbus.codec import Decoder
from agent.modbus.encode import EncodeProblem, WireWrite, encode
from agent.modbus.plan import plan_device, request_for
from agent.runtime.state import make_counters
from agent.runtime.writer import Writer
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Event, Outcome, Plain
from agent.twin.table import Twin
from tests.keys.table import configured, effect
from tests.modbus.plant import Plant
from tests.modbus.virtual import LoopClock, in_virtual_time

TAG = "devices.d.tags.t"
KEY = "devices.*.tags.*"


def tag(**keys: Any) -> Config:
    """A plant whose tag t has these keys."""
    return configured({TAG: {"holding": 100, **keys}})


def read(config: Config, *words: int) -> tuple[Plain, Quality]:
    """What these words (or bits) mean as tag t."""
    device = config.devices["d"]
    request = request_for(device, ("t",))
    if request.function > 2:
        assert request.count == len(words)
        data = b"".join(word.to_bytes(2, "big") for word in words)
    else:
        data = bytes(words)
    decoded = Decoder(request, device).decode(data)
    return decoded.plain[0], Quality(int(decoded.quality[0]))


def value(config: Config, *words: int) -> Plain:
    plain, quality = read(config, *words)
    assert quality is Quality.GOOD
    return plain


def frame(config: Config, number: Plain) -> WireWrite:
    return encode(config.devices["d"].tags["t"], config.devices["d"], number)


def meta(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = meta_of(config, "d", ())["tags"]["t"]
    return found


# -- where it is ----------------------------------------------------------------------------------------------------


@effect(
    f"{KEY}.holding", f"{KEY}.input", f"{KEY}.coil", f"{KEY}.discrete", f"{KEY}.modicon", f"{KEY}.sunspec"
)
@pytest.mark.parametrize(
    ("place", "function", "address"),
    [
        ({"holding": 300}, 3, 300),
        ({"holding": 301}, 3, 301),
        ({"input": 300}, 4, 300),
        ({"coil": 300}, 1, 300),
        ({"discrete": 300}, 2, 300),
        ({"modicon": 40301}, 3, 300),
        ({"modicon": 300301}, 4, 300),
        ({"sunspec": "103+14"}, 3, 40084),
        ({"sunspec": "1+14"}, 3, 40016),
    ],
)
def test_place(place: dict[str, Any], function: int, address: int) -> None:
    plan = plan_device(configured({TAG: place}).devices["d"])
    [request] = [request for request in plan if "t" in request.tags]
    assert request.function == function
    assert request.address <= address < request.address + request.count
    own = request_for(configured({TAG: place}).devices["d"], ("t",))
    assert (own.function, own.address, own.count) == (function, address, 1)


# -- what it means --------------------------------------------------------------------------------------------------


@effect(f"{KEY}.type")
def test_type() -> None:
    assert value(tag(), 0xFFFE) == 65534
    assert value(tag(type="int16"), 0xFFFE) == -2
    assert value(tag(type="float32"), 0x42C8, 0) == 100.0
    assert meta(tag(type="float32"))["type"] == "float32"
    assert meta(tag(type="uint64"))["exact"] is True


@effect(f"{KEY}.order", "devices.*.order")
def test_order() -> None:
    assert value(tag(type="uint32"), 1, 2) == 0x10002
    assert value(tag(type="uint32", order="CDAB"), 1, 2) == 0x20001
    whole = {"devices.d.order": "CDAB", TAG: {"holding": 100, "type": "uint32"}}
    assert value(configured(whole), 1, 2) == 0x20001
    own = {"devices.d.order": "CDAB", TAG: {"holding": 100, "type": "uint32", "order": "ABCD"}}
    assert value(configured(own), 1, 2) == 0x10002


@effect(f"{KEY}.scale", f"{KEY}.offset")
def test_scale_and_offset() -> None:
    assert value(tag(scale="0.1"), 123) == 12.3
    assert value(tag(offset=-40), 123) == 83
    assert frame(tag(scale="0.1", offset=-40, write=True), -27.7).words == (123,)


@effect(f"{KEY}.scale_from")
def test_scale_from() -> None:
    config = configured(
        {
            TAG: {"holding": 100, "scale_from": "sf"},
            "devices.d.tags.sf": {"holding": 101, "type": "int16"},
        }
    )
    device = config.devices["d"]
    request = request_for(device, ("t", "sf"))
    decoded = Decoder(request, device).decode(bytes.fromhex("007BFFFF"))
    assert decoded.plain == [pytest.approx(12.3), -1]


@effect(f"{KEY}.unit")
def test_unit() -> None:
    assert meta(tag())["unit"] is None
    assert meta(tag(unit="°C"))["unit"] == "°C"


@effect(f"{KEY}.range")
def test_range() -> None:
    assert read(tag(range=[0, 50]), 51) == (51, Quality.UNCERTAIN)
    assert read(tag(range=[0, 51]), 51) == (51, Quality.GOOD)
    assert meta(tag(range=[0, 50]))["range"] == [0, 50]
    with pytest.raises(EncodeProblem):
        frame(tag(range=[0, 50], write=True), 51)


@effect(f"{KEY}.missing")
def test_missing() -> None:
    assert read(tag(missing=[0x8000]), 0x8000) == (None, Quality.MISSING)
    assert read(tag(), 0x8000) == (0x8000, Quality.GOOD)


@effect(f"{KEY}.states")
def test_states() -> None:
    config = tag(states={0: "ok", 3: "overheat"}, write=True)
    assert meta(config)["states"] == {"0": "ok", "3": "overheat"}
    assert frame(config, "overheat").words == (3,)


@effect(f"{KEY}.bit", f"{KEY}.bits")
def test_bits() -> None:
    assert value(tag(bit=4), 0x0010) is True
    assert value(tag(bit=5), 0x0010) is False
    assert value(tag(bits="8-11"), 0x0A00) == 10
    assert value(tag(bits="4-11"), 0x0A00) == 0xA0
    assert frame(tag(bit=4, write=True), True).or_mask == 0x10


@effect(f"{KEY}.length")
def test_length() -> None:
    assert value(tag(type="string", length=3), 0x4142, 0x4344) == "ABC"
    assert request_for(tag(type="string", length=9).devices["d"], ("t",)).count == 5


@effect(f"{KEY}.counter")
def test_counter() -> None:
    assert list(make_counters(tag(), {})) == []
    counters = make_counters(tag(counter=True), {})
    counter = counters[("d", "t")]
    for raw in (65530, 4):
        counter.advance(raw)
    assert (counter.last, counter.total) == (4, 65540), "the register has wrapped once"


@effect(f"{KEY}.loop_current")
def test_loop_current() -> None:
    assert read(tag(scale="0.001"), 3200)[1] is Quality.GOOD
    assert read(tag(scale="0.001", loop_current=True), 3200)[1] > Quality.UNCERTAIN


# -- when it is read ------------------------------------------------------------------------------------------------


@effect(f"{KEY}.every", "devices.*.every")
def test_every() -> None:
    def periods(config: Config) -> set[float]:
        return {request.every for request in plan_device(config.devices["d"])}

    assert periods(configured()) == {1.0}
    assert periods(configured({"devices.d.every": "250ms"})) == {0.25}
    assert periods(tag(every="5s")) == {1.0, 5.0}
    assert meta(tag(every="5s"))["every"] == 5.0


@effect(f"{KEY}.alone")
def test_alone() -> None:
    def neighbours(**keys: Any) -> Sequence[str]:
        changes = {TAG: {"holding": 28, **keys}}
        plan = plan_device(configured(changes).devices["d"])
        return next(request.tags for request in plan if "t" in request.tags)

    assert len(neighbours()) > 1
    assert neighbours(alone=True) == ("t",)


# -- writes ---------------------------------------------------------------------------------------------------------


@effect(f"{KEY}.write")
def test_write() -> None:
    with pytest.raises(EncodeProblem):
        frame(tag(), 1)
    assert frame(tag(write=True), 1).words == (1,)
    assert meta(tag())["write"] is None and meta(tag(write=True))["write"] is not None


@effect(f"{KEY}.write.range")
def test_write_range() -> None:
    config = tag(write={"range": [0, 10]})
    assert frame(config, 10).words == (10,)
    with pytest.raises(EncodeProblem):
        frame(config, 11)
    assert meta(config)["write"] == {"range": [0, 10]}


@effect(f"{KEY}.write.function")
def test_write_function() -> None:
    assert frame(tag(write=True), 1).function == 6
    assert frame(tag(write={"function": 16}), 1).function == 16
    assert frame(tag(bit=0, write=True), True).function == 22
    assert frame(tag(bit=0, write={"function": 6}), True).function == 6


class Written:
    """Writes to tag t through a real Writer and Line, in virtual time."""

    def __init__(self, **write: Any) -> None:
        self.config = tag(write=write or True)
        self.events: list[Event] = []
        self.sent: list[tuple[float, int]] = []
        self.outcomes: list[Outcome] = []

    def run(self, *values: int, patience: float = 100.0, source: str = "cmd") -> Written:
        async def go(clock: LoopClock) -> None:
            plant = Plant(clock, [self.config.devices["d"]], [])
            async with plant.running():
                twin = Twin(build_layout(self.config))
                writer = Writer(self.config, twin, {"d": plant.line}, clock, self.events.append)
                for one in values:
                    self.outcomes.append(
                        await writer.write(("d", "t"), one, source=source, deadline=clock.mono() + patience)
                    )
                self.sent = [(at, function) for at, _, function, _ in plant.link.sent]

        in_virtual_time(go)
        return self

    @property
    def times(self) -> list[float]:
        """When each write went out."""
        return [at for at, function in self.sent if function == 6]


@effect(f"{KEY}.write.verify")
def test_verify() -> None:
    assert [function for _, function in Written().run(7).sent] == [6, 3]
    unread = Written(verify=False).run(7)
    assert [function for _, function in unread.sent] == [6]
    assert unread.outcomes[0].readback is None


@effect(f"{KEY}.write.min_interval")
def test_min_interval() -> None:
    first, second = Written(min_interval="5s").run(7, 8).times
    assert second - first == pytest.approx(5.0, abs=0.05)
    first, second = Written(min_interval="0s").run(7, 8).times
    assert second - first < 0.1


@effect(f"{KEY}.write.daily")
def test_daily() -> None:
    got = Written(daily=2).run(7, 8, 9)
    assert [outcome.ok for outcome in got.outcomes] == [True, True, False]
    assert [event.name for event in got.events] == ["write_budget"]
    assert all(outcome.ok for outcome in Written(daily=3).run(7, 8, 9).outcomes)


@effect(f"{KEY}.write.nonvolatile")
def test_nonvolatile() -> None:
    first, second = Written(nonvolatile=True).run(7, 8).times
    assert second - first == pytest.approx(60.0, abs=0.05)
    with pytest.raises(AssertionError, match="flash"):
        configured({"devices.d.tags.out.write": {"range": [0, 100], "nonvolatile": True}})

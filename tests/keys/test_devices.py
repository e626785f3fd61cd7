"""Keys of a device: what they change in its plan, on its line and in what is sent when."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from typing import Any

import pytest

from agent.config.types import Config
from agent.modbus.line import Line
from agent.modbus.plan import Request, line_cost, plan_device
from agent.modbus.simulated import ports
from agent.runtime.clock import SystemClock
from tests.keys.table import configured, effect
from tests.modbus.faults import ON_TCP
from tests.modbus.faultserver import FaultServer
from tests.modbus.plant import Plant
from tests.modbus.virtual import FakeLink, LoopClock, in_virtual_time

KEY = "devices.*"


def device(keys: dict[str, Any], **tags: dict[str, Any]) -> Config:
    """A plant whose device d has these keys, and these tags alone where there are any."""
    changes = {f"devices.d.{key}": value for key, value in keys.items()}
    if not tags:
        return configured(changes)
    return configured(changes | {"devices.d.tags": tags}, without=("loops",))


def spans(config: Config) -> list[tuple[int, int]]:
    """(address, count) of each request of the plan."""
    return [(request.address, request.count) for request in plan_device(config.devices["d"])]


def polled(config: Config, seconds: float, **link: Any) -> FakeLink:
    """The link after so many seconds of polling device d in virtual time; `link` sets what it does."""
    links = []

    async def go(clock: LoopClock) -> None:
        one = config.devices["d"]
        plant = Plant(clock, [one], plan_device(one))
        for name, value in link.items():
            setattr(plant.link, name, value)
        links.append(plant.link)
        async with plant.running():
            await asyncio.sleep(seconds)

    in_virtual_time(go)
    return links[0]


# -- plan -----------------------------------------------------------------------------------------------------------

NEAR = {"a": {"holding": 0}, "b": {"holding": 20}}


@effect(f"{KEY}.url")
def test_url() -> None:
    assert line_cost(device({}).devices["d"].url).register < 0.01
    serial = device({"url": "rtu:///dev/ttyUSB0?baud=9600"}, a={"holding": 0}, b={"holding": 60})
    assert spans(serial) == [(0, 1), (60, 1)], "at 9600 baud a hole of 59 registers costs more than a request"
    assert spans(device({}, a={"holding": 0}, b={"holding": 60})) == [(0, 61)]
    assert list(ports(device({"url": "tcp://127.0.0.1:1502"}), 1)) != list(ports(device({}), 1))


@effect(f"{KEY}.unit")
def test_unit() -> None:
    assert {unit for _, unit, _, _ in polled(device({}), 2).sent} == {1}
    assert {unit for _, unit, _, _ in polled(device({"unit": 17}), 2).sent} == {17}


@effect(f"{KEY}.limits.registers")
def test_registers() -> None:
    assert spans(device({}, **NEAR)) == [(0, 21)]
    assert spans(device({"limits.registers": 20}, **NEAR)) == [(0, 1), (20, 1)]


@effect(f"{KEY}.limits.bits")
def test_bits() -> None:
    coils = {"a": {"coil": 0}, "b": {"coil": 20}}
    assert spans(device({}, **coils)) == [(0, 21)]
    assert spans(device({"limits.bits": 20}, **coils)) == [(0, 1), (20, 1)]


@effect(f"{KEY}.limits.gap")
def test_gap() -> None:
    assert spans(device({"limits.gap": 18}, **NEAR)) == [(0, 1), (20, 1)]
    assert spans(device({"limits.gap": 19}, **NEAR)) == [(0, 21)]


@effect(f"{KEY}.avoid")
def test_avoid() -> None:
    assert spans(device({"avoid": ["holding 5-6"]}, **NEAR)) == [(0, 1), (20, 1)]
    assert spans(device({"avoid": ["input 5-6"]}, **NEAR)) == [(0, 21)]


# -- on the line ----------------------------------------------------------------------------------------------------


@effect(f"{KEY}.timeout")
def test_timeout() -> None:
    def answered_at_once(timeout: str) -> bool:
        answered: list[bool] = []

        async def go(clock: LoopClock) -> None:
            one = device({"timeout": timeout, "every": "10s"}, a={"holding": 0}).devices["d"]
            plant = Plant(clock, [one], plan_device(one))
            plant.link.delay[1] = 0.6
            async with plant.running():
                await asyncio.sleep(3)
            answered.append(plant.of("d")[0].payload is not None)

        in_virtual_time(go)
        return answered[0]

    assert not answered_at_once("500ms")
    assert answered_at_once("700ms")


@effect(f"{KEY}.retry.first", f"{KEY}.retry.max")
@pytest.mark.parametrize(
    ("retry", "first", "longest"),
    [
        ({"first": "30s", "max": "5m"}, 30, 300),
        ({"first": "100s", "max": "5m"}, 100, 300),
        ({"first": "30s", "max": "60s"}, 30, 60),
    ],
)
def test_retry(retry: dict[str, str], first: float, longest: float) -> None:
    times: list[float] = []

    async def go(clock: LoopClock) -> None:
        silent = device({"retry": retry}, a={"holding": 0}).devices["d"]
        alive = dataclasses.replace(silent, name="other", unit=2)
        plant = Plant(clock, [silent, alive], [*plan_device(silent), *plan_device(alive)])
        plant.link.delay[1] = None
        async with plant.running():
            await asyncio.sleep(3000)
        times.extend(at for at, unit, *_ in plant.link.sent if unit == 1)

    in_virtual_time(go)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    slow = [gap for gap in gaps if gap > 10]
    assert slow[0] == pytest.approx(first, abs=2.0)
    assert slow[-1] == pytest.approx(longest, abs=2.0) and max(slow) < longest + 2.0


@effect(f"{KEY}.limits.pause")
def test_pause() -> None:
    tags = {"a": {"holding": 0, "alone": True}, "b": {"holding": 1, "alone": True}}

    def gap(config: Config) -> float:
        first, second = [at for at, *_ in polled(config, 0.9).sent][:2]
        return second - first

    assert gap(device({}, **tags)) < 0.05
    assert gap(device({"limits.pause": "200ms"}, **tags)) >= 0.2


@effect(f"{KEY}.limits.close_after_poll")
def test_close_after_poll() -> None:
    tags = {"a": {"holding": 0}}
    assert len(polled(device({}, **tags), 10).attempts) == 1
    assert len(polled(device({"limits.close_after_poll": True}, **tags), 10).attempts) >= 9


class Wired:
    """A real line to a server on loopback, until `count` replies have come."""

    def __init__(self, keys: dict[str, Any], *, fault: str | None = None) -> None:
        self.good = 0
        self.bad = 0
        self.connected = self.answered = 0.0
        asyncio.run(asyncio.wait_for(self._run(keys, fault), 60))

    async def _run(self, keys: dict[str, Any], fault: str | None) -> None:
        server = await FaultServer().start()
        if fault is not None:
            server.break_next(ON_TCP[fault])
        url = f"tcp://127.0.0.1:{server.port}"
        one = device({"url": url, "timeout": "300ms", **keys}, a={"holding": 100}).devices["d"]
        done = asyncio.Event()
        clock = SystemClock()

        def took(request: Request, reply: Any) -> None:
            self.good += reply.payload is not None
            self.bad += reply.payload is None
            self.answered = clock.mono()
            done.set()

        line = Line(
            one.url,
            [one],
            {"d": plan_device(one)},
            clock=clock,
            on_reply=took,
            on_scan=lambda scan: None,
            on_event=lambda event: None,
            rng=random.Random(1),
        )
        self.connected = clock.mono()
        task = asyncio.create_task(line.run())
        await done.wait()
        await line.close()
        await task
        await server.stop()


@effect(f"{KEY}.limits.pause_after_connect")
def test_pause_after_connect() -> None:
    slow = Wired({"limits.pause_after_connect": "1s"})
    assert slow.good == 1 and slow.answered - slow.connected >= 1.0


@effect(f"{KEY}.accept")
@pytest.mark.parametrize(("word", "fault"), [("transaction", "wrong_tid"), ("unit", "wrong_unit")])
def test_accept(word: str, fault: str) -> None:
    assert Wired({}, fault=fault).bad == 1
    assert Wired({"accept": [word]}, fault=fault).good == 1


@effect(f"{KEY}.on_loss")
def test_on_loss() -> None:
    with pytest.raises(AssertionError, match="on_loss"):
        configured({"devices.d.on_loss": "unknown"})
    assert configured({"devices.d.on_loss": "zero"}).loops["l"].mode == "auto"

"""Keys of a loop: what they change in what is written, in what its view shows and in what it lets others do.

Loops run here as in the agent, on a twin whose values the test sets, in virtual time: one scan a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agent.cloud.payload import meta_of
from agent.config.types import Config
from agent.control.process import resting_output
from agent.runtime.loops import Loops
from agent.twin.layout import build_layout
from agent.twin.quality import Quality
from agent.twin.records import Event, Key, LoopView, Outcome
from agent.twin.table import Twin
from tests.keys.table import configured, effect
from tests.modbus.virtual import LoopClock, in_virtual_time

KEY = "loops.*"
START = {"pv": 50.0, "out": 40.0, "sp": 50.0, "ok": 1.0, "ff": 0.0}
TICKS = 10
"""Of a second."""

Values = dict[str, float | None]


class Driven:
    """A loop after some scans. Each of `scans` sets some tags (None: bad), which keep their values afterwards."""

    def __init__(
        self, changes: dict[str, Any], scans: Sequence[Values], *, ahead: float = 50.0, stop: bool = False
    ) -> None:
        self.config: Config = configured({f"loops.l.{key}": value for key, value in changes.items()})
        self.values: Values = {**START}
        self.views: list[LoopView] = []  # after each scan
        self.writes: list[tuple[float, Key, float]] = []  # (seconds since the start, tag, value)
        self.events: list[Event] = []
        self.steps = 0
        self._ahead = ahead
        in_virtual_time(lambda clock: self._drive(clock, scans, stop))

    async def _drive(self, clock: LoopClock, scans: Sequence[Values], stop: bool) -> None:
        twin = Twin(build_layout(self.config))
        start = clock.mono()

        async def write(
            key: Key, value: float, *, source: str, deadline: float, safety: bool = False
        ) -> Outcome:
            self.writes.append((clock.mono() - start, key, value))
            self.values[key[1]] = value
            return Outcome(True, applied=value, readback=value)

        self.loops = Loops(
            self.config,
            twin=twin,
            write=write,
            forecast=lambda key: (np.array([self._ahead]),) * 3,
            clock=clock,
            on_event=self.events.append,
        )
        for scan in scans:
            for _ in range(TICKS):
                await asyncio.sleep(1 / TICKS)
                self.loops.tick()
            self.values |= scan
            for name, value in self.values.items():
                row = np.array([twin.layout.row[("d", name)]])
                if value is None:
                    twin.fail(row, Quality.TIMEOUT, clock.mono())
                else:
                    good = np.array([Quality.GOOD], dtype=np.uint8)
                    twin.apply(row, np.array([value]), good, [value], clock.mono())
            self.loops.on_scan("d")
            await asyncio.sleep(0.001)
            self.views.append(self.loops.views()["l"])
        if stop:
            await self.loops.stop()
        self.steps = self.loops.status()["l"]["steps"]

    @property
    def outs(self) -> list[float]:
        """The output after each scan from the fourth on, the first in which the loop controls."""
        return [view.out if view.out is not None else float("nan") for view in self.views[3:]]

    def written(self, tag: str = "out") -> list[float]:
        return [value for _, key, value in self.writes if key == ("d", tag)]

    def failed_after(self, scans: int) -> int | None:
        """Scans after the first `scans` in which the loop has failed; None when it never has."""
        modes = [view.mode for view in self.views[scans:]]
        return modes.index("fail") + 1 if "fail" in modes else None


def still(count: int, **values: float | None) -> list[Values]:
    """So many scans, the first of which sets these values."""
    return [values, *({} for _ in range(count - 1))]


WARM = still(4)
"""Scans until the loop has taken over and moved once."""
PURE = {"controller": {"kp": 2, "ti": "0s", "b": 1}}
"""Proportional alone: the output is 40 + 2 (setpoint - pv)."""


# -- what it controls -----------------------------------------------------------------------------------------------


@effect(f"{KEY}.pv", f"{KEY}.out")
def test_pv_and_out() -> None:
    scans = [*WARM, *still(2, pv=40.0, ff=60.0)]
    assert Driven(PURE, still(4, ff=50.0) + scans[4:]).outs[-1] == 60.0
    assert Driven(PURE | {"pv": "d/ff"}, still(4, ff=50.0) + scans[4:]).outs[-1] == 20.0
    assert {key for _, key, _ in Driven(PURE, scans).writes} == {("d", "out")}
    other = Driven(PURE | {"out": "d/beat", "limits": [0, 100]}, [*still(1, beat=40.0), *scans])
    assert {key for _, key, _ in other.writes} == {("d", "beat")}
    assert meta_of(other.config, "d", ())["loops"] == ["l"]


@effect(f"{KEY}.setpoint")
def test_setpoint() -> None:
    assert Driven({}, WARM).views[-1].sp == 50.0
    assert Driven({"setpoint": 61.5}, WARM).views[-1].sp == 61.5
    assert Driven({"setpoint": "d/sp"}, [*WARM, *still(1, sp=70.0)]).views[-1].sp == 70.0


@effect(f"{KEY}.setpoint_limits")
def test_setpoint_limits() -> None:
    scans = [*WARM, *still(1, sp=70.0)]
    assert Driven({"setpoint": "d/sp", "setpoint_limits": [20, 65]}, scans).views[-1].sp == 65.0
    refused = Driven({"setpoint_limits": [20, 65]}, WARM).loops.ask("l", mode=None, setpoint=66, remote=False)
    assert not refused.ok and "setpoint_limits" in (refused.error or "")


@effect(f"{KEY}.ramp")
def test_ramp() -> None:
    scans = [*WARM, *still(3, sp=60.0)]
    assert [view.sp for view in Driven({"setpoint": "d/sp"}, scans).views[-3:]] == [60.0] * 3
    ramped = Driven({"setpoint": "d/sp", "ramp": 2}, scans).views[-3:]
    assert [view.sp for view in ramped] == pytest.approx([52.0, 54.0, 56.0], abs=0.01)


@effect(f"{KEY}.every")
def test_every() -> None:
    assert Driven({}, still(12)).steps == 12
    assert Driven({"every": "3s"}, still(12)).steps == 4


@effect(f"{KEY}.mode")
def test_mode() -> None:
    scans = [*WARM, *still(3, pv=40.0)]
    got = {mode: Driven(PURE | {"mode": mode}, scans) for mode in ("off", "shadow", "manual", "auto")}
    assert {mode: one.views[-1].mode for mode, one in got.items()} == {mode: mode for mode in got}
    assert {mode: one.views[-1].out for mode, one in got.items()} == {
        "off": None, "shadow": 60.0, "manual": 40.0, "auto": 60.0,
    }  # fmt: skip
    assert [mode for mode, one in got.items() if one.writes] == ["auto"]


# -- how ------------------------------------------------------------------------------------------------------------


def moves(controller: dict[str, Any], scans: Sequence[Values], **keys: Any) -> list[float]:
    """How far the output is from 40 after each scan beyond the first four."""
    changes = {"controller": {"kp": 1, "ti": "0s", "b": 1, **controller}, "setpoint": "d/sp", **keys}
    return [out - 40.0 for out in Driven(changes, [*WARM, *scans]).outs[1:]]


@effect(f"{KEY}.controller.kp", f"{KEY}.controller.b")
def test_gain_and_weight() -> None:
    assert moves({"kp": 1}, still(1, sp=55.0)) == [pytest.approx(5.0)]
    assert moves({"kp": 3}, still(1, sp=55.0)) == [pytest.approx(15.0)]
    assert moves({"kp": 3, "b": 0.5}, still(1, sp=55.0)) == [pytest.approx(7.5)]


@effect(f"{KEY}.controller.ti")
def test_integral_time() -> None:
    assert moves({}, still(3, pv=45.0)) == pytest.approx([5.0, 5.0, 5.0])
    assert moves({"ti": "10s"}, still(3, pv=45.0)) == pytest.approx([5.0, 5.5, 6.0], abs=0.01)
    assert moves({"ti": "50s"}, still(3, pv=45.0)) == pytest.approx([5.0, 5.1, 5.2], abs=0.01)


@effect(f"{KEY}.controller.td", f"{KEY}.controller.n", f"{KEY}.controller.c")
def test_derivative() -> None:
    def kick(td: float, n: float) -> float:
        """Of a step by 5 in one second: K Td / (Td/N + dt) beside the 5 of the proportional part."""
        return 5.0 + 5.0 * td / (td / n + 1.0)

    step = still(1, pv=45.0)
    assert moves({"td": "2s"}, step) == [pytest.approx(kick(2, 8), abs=0.05)]
    assert moves({"td": "4s"}, step) == [pytest.approx(kick(4, 8), abs=0.05)]
    assert moves({"td": "4s", "n": 2}, step) == [pytest.approx(kick(4, 2), abs=0.05)]
    assert moves({"td": "2s"}, still(1, sp=55.0)) == [pytest.approx(5.0)]
    assert moves({"td": "2s", "c": 1}, still(1, sp=55.0)) == [pytest.approx(kick(2, 8), abs=0.05)]


@effect(f"{KEY}.action")
def test_action() -> None:
    assert moves({}, still(1, pv=45.0)) == [pytest.approx(5.0)]
    assert moves({}, still(1, pv=45.0), action="direct") == [pytest.approx(-5.0)]


@effect(f"{KEY}.limits")
def test_limits() -> None:
    assert moves({"kp": 9}, still(1, pv=40.0)) == [60.0]
    got = Driven({**PURE, "limits": [10, 45]}, [*WARM, *still(1, pv=40.0)])
    assert got.written()[-1] == 45.0 and got.views[-1].limited


@effect(f"{KEY}.rate")
def test_rate() -> None:
    assert moves({}, still(3, pv=40.0)) == pytest.approx([10.0, 10.0, 10.0])
    assert moves({}, still(3, pv=40.0), rate=4) == pytest.approx([4.0, 8.0, 10.0], abs=0.05)


@effect(f"{KEY}.deadband")
def test_deadband() -> None:
    scans = [*WARM, *still(1, pv=49.0), *still(1, pv=48.5), *still(1, pv=44.0)]
    assert Driven(PURE, scans).written() == [42.0, 43.0, 52.0]
    assert Driven(PURE | {"deadband": 5}, scans).written() == [52.0]


@effect(f"{KEY}.feed_forward.tag", f"{KEY}.feed_forward.gain", f"{KEY}.feed_forward.lag")
def test_feed_forward() -> None:
    def with_(**keys: Any) -> list[float]:
        return moves({}, still(2, ff=10.0), feed_forward=keys)

    assert moves({}, still(2, ff=10.0)) == [0.0, 0.0]
    assert with_(tag="d/ff", gain=1.5) == pytest.approx([15.0, 15.0])
    assert with_(tag="d/beat", gain=1.5) == [0.0, 0.0]
    lagged = with_(tag="d/ff", gain=1.5, lag="4s")
    assert 0 < lagged[0] < lagged[1] < 10.0


MODEL = {"k": 2.0, "t1": "8s", "delay": "2s", "grade": "good", "noise": 0.1}


def foretold(model: dict[str, Any], **controller: Any) -> list[float]:
    """As `moves`, of the predictive controller on MODEL with changes, after a step of the setpoint by 10."""
    changes = {"controller": {"type": "predictive", **controller}, "setpoint": "d/sp", "model": MODEL | model}
    return [out - 40.0 for out in Driven(changes, [*WARM, *still(6, sp=60.0)]).outs[1:]]


@effect(f"{KEY}.controller.type")
def test_controller_type() -> None:
    pid = moves({}, still(6, sp=60.0), model=MODEL)
    predictive = foretold({})
    assert pid == pytest.approx([10.0] * 6)
    assert predictive != pytest.approx(pid, abs=1.0)
    assert foretold({"grade": "poor"}, kp=1, ti="0s", b=1) == pytest.approx(pid)


@effect(f"{KEY}.model.k")
def test_model_gain() -> None:
    assert foretold({"k": 4.0}) == pytest.approx([move / 2 for move in foretold({"k": 2.0})], rel=0.02)


@effect(f"{KEY}.model.integrating")
def test_model_integrating() -> None:
    """A PV that settles needs more to stay where it is; one that runs on is let go at once."""
    settling = foretold({"k": 0.05, "t1": "40s"})
    assert foretold({"k": 0.05, "integrating": True}) != pytest.approx(settling, abs=0.5)


@effect(f"{KEY}.model.damping")
def test_model_damping() -> None:
    """A PV that will swing over by itself is pushed less than one that lags behind."""
    settling, swinging = (foretold({"t1": "5s", "damping": damping}) for damping in (1, 0.3))
    assert swinging != pytest.approx(settling, abs=0.5)


@effect(f"{KEY}.model.grade")
def test_model_grade() -> None:
    good, fair = (max(foretold({"grade": grade})) for grade in ("good", "fair"))
    assert 0.0 < fair < 0.7 * good
    reasons = {}
    for grade in ("good", "fair", "poor"):
        driven = Driven({"controller": {"type": "predictive"}, "model": MODEL | {"grade": grade}}, WARM)
        reasons[grade] = driven.views[-1].reason
    assert reasons == {"good": None, "fair": None, "poor": "not predictive: the model's grade is poor"}


@effect(f"{KEY}.model.noise")
def test_model_noise() -> None:
    """With so much noise a move costs more, for the loop to bear an error of the model."""
    two = {"t1": "10s", "t2": "4s", "delay": "3s"}
    assert foretold(two | {"noise": 10.0})[0] < 0.9 * foretold(two | {"noise": 0.1})[0]


@effect(f"{KEY}.model.bias")
def test_model_bias() -> None:
    def rest(bias: float) -> float:
        model = Driven({"model": MODEL | {"bias": bias}}, WARM).config.loops["l"].model
        assert model is not None
        return resting_output(model, 50.0)

    assert rest(0.0) == 25.0
    assert rest(20.0) == 15.0


# -- safety ---------------------------------------------------------------------------------------------------------


@effect(f"{KEY}.model.t1", f"{KEY}.model.t2", f"{KEY}.model.delay")
@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (None, 5),
        ({"t1": "40s"}, 20),
        ({"t1": "40s", "t2": "10s"}, 25),
        ({"t1": "40s", "t2": "10s", "delay": "6s"}, 28),
    ],
)
def test_model_says_how_old_a_pv_may_be(model: dict[str, str] | None, limit: float) -> None:
    changes = {"fail": {"after": 1000}} | ({} if model is None else {"model": model})
    after = Driven(changes, [*WARM, *still(40, pv=None)]).failed_after(4)
    assert after is not None and limit <= after <= limit + 2


@effect(f"{KEY}.trip")
def test_trip() -> None:
    scans = [*WARM, *still(1, pv=71.0)]
    assert Driven({}, scans).views[-1].mode == "auto"
    assert Driven({"trip": [0, 72]}, scans).views[-1].mode == "auto"
    assert Driven({"trip": [0, 70]}, scans).views[-1].mode == "fail"
    assert Driven({"trip": [0, 72]}, scans, ahead=73.0).views[-1].reason == (
        "PV trip: 73 is foretold, outside 0 to 72"
    )


@effect(f"{KEY}.fail.after")
def test_fail_after() -> None:
    scans = [*WARM, *still(6, pv=None)]
    assert Driven({}, scans).failed_after(4) == 3
    assert Driven({"fail": {"after": 1}}, scans).failed_after(4) == 1


@effect(f"{KEY}.fail.to")
def test_fail_to() -> None:
    scans = [*WARM, *still(5, pv=None)]
    assert Driven({}, scans).written() == []
    failed = Driven({"fail": {"to": 12.5}}, scans)
    assert failed.written() == [12.5] and failed.values["out"] == 12.5
    beating = {"heartbeat": "d/beat"}
    held = Driven(beating, scans).written("beat")
    released = Driven(beating | {"fail": {"to": "release"}}, scans).written("beat")
    assert len(released) < len(held), "the PLC takes over when the heartbeat ends"


@effect(f"{KEY}.fail.on_stop")
def test_on_stop() -> None:
    assert Driven({}, WARM, stop=True).written() == []
    assert Driven({"fail": {"on_stop": 7}}, WARM, stop=True).written() == [7.0]


@effect(f"{KEY}.fail.resume")
def test_resume() -> None:
    scans = [*WARM, *still(3, pv=None), *still(12, pv=50.0)]

    def back(**fail: Any) -> int | None:
        modes = [view.mode for view in Driven({"fail": fail}, scans).views[7:]]
        return modes.index("auto") + 1 if "auto" in modes else None

    assert back() == 3
    assert back(resume=8) == 8
    assert back(resume="hand") is None


@effect(f"{KEY}.heartbeat", f"{KEY}.heartbeat.tag", f"{KEY}.heartbeat.timeout")
def test_heartbeat() -> None:
    assert Driven({}, still(12)).written("beat") == []
    short = Driven({"heartbeat": "d/beat"}, still(12)).written("beat")
    assert short == list(range(1, len(short) + 1)) and 11 <= len(short) <= 13
    long = Driven({"heartbeat": {"tag": "d/beat", "timeout": "12s"}}, still(12)).written("beat")
    assert len(long) == 3
    other = Driven({"heartbeat": {"tag": "d/more"}}, still(6))
    assert other.written("beat") == [] and other.written("more")


@effect(f"{KEY}.interlock")
def test_interlock() -> None:
    scans = [*WARM, *still(1, ok=0.0)]
    assert Driven({}, scans).views[-1].mode == "auto"
    assert Driven({"interlock": ["d/ok"]}, WARM).views[-1].mode == "auto"
    assert Driven({"interlock": ["d/ok"]}, scans).views[-1].mode == "fail"
    assert Driven({"interlock": ["d/ok"]}, [*WARM, *still(1, ok=None)]).views[-1].mode == "fail"


@effect(f"{KEY}.remote")
def test_remote() -> None:
    def ask(remote: list[str], **what: Any) -> bool:
        loops = Driven({"remote": remote}, WARM).loops
        return loops.ask("l", **({"mode": None, "setpoint": None} | what), remote=True).ok

    def asks(remote: list[str]) -> tuple[bool, bool]:
        return ask(remote, setpoint=55.0), ask(remote, mode="manual")

    assert asks([]) == (False, False)
    assert asks(["setpoint"]) == (True, False)
    assert asks(["mode"]) == (False, True)

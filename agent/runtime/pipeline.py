"""The way of a reading: reply -> values -> twin table -> forecast -> health -> loops, and a copy to the cloud.

All of it runs in the main loop, called by the lines; it does no I/O and waits for nothing. Where one scan has more
tags to forecast than one call does within a millisecond, the rest takes turns with whatever else the loop has to do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.config.types import Config, Device
from agent.modbus.codec import Decoder, power_of
from agent.modbus.line import Reply, ScanDone
from agent.modbus.plan import Request
from agent.predict.health import Health
from agent.predict.predictor import SLICE, Predictor
from agent.runtime.loops import Loops
from agent.twin.counter import Counter
from agent.twin.history import History
from agent.twin.quality import Quality
from agent.twin.records import Event, Key, Row
from agent.twin.table import Twin

Later = Callable[[float, Callable[[], None]], None]
GATHER = 0.25
"""Seconds that a scan's forecasts may wait for those of other devices where no loop looks at its tags: a call for many
tags costs little more than one for few, since processor caches are cold each time."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A request bound to the twin: how its reply is decoded and where it goes."""

    device: str
    tags: tuple[str, ...]
    rows: NDArray[np.int64]
    decoder: Decoder
    counters: tuple[tuple[int, int, Counter], ...]  # (position in the reply, row, counter)
    powers: tuple[tuple[str, Key], ...]  # tag of this reply -> the tag elsewhere that holds its power of ten


@dataclass(frozen=True, slots=True)
class ScanRows:
    """What one scan (device, period) updates: rows of the twin, and which of them are forecast."""

    rows: NDArray[np.int64]
    forecast_rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    gathers: bool  # its forecasts may wait for others


@dataclass(frozen=True, slots=True)
class Turn:
    """A slice of one scan's forecasts that waits for its turn, with the values that the scan brought."""

    done: ScanDone
    slots: NDArray[np.int64]
    values: NDArray[np.float64]
    stamps: NDArray[np.float64]
    inputs: NDArray[np.float64] | None
    last: bool


def call_soon(job: Callable[[], None]) -> None:
    """Lets a job run in the main loop after what is due now."""
    asyncio.get_running_loop().call_soon(job)


class Pipeline:
    """Takes replies and finished scans. `sink` gets each Row and must not block; `soon` runs a job a little later.

    later: runs a job after so many seconds, so that forecasts can be gathered; without it none waits.
    """

    def __init__(
        self,
        config: Config,
        twin: Twin,
        *,
        predictor: Predictor | None,
        slots: Mapping[Key, int],
        health: Health | None,
        loops: Loops,
        history: History,
        counters: Mapping[Key, Counter],
        sink: Callable[[Row], None],
        on_event: Callable[[Event], None],
        soon: Callable[[Callable[[], None]], None] = call_soon,
        later: Later | None = None,
    ) -> None:
        self._devices = dict(config.devices)
        self._twin = twin
        self._predictor = predictor
        self._health = health
        self._loops = loops
        self._history = history
        self._counters = counters
        self._sink = sink
        self._on_event = on_event
        self._soon = soon
        self._later = later
        self._gathered: list[Turn] = []
        self._turns: deque[Turn] = deque()
        self._called = False
        self._bound: dict[Request, Bound] = {}
        self._scans = {
            (device.name, every): self._scan_rows(config, device.name, every, slots)
            for device in config.devices.values()
            for every in {tag.every for tag in device.tags.values()}
        }
        input_keys = () if predictor is None else predictor.input_keys
        self._input_rows = np.array([twin.layout.row[key] for key in input_keys], dtype=np.int64)
        self.values_read = 0
        self.values_bad = 0

    def _scan_rows(self, config: Config, device: str, every: float, slots: Mapping[Key, int]) -> ScanRows:
        layout = self._twin.layout
        rows = [row for row in layout.of_device[device] if layout.tags[row].every == every]
        forecast = [row for row in rows if layout.keys[row] in slots]
        # What loops look at comes first, so that they never wait for the turn of another tag.
        looked_at = {loop.pv for loop in config.loops.values()}
        controlled = any(pv[0] == device for pv in looked_at)
        whole = 0 < len(forecast) <= SLICE // 2
        has_inputs = config.predict is not None and bool(config.predict.inputs)
        forecast.sort(key=lambda row: layout.keys[row] not in looked_at)
        return ScanRows(
            np.array(rows, dtype=np.int64),
            np.array(forecast, dtype=np.int64),
            np.array([slots[layout.keys[row]] for row in forecast], dtype=np.int64),
            gathers=self._later is not None and whole and not controlled and not has_inputs,
        )

    def placed(self, device: Device) -> None:
        """The tags of a device have other addresses from now on."""
        self._devices[device.name] = device
        self._bound = {
            request: bound for request, bound in self._bound.items() if bound.device != device.name
        }

    def on_reply(self, request: Request, reply: Reply) -> None:
        """One answered or failed request: its tags get values or a reason why not."""
        bound = self._bound.get(request)
        if bound is None:
            bound = self._bound[request] = self._bind(request)
        count = len(bound.tags)
        self.values_read += count
        if reply.payload is None:
            self.values_bad += count
            self._twin.fail(bound.rows, reply.quality, reply.t)
            self._sink(Row(bound.device, bound.tags, reply.t, [None] * count, bytes([reply.quality]) * count))
            return
        powers = {tag: self._power(key) for tag, key in bound.powers} if bound.powers else {}
        decoded = bound.decoder.decode(reply.payload, powers)
        self._twin.apply(bound.rows, decoded.value, decoded.quality, decoded.plain, reply.t)
        bad = int(np.count_nonzero(decoded.quality))
        self.values_bad += bad
        for position, row, counter in bound.counters:
            if decoded.quality[position] == Quality.GOOD:
                self._count(
                    bound, position, row, counter, decoded.raw_integer(position, counter.tag), reply.t
                )
        quality = decoded.quality.tobytes() if bad else None
        self._sink(Row(bound.device, bound.tags, reply.t, decoded.plain, quality))

    def on_scan(self, done: ScanDone) -> None:
        """A finished scan, answered or not: forecasts, health and loops go on from what the twin holds now."""
        scan = self._scans[(done.device, done.every)]
        twin = self._twin
        if self._predictor is not None and scan.slots.size:
            self._foretell(done, scan)
        self._history.add(scan.rows, twin.value[scan.rows], done.finished)
        self._loops.on_scan(done.device)

    def _foretell(self, done: ScanDone, scan: ScanRows) -> None:
        """Forecasts and health: the first slice now, the others in their turn."""
        waiting = (*self._gathered, *self._turns)
        if any(turn.done.device == done.device and turn.done.every == done.every for turn in waiting):
            self.settle()  # quicker than `GATHER`, or than the machine: no scan may overtake the one before
        values = self._twin.value[scan.forecast_rows]
        stamps = self._twin.stamps[scan.forecast_rows]
        if scan.gathers:
            self._gather(Turn(done, scan.slots, values, stamps, None, last=True))
            return
        count, inputs = len(scan.slots), self._inputs()
        for part in Predictor.parts(count):
            last = part.stop == count
            turn = Turn(done, scan.slots[part], values[part], stamps[part], inputs, last)
            if part.start == 0:
                self._take(turn)
            else:
                self._turns.append(turn)
        self._call_turn()

    def _gather(self, turn: Turn) -> None:
        if sum(len(other.slots) for other in self._gathered) + len(turn.slots) > SLICE:
            self.take_gathered()
        self._gathered.append(turn)
        if len(self._gathered) == 1:
            assert self._later is not None
            self._later(GATHER, self.take_gathered)

    def take_gathered(self) -> None:
        """One call for all that has gathered; of each device its own score."""
        turns, self._gathered = self._gathered, []
        if not turns:
            return
        assert self._predictor is not None
        slots, values, stamps = (
            np.concatenate([getattr(turn, name) for turn in turns]) for name in ("slots", "values", "stamps")
        )
        self._predictor.update(slots, values, stamps)
        if self._health is None:
            return
        times = np.repeat([turn.done.finished for turn in turns], [len(turn.slots) for turn in turns])
        events = self._health.update(slots, values, times, weigh=False)
        for turn in turns:
            events += self._health.weigh(turn.done.device, turn.done.finished)
        for event in events:
            self._on_event(event)

    def _call_turn(self) -> None:
        # One at a time: jobs that are called together run together, and no line would be served between them.
        if self._turns and not self._called:
            self._called = True
            self._soon(self._next_turn)

    def _take(self, turn: Turn) -> None:
        assert self._predictor is not None
        self._predictor.update(turn.slots, turn.values, turn.stamps, x=turn.inputs)
        if self._health is None:
            return
        t = turn.done.finished
        events = self._health.update(turn.slots, turn.values, t, weigh=False)
        if turn.last:
            events += self._health.weigh(turn.done.device, t)
        for event in events:
            self._on_event(event)

    def _next_turn(self) -> None:
        self._called = False
        try:
            if self._turns:
                self._take(self._turns.popleft())
        finally:
            self._call_turn()

    def settle(self) -> None:
        """Does at once what waits for its turn, or for others."""
        self.take_gathered()
        while self._turns:
            self._take(self._turns.popleft())

    def _inputs(self) -> NDArray[np.float64] | None:
        return self._twin.value[self._input_rows] if self._input_rows.size else None

    def _bind(self, request: Request) -> Bound:
        device = self._devices[request.device]
        row = self._twin.layout.row
        counters = tuple(
            (position, row[(device.name, tag)], self._counters[(device.name, tag)])
            for position, tag in enumerate(request.tags)
            if (device.name, tag) in self._counters
        )
        decoder = Decoder(request, device)
        powers = tuple((tag, (device.name, device.tags[tag].scale_from or "")) for tag in decoder.elsewhere)
        return Bound(
            device=device.name,
            tags=request.tags,
            rows=np.array([row[(device.name, tag)] for tag in request.tags], dtype=np.int64),
            decoder=decoder,
            counters=counters,
            powers=powers,
        )

    def _power(self, key: Key) -> int | None:
        return power_of(self._twin.sample(key).plain)

    def _count(self, bound: Bound, position: int, row: int, counter: Counter, raw: int, t: float) -> None:
        before = counter.last
        fell = counter.advance(raw)
        self._twin.total[row] = counter.total
        if fell != "reset":
            return
        tag = bound.tags[position]
        text = f"{bound.device}/{tag} fell from {before} to {raw}: the device was reset; the total goes on"
        self._on_event(
            Event(bound.device, "counter_reset", "info", "raised", text, t, tag, value=raw, limit=before)
        )
        self._loops.restarted(bound.device)

"""An asyncio loop whose time jumps to the next timer: hours of polling in a second, and no load can disturb it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from agent.modbus.faults import LinkFault
from agent.modbus.framers import Answer
from agent.twin.quality import Quality
from tests.modbus.faultserver import registers


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: moves the loop's time by what it would have waited."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen any more"
            self.loop.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`now` is the loop's time, and a Clock's."""

    def __init__(self) -> None:
        selector = _Jumping()
        super().__init__(selector)
        selector.loop = self
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Done at once: a thread's time is not the loop's."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class LoopClock:
    """The clock that belongs to a VirtualLoop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def mono(self) -> float:
        return self._loop.now

    def wall(self) -> float:
        return 1_800_000_000.0 + self._loop.now


def in_virtual_time(test: Callable[[LoopClock], Coroutine[Any, Any, None]]) -> None:
    """Runs `test(clock)` in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        runner.run(test(LoopClock(loop)))


class FakeLink:
    """Devices in virtual time: `delay[unit]` seconds to answer, None for never; registers hold their address.

    `lost` and `late` are called as a Link would.
    """

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.delay: dict[int, float | None] = {}
        self.exceptions: dict[int, int] = {}  # unit -> exception code of each request
        self.refused: set[int] = set()  # addresses
        self.silent_at: set[int] = set()  # addresses: a read that touches one is never answered
        self.left_out: set[int] = (
            set()
        )  # addresses that a reply leaves out, so that what stands behind is shifted
        self.longest = 125
        self.refusal = 2  # the exception for what is refused or too long
        self.up = True  # a connection can be made
        self.slams = False  # accepts each connection and ends it at once
        self.connected = False
        self.attempts: list[float] = []
        self.sent: list[tuple[float, int, int, bytes]] = []  # (time, unit, function, body)
        self.written: dict[int, int] = {}
        self.lost: Callable[[str], None] = lambda words: None
        self.late: Callable[[int, float], None] = lambda unit, seconds: None
        self._waiting: asyncio.Future[Answer] | None = None

    async def connect(self, timeout: float) -> None:
        self.attempts.append(self.clock.mono())
        await asyncio.sleep(0.001)
        if not self.up:
            raise LinkFault("connection refused")
        self.connected = True
        if self.slams:
            asyncio.get_running_loop().call_soon(self._slam)

    def _slam(self) -> None:
        self.drop()
        self.up = True

    def close(self) -> None:
        self.connected = False

    def drop(self) -> None:
        """The other side ends the connection and does not come back before `up`."""
        self.up = False
        self.connected = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(LinkFault("the other side closed the connection"))
        self.lost("the other side closed the connection")

    async def transact(
        self, unit: int, function: int, body: bytes, *, timeout: float, within: float
    ) -> Answer:
        assert self.connected
        assert self._waiting is None, "one request at a time"
        loop = asyncio.get_running_loop()
        started = self.clock.mono()
        self.sent.append((started, unit, function, body))
        delay = self.delay.get(unit, 0.002)
        address, count = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
        if function < 5 and self.silent_at.intersection(range(address, address + count)):
            delay = None
        self._waiting = loop.create_future()
        try:
            if delay is not None and delay > timeout:
                loop.call_later(delay, self.late, unit, delay)
            if delay is None or delay > timeout:
                loop.call_later(timeout, self._expire, self._waiting)
            else:
                loop.call_later(delay, self._answer, self._waiting, unit, function, body, started)
            return await self._waiting
        finally:
            self._waiting = None

    @staticmethod
    def _expire(future: asyncio.Future[Answer]) -> None:
        if not future.done():
            future.set_exception(LinkFault("no answer", Quality.TIMEOUT))

    def _answer(
        self, future: asyncio.Future[Answer], unit: int, function: int, body: bytes, started: float
    ) -> None:
        if future.done():
            return
        now = self.clock.mono()
        address, count = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
        code = self.exceptions.get(unit)
        if function < 5 and (
            count > self.longest or self.refused.intersection(range(address, address + count))
        ):
            code = self.refusal
        if code is not None:
            future.set_result(Answer(None, code, now, now - started))
        elif function == 6:
            self.written[address] = count
            future.set_result(Answer(b"", None, now, now - started))
        else:
            data = b"".join(
                self.written[at].to_bytes(2, "big") if at in self.written else registers(at, 1)
                for at in range(address, address + count + len(self.left_out))
                if at not in self.left_out
            )[: 2 * count]
            future.set_result(Answer(data, None, now, now - started))

"""A faulty task starts anew; three faults within a minute end the process."""

from __future__ import annotations

import asyncio
import logging

import pytest

from agent.runtime import supervise
from agent.runtime.clock import FakeClock
from agent.runtime.supervise import Supervisor, TooManyFaults


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(supervise.asyncio, "sleep", sleep)
    return slept


def test_starts_anew_later_each_time(no_waiting: list[float], caplog: pytest.LogCaptureFixture) -> None:
    clock, told, runs = FakeClock(), [], []

    async def job() -> None:
        runs.append(clock.now)
        clock.advance(40.0)
        if len(runs) < 5:
            raise RuntimeError("boom")

    with caplog.at_level(logging.ERROR):
        asyncio.run(Supervisor(clock, lambda: told.append(True)).keep("job", job))
    assert len(runs) == 5 and len(told) == 4
    assert no_waiting == [1.0, 2.0, 4.0, 8.0]
    assert caplog.text.count("Traceback") == 4


def test_three_in_a_minute_are_too_many() -> None:
    clock = FakeClock()

    async def job() -> None:
        clock.advance(10.0)
        raise RuntimeError("boom")

    with pytest.raises(TooManyFaults):
        asyncio.run(Supervisor(clock, lambda: None).keep("job", job))


def test_loops_fail_before_anything_else() -> None:
    order: list[str] = []
    clock = FakeClock()

    async def job() -> None:
        order.append("run")
        clock.advance(100.0)
        if order.count("run") == 1:
            raise RuntimeError("boom")

    asyncio.run(Supervisor(clock, lambda: order.append("fail")).keep("job", job))
    assert order == ["run", "fail", "run"]


def test_cancelling_is_no_fault() -> None:
    async def run() -> None:
        told: list[bool] = []
        task = asyncio.ensure_future(
            Supervisor(FakeClock(), lambda: told.append(True)).keep("job", asyncio.Event().wait)  # type: ignore[arg-type]
        )
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told == []

    asyncio.run(run())

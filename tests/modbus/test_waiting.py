"""What a caller awaits: woken in the turn that read the reply, and as a task expects in every other case."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent.modbus.asks import Answer, ask
from agent.modbus.faults import LinkFault
from agent.modbus.waiting import Waiting

ANSWER = Answer(b"\0\1", None, 1.0, 0.5)


def run(test: Callable[[Waiting, list[object]], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        loop = asyncio.get_running_loop()
        waiting = Waiting(loop, ask(1, 3, b"\0\0\0\1"), 1, b"", sent=0.5, until=2.0)
        told: list[object] = []

        async def caller() -> None:
            try:
                told.append(await waiting)
            except (LinkFault, asyncio.CancelledError) as fault:
                told.append(fault)
                raise

        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        told.append(task)
        await test(waiting, told)
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(whole())


def test_its_caller_goes_on_within_the_callback_that_answers() -> None:
    async def test(waiting: Waiting, told: list[object]) -> None:
        seen: list[int] = []

        def reads() -> None:
            waiting.answer(ANSWER)
            seen.append(len(told))

        asyncio.get_running_loop().call_soon(reads)
        await asyncio.sleep(0)
        assert seen == [2]
        assert told[1] is ANSWER

    run(test)


def test_answered_from_within_a_task_its_caller_goes_on_in_the_next_turn() -> None:
    async def test(waiting: Waiting, told: list[object]) -> None:
        waiting.answer(ANSWER)
        assert len(told) == 1
        await asyncio.sleep(0)
        assert told[1] is ANSWER
        assert await waiting is ANSWER

    run(test)


def test_a_fault_is_raised_once() -> None:
    async def test(waiting: Waiting, told: list[object]) -> None:
        first = LinkFault("first")
        waiting.fail(first)
        waiting.fail(LinkFault("second"))
        await asyncio.sleep(0)
        assert told[1] is first
        with pytest.raises(LinkFault, match="first"):
            waiting.result()

    run(test)


def test_a_cancelled_caller_is_told_and_what_comes_later_is_refused() -> None:
    async def test(waiting: Waiting, told: list[object]) -> None:
        task = told[0]
        assert isinstance(task, asyncio.Task)
        task.cancel("enough")
        await asyncio.sleep(0)
        assert isinstance(told[1], asyncio.CancelledError)
        assert waiting.done()
        assert not waiting.cancel()
        waiting.fail(LinkFault("late"))
        await asyncio.sleep(0)
        assert task.cancelled()

    run(test)


def test_a_timeout_around_it_works() -> None:
    async def test(waiting: Waiting, told: list[object]) -> None:
        fresh = Waiting(asyncio.get_running_loop(), waiting.ask, 2, b"", sent=0.5, until=2.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await fresh
        waiting.answer(ANSWER)

    run(test)

"""The control socket over a real unix socket: what it answers, what it refuses, who else may live there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.runtime import socket as control
from agent.runtime.clock import FakeClock
from agent.runtime.socket import ControlSocket, SocketTaken, ask_daemon, to_ask
from agent.twin.records import Ask, Outcome


@dataclass
class Daemon:
    path: Path
    asked: list[Ask] = field(default_factory=list)
    outcome: Outcome = field(default_factory=lambda: Outcome(True))
    fault: Exception | None = None
    stuck: bool = False
    futures: list[concurrent.futures.Future[Outcome]] = field(default_factory=list)

    def ask(self, ask: Ask) -> concurrent.futures.Future[Outcome]:
        self.asked.append(ask)
        answer: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        self.futures.append(answer)
        if self.fault is not None:
            answer.set_exception(self.fault)
        elif not self.stuck:
            answer.set_result(self.outcome)
        return answer


@contextlib.contextmanager
def daemon(folder: Path, config: str = "config.yaml") -> Iterator[Daemon]:
    """A served socket, in a thread of its own as the front has it."""
    one = Daemon(folder / "edgetwin.sock")
    served = ControlSocket(one.path, config_path=config, ask=one.ask, clock=FakeClock(now=500.0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(served.serve(), loop).result(10)

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield one
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        served.remove()


def say(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Sends lines and reads until the daemon closes, or as many answers as lines."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        for line in lines:
            with contextlib.suppress(
                BrokenPipeError
            ):  # it may have been cut off already; its answer is there to read
                client.sendall(line)
        with client.makefile("rb") as stream:
            return [json.loads(stream.readline()) for _ in lines]


def asking(**other: object) -> bytes:
    """A read of one register, with something else in it."""
    message = {"op": "ask", "url": "tcp://h", "unit": 1, "function": 3, "body": "00000001", "timeout": 0.5}
    return json.dumps(message | other).encode() + b"\n"


def test_a_read_of_any_unit_becomes_an_ask_that_ends_with_its_asker(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        say(one.path, asking(), b'{"op":"holds","url":"tcp://H"}\n')
        one.stuck = True
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(one.path))
            client.sendall(asking(unit=9))
            until(lambda: len(one.asked) == 3)
            assert not one.futures[-1].cancelled()
        until(one.futures[-1].cancelled)
    first, holds, _ = one.asked
    assert (first.op, first.deadline) == ("ask", 500.0 + control.WORK_PATIENCE + 0.5)
    assert first.extra["url"].text == holds.extra["url"].text == "tcp://h:502"
    wanted = {name: first.extra[name] for name in ("unit", "function", "body", "timeout")}
    assert wanted == {"unit": 1, "function": 3, "body": b"\0\0\0\1", "timeout": 0.5}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_request_becomes_an_ask_with_a_deadline(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        answers = say(
            one.path,
            b'{"op":"status"}\n',
            b'{"op":"read","tags":[["press1","temperature"],["press1","mode"]],"full":true}\n',
            b'{"op":"write","device":"press1","tag":"target","value":180}\n',
            b'{"op":"loop","loop":"oven","mode":"manual","setpoint":175.5}\n',
            b'{"op":"relearn","device":"press1"}\n',
        )
    assert answers == [{"ok": True, "applied": None, "readback": None, "error": None, "result": None}] * 5
    status, read, write, loop, relearn = one.asked
    assert {ask.source for ask in one.asked} == {"socket"}
    assert {ask.deadline for ask in one.asked} == {500.0 + control.WORK_PATIENCE}
    assert status.op == "status"
    assert (read.op, read.keys) == ("read", (("press1", "temperature"), ("press1", "mode")))
    assert read.extra["full"] is True
    assert (write.op, write.key, write.value) == ("write", ("press1", "target"), 180)
    assert (loop.op, loop.loop, loop.mode, loop.setpoint) == ("loop", "oven", "manual", 175.5)
    assert (relearn.op, relearn.extra) == ("relearn", {"device": "press1"})


def test_the_outcome_comes_back_whole(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        one.outcome = Outcome(False, applied=180, readback=179, error="reads 179 °C back", result={"a": [1]})
        answer = ask_daemon([one.path], {"op": "status"}, timeout=20)
    assert answer == {
        "ok": False,
        "applied": 180,
        "readback": 179,
        "error": "reads 179 °C back",
        "result": {"a": [1]},
    }


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"no json\n",
        b"[]\n",
        b'"status"\n',
        b"{}\n",
        b'{"op":"shutdown"}\n',
        b'{"op":"read","tags":[["a"]]}\n',
        b'{"op":"read","tags":[[1,2]]}\n',
        b'{"op":"read","tags":7}\n',
        b'{"op":"write","device":"a","tag":"b"}\n',
        b'{"op":"write","device":1,"tag":"b","value":2}\n',
        b'{"op":"loop"}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"op":"write","device":"a","tag":"b","value":[1]}\n',
        b'{"op":"loop","loop":"oven","setpoint":"hot"}\n',
        b'{"op":"loop","loop":"oven","setpoint":NaN}\n',
        b'{"op":"loop","loop":"oven","setpoint":true}\n',
        b'{"op":"loop","loop":"oven","setpoint":1' + b"0" * 400 + b"}\n",
        b'{"op":"loop","loop":"oven","mode":1}\n',
        b'{"op":"holds","url":"nowhere"}\n',
        asking(function=6),
        asking(function=43, body="0d0101"),  # CANopen
        asking(body="0000"),
        asking(body="00"),
        asking(unit=256),
        asking(unit=True),
        asking(timeout=61),
        asking(timeout=True),
        asking(unit=0, url="rtu:///dev/ttyS0"),
    ],
)
def test_what_is_no_request_is_told_so_and_goes_nowhere(tmp_path: Path, line: bytes) -> None:
    with daemon(tmp_path) as one:
        refused, answered = say(one.path, line, b'{"op":"status"}\n')
    assert refused == {"ok": False, "error": "the request is not understood"}
    assert answered["ok"] is True
    assert [ask.op for ask in one.asked] == ["status"]


def test_a_request_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        (answer,) = say(one.path, b"x" * (2 * control.LONGEST_REQUEST + 1))
        assert answer == {"ok": False, "error": "the request is too slow or too long"}


def test_a_slow_request_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "READ_PATIENCE", 0.1)
    with daemon(tmp_path) as one:
        (answer,) = say(one.path, b'{"op":')
        assert answer == {"ok": False, "error": "the request is too slow or too long"}


def test_clients_are_bounded_and_their_places_given_back(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        held = [socket.socket(socket.AF_UNIX) for _ in range(control.MOST_CLIENTS)]
        for client in held:
            client.settimeout(20)
            client.connect(str(one.path))
            client.sendall(b'{"op":"status"}\n')
            assert client.recv(4096).startswith(b'{"ok":true')  # it is counted by now
        (answer,) = say(one.path, b'{"op":"status"}\n')
        assert answer == {"ok": False, "error": "too many clients at once"}
        for client in held:
            client.close()
        answers = (ask_daemon([one.path], {"op": "status"}, timeout=20) for _ in range(1000))
        assert any(answer is not None and answer["ok"] for answer in answers)


def test_owner_and_group_may_talk_to_it_nobody_else(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        assert stat.S_IMODE(one.path.stat().st_mode) == 0o660
    assert not one.path.exists()


def test_a_file_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "edgetwin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert ask_daemon([path], {"op": "status"}, timeout=5) is None
    with daemon(tmp_path) as one:
        answer = ask_daemon([one.path], {"op": "status"}, timeout=20)
        assert answer is not None and answer["ok"]


def test_a_living_daemon_is_left_alone(tmp_path: Path) -> None:
    with daemon(tmp_path) as one:
        second = ControlSocket(one.path, config_path="c", ask=one.ask, clock=FakeClock())
        with pytest.raises(SocketTaken, match=f"another agent runs here: it answers on {one.path}"):
            asyncio.run(second.serve())
        answer = ask_daemon([one.path], {"op": "status"}, timeout=20)
        assert answer is not None and answer["ok"]


def test_only_the_daemon_with_this_configuration_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "none", tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    paths = [folder / "edgetwin.sock" for folder in folders]
    with daemon(folders[1], "a.yaml") as other, daemon(folders[2], "b.yaml") as own:
        answer = ask_daemon(paths, {"op": "status"}, timeout=20, config_path=str(tmp_path / "b.yaml"))
        assert answer is not None and answer["ok"]
        assert (len(other.asked), len(own.asked)) == (0, 1)
        assert ask_daemon(paths, {"op": "status"}, timeout=20, config_path="c.yaml") is None
        assert ask_daemon(paths, {"op": "status"}, timeout=20) is not None  # any: the first
        assert (len(other.asked), len(own.asked)) == (1, 1)


def test_a_daemon_that_does_not_answer_is_no_absent_one(tmp_path: Path) -> None:
    path = tmp_path / "edgetwin.sock"
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(path))
        stuck.listen()
        answer = ask_daemon([path], {"op": "status"}, timeout=0.2)
    assert answer == {"ok": False, "error": f"the agent on {path} does not answer"}


def test_a_stuck_main_loop_is_told_and_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "WORK_PATIENCE", 0.1)
    with daemon(tmp_path) as one:
        one.stuck = True
        answer = ask_daemon([one.path], {"op": "status"}, timeout=20)
        assert answer == {"ok": False, "error": "the agent's main loop does not answer"}


def test_a_fault_of_the_program_is_told_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with daemon(tmp_path) as agent:
        agent.fault = KeyError("refused")
        status = b'{"op":"status"}\n'
        first, second = say(agent.path, status, status)
    assert not first["ok"] and "fault of the program" in first["error"] and second == first
    assert "KeyError: 'refused'" in caplog.text


def test_a_daemon_that_hangs_up_is_told(tmp_path: Path) -> None:
    path = tmp_path / "edgetwin.sock"
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(path))
        dying.listen()

        def hang_up() -> None:
            client, _ = dying.accept()
            client.recv(100)
            client.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        answer = ask_daemon([path], {"op": "status"}, timeout=20)
        thread.join()
    assert answer == {"ok": False, "error": f"the agent on {path} does not answer"}


def test_a_tag_is_two_texts() -> None:
    assert to_ask({"op": "read", "tags": [["d", "t"]]}, 1.0).keys == (("d", "t"),)
    with pytest.raises(TypeError):
        to_ask({"op": "read", "tags": [["d", None]]}, 1.0)

"""Server-sent events, ten thousand tags, and the front as a whole."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from agent.config.load import parse
from agent.config.types import PageConfig
from agent.page import http as page_http
from agent.page import view
from agent.page.front import Front
from agent.page.view import Look, Sources, spark
from agent.runtime.clock import FakeClock
from agent.runtime.service import Service
from agent.twin.history import BUCKET
from agent.twin.records import Event
from tests.page.harness import Plant, get, plant, raw, serving, stream

MANY = "gateway: g1\ndevices:\n" + "".join(
    f"  plc{d}:\n    url: tcp://10.0.0.{d + 1}:502\n    tags:\n"
    + "".join(f"      t{k}: {{holding: {2 * k}, type: float32}}\n" for k in range(1000))
    for d in range(10)
)


def look(behind: Plant, **query: str) -> Look:
    return Look(
        Sources(
            snapshot=lambda: behind.snapshot,
            status=behind.status,
            events=lambda: behind.events,
            history=behind.history.read,
            ms=behind.ms,
            clock=behind.clock,
            ask=behind.ask,
            loops=lambda: behind.config.loops,
        ),
        query,
    )


def names(body: dict[str, Any]) -> list[str]:
    return [f"{tag['device']}/{tag['tag']}" for tag in body["table"]["tags"]]


def test_events_bring_new_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_http, "LIVE_EVERY", 0.05)
    behind = plant()
    with serving(behind, tmp_path) as front, stream(front) as messages:
        first = next(messages)
        assert first["status"]["gateway"] == "line4" and first["control"] is False
        assert first["table"]["tags"][0]["v"] == 181.375
        behind.values["press1/temperature"] = 222.0
        behind.step()
        assert any(message["table"]["tags"][0]["v"] == 222.0 for message, _ in zip(messages, range(100)))


def test_streams_are_few_and_leave_room_for_monitoring(tmp_path: Path) -> None:
    behind = plant()
    with serving(behind, tmp_path) as front:
        held = []
        try:
            for _ in range(page_http.MOST_STREAMS):
                connection = socket.create_connection(("127.0.0.1", front.port or 0), timeout=20)
                connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
                held.append(connection)
            refused = raw(front, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert get(front, "/metrics").status == 200
        finally:
            for connection in held:
                connection.close()


def test_a_page_that_is_closed_gives_its_place_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_http, "LIVE_EVERY", 0.01)
    behind = plant()
    with serving(behind, tmp_path) as front:
        for _ in range(3 * page_http.MOST_STREAMS):
            opened = False
            for _ in range(500):  # until the one before was noticed as gone
                answer = socket.create_connection(("127.0.0.1", front.port or 0), timeout=20)
                answer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                opened = answer.recv(12) == b"HTTP/1.1 200"
                answer.close()
                if opened:
                    break
            assert opened


def test_a_text_and_quality_choose_the_rows() -> None:
    behind = plant()
    assert names(look(behind, find="PUMP2/").live({})) == ["pump2/speed", "pump2/flow", "pump2/level"]
    body = look(behind, bad="1").live({})
    assert names(body) == ["pump2/level"]
    assert (body["table"]["total"], body["table"]["of"], body["bad"]) == (1, 10, 1)
    assert body["table"]["tags"][0] == {
        "device": "pump2",
        "tag": "level",
        "v": None,
        "state": None,
        "unit": "mA",
        "q": "timeout",
        "ok": False,
        "age": 0.2,
        "numeric": True,
    }
    assert names(look(behind, find="nothing like it").live({})) == []


@pytest.mark.parametrize("first", ["-1", "x", "²", "99999999999999999999", "1e3", ""])
def test_a_first_row_that_is_none_is_the_start(first: str) -> None:
    assert look(plant(), first=first).live({})["table"]["first"] == 0


def test_states_have_names_and_large_integers_stay_exact() -> None:
    tags = {tag["tag"]: tag for tag in look(plant()).live({})["table"]["tags"]}
    assert (tags["fault_code"]["v"], tags["fault_code"]["state"]) == (3, "overheat")
    assert tags["energy"]["v"] == "9007199254740993"
    assert tags["running"]["v"] is True and tags["running"]["state"] is None


def test_ages_go_on_when_the_main_loop_does_not() -> None:
    clock = FakeClock()
    behind = plant(clock=clock)
    page = look(behind)
    assert page.live({})["age"] == 0.0
    clock.advance(30.0)
    body = page.live({})
    assert body["age"] == 30.0
    assert body["table"]["tags"][0]["age"] == 30.2


def test_trends_come_once_a_bucket() -> None:
    clock = FakeClock()
    behind = plant(clock=clock)
    behind.fill_history()
    page = look(behind, find="press1/pressure")
    sparks = page.live({})["sparks"]
    assert set(sparks) == {"press1/pressure", "press1/temperature", "press1/oven_out"}  # and the loop's
    assert len(sparks["press1/pressure"]) == view.SPARK_BUCKETS
    assert min(sparks["press1/pressure"]) == 0 and max(sparks["press1/pressure"]) == 100
    clock.advance(1.0)
    assert "sparks" not in page.live({})
    clock.advance(BUCKET)
    assert "sparks" in page.live({})


def test_a_trend_keeps_its_holes() -> None:
    now = 1000.0
    points = [(now - 50.0, 0.0, 0.0, 2.0), (now - 40.0, 0.0, 0.0, 4.0), (now, 0.0, 0.0, 3.0)]
    line = spark(points, now)
    assert line[-6:] == [0, 100, None, None, None, 50] and line[:-6] == [None] * 54
    assert spark([], now) == []
    assert spark([(now - 3000.0, 1.0, 1.0, 1.0)], now) == []
    assert spark([(now, 7.0, 7.0, 7.0)], now)[-1] == 50
    assert spark([(now - 10, 0.0, 0.0, 5e-324), (now, 0.0, 0.0, 0.0)], now)[-2:] == [100, 0]
    assert spark([(now - 10, 0.0, 0.0, -1.7e308), (now, 0.0, 0.0, 1.7e308)], now)[-2:] == [0, 100]


def test_a_faceplate_has_units_and_limits() -> None:
    plate = look(plant()).live({})["loops"]["oven"]
    assert plate["unit"] == "°C" and plate["out_unit"] == "%"
    assert plate["limits"] == [0, 100] and plate["span"] == [20, 250]
    assert (plate["pv_tag"], plate["out_tag"]) == ("press1/temperature", "press1/oven_out")
    assert (plate["mode"], plate["sp"], plate["pv"], plate["out"]) == ("auto", 180.0, 181.375, 41.5)


def test_the_newest_events_come_first_and_not_all() -> None:
    behind = plant()
    behind.events = [Event(None, "n", "info", "raised", f"event {k}", float(k)) for k in range(200)]
    events = look(behind).live({})["events"]
    assert [event["text"] for event in events] == [f"event {k}" for k in range(199, 149, -1)]


def test_ten_thousand_tags_are_paged_and_encoded_in_slices() -> None:
    behind = plant(MANY)
    body = look(behind, first="9950").live({})
    assert (body["table"]["total"], body["table"]["first"]) == (10_000, 9950)
    assert names(body) == [f"plc9/t{k}" for k in range(950, 1000)]
    assert len(json.dumps(look(behind).live({}))) < 100_000
    assert behind.snapshot is not None
    parts = list(view._twin_parts(behind.snapshot, behind.ms))
    assert max(map(len, parts)) < 100 * view.SLICE  # no encoder call holds the interpreter for long
    twin = json.loads(b"".join(parts))
    assert [len(device["reported"]) for device in twin["devices"].values()] == [1000] * 10


def test_ten_thousand_tags_over_the_wire(tmp_path: Path) -> None:
    behind = plant(MANY)
    behind.values = {"/".join(key): float(row) for row, key in enumerate(behind.layout.keys)}
    behind.step()
    with serving(behind, tmp_path) as front:
        reported = get(front, "/api/twin").json()["devices"]["plc9"]["reported"]
        assert reported["t999"]["v"] == 9999.0
        assert get(front, "/metrics").body.count(b"\nedgetwin_value{") == 10_000
        with stream(front, "/events?find=plc3/t7&first=100") as messages:
            table = next(messages)["table"]
    assert (table["total"], table["first"], len(table["tags"])) == (111, 100, 11)


def test_a_taken_port_is_one_plain_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(plant(), tmp_path, page=PageConfig("127.0.0.1", port)) as front:
            assert front.port is None
            assert (tmp_path / "edgetwin.sock").is_socket()
            told = front.page_error
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert (
        lines == [f"no status page: cannot listen on 127.0.0.1 port {port}: address already in use"] == [told]
    )


def test_a_page_that_cannot_be_served_is_a_problem_that_status_lists(tmp_path: Path) -> None:
    async def problems(page: str) -> Any:
        loaded = parse(f"gateway: line4\ndevices: {{}}\npage: {page}\n", "config.yaml")
        assert loaded.config is not None
        service, stop = Service(loaded.config, state_dir=tmp_path), asyncio.Event()
        running = asyncio.create_task(service.run(stop))
        await asyncio.sleep(0)
        told = service.status()["problems"]
        stop.set()
        await running
        return [one for one in told if "page" in one]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert asyncio.run(problems(f'{{listen: "127.0.0.1:{port}"}}')) == [
            f"no status page: cannot listen on 127.0.0.1 port {port}: address already in use"
        ]
        assert asyncio.run(problems("off")) == []


def test_a_host_that_is_none_is_one_plain_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(plant(), tmp_path, page=PageConfig("host.invalid", 8080)) as front:
        assert front.port is None
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 1 and lines[0].startswith(
        "no status page: cannot listen on host.invalid port 8080: "
    )


def test_without_a_page_the_socket_is_served_alone(tmp_path: Path) -> None:
    behind = plant()
    front = Front(
        page=None,
        token=None,
        serve_socket=lambda: asyncio.start_unix_server(lambda r, w: w.close(), str(tmp_path / "s")),
        snapshot=lambda: None,
        status=behind.status,
        events=lambda: (),
        history=behind.history.read,
        ask=behind.ask,
        anchor_ms=behind.ms,
        clock=behind.clock,
    )
    front.start()
    try:
        assert front.port is None and front.socket_error is None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            assert client.recv(1) == b""
    finally:
        front.stop()


def test_a_second_agent_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(plant(), tmp_path) as first, serving(plant(), tmp_path) as second:
        assert first.socket_error is None
        assert "another agent runs here" in str(second.socket_error)
        assert second.port is not None


def test_it_stops_while_pages_are_open(tmp_path: Path) -> None:
    behind = plant()
    with serving(behind, tmp_path) as front:
        port = front.port or 0
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        front.stop()
        assert front._thread is not None and not front._thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        connection.close()

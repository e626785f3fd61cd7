"""The page's server over real sockets: what it answers, and what it refuses."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config.types import PageConfig
from agent.page import http as page_http
from agent.page import wire
from agent.page.front import Front
from agent.page.tokens import MOST_CLIENTS, WRONG_TOKENS, TokenGuard
from agent.page.wire import Refused
from agent.runtime.clock import FakeClock
from agent.twin.records import Outcome
from tests.page.harness import Plant, get, plant, raw, serving

STATIC = Path("agent/page/static")
CONTROL = PageConfig("127.0.0.1", 0, control=True)


@pytest.fixture
def behind() -> Plant:
    return plant()


@pytest.fixture
def front(behind: Plant, tmp_path: Path) -> Iterator[Front]:
    with serving(behind, tmp_path) as started:
        yield started


# -- what is answered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", page_http.STATIC)
def test_files_come_with_a_strict_policy_and_an_etag(front: Front, path: str) -> None:
    name, kind = page_http.STATIC[path]
    answer = get(front, path)
    assert answer.status == 200
    assert answer.body == (STATIC / name).read_bytes()
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    again = get(front, path, If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert get(front, path, If_None_Match='"other"').status == 200


def test_the_page_holds_nothing_inline_and_nothing_from_elsewhere() -> None:
    html = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", html) == []
    for name in ("index.html", "app.js", "plot.js", "style.css"):
        text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, name
        assert "innerHTML" not in text and "eval(" not in text, name


def test_head_has_no_body(front: Front) -> None:
    answer = raw(front, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_healthz_is_503_while_not_healthy(front: Front, behind: Plant) -> None:
    assert get(front, "/healthz").status == 200
    behind.healthy, behind.problems = False, ["the main loop does not answer"]
    with_new_status(front, behind)
    answer = get(front, "/healthz")
    assert answer.status == 503
    assert answer.json() == {"healthy": False, "problems": ["the main loop does not answer"]}


def with_new_status(front: Front, behind: Plant) -> None:
    """Asks until the shared status was made anew."""
    before = behind.status_calls
    while behind.status_calls == before:
        get(front, "/api/status")


def test_the_twin_is_strict_json_with_exact_integers_and_no_value_without_quality(front: Front) -> None:
    twin = get(front, "/api/twin").json()
    assert list(twin["devices"]) == ["press1", "pump2"]
    press = twin["devices"]["press1"]
    assert list(press["reported"]) == [
        "temperature",
        "pressure",
        "running",
        "fault_code",
        "serial",
        "energy",
        "oven_out",
    ]
    assert press["reported"]["energy"]["v"] == "9007199254740993"
    assert press["reported"]["energy"]["total"] == "9007199254740999"
    assert press["reported"]["running"]["v"] is True
    assert press["state"] == "ok" and press["health"]["score"] == 0.42
    assert press["loops"]["oven"]["mode"] == "auto"
    assert twin["devices"]["pump2"]["reported"]["level"] == {
        "v": None,
        "q": "timeout",
        "t": twin["ts"] - 200,
    }
    assert twin["devices"]["pump2"]["loops"] == {}


def test_before_the_first_snapshot_it_says_so(front: Front, behind: Plant) -> None:
    behind.snapshot = None
    assert get(front, "/api/twin").status == 503
    assert get(front, "/api/history?tag=press1/temperature").status == 404
    assert b"edgetwin_up 1.0" in get(front, "/metrics").body


def test_history_has_the_past_and_the_forecast_but_no_hole(front: Front, behind: Plant) -> None:
    behind.fill_history()
    body = get(front, "/api/history?tag=press1/temperature").json()
    assert (body["device"], body["tag"], body["unit"], body["range"]) == (
        "press1",
        "temperature",
        "°C",
        [-40, 400],
    )
    assert 359 <= len(body["points"]) <= 360
    assert all(low <= last <= high for _, low, high, last in body["points"])
    times = [point[0] for point in body["points"]]
    assert times == sorted(times) and times[-1] <= body["now"]
    assert [point[1:] for point in body["forecast"]] == [[181.5, 180.5, 182.5], [182.0, 181.0, 183.0]]
    assert body["forecast"][1][0] - body["forecast"][0][0] == 4000
    assert get(front, "/api/history?tag=press1/nothing").status == 404
    assert get(front, "/api/history").status == 404


def test_nan_and_infinity_never_reach_json() -> None:
    body = wire.encode({"a": float("nan"), "b": [float("-inf"), 1.5], "c": {"d": "°C", "e": 2**60}})
    assert body == '{"a":null,"b":[null,1.5],"c":{"d":"°C","e":1152921504606846976}}'.encode()


def test_many_who_ask_share_one_status_a_second(tmp_path: Path) -> None:
    behind = plant(clock=FakeClock())
    with serving(behind, tmp_path) as front:
        for _ in range(10):
            get(front, "/healthz")
        assert behind.status_calls == 1
        behind.clock.advance(1.0)  # type: ignore[attr-defined]
        get(front, "/metrics")
        assert behind.status_calls == 2


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/static/app.js", "/../http.py", "/%2e%2e/http.py", "//app.js"])
def test_there_is_nothing_else(front: Front, path: str) -> None:
    assert get(front, path).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "POST"])
def test_other_methods_are_refused(front: Front, method: str) -> None:
    answer = get(front, "/api/twin", method)
    assert answer.status == 405


@pytest.mark.parametrize(
    ("listen", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8080", 200),
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "LOCALHOST:8080", 200),
        ("127.0.0.1", "[::1]:8080", 200),
        ("127.0.0.1", "[::1]", 200),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "evil.example:8080", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "10.0.0.9", 403),
        ("127.0.0.1", "", 403),
        ("0.0.0.0", "10.0.0.9:8080", 200),
        ("0.0.0.0", "[fe80::1]:8080", 200),
        ("0.0.0.0", socket.gethostname(), 200),
        ("0.0.0.0", "bad.cafe", 403),  # hexadecimal digits alone make no address
        ("0.0.0.0", "evil.example:8080", 403),
        ("0.0.0.0", "", 403),
    ],
)
def test_a_foreign_host_is_refused(listen: str, host: str, status: int) -> None:
    """A browser that was led here by another site's name sends that name."""
    behind = plant()
    page = page_http.Page(PageConfig(listen, 0), sources=None, guard=None)  # type: ignore[arg-type]
    request = wire.Request("GET", "/", {}, {"host": host})
    if status == 200:
        page._check_host(request)
    else:
        with pytest.raises(wire.Refused) as refused:
            page._check_host(request)
        assert refused.value.status == status
    assert behind.asked == []


def test_a_foreign_host_gets_nothing_over_the_wire(front: Front) -> None:
    for path in (b"/", b"/api/twin", b"/metrics", b"/events", b"/healthz"):
        answer = raw(front, b"GET " + path + b" HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 "), path
        assert b"press1" not in answer
    assert raw(front, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 403 ")


def test_long_headers_and_bodies_are_refused(front: Front) -> None:
    long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n"
    assert raw(front, long).startswith(b"HTTP/1.1 413 ")
    assert raw(front, b"G" * 40_000).startswith(b"HTTP/1.1 413 ")
    for length in (b"5000", b"99999999999999999999", b"-1", b"x"):
        head = b"POST /api/loop HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
        assert raw(front, head).startswith(b"HTTP/1.1 413 "), length
    chunked = b"POST /api/loop HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(front, chunked).startswith(b"HTTP/1.1 413 ")


def test_a_slow_request_is_cut_off(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_http, "READ_PATIENCE", 0.2)
    assert raw(front, b"GET / HTTP/1.1\r\nHost: local").startswith(b"HTTP/1.1 408 ")
    body = b"POST /api/loop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
    assert raw(front, body).startswith(b"HTTP/1.1 408 ")


def test_more_connections_than_allowed_are_told_so_and_place_is_given_back(front: Front) -> None:
    assert front.port is not None
    held = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(page_http.MOST_CONNECTIONS)]
    try:
        for connection in held:
            connection.sendall(b"GET /healthz")  # it has begun, so each is counted
        refused = raw(front, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in held:
            connection.close()
    answers = (get(front, "/healthz").status for _ in range(1000))
    assert 200 in answers


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / FTP/1.0\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /?" + b"&".join([b"a=1"] * 50) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_what_is_no_request_is_told_so(front: Front, data: bytes) -> None:
    assert raw(front, data).startswith(b"HTTP/1.1 400 ")
    assert get(front, "/healthz").status == 200


def test_random_bytes_do_no_harm(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(7)
    for _ in range(200):
        start = draw.choice(
            [b"", b"GET /", b"GET /api/history?tag=", b"POST /api/loop HTTP/1.1\r\nHost: localhost\r\n"]
        )
        data = start + draw.randbytes(draw.randrange(200)) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = raw(front, data)
        assert re.match(rb"HTTP/1\.1 [34]\d\d ", answer) or answer == b""
    assert get(front, "/healthz").status == 200
    assert caplog.records == []


def test_a_fault_of_ours_costs_one_answer(
    front: Front, behind: Plant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, object]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(page_http.metrics, "text", lambda *_: broken())
    answer = get(front, "/metrics")
    assert answer.status == 500 and b"a bug" not in answer.body
    assert "a bug" in caplog.text
    assert get(front, "/healthz").status == 200


# -- control ----------------------------------------------------------------------------------------------------

WISH = b'{"loop": "oven", "mode": "manual", "setpoint": 175}'


def test_without_control_nothing_can_be_changed(front: Front, behind: Plant) -> None:
    answer = get(front, "/api/loop", "POST", WISH, Authorization="Bearer secret")
    assert answer.status == 403 and b"read-only" in answer.body
    assert behind.asked == []


def test_a_wish_reaches_the_doors(tmp_path: Path) -> None:
    behind = plant()
    with serving(behind, tmp_path, page=CONTROL, token="secret") as front:
        own = f"http://127.0.0.1:{front.port}"
        answer = get(front, "/api/loop", "POST", WISH, Authorization="Bearer secret", Origin=own)
        assert answer.json() == {"ok": True, "error": None}
        behind.outcome = Outcome(False, error="outside setpoint_limits")
        answer = get(
            front, "/api/loop", "POST", b'{"loop":"oven","setpoint":900}', Authorization="Bearer secret"
        )
        assert answer.json() == {"ok": False, "error": "outside setpoint_limits"}
    first, second = behind.asked
    assert (first.op, first.source, first.loop, first.mode, first.setpoint) == (
        "loop",
        "page",
        "oven",
        "manual",
        175.0,
    )
    assert first.deadline > behind.clock.mono() - 5
    assert (second.mode, second.setpoint) == (None, 900.0)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost"])
def test_a_post_from_another_site_is_refused(tmp_path: Path, origin: str) -> None:
    behind = plant()
    with serving(behind, tmp_path, page=CONTROL, token="secret") as front:
        answer = get(front, "/api/loop", "POST", WISH, Authorization="Bearer secret", Origin=origin)
    assert answer.status == 403 and b"another site" in answer.body
    assert behind.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"loop": 1}',
        b'{"loop": "oven", "mode": 3}',
        b'{"loop": "oven", "setpoint": NaN}',
        b'{"loop": "oven", "setpoint": 1e999}',
        b'{"loop": "oven", "setpoint": true}',
        b'{"loop": "oven", "setpoint": "180"}',
        b"[" * 4000,
        b"\xff\xfe",
    ],
)
def test_a_wish_that_is_none_is_refused(tmp_path: Path, body: bytes) -> None:
    behind = plant()
    with serving(behind, tmp_path, page=CONTROL, token="secret") as front:
        assert get(front, "/api/loop", "POST", body, Authorization="Bearer secret").status == 400
    assert behind.asked == []


def test_five_wrong_tokens_lock_it_for_a_minute_for_the_right_one_too(tmp_path: Path) -> None:
    clock = FakeClock()
    behind = plant(clock=clock)

    def post(token: str) -> int:
        return get(front, "/api/loop", "POST", WISH, Authorization=f"Bearer {token}").status

    with serving(behind, tmp_path, page=CONTROL, token="secret") as front:
        for _ in range(4):
            assert post("wrong") == 403
        assert post("secret") == 200  # and the count begins anew
        for _ in range(5):
            clock.advance(10.0)
            assert post("guess") == 403
        assert post("secret") == 429
        clock.advance(59.0)
        assert post("secret") == 429
        clock.advance(1.5)
        assert post("secret") == 200
        for _ in range(10):  # who shows none guesses at none
            assert post("") == 403
        assert post("secret") == 200
    assert len(behind.asked) == 3


def test_whoever_guesses_locks_out_no_other() -> None:
    guard = TokenGuard("secret")
    for _ in range(WRONG_TOKENS):
        with pytest.raises(Refused, match="wrong token"):
            guard.check("guess", "10.0.0.9", 0.0)
    with pytest.raises(Refused, match="locked"):
        guard.check("secret", "10.0.0.9", 1.0)
    guard.check("secret", "10.0.0.7", 1.0)
    for other in range(MOST_CLIENTS):  # what is remembered has a bound
        with pytest.raises(Refused, match="wrong token"):
            guard.check("guess", f"10.1.{other // 256}.{other % 256}", 2.0)
    guard.check("secret", "10.0.0.9", 3.0)

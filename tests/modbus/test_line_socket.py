"""The line on real sockets: one socket, the neighbour's period, a device that restarts, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config.types import Device, Limits, Tag, Url
from agent.modbus import secure
from agent.modbus.codec import WireWrite
from agent.modbus.line import Line, Reply, ScanDone
from agent.modbus.plan import Request
from agent.runtime.clock import SystemClock
from agent.twin.records import Event
from tests.modbus.faults import ON_RTU, ON_TCP
from tests.modbus.faultserver import FaultServer, registers
from tests.modbus.plant import request


class Site:
    """A line to a fault server; wrong values are counted."""

    def __init__(
        self, url: Url, devices: dict[str, int], requests: list[Request], timeout: float = 0.1
    ) -> None:
        self.replies: list[tuple[Request, Reply]] = []
        self.scans: list[ScanDone] = []
        self.events: list[Event] = []
        self.wrong = 0
        self.line = Line(
            url,
            [
                Device(name, url, unit=unit, timeout=timeout, tags=_tags(name, requests))
                for name, unit in devices.items()
            ],
            {name: tuple(one for one in requests if one.device == name) for name in devices},
            clock=SystemClock(),
            on_reply=self._reply,
            on_scan=self.scans.append,
            on_event=self.events.append,
            rng=random.Random(1),
        )

    def _reply(self, request: Request, reply: Reply) -> None:
        self.replies.append((request, reply))
        if reply.payload is not None and reply.payload != registers(request.address, request.count):
            self.wrong += 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.line.run())
        try:
            yield
        finally:
            await self.line.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until_good(self, patience: float = 20.0) -> float:
        """Seconds until the next good reply."""
        loop = asyncio.get_running_loop()
        start, known = loop.time(), len(self.replies)
        while not any(reply.payload is not None for _, reply in self.replies[known:]):
            assert loop.time() - start < patience
            await asyncio.sleep(0.005)
        return loop.time() - start


def _tags(device: str, requests: list[Request]) -> dict[str, Tag]:
    return {
        tag: Tag(tag, "holding", int(tag[1:]), every=request.every)
        for request in requests
        if request.device == device
        for tag in request.tags
    }


def url_of(server: FaultServer, scheme: str = "tcp") -> Url:
    return Url(f"{scheme}://127.0.0.1:{server.port}", scheme, "127.0.0.1", server.port)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
def test_whatever_a_device_does_the_line_takes_no_wrong_value_and_one_socket(scheme: str) -> None:
    table = ON_TCP if scheme == "tcp" else ON_RTU

    async def test() -> None:
        server = await FaultServer(rtu=scheme == "rtu+tcp").start()
        site = Site(
            url_of(server, scheme),
            {"a": 1, "b": 2},
            [request("a", 1, 100, 10, 0.02), request("a", 1, 300, 10, 0.03), request("b", 2, 500, 10, 0.05)],
        )
        async with site.running():
            await site.until_good()
            for name, fault in itertools.chain(table.items(), table.items()):
                server.break_next(fault)
                while server.faults_left:
                    await asyncio.sleep(0.005)
                assert await site.until_good() < 15.0, name
        assert site.wrong == 0
        assert server.most_live == 1
        await server.stop()

    asyncio.run(test())


def test_the_period_of_a_healthy_unit_stands_beside_a_dead_one() -> None:
    async def test() -> None:
        server = await FaultServer(silent_units={2}).start()
        site = Site(
            url_of(server),
            {"good": 1, "dead": 2},
            [request("good", 1, every=0.2), request("dead", 2)],
            timeout=0.5,
        )
        async with site.running():
            await asyncio.sleep(5.0)
            assert site.line.device_states() == {"good": "ok", "dead": "silent"}
        good = [scan for scan in site.scans if scan.device == "good"]
        assert all((scan.due - good[0].due) / 0.2 % 1 == pytest.approx(0.5, abs=0.5) for scan in good)
        late = sorted(scan.started - scan.due for scan in good)
        assert len(good) >= 20
        assert late[int(0.8 * len(late))] < 0.1  # an idle machine shows 1 ms; a dead unit would cost 500
        assert sum(asked.unit == 2 for asked in server.asked) in range(4, 9)
        await server.stop()

    asyncio.run(test())


def test_a_device_that_restarts_is_back_soon() -> None:
    async def test() -> None:
        server = await FaultServer().start()
        site = Site(url_of(server), {"a": 1}, [request("a", 1, every=1.0)])
        async with site.running():
            await site.until_good()
            port = server.port
            await server.stop()
            await asyncio.sleep(2.0)
            assert site.line.status()["state"] == "down"
            ended = len(site.replies)
            await server.start(port)
            assert await site.until_good() < 5.0  # 1.5 s on an idle machine
            await asyncio.sleep(0.1)
            assert [event.state for event in site.events if event.name == "link_down"] == [
                "raised",
                "cleared",
            ]
        assert all(reply.payload is None for _, reply in site.replies[ended - 1 : ended])
        assert server.most_live == 1
        await server.stop()

    asyncio.run(test())


def test_writes_reach_the_device() -> None:
    async def test() -> None:
        server = await FaultServer().start()
        site = Site(url_of(server), {"a": 1}, [request("a", 1, every=0.05)])
        async with site.running():
            deadline = asyncio.get_running_loop().time() + 20.0
            for value in (1, 2):
                await site.line.write("a", WireWrite(1, 6, 7, words=(value,)), deadline=deadline)
        assert [asked.pdu for asked in server.asked if asked.function == 6] == [b"\6\0\7\0\1", b"\6\0\7\0\2"]
        await server.stop()

    asyncio.run(test())


def test_the_pause_after_connecting_is_kept() -> None:
    async def test() -> None:
        server = await FaultServer().start()
        loop = asyncio.get_running_loop()
        url = url_of(server)
        device = Device("a", url, limits=Limits(pause_after_connect=0.3))
        replies: list[Reply] = []
        line = Line(
            url,
            [device],
            {"a": (request("a", 1, every=0.05),)},
            clock=SystemClock(),
            on_reply=lambda request, reply: replies.append(reply),
            on_scan=lambda done: None,
            on_event=lambda event: None,
            rng=random.Random(1),
        )
        task = asyncio.create_task(line.run())
        while not server.connections:
            await asyncio.sleep(0.005)
        connected = loop.time()
        while not replies:
            await asyncio.sleep(0.005)
        assert replies[0].payload is not None
        assert loop.time() - connected > 0.25
        await line.close()
        await task
        await server.stop()

    asyncio.run(test())


def test_lines_that_are_closed_leave_no_socket() -> None:
    """As a reload does: the old line ends, a new one begins; also while an answer is waited for."""

    async def test() -> None:
        server = await FaultServer(silent_units={2}).start()
        for number in range(20):
            unit = 1 + number % 2
            site = Site(url_of(server), {"a": unit}, [request("a", unit, every=0.05)], timeout=5.0)
            before = len(server.asked)
            async with site.running():
                while len(server.asked) == before:
                    await asyncio.sleep(0.002)
        assert (server.connections, server.most_live) == (20, 1)
        await server.stop()

    asyncio.run(test())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_modbus_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def test() -> None:
        server = FaultServer(tls=context)
        await server.start()
        site = Site(url_of(server, "tls"), {"a": 1}, [request("a", 1, 100, 125, 0.05)], timeout=2.0)
        async with site.running():
            if trusted:
                await site.until_good()
                server.break_next(ON_TCP["single_bytes"])
                await site.until_good()
                server.break_next(ON_TCP["fin_in_the_middle"])
                await site.until_good()
                await site.until_good()
            else:
                while not site.events:
                    await asyncio.sleep(0.01)
                assert "TLS: self-signed certificate" in site.events[0].text
        assert site.wrong == 0
        assert server.most_live <= 1
        await server.stop()

    for trusted in (False, True):
        secure._loaded.cache_clear()
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        asyncio.run(test())
    secure._loaded.cache_clear()

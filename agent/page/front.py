"""The front thread: the status page and the control socket on a small loop of their own.

The main loop is never held up: what is shown is read from a snapshot that it swapped in; requests go to it as `Ask`s.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agent.config.types import PageConfig
from agent.page.http import Page
from agent.page.view import Sources
from agent.runtime.clock import Clock
from agent.twin.history import Point
from agent.twin.records import Ask, Event, Outcome, Snapshot

log = logging.getLogger("edgetwin.page")

START_PATIENCE, STOP_PATIENCE = 5.0, 3.0


class Front:
    """Starts and ends the thread. `serve_socket` opens the control socket in the thread's loop."""

    def __init__(
        self,
        *,
        page: PageConfig | None,
        token: str | None,
        serve_socket: Callable[[], Awaitable[asyncio.Server]],
        snapshot: Callable[[], Snapshot | None],
        status: Callable[[], dict[str, Any]],
        events: Callable[[], Sequence[Event]],
        history: Callable[[int], Sequence[Point]],
        ask: Callable[[Ask], concurrent.futures.Future[Outcome]],
        anchor_ms: Callable[[float], int],
        clock: Clock,
    ) -> None:
        self._page = page
        self._token = token
        self._serve_socket = serve_socket
        self._sources = Sources(snapshot, status, events, history, anchor_ms, clock, ask)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._started = threading.Event()
        self.port: int | None = None
        """Of the page; None while it is not served."""

    def start(self) -> None:
        """Returns when the page and the socket listen, or it is known why they cannot."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="front", daemon=True)
        self._thread.start()
        self._started.wait(START_PATIENCE)

    def stop(self) -> None:
        if self._loop is not None and self._done is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._done.set)
        if self._thread is not None:
            self._thread.join(STOP_PATIENCE)

    async def _run(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        servers: list[asyncio.Server] = []
        for open_one in (self._serve_socket, self._open_page):
            try:
                server = await open_one()
            except Exception as error:  # the plant goes on without a page
                log.error("%s", error)
                continue
            if server is not None:
                servers.append(server)
        self._started.set()
        await self._done.wait()
        for server in servers:
            server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(0), 1.0)

    async def _open_page(self) -> asyncio.Server | None:
        if self._page is None:
            return None
        page = Page(self._page, self._sources, self._token)
        try:
            server = await asyncio.start_server(page.talk, self._page.host, self._page.port, limit=page.limit)
        except OSError as error:
            where = f"{self._page.host}:{self._page.port}"
            raise OSError(f"the page cannot listen on {where}: {error.strerror or error}") from None
        self.port = server.sockets[0].getsockname()[1]
        page.port = self.port
        return server

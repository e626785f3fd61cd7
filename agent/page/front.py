"""The front thread: the status page and the control socket on a small loop of their own.

The main loop is never held up: what is shown is read from a snapshot that it swapped in; requests go to it as `Ask`s.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from agent.config.types import LoopConfig, PageConfig
from agent.page.http import Page
from agent.page.tokens import TokenGuard
from agent.page.view import Sources
from agent.runtime.clock import Clock
from agent.twin.history import Point
from agent.twin.records import Ask, Event, Outcome, Snapshot

log = logging.getLogger("edgetwin.page")

START_PATIENCE, STOP_PATIENCE = 5.0, 3.0
BACKLOG = 32


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
        loops: Callable[[], Mapping[str, LoopConfig]] = dict,
    ) -> None:
        self._page = page
        self._token = token
        self._serve_socket = serve_socket
        self._sources = Sources(snapshot, status, events, history, anchor_ms, clock, ask, loops)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._started = threading.Event()
        self.port: int | None = None
        """Of the page; None while it is not served."""
        self.page_error: str | None = None
        """Why the page is not served though it is asked for."""
        self.socket_error: Exception | None = None
        """Why the control socket is not served: another agent answers on it, or the file cannot be made."""

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
        try:
            servers.append(await self._serve_socket())
        except Exception as error:  # whether to go on without it is the caller's to say
            self.socket_error = error
            log.error("no control socket: %s", error)
        page = await self._open_page()
        if page is not None:
            servers.append(page)
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
        page = Page(self._page, self._sources, TokenGuard(self._token) if self._token else None)
        host, port = self._page.host, self._page.port
        try:
            server = await asyncio.start_server(page.talk, host, port, limit=page.limit, backlog=BACKLOG)
        except OSError as error:  # the plant goes on without a page
            why = (
                os.strerror(error.errno).lower()
                if error.errno and error.errno > 0
                else error.strerror or error
            )
            self.page_error = f"no status page: cannot listen on {host} port {port}: {why}"
            log.error("%s", self.page_error)
            return None
        self.port = server.sockets[0].getsockname()[1]
        page.port = self.port
        log.info("status page on http://%s:%d", f"[{host}]" if ":" in host else host, self.port)
        return server

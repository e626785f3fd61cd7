"""One connection to one line or host: the only file that knows pymodbus's clients.

pymodbus connects, owns the transports and builds the frames; `framers.StrictTransactions` takes the place of its
transaction manager (the reasons stand there). A Link never holds more than one socket or port, and never connects by
itself: when and how often is the line's business.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import ipaddress
import logging
import socket
import ssl
import termios
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient, AsyncModbusTlsClient
from pymodbus.framer import FramerType
from pymodbus.transport import CommParams
from pymodbus.transport.serialtransport import SerialTransport
from serial.tools import list_ports

from agent.config.types import Device, TlsConfig, Url
from agent.modbus import secure
from agent.modbus.asks import LOOPBACK, READS, WRITE_COIL, Answer, Ask, ask
from agent.modbus.faults import LinkFault
from agent.modbus.framers import MbapFramer, RtuFramer, StrictTransactions
from agent.runtime.clock import Clock
from agent.twin.quality import Quality

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

KEEPALIVE_IDLE, KEEPALIVE_EVERY, KEEPALIVE_TRIES = 10, 5, 3
UNACKNOWLEDGED_MS = 10_000
"""A pulled cable ends the connection after this long, not after the kernel's 15 minutes."""
TURNAROUND = 0.1
"""Seconds of silence after a broadcast on a serial line (Modbus over serial line V1.02, 2.4.1: 100 to 200 ms)."""
SHORTEST_GAP = 0.00175
"""Seconds between frames above 19200 baud (Modbus over serial line V1.02, 2.5.1.1)."""
LONGEST_PROBE = 16
LOOKUP_PATIENCE = 0.3
"""Seconds for the name service when the address of last time is still known."""
RESOLVERS = concurrent.futures.ThreadPoolExecutor(4, "resolve")
"""Threads of its own: a dead name service must not hold up the others' work."""


def link_settings(devices: Sequence[Device]) -> dict[str, Any]:
    """What a connection depends on beside its url: the keyword arguments of `Link`. At least one device."""
    return {
        "accept": frozenset(word for device in devices for word in device.accept),
        "settle": max(device.limits.pause_after_connect for device in devices),
        "tls": devices[0].tls,
    }


class Link:
    """One transport for one Url. `on_lost` and `on_late` as in StrictTransactions.

    `accept` and `tls` as the keys of a device; `settle` seconds pass after each connecting before the first request.
    """

    def __init__(
        self,
        url: Url,
        *,
        clock: Clock,
        on_lost: Callable[[str], None],
        on_late: Callable[[int, float], None],
        accept: frozenset[str] = frozenset(),
        settle: float = 0.0,
        tls: TlsConfig | None = None,
    ) -> None:
        self.url = url
        self._tls = tls or TlsConfig()
        self._settle = settle
        self._clock = clock
        self._on_lost = on_lost
        self._on_late = on_late
        self._accept = accept
        self._rtu = url.scheme in ("rtu", "rtu+tcp")
        self._serial = url.scheme == "rtu"
        self._simple = not self._rtu and "transaction" not in accept
        self._gap = self._frame_gap()
        self._echo = url.local_echo
        self._known: list[str] = []
        self._lookup: asyncio.Future[list[Any]] | None = None
        self._now: StrictTransactions | None = None

    @property
    def connected(self) -> bool:
        return self._now is not None and self._now.is_active()

    # -- connecting ---------------------------------------------------------------------------------------------

    async def connect(self, timeout: float) -> None:
        """Opens the connection unless it is open. Raises LinkFault with the reason in plain words."""
        if self.connected:
            return
        self.close()
        try:
            async with asyncio.timeout(timeout):
                await self._open(timeout)
            await asyncio.sleep(self._settle)
        except TimeoutError:
            self.close()
            raise LinkFault(f"{self.url.text}: no connection within {timeout:.1f} s") from None
        except (ssl.SSLError, secure.Unusable) as error:
            self.close()
            raise LinkFault(f"{self.url.text}: {secure.why(error, self._tls)}") from None
        except termios.error as error:
            self.close()
            words = (
                f"this port does not take {self.url.baud} baud, parity {self.url.parity} ({error.args[-1]})"
            )
            raise LinkFault(f"{self.url.text}: {words}") from None
        except OSError as error:
            self.close()
            raise LinkFault(f"{self.url.text}: {await self._reason(error)}") from None
        except BaseException:
            self.close()
            raise

    async def _open(self, timeout: float) -> None:
        if self._serial:
            transactions = self._transactions(self.url.path, timeout)
            transactions.transport = await self._open_port(transactions)
            return
        addresses = [self.url.host] if self.url.scheme == "tls" else await self._addresses()
        for left in range(len(addresses) - 1, -1, -1):
            # the next attempt begins with another address, also when this one runs into the timeout
            address = addresses.pop(0)
            addresses.append(address)
            transactions = self._transactions(address, timeout)
            try:
                transactions.transport, _ = await transactions.call_create()
                break
            except OSError:
                if not left:
                    raise
        addresses.insert(0, addresses.pop())  # the good one stays the first
        _tune(transactions.transport)

    def _transactions(self, host: str, timeout: float) -> StrictTransactions:
        self._now = StrictTransactions(
            self._parameters(host, timeout),
            self._framer(),
            clock=self._clock,
            on_lost=self._lost,
            on_late=self._on_late,
            echo=self._echo,
        )
        return self._now

    def _parameters(self, host: str, timeout: float) -> CommParams:
        """What pymodbus's own client makes of the URL; reconnecting is the line's business."""
        url = self.url
        common: dict[str, Any] = {"timeout": timeout, "reconnect_delay": 0, "retries": 0}
        if url.scheme == "rtu":
            return AsyncModbusSerialClient(
                host, baudrate=url.baud, parity=url.parity, stopbits=url.stopbits, **common
            ).comm_params
        if url.scheme == "tls":
            return AsyncModbusTlsClient(
                host, port=url.port, sslctx=secure.tls_context(self._tls), **common
            ).comm_params
        framer = FramerType.RTU if self._rtu else FramerType.SOCKET
        return AsyncModbusTcpClient(host, port=url.port, framer=framer, **common).comm_params

    def _framer(self) -> MbapFramer | RtuFramer:
        if self._rtu:
            return RtuFramer()
        return MbapFramer(any_transaction="transaction" in self._accept, any_unit="unit" in self._accept)

    async def _addresses(self) -> list[str]:
        """The addresses of the host; the last good ones while its name cannot be resolved.

        A lookup that hangs is waited for again by the next attempt instead of starting another one.
        """
        host = self.url.host
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.get_running_loop().run_in_executor(
                RESOLVERS, functools.partial(socket.getaddrinfo, host, self.url.port, type=socket.SOCK_STREAM)
            )
        try:
            async with asyncio.timeout(LOOKUP_PATIENCE if self._known else None):
                found = await asyncio.shield(self._lookup)
        except (TimeoutError, OSError):
            if not self._known:
                raise
            return self._known
        fresh = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if set(fresh) != set(self._known):
            self._known = fresh
        return self._known

    async def _open_port(self, transactions: StrictTransactions) -> SerialTransport:
        """Opens a serial port in a thread: a slow adapter must not hold up the other lines."""
        loop = asyncio.get_running_loop()
        url = self.url
        opened = loop.run_in_executor(
            None,
            functools.partial(
                SerialTransport,
                loop,
                transactions,
                url.path,
                url.baud,
                8,
                _parity(url),
                url.stopbits,
                None,
            ),
        )
        try:
            transport = await asyncio.shield(opened)
        except asyncio.CancelledError:
            opened.add_done_callback(_close_port)
            raise
        transport.setup()
        return transport

    async def _reason(self, error: OSError) -> str:
        if self._serial:
            return await asyncio.get_running_loop().run_in_executor(None, _port_reason, self.url.path, error)
        if isinstance(error, socket.gaierror):
            return f"the name {self.url.host} is not known ({error.strerror})"
        if isinstance(error, ConnectionRefusedError):
            return "connection refused"
        if self.url.scheme == "tls" and isinstance(error, ConnectionError):
            return secure.ended(self._tls)
        return error.strerror or str(error)

    def _lost(self, words: str) -> None:
        self._remember_echo()
        if self.url.scheme == "tls":
            heard = self._now is not None and self._now.last_byte > 0.0
            words = secure.reworded(words, self._tls, heard=heard)
        self._on_lost(f"{self.url.text}: {words}")

    def _remember_echo(self) -> None:
        if self._now is not None and self._now.echo and not self._echo:
            self._echo = True
            logging.getLogger("edgetwin.modbus").warning(
                "%s: this line sends back what it is sent; `local_echo=true` in its url says so from the start",
                self.url.text,
            )

    def close(self) -> None:
        """Ends the connection, if there is one, at once; a waiting request fails."""
        if self._now is not None:
            self._remember_echo()
            self._now.shut()
            self._now = None

    # -- requests -----------------------------------------------------------------------------------------------

    def transact(
        self, unit: int, function: int, body: bytes, *, timeout: float, within: float
    ) -> Coroutine[Any, Any, Answer]:
        """One request and its right reply; an exception of the device is an Answer too.

        `body` is what follows the function code; `timeout` in seconds is what the device may take, beside the time
        that the frames themselves need on a serial line; all of it ends within `within` seconds. Awaiting it raises
        LinkFault (LINK or TIMEOUT).
        """
        wanted = ask(unit, function, body)
        now = self._now
        if now is not None and self._simple:
            return now.transact(wanted, min(timeout, within))
        return self._transact(wanted, timeout, within)

    async def _transact(self, wanted: Ask, timeout: float, within: float) -> Answer:
        now = self._now
        if now is None:
            raise LinkFault(f"{self.url.text}: no connection")
        patience = min(timeout, within)
        if self._rtu:
            until = self._clock.mono() + within
            await self._quiet(now)
            if wanted.unit == 0 and wanted.function not in READS:
                return await self._broadcast(now, wanted)
            if wanted.is_echoed and not now.echo_known:
                await self._listen(now, wanted, timeout, until)
            if now.clashes(wanted):
                now = await self._resynchronise(now, wanted, timeout, until)
            patience = self._patience(wanted, timeout, until)
        try:
            return await now.transact(wanted, patience)
        except LinkFault as fault:
            if fault.quality is Quality.TIMEOUT and "transaction" in self._accept:
                # without transaction ids only a new connection keeps a late reply from being taken for the next one
                self.close()
            raise

    async def _broadcast(self, now: StrictTransactions, wanted: Ask) -> Answer:
        sent = self._clock.mono()
        now.post(wanted)
        await asyncio.sleep(self._wire_time(wanted) + TURNAROUND)
        return Answer(b"", None, self._clock.mono(), self._clock.mono() - sent)

    def _patience(self, wanted: Ask, timeout: float, until: float) -> float:
        return max(0.0, min(timeout + self._wire_time(wanted), until - self._clock.mono()))

    async def _listen(self, now: StrictTransactions, wanted: Ask, timeout: float, until: float) -> None:
        """Before a write whose confirmation equals its echo: one read shows whether the line echoes.

        Otherwise a write to a dead device would pass on a two-wire line whose `local_echo` nobody has told.
        """
        function = 1 if wanted.function == WRITE_COIL else 3
        place = wanted.pdu[1:3]
        probes = [ask(wanted.unit, function, place + bytes((0, count))) for count in range(1, LONGEST_PROBE)]
        probe = next((one for one in probes if not now.clashes(one)), probes[-1])
        await now.transact(probe, self._patience(probe, timeout, until))
        await self._quiet(now)

    async def _resynchronise(
        self, now: StrictTransactions, wanted: Ask, timeout: float, until: float
    ) -> StrictTransactions:
        """Before a request for whose reply a late one could be taken: drains or reopens the line, then asks a probe.

        The reply to the probe cannot be mistaken for a late one: it is a shorter read of the same place, else the
        loopback of the diagnostic function, else another function that is not owed a reply, to which an exception is
        as good an answer. A unit answers in order: once it has answered the probe, nothing older can come. The new
        connection, or the silence, is for those that do not keep to that.
        """
        vain = now.asked_in_vain(wanted.unit)
        waited = 0.0 if vain is None else vain.ended - vain.sent
        silent = 0.0 if vain is None else self._clock.mono() - vain.ended
        if self._serial:
            await asyncio.sleep(max(0.0, min(waited - silent, until - self._clock.mono())))
        elif silent < 2 * waited:
            self.close()
            await self.connect(max(0.0, until - self._clock.mono()))
            assert self._now is not None
            self._now.inherit(now)
            now = self._now
        if now.clashes(wanted):
            probe = _probe(now, wanted, int(self._clock.mono() * 1000))
            owed = now.owes(wanted.unit, probe.function)
            answer = await now.transact(probe, self._patience(probe, timeout, until))
            if owed and answer.exception is not None:  # it may be that of an earlier request
                probe = _other_probe(now, wanted, int(self._clock.mono() * 1000))
                await now.transact(probe, self._patience(probe, timeout, until))
            now.forget(wanted.unit)
            await self._quiet(now)
        return now

    async def _quiet(self, now: StrictTransactions) -> None:
        """Waits until the line has been silent for 3.5 characters."""
        while (wait := now.last_byte + self._gap - self._clock.mono()) > 0:
            await asyncio.sleep(wait)

    def _frame_gap(self) -> float:
        if not self._serial:
            return 0.0
        return 3.5 * self.url.character if self.url.baud <= 19200 else SHORTEST_GAP

    def _wire_time(self, wanted: Ask) -> float:
        """Seconds that the request and its reply take on a serial line."""
        if not self._serial:
            return 0.0
        size = 6 + len(wanted.pdu) + (wanted.size if wanted.size is not None else 253)
        return (size * (2 if self._echo else 1)) * self.url.character


def _probe(now: StrictTransactions, wanted: Ask, token: int) -> Ask:
    """A request to the same unit whose reply differs from every reply that may still be late."""
    if wanted.function in READS:
        count = int.from_bytes(wanted.pdu[3:5], "big")
        for shorter in range(1, min(count, LONGEST_PROBE + 1)):
            probe = ask(wanted.unit, wanted.function, wanted.pdu[1:3] + shorter.to_bytes(2, "big"))
            if not now.clashes(probe):
                return probe
    return _other_probe(now, wanted, token)


def _other_probe(now: StrictTransactions, wanted: Ask, token: int) -> Ask:
    """The same with a function that is owed no reply; the loopback when all are."""
    place = wanted.pdu[1:3] if len(wanted.pdu) >= 5 else b"\0\0"
    for function in sorted(READS) if now.owes(wanted.unit, LOOPBACK) else ():
        if not now.owes(wanted.unit, function):
            return ask(wanted.unit, function, place + b"\0\1")
    return ask(wanted.unit, LOOPBACK, b"\0\0" + (token & 0xFFFF).to_bytes(2, "big"))


def _tune(transport: asyncio.BaseTransport) -> None:
    """A dead peer is noticed in seconds, not in the kernel's minutes."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_TRIES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS),
    ):
        sock.setsockopt(level, option, value)


def _parity(url: Url) -> str:
    """The URL's, but none on a pseudo-terminal: it has no parity, and refuses to be asked for one twice."""
    return "N" if Path(url.path).resolve().is_relative_to("/dev/pts") else url.parity


def _close_port(opened: asyncio.Future[SerialTransport]) -> None:
    """A port that was opened too late is closed again."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result().sync_serial.close()


def _port_reason(path: str, error: OSError) -> str:
    """Why a serial port cannot be opened, and which ones there are."""
    if not Path(path).exists():
        there = sorted(port.device for port in list_ports.comports())
        return (
            f"there is no such serial port; there {'are: ' + ', '.join(there) if there else 'is none at all'}"
        )
    words = str(error)
    if not Path(path).is_char_device() or "Inappropriate ioctl" in words:
        return "this is no serial port"
    if isinstance(error, PermissionError) or "Permission denied" in words:
        return "no permission for this port; its group is mostly dialout"
    if "lock" in words or "exclusive" in words or "Resource temporarily unavailable" in words:
        return "another program holds this port"
    return error.strerror or words

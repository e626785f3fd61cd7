"""Strict Modbus replies: pymodbus's framers build the frames, its transports carry them; this file judges what comes.

Why pymodbus's own TransactionManager is not used as it is (3.16):
- a reply with transaction id 0, another function, another length or another echo is taken for the right one;
- a lost connection does not fail the waiting call, which then waits for its whole timeout;
- on RTU the late reply of a request that timed out is taken for the reply of the next one, and the shift stays;
- one byte of noise before an RTU frame, or a protocol id other than 0, costs the frame;
- an undecodable reply raises inside the protocol, and the connection is lost with it;
- it turns each reply into a list of ints, and lets asyncio allocate 256 KiB for each read.
So one class takes its place: it knows byte for byte how the right reply must begin, and takes nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU
from pymodbus.transaction import TransactionManager
from pymodbus.transport import CommParams

from agent.modbus.asks import READS, Ask, difference, is_right
from agent.modbus.asks import Answer as Answer
from agent.modbus.asks import ask as ask
from agent.modbus.crc import crc16
from agent.modbus.faults import LinkFault
from agent.modbus.waiting import GivenUp, Waiting
from agent.runtime.clock import Clock
from agent.twin.quality import Quality

RECEIVE_BUFFER = 8192
KEPT = 1024
"""Bytes kept of what is no reply; more than the longest frame (260)."""
LATE_KEPT = 256
NEVER = float("inf")
SILENCE = 0.05
"""Seconds after a broken RTU reply in which nothing more comes: then nothing more will."""
MBAP = struct.Struct(">HHHB")


class Judged(NamedTuple):
    """What a buffer holds: the right PDU or None, and what came instead, in words."""

    pdu: bytes | None
    wrong: str | None = None


Frame = tuple[bytes, bytes, int]
"""A request as it is sent, how its right reply begins, and that reply's length (0: it has to be looked for)."""

ENCODER = FramerSocket(DecodePDU(False))


@functools.lru_cache(maxsize=4096)
def _mbap(ask: Ask) -> Frame:
    """What MbapFramer.frame gives, without the transaction id."""
    request = ENCODER.encode(ask.pdu, ask.unit, 0)[2:]
    if ask.size is None or (ask.size == len(ask.pdu) and not ask.is_echoed):
        return (
            request,
            b"",
            0,
        )  # three bytes of bits may be an echo, which only a look at the whole of it shows
    return request, struct.pack(">HHB", 0, ask.size + 1, ask.unit) + ask.head, 7 + ask.size


class MbapFramer(FramerSocket):
    """Modbus/TCP frames, for TLS too (pymodbus's TLS framer takes each TLS record for one frame)."""

    def __init__(self, *, any_transaction: bool = False, any_unit: bool = False) -> None:
        super().__init__(DecodePDU(False))
        self.any_transaction = any_transaction
        self.any_unit = any_unit

    def frame(self, ask: Ask, tid: int) -> Frame:
        """The request, and what the right reply to it looks like when it comes alone and whole."""
        request, mark, size = _mbap(ask)
        number = tid.to_bytes(2, "big")
        return number + request, number + mark, size

    def judge(self, data: bytes, waiting: Waiting) -> Judged:
        """Finds the right reply anywhere in `data`; bytes before and after it do no harm."""
        ask = waiting.ask
        wrong = None
        for start, tid, unit, pdu in mbap_frames(data):
            if (self.any_transaction or tid == waiting.tid) and (self.any_unit or unit == ask.unit):
                if is_right(ask, pdu) and not _begins_again(data, start, len(pdu)):
                    return Judged(pdu)
                wrong = difference(ask, pdu)
            elif tid == waiting.tid:
                wrong = f"unit {unit} instead of {ask.unit}"
            elif tid == 0:
                wrong = f"transaction 0 instead of {waiting.tid}"
        return Judged(self._hunt(data, waiting), wrong)

    def _header(self, waiting: Waiting, size: int) -> bytes:
        """The bytes before the PDU, without the transaction id."""
        return struct.pack(">HHB", 0, size + 1, waiting.ask.unit)

    def _hunt(self, data: bytes, waiting: Waiting) -> bytes | None:
        """The right reply behind bytes that are no frame, or None."""
        ask = waiting.ask
        if ask.size is None or self.any_unit:
            return None
        tid = b"" if self.any_transaction else waiting.tid.to_bytes(2, "big")
        for size, head in ((ask.size, ask.head), (2, bytes((ask.function | 0x80,)))):
            mark = tid + self._header(waiting, size) + head
            at = data.rfind(mark)
            if at < 0:
                continue
            pdu = data[at + len(mark) - len(head) :][:size]
            if len(pdu) == size and is_right(ask, pdu):
                return pdu
        return None


def _begins_again(data: bytes, start: int, size: int) -> bool:
    """True when the same reply begins once more inside a frame: then the first one was cut short."""
    mark = data[start : start + 8]
    return data.find(mark, start + 1, start + 7 + size + len(mark)) > 0


def mbap_frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(start, transaction id, unit, PDU) of the whole frames at the beginning of `data`, up to what is no frame."""
    found = []
    at = 0
    while len(data) - at >= 9:
        tid, protocol, length, unit = MBAP.unpack_from(data, at)
        end = at + 6 + length
        if protocol or not 3 <= length <= 254 or end > len(data):
            break
        found.append((at, tid, unit, data[at + 7 : end]))
        at = end
    return found


RTU_ENCODER = FramerRTU(DecodePDU(False))


@functools.lru_cache(maxsize=4096)
def _rtu(ask: Ask) -> Frame:
    return RTU_ENCODER.encode(ask.pdu, ask.unit, 0), b"", 0


class RtuFramer(FramerRTU):
    """RTU frames on a serial line or in a TCP stream, found by unit, function, length and CRC at any offset."""

    def __init__(self) -> None:
        super().__init__(DecodePDU(False))

    def frame(self, ask: Ask, tid: int) -> Frame:
        """The request; its reply has a CRC and has to be looked at."""
        return _rtu(ask)

    def judge(self, data: bytes, waiting: Waiting) -> Judged:
        """Finds the right reply anywhere in `data`: noise before it costs nothing but the CRCs that are tried."""
        ask = waiting.ask
        wanted = [bytes((ask.unit, ask.function | 0x80))]
        sizes = [2]
        if ask.size is not None:
            wanted.append(bytes((ask.unit,)) + ask.head)
            sizes.append(ask.size)
        for mark, size in zip(reversed(wanted), reversed(sizes)):
            pdu = self._find(data, mark, size)
            if pdu is not None and is_right(ask, pdu):
                return Judged(pdu)
        if ask.size is None:
            return Judged(self._open_ended(data, ask))
        return Judged(None)

    def _find(self, data: bytes, mark: bytes, size: int) -> bytes | None:
        at = data.find(mark)
        while at >= 0:
            frame = data[at : at + size + 3]
            if len(frame) == size + 3 and crcis_right(frame):
                return frame[1:-2]
            at = data.find(mark, at + 1)
        return None

    def _open_ended(self, data: bytes, ask: Ask) -> bytes | None:
        """A reply whose length follows from its content: the CRC says where it ends."""
        at = data.find(bytes((ask.unit, ask.function)))
        if at < 0:
            return None
        for end in range(at + 5, min(len(data), at + 256) + 1):
            if (
                crcis_right(data[at:end])
                and data[at:end] != bytes((ask.unit,)) + ask.pdu + data[end - 2 : end]
            ):
                return data[at + 1 : end - 2]
        return None

    def is_broken(self, data: bytes, ask: Ask) -> bool:
        """True when `data`, in which there is no right reply, hold one in full length: its CRC is wrong."""
        if ask.size is None:
            return False
        at = data.find(bytes((ask.unit,)) + ask.head)
        return 0 <= at <= len(data) - ask.size - 3

    def holds(self, data: bytes, ask: Ask) -> bool:
        """True when a reply to `ask` is in `data`, be it an exception."""
        if self._find(data, bytes((ask.unit, ask.function | 0x80)), 2) is not None:
            return True
        return ask.size is not None and self._find(data, bytes((ask.unit,)) + ask.head, ask.size) is not None


RTU = RtuFramer()


def crcis_right(frame: bytes) -> bool:
    """True when the last two bytes are the CRC of the bytes before them: then the whole has none left over."""
    return crc16(frame) == 0


class StrictTransactions(TransactionManager, asyncio.BufferedProtocol):
    """One connection: one request at a time, and only its right reply is taken.

    `on_lost(words)` when the other side ends the connection; `on_late(unit, seconds)` when a reply comes after its
    request was given up: it is never taken, but it proves that the unit lives. `echo`: the line sends back what it is
    sent; without it, `echo_known` stays False until the first answered read has shown whether it does.
    """

    def __init__(
        self,
        params: CommParams,
        framer: MbapFramer | RtuFramer,
        *,
        clock: Clock,
        on_lost: Callable[[str], None],
        on_late: Callable[[int, float], None],
        echo: bool = False,
    ) -> None:
        super().__init__(params, framer, 0, False, None, None, None)
        self.strict = framer
        self._rtu = isinstance(framer, RtuFramer)
        self.clock = clock
        self.on_lost = on_lost
        self.on_late = on_late
        self.echo = self._always_echo = echo
        self.echo_known = echo
        self.last_byte = 0.0
        self._space = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._space)
        self._buffer = b""
        self._tid = 0
        self._waiting: Waiting | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = NEVER
        self._given_up: OrderedDict[int, GivenUp] = OrderedDict()

    # -- sending ------------------------------------------------------------------------------------------------

    async def transact(self, ask: Ask, timeout: float) -> Answer:
        """Sends one request and waits for its right reply.

        Raises LinkFault: LINK when the connection ends, at once; TIMEOUT when no right reply came in time.
        """
        assert self._waiting is None, "one request at a time"
        if self.transport is None:
            raise LinkFault("no connection")
        tid = self._tid = self._tid % 0xFFFF + 1
        if self._given_up:
            self._given_up.pop(tid, None)
        frame, mark, size = self.strict.frame(ask, tid)
        sent = self.clock.mono()
        until = sent + timeout
        waiting = Waiting(
            self.loop, ask, tid, frame, sent=sent, until=until, mark=mark, size=size, echo_due=self.echo
        )
        self._buffer = b""
        self._waiting = waiting
        if self._rings_at > until:
            self._set_alarm(sent, until)
        try:
            self.transport.write(frame)  # type: ignore[attr-defined]
            return await waiting
        finally:
            if self._waiting is waiting:
                self._give_up(waiting)

    def _set_alarm(self, now: float, when: float) -> None:
        """One timer for all requests: it costs less to look at the clock when it rings than to set one for each."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._rings_at = when
        self._alarm = self.loop.call_later(when - now, self._rings)

    def _rings(self) -> None:
        self._alarm = None
        self._rings_at = NEVER
        waiting = self._waiting
        if waiting is None:
            return
        now = self.clock.mono()
        if now < waiting.until:
            self._set_alarm(now, waiting.until)
        else:
            self._expire(waiting, now)

    def post(self, ask: Ask) -> None:
        """Sends a request that nobody answers (a broadcast)."""
        if self.transport is None:
            raise LinkFault("no connection")
        self._buffer = b""
        self.transport.write(self.strict.frame(ask, 0)[0])  # type: ignore[attr-defined]

    def clashes(self, ask: Ask) -> bool:
        """True on RTU when the late reply of an earlier request could be taken for the reply to this one."""
        if isinstance(self.strict, MbapFramer):
            return False
        now = self.clock.mono()
        return any(
            old.ask.unit == ask.unit
            and old.ask.head == ask.head
            and old.ask.size == ask.size
            and old.awaited(now)
            for old in self._given_up.values()
        )

    def owes(self, unit: int, function: int) -> bool:
        """True when a reply to an earlier request to `unit` with `function` may still come, be it an exception."""
        now = self.clock.mono()
        return any(
            old.ask.unit == unit and old.ask.function == function and old.awaited(now)
            for old in self._given_up.values()
        )

    def asked_in_vain(self, unit: int) -> GivenUp | None:
        """The last request to `unit` that was given up, unless it has answered since."""
        return next((old for old in reversed(self._given_up.values()) if old.ask.unit == unit), None)

    def inherit(self, before: StrictTransactions) -> None:
        """Takes over what may still be answered late by way of a new connection to the same line."""
        self._given_up = before._given_up.copy()
        self._tid = before._tid

    def forget(self, unit: int) -> None:
        """Nothing of what `unit` was asked before can be answered any more: it has answered something later."""
        for tid in [tid for tid, old in self._given_up.items() if old.ask.unit == unit]:
            del self._given_up[tid]

    def _give_up(self, waiting: Waiting) -> None:
        self._waiting = None
        now = self.clock.mono()
        for tid in [tid for tid, old in self._given_up.items() if self._rtu and not old.awaited(now)]:
            del self._given_up[tid]
        self._given_up[waiting.tid] = GivenUp(waiting.ask, waiting.sent, now, waiting.behind)
        if len(self._given_up) > LATE_KEPT:
            self._given_up.popitem(last=False)

    def _expire(self, waiting: Waiting, now: float) -> None:
        seconds = now - waiting.sent
        what = f"no answer within {seconds * 1000:.0f} ms"
        came = waiting.wrong or self._strange(waiting.ask)
        if came:
            what = f"no right answer within {seconds * 1000:.0f} ms: it sent {came}"
        waiting.fail(LinkFault(what, Quality.TIMEOUT))

    def _strange(self, ask: Ask) -> str | None:
        """What the bytes are that came instead of any frame, or None."""
        if isinstance(self.strict, RtuFramer) and self.strict.is_broken(self._buffer, ask):
            return "a reply with a wrong CRC"
        if not self._rtu and RTU.holds(self._buffer, ask):
            return "a reply in RTU framing, as devices at a url rtu+tcp:// do"
        return f"{len(self._buffer)} bytes that are no reply" if self._buffer else None

    # -- receiving ----------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        waiting = self._waiting
        if (
            waiting is not None
            and nbytes == waiting.size
            and not self._buffer
            and self._space.startswith(waiting.mark)
        ):  # nearly always it is just what was asked for
            self.last_byte = self.clock.mono()
            if self._given_up:
                self.forget(waiting.ask.unit)
            self._answer(waiting, bytes(self._view[7 + waiting.ask.skip : nbytes]))
        else:
            self.data_received(bytes(self._view[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Takes bytes as they come; never raises, whatever they are."""
        self.last_byte = self.clock.mono()
        data = self._buffer + data if self._buffer else data
        waiting = self._waiting
        if waiting is None:
            self._buffer = self._note_late(data)[-KEPT:]
            return
        if self._rtu:
            data = self._without_echo(data, waiting)
        judged = self.strict.judge(data, waiting) if not self._echo_missing(waiting) else Judged(None)
        if judged.pdu is None:
            waiting.wrong = judged.wrong or waiting.wrong
            self._buffer = data[-KEPT:]
            self._note_late(data)
            if isinstance(self.strict, RtuFramer) and self.strict.is_broken(self._buffer, waiting.ask):
                waiting.until = min(waiting.limit, self.last_byte + SILENCE)
                self._set_alarm(self.last_byte, waiting.until)
            return
        if self._given_up:
            owed = self._rtu and self.owes(waiting.ask.unit, waiting.ask.function)
            self._note_late(data)
            if owed and judged.pdu[0] & 0x80:
                self._give_up(waiting)  # it may be the exception of an earlier request
        self._finish(waiting, judged.pdu)

    def _finish(self, waiting: Waiting, pdu: bytes) -> None:
        ask = waiting.ask
        if self._rtu and ask.function in READS and ask.size != len(ask.pdu):
            # an echo alone proves nothing; one before a reply does
            self.echo = waiting.echo_seen or self._always_echo
            self.echo_known = True
        if pdu[0] & 0x80:
            self._answer(waiting, None, pdu[1])
            return
        if self._given_up:
            self.forget(ask.unit)  # a unit answers in order
        self._answer(waiting, pdu[ask.skip :])

    def _answer(self, waiting: Waiting, payload: bytes | None, exception: int | None = None) -> None:
        self._waiting = None
        self._buffer = b""
        if not waiting.done():
            t = self.last_byte
            waiting.answer(Answer(payload, exception, t, t - waiting.sent))

    def _echo_missing(self, waiting: Waiting) -> bool:
        """On a line that echoes, a write's reply looks like its echo: nothing counts before the echo was seen."""
        return waiting.echo_due and waiting.ask.function not in READS

    def _without_echo(self, data: bytes, waiting: Waiting) -> bytes:
        """Cuts out what a two-wire adapter sent back."""
        if waiting.echo_seen or not (waiting.echo_due or waiting.ask.function in READS):
            return data
        at = data.find(waiting.frame)
        if at < 0:
            return data
        waiting.echo_seen = True
        waiting.echo_due = False
        waiting.wrong = "an echo of the request"
        return data[:at] + data[at + len(waiting.frame) :]

    def _note_late(self, data: bytes) -> bytes:
        """Tells of replies that came too late; returns what may still be the beginning of one."""
        if isinstance(self.strict, RtuFramer):
            for tid, old in list(self._given_up.items()):
                if self.strict.holds(data, old.ask):
                    del self._given_up[tid]
                    if self._waiting is not None and self._waiting.ask.unit == old.ask.unit:
                        self._waiting.behind = True
                    self.on_late(old.ask.unit, self.last_byte - old.sent)
                    break  # it answers one request, the oldest that it fits
            return data
        used = 0
        for start, tid, unit, pdu in mbap_frames(data):
            used = start + 7 + len(pdu)
            late = self._given_up.get(tid)
            if late is not None and late.ask.unit == unit:
                del self._given_up[tid]
                self.on_late(unit, self.last_byte - late.sent)
        return data[used:]

    # -- the end of a connection --------------------------------------------------------------------------------

    def callback_connected(self) -> None:
        """Nothing to count: transaction ids go on, and silence does not close the connection."""

    def callback_disconnected(self, exc: Exception | None) -> None:
        words = "the other side closed the connection" if exc is None else f"connection lost: {_plain(exc)}"
        if self._waiting is not None:
            self._waiting.fail(LinkFault(words))
        self.on_lost(words)

    def shut(self) -> None:
        """Ends the connection from this side, at once and for good."""
        transport = self.transport
        if self._alarm is not None and self._waiting is None:
            self._alarm.cancel()
        self.close()
        if transport is not None:
            transport.abort()  # type: ignore[attr-defined]
        if self._waiting is not None:
            self._waiting.fail(LinkFault("the line was closed"))


def _plain(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)

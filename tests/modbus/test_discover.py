"""Scan and probe against devices with holes, limits, odd lengths, gateways and silence."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from agent.cli.main import run
from agent.config.load import parse
from agent.config.types import Table
from agent.config.urls import device_url
from agent.modbus.discover import (
    Asker,
    Found,
    Unreachable,
    identification,
    ignores_units,
    scan,
    server_id,
    text_of,
)
from agent.modbus.guesses import Shape, device_block, guesses, pairs, plausible, runs
from agent.modbus.orders import readings
from agent.modbus.server import Answer, ModbusServer
from agent.modbus.survey import Survey, times
from agent.runtime.clock import SystemClock

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, NO_PATH = 1, 2, 3, 10
QUICK = 0.15


def refusal(pdu: bytes, code: int) -> bytes:
    return bytes([pdu[0] | 0x80, code])


def registers(
    words: dict[int, int], *, longest: int = 125, function: int = 3, seen: list[bytes] | None = None
) -> Callable[[bytes], bytes | None]:
    """A device with these words; anything else is refused."""

    def answer(pdu: bytes) -> bytes | None:
        if seen is not None:
            seen.append(pdu)
        if pdu[0] != function:
            return refusal(pdu, ILLEGAL_FUNCTION)
        first, count = struct.unpack(">HH", pdu[1:])
        if count > longest:
            return refusal(pdu, ILLEGAL_VALUE)
        if any(address not in words for address in range(first, first + count)):
            return refusal(pdu, ILLEGAL_ADDRESS)
        data = struct.pack(f">{count}H", *(words[address] for address in range(first, first + count)))
        return bytes([pdu[0], len(data)]) + data

    return answer


def scanned(answer: Answer, units: Iterable[int], *, timeout: float = QUICK) -> list[Found]:
    async def go() -> list[Found]:
        server = ModbusServer(answer)
        port = await server.start("127.0.0.1", 0)
        asker = Asker(device_url(f"tcp://127.0.0.1:{port}"), clock=SystemClock(), timeout=timeout, pause=0.0)
        found: list[Found] = []
        try:
            await scan(asker, units, found.append)
        finally:
            asker.close()
            await server.stop()
        return found

    return asyncio.run(go())


def surveyed(
    answer: Callable[[bytes], bytes | None],
    ranges: dict[Table, list[tuple[int, int]]],
    *,
    timeout: float = 2.0,
) -> Survey:
    async def go() -> Survey:
        server = ModbusServer(lambda unit, pdu: answer(pdu) if unit == 1 else None)
        port = await server.start("127.0.0.1", 0)
        asker = Asker(device_url(f"tcp://127.0.0.1:{port}"), clock=SystemClock(), timeout=timeout, pause=0.0)
        survey = Survey(asker, 1, ranges)
        try:
            await survey.run()
        finally:
            asker.close()
            await server.stop()
        return survey

    return asyncio.run(go())


# -- scan -----------------------------------------------------------------------------------------------------


def test_scan_finds_those_that_answer_in_whatever_way() -> None:
    basic = b"\x2b\x0e\x01\x01\x00\x00\x03\x00\x04ACME\x01\x02P7\x02\x031.2"

    def answer(unit: int, pdu: bytes) -> bytes | None:
        if unit == 2:  # knows who it is
            return {3: b"\x03\x02\x00\x07", 17: b"\x11\x05\x01\xffABC", 43: basic}[pdu[0]]
        if unit == 4:  # refuses everything
            return refusal(pdu, ILLEGAL_FUNCTION)
        if unit == 5:  # silent at what it does not know
            return b"\x03\x02\x00\x00" if pdu[0] == 3 else None
        if unit == 6:  # a gateway speaks for nobody
            return refusal(pdu, NO_PATH)
        return None

    found = scanned(answer, range(1, 8))
    assert [one.unit for one in found] == [2, 4, 5]
    acme, refuses, shy = found
    assert acme.identity == {"vendor": "ACME", "product": "P7", "revision": "1.2"}
    assert (acme.answer, acme.server_id) == ("data", "ABC")
    assert refuses.answer == "exception 1 (illegal function)"
    assert (refuses.identity, refuses.server_id) == ({}, None)
    assert (shy.answer, shy.identity, shy.server_id) == ("data", {}, None)


def test_scan_takes_an_identity_in_parts_and_leaves_one_without_end() -> None:
    seen: list[int] = []

    def answer(unit: int, pdu: bytes) -> bytes | None:
        if pdu[0] != 43:
            return refusal(pdu, ILLEGAL_FUNCTION)
        seen.append(pdu[3])
        if pdu[3] == 0:
            return b"\x2b\x0e\x01\x01\xff\x01\x01\x00\x01A"
        return b"\x2b\x0e\x01\x01\xff\x01\x01\x01\x01B"  # more follows, at the place that was just told

    (found,) = scanned(answer, [1])
    assert found.identity == {"vendor": "A", "product": "B"}
    assert seen == [0, 1]


def test_scan_goes_on_when_a_unit_answers_at_the_second_request_only() -> None:
    asked: list[int] = []

    def answer(unit: int, pdu: bytes) -> bytes | None:
        asked.append(pdu[0])
        return None if len(asked) == 1 else refusal(pdu, ILLEGAL_FUNCTION)

    (found,) = scanned(answer, [9])
    assert (found.unit, found.answer) == (9, "exception 1 (illegal function)")


def test_scan_says_that_there_is_no_connection() -> None:
    async def go() -> None:
        server = ModbusServer(lambda unit, pdu: None)
        port = await server.start("127.0.0.1", 0)
        await server.stop()
        asker = Asker(device_url(f"tcp://127.0.0.1:{port}"), clock=SystemClock())
        await scan(asker, [1], lambda one: None)

    with pytest.raises(Unreachable, match="connection refused"):
        asyncio.run(go())


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x0e\x01\x01\0\0", b"\x0e\x01\x01\x00\x00\x02\x00\x09A", b"\x0e\x01\x01\0\0\5", b"\x0d\x01\x01\0\0\1\0\1A"],
)  # fmt: skip
def test_an_identity_that_is_cut_short_is_left_out(payload: bytes) -> None:
    assert identification(payload) == ({}, None)


def test_server_ids_and_texts() -> None:
    assert server_id(b"") is None
    assert server_id(b"\x00") is None
    assert server_id(b"\x02\x11\xff") == "11 ff"
    assert server_id(b"\x06\x01EM24\xff") == "EM24"
    assert text_of(b" A\x1b[1mB\0\0") == "A\\x1b[1mB"
    assert text_of(b"\xff\xfe") == "\\xff\\xfe"


def test_a_host_that_does_not_look_at_units_is_told() -> None:
    alike = [Found(unit, "data", 0.1 * unit, {"vendor": "A"}) for unit in (1, 2, 3)]
    assert ignores_units(alike, 3)
    assert not ignores_units(alike, 4)
    assert not ignores_units([*alike[:2], Found(3, "data", 0.1, {"vendor": "B"})], 3)


# -- probe ----------------------------------------------------------------------------------------------------


def test_probe_finds_every_hole_and_no_address_more() -> None:
    there = {a: a + 1 for a in [*range(0, 7), 9, *range(20, 53), *range(60, 100)]}
    survey = surveyed(registers(there), {"holding": [(0, 119)]})
    assert survey.values["holding"] == there
    assert survey.refused["holding"] == set(range(120)) - set(there)
    assert survey.shape.registers is None  # no length was refused
    assert survey.longest["holding"] == 40


@pytest.mark.parametrize("limit", [1, 2, 50, 60, 80, 124])
def test_probe_finds_the_longest_request(limit: int) -> None:
    survey = surveyed(registers(dict.fromkeys(range(300), 1), longest=limit), {"holding": [(0, 260)]})
    assert len(survey.values["holding"]) == 261
    assert survey.shape.registers == limit
    assert survey.longest["holding"] == limit
    assert survey.refused["holding"] == set()


def test_probe_does_not_take_holes_for_a_limit() -> None:
    there = dict.fromkeys([*range(0, 30), *range(31, 101)], 1)
    survey = surveyed(registers(there, longest=50), {"holding": [(0, 100)]})
    assert survey.refused["holding"] == {30}
    assert survey.shape.registers == 50


def test_probe_reads_what_comes_in_pairs_only() -> None:
    whole = registers(dict.fromkeys(range(20), 5), function=4)

    def answer(pdu: bytes) -> bytes | None:
        first, count = struct.unpack(">HH", pdu[1:])
        return refusal(pdu, ILLEGAL_ADDRESS) if first % 2 or count % 2 else whole(pdu)

    survey = surveyed(answer, {"input": [(0, 29)]})
    assert sorted(survey.values["input"]) == list(range(20))
    assert survey.refused["input"] == set(range(20, 30))


def test_probe_tells_a_place_that_no_request_may_cross_from_a_limit() -> None:
    whole = registers(dict.fromkeys(range(100), 1))

    def answer(pdu: bytes) -> bytes | None:
        first, count = struct.unpack(">HH", pdu[1:])
        return refusal(pdu, ILLEGAL_ADDRESS) if first < 40 < first + count else whole(pdu)

    survey = surveyed(answer, {"holding": [(0, 99)]})
    assert len(survey.values["holding"]) == 100
    assert survey.shape.registers is None
    assert "holding: no request across 39 and 40" in survey.notes


def test_probe_asks_no_more_where_the_table_is_not_known() -> None:
    seen: list[bytes] = []
    survey = surveyed(registers({0: 1}, seen=seen), {"input": [(0, 200)], "holding": [(0, 0)]})
    assert survey.notes == ["input: the device does not know function 4"]
    assert survey.values == {"input": {}, "holding": {0: 1}}
    assert [pdu[0] for pdu in seen] == [4, 3]


def test_probe_of_a_unit_that_is_not_there_ends_soon() -> None:
    asked = 0

    def answer(pdu: bytes) -> bytes | None:
        nonlocal asked
        asked += 1
        return None

    survey = surveyed(answer, {"holding": [(0, 200)], "input": [(0, 200)]}, timeout=0.02)
    assert asked == 16  # eight blocks, each asked for twice; the other table is not tried
    assert survey.notes == ["holding: no answer to 8 requests in a row: the rest was left alone"]
    assert survey.as_json()["rtt_ms"] == {"n": 0, "p50": None, "max": None}


def test_probe_asks_a_busy_device_again() -> None:
    whole = registers({0: 7})
    asked = 0

    def answer(pdu: bytes) -> bytes | None:
        nonlocal asked
        asked += 1
        return refusal(pdu, 6) if asked == 1 else whole(pdu)

    survey = surveyed(answer, {"holding": [(0, 0)]})
    assert (survey.values["holding"], asked) == ({0: 7}, 2)


def test_probe_reads_bits_lowest_first() -> None:
    def answer(pdu: bytes) -> bytes | None:
        first, count = struct.unpack(">HH", pdu[1:])
        return b"\x01\x02\x05\x02" if (first, count) == (3, 10) else refusal(pdu, ILLEGAL_ADDRESS)

    survey = surveyed(answer, {"coil": [(3, 12)]})
    assert [a for a, bit in survey.values["coil"].items() if bit] == [3, 5, 12]
    assert survey.as_json()["tables"]["coil"]["bits"]["12"] == 1


def test_probe_never_writes() -> None:
    seen: list[bytes] = []
    surveyed(
        registers(dict.fromkeys(range(90), 1), longest=20, seen=seen),
        {"holding": [(0, 99)], "coil": [(0, 9)]},
    )
    assert {pdu[0] for pdu in seen} == {1, 3}


# -- what the words may mean ------------------------------------------------------------------------------------


def test_plausible_readings_are_marked() -> None:
    (pair,) = pairs({7: 0x0000, 8: 0x42C8})  # 100.0 with the low word first
    assert pair["values"]["float32"]["CDAB"] == 100.0
    assert "float32 CDAB" in pair["plausible"]
    assert "float32 ABCD" not in pair["plausible"]
    assert pair["raw"] == ["0x0000", "0x42C8"]
    json.dumps(pairs({0: 0x7FC0, 1: 0, 2: 0x7F80, 3: 0}), allow_nan=False)


@pytest.mark.parametrize(
    ("kind", "order", "words", "marked"),
    [
        ("float32", "ABCD", (0x447A, 0x0000), True),  # 1000.0
        ("float32", "ABCD", (0x4B18, 0x9680), True),  # 1e7
        ("float32", "ABCD", (0x4B18, 0x9681), False),  # one step above
        ("float32", "ABCD", (0x7FC0, 0x0000), False),  # NaN
        ("float32", "ABCD", (0x7F80, 0x0000), False),  # infinity
        ("float32", "ABCD", (0x0000, 0x0001), False),  # 1.4e-45
        ("int32", "ABCD", (0xFFFF, 0xFFFF), False),  # not available, or -1
        ("uint16", "ABCD", (0x8000, 0x0000), False),
        ("uint16", "ABCD", (230, 0), True),
        ("uint16", "ABCD", (0, 0), False),
        ("string", "ABCD", (0x4142, 0x4344), True),
        ("string", "ABCD", (0x4142, 0xB74A), False),
        ("string", "ABCD", (0x2020, 0x2020), False),
    ],
)
def test_plausible(kind: str, order: str, words: tuple[int, int], marked: bool) -> None:
    assert plausible(kind, readings(words)[kind][order], words) is marked


def test_guesses_of_floats_texts_and_words() -> None:
    words = dict(enumerate(struct.unpack(">6H", struct.pack(">3f", 230.5, 1.25, 0.0))))
    words |= dict(enumerate(struct.unpack(">4H", b"SN123456"), 6))
    words |= {10: 42}
    found = guesses(words, "holding")
    assert [(one.address, dict(one.keys)) for one in found] == [
        (0, {"type": "float32"}),
        (2, {"type": "float32"}),
        (4, {"type": "float32"}),
        (6, {"type": "string", "length": "8"}),
        (10, {}),
    ]
    assert found[0].now == "230.5"
    assert runs([5, 1, 2, 3]) == [(1, 3), (5, 5)]
    assert times([0.001, 0.002, 0.009]) == {"n": 3, "p50": 2.0, "max": 9.0}


@pytest.mark.parametrize("most", [None, 1, 2])
def test_a_device_block_passes_check(most: int | None) -> None:
    words = dict(enumerate(struct.unpack(">4H", struct.pack("<2f", 230.5, 1.25))))
    words |= dict(enumerate(struct.unpack(">60H", b"A long text " * 10), 10))
    shape = Shape({"holding": words, "coil": {3: 1}}, {"holding": [(4, 9)], "coil": [(0, 2)]}, most)
    block = device_block("unit1", "rtu:///dev/ttyUSB0?baud=9600", 1, shape)
    loaded = parse(block, "block.yaml")
    assert loaded.problems == []
    assert loaded.config is not None
    device = loaded.config.devices["unit1"]
    assert device.limits.registers == (most or 125)
    assert sum(tag.count for tag in device.tags.values()) == 65
    assert {tag.order for tag in device.tags.values() if tag.type == "float32"} == (
        set() if most == 1 else {"DCBA"}
    )


def test_a_block_of_nothing_is_a_configuration_too() -> None:
    loaded = parse(device_block("unit1", "tcp://10.0.0.5", 1, Shape({"holding": {}}, {})), "block.yaml")
    assert [problem for problem in loaded.problems if problem.severity == "error"] == []


# -- the commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scan", "tpc://10.0.0.5"], "did you mean tcp://?"),
        (["scan", "udp://10.0.0.5"], "udp:// is not built yet"),
        (["scan", "tcp://10.0.0.5", "--units", "1-300"], "goes beyond 255"),
        (["scan", "tcp://10.0.0.5", "--timeout", "5"], "--timeout"),
        (["probe", "tcp://10.0.0.5"], "--unit"),
        (["probe", "tcp://10.0.0.5", "--unit", "1-3"], "more than one unit"),
        (["probe", "tcp://10.0.0.5", "--unit", "1", "--holding", "9-2"], "--holding"),
        (["probe", "tcp://10.0.0.5", "--unit", "1", "--json", "--yaml"], "not allowed with"),
    ],
)
def test_wrong_usage_is_told(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_missing_port_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", f"rtu://{tmp_path}/ttyUSB9", "--units", "1"]) == 1
    said = capsys.readouterr()
    assert "there is no such serial port" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("words", [["scan", "--units", "0-3"], ["probe", "--unit", "0"]])
def test_nobody_answers_a_broadcast(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([words[0], "rtu:///dev/ttyUSB0", *words[1:]]) == 2
    assert "broadcast" in capsys.readouterr().err


class Serving:
    """A server in a thread of its own, for commands that have an event loop of theirs."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> str:
        self._thread.start()
        self._server = ModbusServer(self._answer)
        port = asyncio.run_coroutine_threadsafe(self._server.start("127.0.0.1", 0), self._loop).result(10)
        return f"tcp://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def meter(unit: int, pdu: bytes) -> bytes | None:
    floats = struct.unpack(">6H", struct.pack(">3f", 230.5, 1.25, 50.0))
    return registers(dict(enumerate(floats)), longest=4)(pdu) if unit == 7 else None


def test_scan_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with Serving(meter) as url:
        assert run(["scan", url, "--units", "7,8", "--timeout", "100ms", "--json"]) == 0
        body = json.loads(capsys.readouterr().out)
        assert (body["v"], body["url"], body["asked"], body["complete"]) == (1, url, [7, 8], True)
        assert [(one["unit"], one["answer"]) for one in body["units"]] == [(7, "data")]
        assert run(["scan", url, "--units", "8", "--timeout", "50ms"]) == 1
        assert "0 of 1 units answer" in capsys.readouterr().out


def test_probe_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--unit", "7", "--holding", "0-9", "--pause", "0s", "--timeout", "5s"]
    with Serving(meter) as url:
        assert run(["probe", url, *words, "--json"]) == 0
        table = json.loads(capsys.readouterr().out)["tables"]["holding"]
        assert (table["readable"], table["refused"], table["longest"]) == (["0-5"], ["6-9"], 4)
        assert "float32 ABCD" in table["pairs"][0]["plausible"]
        assert run(["probe", url, *words]) == 0
        assert "230.5 (float32 ABCD)" in capsys.readouterr().out
        assert run(["probe", url, *words, "--yaml"]) == 0
        file = tmp_path / "config.yaml"
        file.write_text(capsys.readouterr().out)
        assert run(["check", str(file)]) == 0
        capsys.readouterr()
        assert run(["read", str(file), "--json"]) == 0
        tags = json.loads(capsys.readouterr().out)["devices"]["unit7"]["tags"]
        assert [tag["v"] for tag in tags.values()] == [230.5, 1.25, 50.0]


def test_a_survey_that_is_stopped_has_what_it_knows() -> None:
    asked = 0

    async def go() -> Survey:
        def answer(unit: int, pdu: bytes) -> bytes | None:
            nonlocal asked
            asked += 1
            if asked == 3:
                task.cancel()
                return None
            return registers(dict.fromkeys(range(1000), 3), longest=50)(pdu)

        server = ModbusServer(answer)
        port = await server.start("127.0.0.1", 0)
        asker = Asker(device_url(f"tcp://127.0.0.1:{port}"), clock=SystemClock(), timeout=5.0, pause=0.0)
        survey = Survey(asker, 1, {"holding": [(0, 99)]})
        task = asyncio.create_task(survey.run())
        with pytest.raises(asyncio.CancelledError):
            await task
        asker.close()
        await server.stop()
        return survey

    survey = asyncio.run(go())
    assert asked == 3
    assert survey.as_json()["tables"]["holding"]["readable"] == ["0-49"]

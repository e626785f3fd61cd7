"""The simulated devices: at PDU level with a time of the test's own, and as processes of the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.config.load import load, parse
from agent.config.types import Config
from agent.modbus.codec import Decoded, Decoder
from agent.modbus.plan import request_for
from agent.modbus.simulated import ports, redirect
from agent.modbus.simulator import Line, SimulatedDevice
from agent.twin.quality import Quality

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.yaml"

PLANT = """
devices:
  d:
    url: tcp://127.0.0.1:502
    unit: 3
    tags:
      flt: {holding: 0, type: float32, range: [-40, 400], unit: °C}
      swapped: {holding: 2, type: float32, order: CDAB, range: [5, 6]}
      scaled: {holding: 4, type: int16, scale: 0.01, offset: -20, range: [-10, 10]}
      double: {holding: 8, type: float64, order: DCBA, range: [1000, 2000]}
      bcd: {holding: 12, type: bcd32, range: [100, 999]}
      current: {input: 0, type: uint16, scale: 0.001, loop_current: true}
      long: {input: 1, type: uint32, range: [70000, 80000]}
      energy: {input: 20, type: uint64, counter: true}
      fault: {holding: 20, states: {0: ok, 3: overheat}}
      bit: {holding: 21, bit: 4}
      field: {holding: 21, bits: 8-11}
      text: {holding: 22, type: string, length: 7}
      power: {holding: 30, type: int16, scale_from: sf, range: [10, 20]}
      sf: {holding: 31, type: int16}
      coil: {coil: 3}
      discrete: {discrete: 9}
      out: {holding: 40, scale: 0.1, range: [0, 100], write: {range: [0, 100]}}
      pv: {holding: 41, scale: 0.01, range: [0, 200]}
      target: {holding: 42, type: int16, write: true}
      flags: {holding: 43, bits: 0-3, write: true}
      switch: {coil: 5, write: true}
loops:
  l: {pv: d/pv, out: d/out, setpoint: 50, every: 1s}
"""


class Time:
    now = 500.0

    def __call__(self) -> float:
        return self.now


def configured(text: str) -> Config:
    loaded = parse(text, "config.yaml")
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def device(now: Time) -> SimulatedDevice:
    config = configured(PLANT)
    return SimulatedDevice(config.devices["d"], tuple(config.loops.values()), now)


def read(device: SimulatedDevice, name: str) -> Decoded:
    """One tag as the agent's own decoder reads it from the simulated device."""
    request = request_for(device.device, (name,))
    reply = device.answer(struct.pack(">BHH", request.function, request.address, request.count))
    assert reply[0] == request.function and reply[1] == len(reply) - 2
    decoder = Decoder(request, device.device)
    return decoder.decode(reply[2:], {"power": -1} if name in decoder.elsewhere else None)


def words(device: SimulatedDevice, address: int, count: int = 1) -> list[int]:
    reply = device.answer(struct.pack(">BHH", 3, address, count))
    assert reply[0] == 3
    return list(struct.unpack(f">{count}H", reply[2:]))


# -- reads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flt", "swapped", "scaled", "double", "bcd", "long", "power", "pv", "out"])
def test_a_number_stays_in_its_range_and_moves(device: SimulatedDevice, now: Time, name: str) -> None:
    low, high = device.device.tags[name].range or (0, 0)
    seen = set()
    for _ in range(40):
        got = read(device, name)
        assert got.quality[0] == Quality.GOOD
        assert isinstance(got.plain[0], int | float) and low <= got.plain[0] <= high
        seen.add(got.plain[0])
        now.now += 1.7
    assert len(seen) > 5 or name == "pv"  # the pv of a loop follows its output, tested below


def test_a_current_stays_between_4_and_20_mA(device: SimulatedDevice, now: Time) -> None:
    for _ in range(40):
        got = read(device, "current")
        assert got.quality[0] == Quality.GOOD and 4.0 <= got.value[0] <= 20.0
        now.now += 1.7


def test_a_counter_only_grows(device: SimulatedDevice, now: Time) -> None:
    before = -1
    for _ in range(20):
        [count] = read(device, "energy").plain
        assert isinstance(count, int) and count > before
        before = count
        now.now += 1.0


def test_states_bits_and_text(device: SimulatedDevice, now: Time) -> None:
    codes, bits, fields, coils, discretes = set(), set(), set(), set(), set()
    for _ in range(80):
        codes.add(read(device, "fault").plain[0])
        bits.add(read(device, "bit").plain[0])
        fields.add(read(device, "field").plain[0])
        coils.add(read(device, "coil").plain[0])
        discretes.add(read(device, "discrete").plain[0])
        now.now += 2.3
    assert codes == {0, 3}
    assert bits == coils == discretes == {True, False}
    assert fields == set(range(16))
    [text] = read(device, "text").plain
    assert isinstance(text, str) and text.startswith("SIM-")


def test_the_same_time_gives_the_same_values(now: Time) -> None:
    config = configured(PLANT)
    one, other = (SimulatedDevice(config.devices["d"], (), now) for _ in range(2))
    assert words(one, 0, 14) == words(other, 0, 14)


def test_holes_between_tags_are_readable_and_empty(device: SimulatedDevice) -> None:
    assert words(device, 5, 3) == [0, 0, 0]
    assert words(device, 0, 44)[14:20] == [0] * 6


@pytest.mark.parametrize(
    ("pdu", "code"),
    [
        (struct.pack(">BHH", 3, 44, 1), 2),
        (struct.pack(">BHH", 3, 43, 2), 2),
        (struct.pack(">BHH", 4, 24, 1), 2),
        (struct.pack(">BHH", 1, 6, 1), 2),
        (struct.pack(">BHH", 3, 0, 126), 3),
        (struct.pack(">BHH", 3, 0, 0), 3),
        (struct.pack(">BHH", 1, 3, 2001), 3),
        (struct.pack(">BHH", 7, 0, 0), 1),
        (struct.pack(">BH", 3, 0), 1),
    ],
)
def test_what_is_refused(device: SimulatedDevice, pdu: bytes, code: int) -> None:
    assert device.answer(pdu) == bytes([pdu[0] | 0x80, code])


def test_it_says_who_it_is(device: SimulatedDevice) -> None:
    reply = device.answer(b"\x2b\x0e\x01\x00")
    assert reply[:7] == b"\x2b\x0e\x01\x01\x00\x00\x03"
    rest, texts = reply[7:], []
    while rest:
        texts.append(rest[2 : 2 + rest[1]].decode())
        rest = rest[2 + rest[1] :]
    assert texts[:2] == ["Edgetwin", "simulated device"]


# -- writes ---------------------------------------------------------------------------------------------------------


def test_what_was_written_stays(device: SimulatedDevice, now: Time) -> None:
    pdu = struct.pack(">BHH", 6, 42, 77)
    assert device.answer(pdu) == pdu
    assert device.answer(struct.pack(">BHHBH", 16, 40, 1, 2, 335)) == struct.pack(">BHH", 16, 40, 1)
    assert device.answer(struct.pack(">BHH", 5, 5, 0xFF00)) == struct.pack(">BHH", 5, 5, 0xFF00)
    for _ in range(30):
        now.now += 3.1
        assert read(device, "target").plain == [77]
        assert read(device, "out").plain == [33.5]
        assert read(device, "switch").plain == [True]
    assert device.answer(b"\x0f" + struct.pack(">HHB", 5, 1, 1) + b"\x00") == struct.pack(">BHH", 15, 5, 1)
    assert read(device, "switch").plain == [False]


def test_a_mask_changes_its_bits_alone(device: SimulatedDevice) -> None:
    device.answer(struct.pack(">BHH", 6, 43, 0xA5F0))
    pdu = struct.pack(">BHHH", 22, 43, 0xFFF0, 0x0006)
    assert device.answer(pdu) == pdu
    assert words(device, 43) == [0xA5F6]
    assert read(device, "flags").plain == [6]


@pytest.mark.parametrize(
    "pdu",
    [
        struct.pack(">BHH", 6, 4, 1),  # a tag without `write`
        struct.pack(">BHHBHH", 16, 0, 2, 4, 1, 1),
        struct.pack(">BHH", 5, 3, 0xFF00),
        struct.pack(">BHHH", 22, 21, 0, 1),
        struct.pack(">BHH", 6, 50, 1),  # no tag at all
        struct.pack(">BHHBHH", 16, 43, 2, 4, 1, 1),  # runs past the last register
    ],
)
def test_only_tags_with_write_take_one(device: SimulatedDevice, pdu: bytes) -> None:
    before = words(device, 0, 44)
    assert device.answer(pdu) == bytes([pdu[0] | 0x80, 2])
    assert words(device, 0, 44) == before


# -- loops ----------------------------------------------------------------------------------------------------------


def settle(device: SimulatedDevice, now: Time, out: float) -> list[float]:
    device.answer(struct.pack(">BHH", 6, 40, round(10 * out)))
    seen = []
    for _ in range(60):
        now.now += 1.0
        seen.append(float(read(device, "pv").value[0]))
    return seen


def test_a_pv_follows_its_output(device: SimulatedDevice, now: Time) -> None:
    cold = settle(device, now, 0.0)
    hot = settle(device, now, 100.0)
    assert cold[-1] == pytest.approx(20.0, abs=1.0) and hot[-1] == pytest.approx(180.0, abs=1.0)
    assert hot[0] < hot[4] < hot[10], "not at once: it has a time constant"
    assert hot[4] == pytest.approx(20 + 160 * 0.632, abs=3.0), "of five steps of the loop"


def test_a_loop_of_direct_action_has_a_process_that_falls(now: Time) -> None:
    config = configured(PLANT.replace("every: 1s}", "every: 1s, action: direct}"))
    device = SimulatedDevice(config.devices["d"], tuple(config.loops.values()), now)
    assert settle(device, now, 100.0)[-1] < settle(device, now, 0.0)[-1]


# -- several devices ------------------------------------------------------------------------------------------------

TWO = """
devices:
  a: {url: "tcp://127.0.0.1:502", unit: 1, tags: {x: {holding: 0, range: [1, 9]}}}
  b: {url: "rtu:///dev/ttyUSB0", unit: 1, tags: {x: {holding: 100}}}
  c: {url: "tcp://127.0.0.1:502", unit: 2, tags: {x: {input: 5}}}
  same: {url: "tcp://127.0.0.1:502", unit: 1, tags: {x: {holding: 70, write: true}}}
"""


def test_each_unit_has_its_own_registers_and_others_are_silent(now: Time) -> None:
    config = configured(TWO)
    line = Line(config, config.devices["a"].url.text, now)
    first = line.answer(1, struct.pack(">BHH", 3, 0, 1))
    assert first is not None and first[0] == 3
    assert line.answer(2, struct.pack(">BHH", 3, 0, 1)) == b"\x83\x02"
    assert line.answer(7, struct.pack(">BHH", 3, 0, 1)) is None


def test_two_names_for_one_unit_are_one_set_of_registers(now: Time) -> None:
    config = configured(TWO)
    line = Line(config, config.devices["a"].url.text, now)
    write = struct.pack(">BHH", 6, 70, 5)
    assert line.answer(1, write) == write
    assert line.answer(1, struct.pack(">BHH", 3, 70, 1)) == b"\x03\x02\x00\x05"
    now.now += 9.0
    assert line.answer(1, struct.pack(">BHH", 3, 70, 1)) == b"\x03\x02\x00\x05"
    own = line.answer(1, struct.pack(">BHH", 3, 0, 1))
    assert own is not None and 1 <= own[3] <= 9
    assert line.answer(1, struct.pack(">BHH", 6, 0, 5)) == b"\x86\x02"
    seen = set()
    for _ in range(40):
        now.now += 1.7
        seen.add(line.answer(1, struct.pack(">BHH", 3, 0, 1)))
    assert len(seen) > 3, "a write to a tag of the same name stops no other"


def test_a_loop_of_the_second_name_of_a_unit_has_its_process(now: Time) -> None:
    config = configured(
        """
devices:
  first: {url: "tcp://127.0.0.1:502", tags: {x: {holding: 0}, pv: {holding: 1}}}
  second:
    url: tcp://127.0.0.1:502
    tags: {pv: {holding: 10, range: [0, 1000]}, out: {holding: 11, write: {range: [0, 100]}}}
loops: {l: {pv: second/pv, out: second/out, setpoint: 5}}
"""
    )
    line = Line(config, config.devices["first"].url.text, now)
    ends = []
    for out in (0, 100):
        line.answer(1, struct.pack(">BHH", 6, 11, out))
        for _ in range(60):
            now.now += 1.0
            reply = line.answer(1, struct.pack(">BHH", 3, 10, 1))
        assert reply is not None
        ends.append(int.from_bytes(reply[2:], "big"))
    assert ends == [pytest.approx(100, abs=5), pytest.approx(900, abs=5)]


def test_the_kth_url_is_at_the_kth_port() -> None:
    config = configured(TWO)
    texts = list(dict.fromkeys(device.url.text for device in config.devices.values()))
    assert ports(config, 6000) == {texts[0]: 6000, texts[1]: 6001}
    moved = redirect(config, 6000)
    assert {name: (device.url.scheme, device.url.host, device.url.port, device.unit) for name, device in
            moved.devices.items()} == {
        "a": ("tcp", "127.0.0.1", 6000, 1), "b": ("tcp", "127.0.0.1", 6001, 1),
        "c": ("tcp", "127.0.0.1", 6000, 2), "same": ("tcp", "127.0.0.1", 6000, 1),
    }  # fmt: skip
    assert moved.devices["b"].tags == config.devices["b"].tags


# -- as processes ---------------------------------------------------------------------------------------------------


def free_ports() -> int:
    """A port that is free together with the one after it."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports")


def edgetwin(*args: object) -> list[str]:
    return [sys.executable, "-m", "agent", *map(str, args)]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(edgetwin(*args), cwd=ROOT, capture_output=True, text=True, timeout=120)


@contextmanager
def simulated(port: int) -> Iterator[list[str]]:
    """The example's devices in a process; the lines that it printed once both lines are served."""
    with subprocess.Popen(
        edgetwin("simulate", EXAMPLE, "--port", port),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        try:
            yield [process.stdout.readline() for _ in range(2)]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_simulate_read_and_write_together() -> None:
    port = free_ports()
    config = load(EXAMPLE).config
    assert config is not None
    with simulated(port) as lines:
        assert [line.split()[0] for line in lines] == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
        assert "unit 1 (press1)" in lines[0] and "unit 2 (meter)" in lines[1]

        got = run("read", EXAMPLE, "--simulated", port, "--json")
        assert got.returncode == 0, got.stderr
        body = json.loads(got.stdout)
        assert body["v"] == 1 and set(body["devices"]) == {"press1", "meter"}
        for name, device in body["devices"].items():
            assert device["ok"] is True and device["error"] is None
            assert set(device["tags"]) == set(config.devices[name].tags)
            for request in device["requests"]:
                assert request.keys() >= {"table", "address", "count", "rtt_ms", "exception"}
                assert request["exception"] is None and request["rtt_ms"] > 0
            for tag, one in device["tags"].items():
                assert one.keys() >= {"raw", "v", "unit", "q", "t"}
                assert one["q"] == "good", (tag, one)
                assert one["unit"] == config.devices[name].tags[tag].unit
        temperature = body["devices"]["press1"]["tags"]["temperature"]
        raw = bytes.fromhex("".join(word[2:] for word in temperature["raw"]))
        assert struct.unpack(">f", raw)[0] == pytest.approx(temperature["v"], rel=1e-6)

        good = run("write", EXAMPLE, "press1/oven_out", "42.5", "--simulated", port, "--yes")
        assert good.returncode == 0, good.stderr
        assert good.stdout == "press1/oven_out = 42.5, read back 42.5\n"
        again = json.loads(run("read", EXAMPLE, "press1/oven_out", "--simulated", port, "--json").stdout)
        assert again["devices"]["press1"]["tags"]["oven_out"]["v"] == 42.5
        for tag, value in (("press1/oven_out", "142"), ("press1/temperature", "1")):
            bad = run("write", EXAMPLE, tag, value, "--simulated", port, "--yes")
            assert bad.returncode == 1 and bad.stdout == ""
            assert bad.stderr.count("\n") == 1 and tag in bad.stderr

        taken = run("simulate", EXAMPLE, "--port", port)
        assert taken.returncode == 1
        assert taken.stderr.count("\n") == 1 and str(port) in taken.stderr and "--port" in taken.stderr


def test_read_without_a_simulation_fails_in_plain_words() -> None:
    got = run("read", EXAMPLE, "meter", "--simulated", free_ports(), "--json")
    assert got.returncode == 1
    device = json.loads(got.stdout)["devices"]["meter"]
    assert device["ok"] is False and device["error"]
    assert {one["q"] for one in device["tags"].values()} == {"link"}
    assert "Traceback" not in got.stderr


def test_simulate_refuses_a_file_without_devices(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("gateway: g1\n")
    got = run("simulate", tmp_path / "none.yaml")
    assert got.returncode == 78 and "there are no devices to simulate" in got.stderr
    assert "Traceback" not in got.stderr

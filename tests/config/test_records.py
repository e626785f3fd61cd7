"""What is written -> what the rest of the product reads."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Iterator
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from agent.config import fields, types
from agent.config.kinds import Either, Items, Kind, Names, Section
from agent.config.load import Loaded, for_run, load, parse
from agent.config.nodes import parse as tree
from agent.config.types import Avoid, Config, Secret, Url
from agent.config.walker import Findings, read

ROOT = Path(__file__).parents[2]


def config(text: str) -> Config:
    loaded = parse(text, "config.yaml")
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config


def device(**keys: str) -> types.Device:
    more = "".join(f"    {key}: {value}\n" for key, value in keys.items() if key not in ("url", "tags"))
    url, tags = keys.get("url", "tcp://10.0.0.5"), keys.get("tags", "{a: {holding: 1}}")
    return config(f"devices:\n  d:\n    url: {url}\n{more}    tags: {tags}\n").devices["d"]


def tag(text: str, **keys: str) -> types.Tag:
    return device(tags="{t: {" + text + "}, sf: {holding: 900, type: int16}}", **keys).tags["t"]


def test_the_example_passes_for_run_too() -> None:
    loaded = load(ROOT / "config.example.yaml")
    assert [str(problem) for problem in loaded.problems] == []
    assert for_run(loaded) == []
    assert loaded.config is not None
    assert loaded.config.state_dir == Path("./state")
    assert all(device.url.host == "127.0.0.1" for device in loaded.config.devices.values())


def test_the_configuration_of_the_demo_passes() -> None:
    text = resources.files("agent.demo").joinpath("demo.yaml").read_text(encoding="utf-8")
    filled = string.Template(text).substitute(state="/tmp/x", mqtt="1883", page="8080", modbus="5020")
    loaded = parse(filled, "demo.yaml")
    assert [str(problem) for problem in (*loaded.problems, *for_run(loaded))] == []
    assert loaded.config is not None
    assert loaded.config.loops["temperature"].controller.ti == 1.2
    assert loaded.config.loops["temperature"].fail.to == 0.0


def keys_of(kind: Kind) -> Iterator[tuple[str, bool]]:
    """(key, whether it only holds others) of all keys below a kind."""
    if isinstance(kind, Either):
        yield from keys_of(kind.mapping)
    elif isinstance(kind, Section):
        for key, field in kind.fields.items():
            yield key, isinstance(field.kind, Section | Names | Either)
            yield from keys_of(field.kind)
    elif isinstance(kind, Names | Items):
        yield from keys_of(kind.of)


def test_the_example_shows_every_key_with_a_comment() -> None:
    lines = (ROOT / "config.example.yaml").read_text(encoding="utf-8").splitlines()
    for key, holds_others in keys_of(fields.ROOT):
        mine = [line for line in lines if re.search(rf"(^|[ {{]){key}: ?", line)]
        assert mine, f"{key} is not in the example"
        assert holds_others or any("#" in line for line in mine), f"{key} has no comment"


SECTIONS = [
    (fields.LIMITS, types.Limits()),
    (fields.RETRY, types.Retry()),
    (fields.WRITE, types.Write()),
    (fields.OUTBOX, types.OutboxConfig()),
    (fields.MQTT, types.MqttConfig()),
    (fields.CONTROLLER, types.ControllerConfig()),
    (fields.MODEL, types.ModelConfig()),
    (fields.TAG, types.Tag("t", "holding", 0)),
    (fields.DEVICE, types.Device("d", Url("", "tcp"))),
    (fields.HEALTH, types.HealthConfig(())),
    (fields.FEED_FORWARD, types.FeedForward(("a", "b"))),
    (fields.PREDICT.mapping, types.PredictConfig()),
    (fields.HEARTBEAT.mapping, types.Heartbeat(("a", "b"))),
    (fields.LOOP, types.LoopConfig("l", ("a", "b"), ("a", "c"), 0.0, (0.0, 1.0))),
    (fields.ROOT.fields["commands"].kind, types.CommandsConfig()),
]


@pytest.mark.parametrize(("section", "record"), SECTIONS, ids=lambda case: type(case).__name__)
def test_the_defaults_of_the_table_are_those_of_the_records(section: Section, record: Any) -> None:
    names = {field.name for field in dataclasses.fields(record)}
    compared = 0
    for key, field in section.fields.items():
        if key not in names or field.default is None:
            continue
        if key in ("gap", "write", "hmac"):
            continue  # the default is a word for None
        node = tree(field.default)
        assert node is not None
        value = read(field.kind, node, key, Findings("table"))
        if isinstance(field.kind, Items):
            value = tuple(each for each, _ in value)
        assert value == getattr(record, key), key
        compared += 1
    assert compared or all(field.default is None for field in section.fields.values())


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("tcp://10.0.0.5", Url("tcp://10.0.0.5:502", "tcp", "10.0.0.5", 502)),
        ("tcp://PLC.example:1502/", Url("tcp://plc.example:1502", "tcp", "plc.example", 1502)),
        ("tls://h", Url("tls://h:802", "tls", "h", 802)),
        ("rtu+tcp://h", Url("rtu+tcp://h:502", "rtu+tcp", "h", 502)),
        ("udp://h", Url("udp://h:502", "udp", "h", 502)),
        ('"tcp://[0:0::1]:5020"', Url("tcp://[::1]:5020", "tcp", "::1", 5020)),
        (
            "rtu:///dev/ttyUSB0",
            Url("rtu:///dev/ttyUSB0?baud=19200&parity=E&stopbits=1&local_echo=false", "rtu", path="/dev/ttyUSB0"),
        ),
        (
            "rtu:///dev/./ttyS0?local_echo=on&stopbits=2&parity=n&baud=9600",
            Url(
                "rtu:///dev/ttyS0?baud=9600&parity=N&stopbits=2&local_echo=true",
                "rtu", path="/dev/ttyS0", baud=9600, parity="N", stopbits=2, local_echo=True,
            ),
        ),
    ],
)  # fmt: skip
def test_urls(text: str, url: Url) -> None:
    assert device(url=text).url == url


def test_a_device() -> None:
    made = device(
        unit="7", every="2s", timeout="1s", order="CDAB", on_loss="hold", accept="[unit, transaction, unit]",
        limits="{registers: 60, bits: 100, gap: 4, pause: 5ms, pause_after_connect: 1s, close_after_poll: yes}",
        retry="{first: 10s, max: 1m}", avoid="[holding 60-69, coil 3]",
        tags="{a: {holding: 1}, b: {holding: 2, every: 1h, order: ABCD}}",
    )  # fmt: skip
    assert (made.unit, made.every, made.timeout, made.on_loss) == (7, 2.0, 1.0, "hold")
    assert made.limits == types.Limits(60, 100, 4, 0.005, 1.0, True)
    assert made.retry == types.Retry(10.0, 60.0)
    assert made.avoid == (Avoid("holding", 60, 69), Avoid("coil", 3, 3))
    assert made.accept == ("unit", "transaction")
    assert [(t.order, t.every) for t in made.tags.values()] == [("CDAB", 2.0), ("ABCD", 3600.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modicon: 40131", {"table": "holding", "address": 130, "type": "uint16"}),
        ("modicon: 00131", {"table": "coil", "address": 130, "type": "bool"}),
        ("modicon: 10131", {"table": "discrete", "address": 130, "type": "bool"}),
        ("modicon: 465536", {"table": "holding", "address": 65535}),
        (
            "input: 7, type: int16, scale: 0.01, offset: -0.10",
            {"scale": Decimal("0.01"), "offset": Decimal("-0.10")},
        ),
        ("holding: 1, missing: [0x8000, -1]", None),
        ("holding: 1, type: int16, missing: [0x8000, -1]", {"missing": (0x8000, -1)}),
        ("holding: 1, states: {0: off, 0x3: 'on'}", {"states": {0: "off", 3: "on"}}),
        ("holding: 1, bit: 4", {"bit": 4}),
        ("holding: 1, bits: 8-11", {"bits": (8, 11)}),
        ("holding: 1, bits: 3", {"bits": (3, 3)}),
        ("holding: 1, type: string, length: 5", {"length": 5, "count": 3}),
        ("holding: 1, scale_from: sf, unit: W", {"scale_from": "sf", "unit": "W"}),
        (
            "holding: 1, counter: true, deadband: 2, alone: yes",
            {"counter": True, "deadband": 2.0, "alone": True},
        ),
        ("holding: 1, loop_current: true, range: [4, 20]", {"loop_current": True, "range": (4.0, 20.0)}),
        ("holding: 1, write: true", {"write": types.Write()}),
        ("holding: 1, write: no", {"write": None}),
        ("coil: 1", {"write": None, "type": "bool"}),
        (
            "coil: 1, write: {function: 15, verify: no, min_interval: 0s, nonvolatile: on, daily: 1e3}",
            {"write": types.Write(None, 15, False, 0.0, True, 1000)},
        ),
    ],
)
def test_tags(text: str, expected: dict[str, Any] | None) -> None:
    if expected is None:
        loaded = parse(f"devices: {{d: {{url: tcp://h, tags: {{t: {{{text}}}}}}}}}", "f")
        assert ["no raw value" in problem.what for problem in loaded.problems] == [True]
        return
    made = tag(text)
    assert {key: getattr(made, key) for key in expected} == expected


PLANT = """
devices:
  d:
    url: tcp://h
    every: 200ms
    on_loss: zero
    tags:
      pv: {input: 0, type: int16}
      sp: {holding: 1, type: int16, write: true}
      out: {holding: 2, scale: 0.1, write: {range: [0, 100]}}
      beat: {holding: 3, write: true}
      ok: {coil: 1}
      text: {holding: 20, type: string, length: 4}
  e: {url: tcp://h, unit: 2, tags: {x: {input: 0}, y: {input: 1, states: {0: a}}}}
"""


def test_a_loop_with_everything() -> None:
    loop = config(
        PLANT
        + """
loops:
  l:
    pv: d/pv
    out: d/out
    setpoint: d/sp
    setpoint_limits: [20, 250]
    ramp: 2
    every: 1s
    mode: manual
    controller: {type: pid, kp: 2.0, ti: 10s, td: 1s, b: 1, c: 0.5, n: 10}
    model: {k: -1.2, t1: 40s, t2: 1s, delay: 5s, bias: 3, integrating: true, grade: good, noise: 0.1}
    action: direct
    limits: [10, 90]
    rate: 5
    deadband: 0.1
    feed_forward: {tag: d/sp, gain: 0.5, lag: 10s}
    trip: [0, 350]
    fail: {after: 4, to: 20, on_stop: release, resume: hand}
    heartbeat: {tag: d/beat, timeout: 6s}
    interlock: [d/ok]
    remote: [setpoint, mode]
"""
    ).loops["l"]
    assert loop == types.LoopConfig(
        name="l", pv=("d", "pv"), out=("d", "out"), setpoint=("d", "sp"), limits=(10.0, 90.0), every=1.0,
        mode="manual", setpoint_limits=(20.0, 250.0), ramp=2.0,
        controller=types.ControllerConfig("pid", 2.0, 10.0, 1.0, 1.0, 0.5, 10.0),
        model=types.ModelConfig(-1.2, 40.0, 1.0, 5.0, 3.0, True, "good", 0.1), action="direct", rate=5.0, deadband=0.1,
        feed_forward=types.FeedForward(("d", "sp"), 0.5, 10.0), trip=(0.0, 350.0),
        fail=types.Fail(4, 20.0, "release", None), heartbeat=types.Heartbeat(("d", "beat"), 6.0),
        interlock=(("d", "ok"),), remote=frozenset({"setpoint", "mode"}),
    )  # fmt: skip


def test_a_loop_with_the_least() -> None:
    loop = config(PLANT + "loops: {l: {pv: d/pv, out: d/out, setpoint: 180, heartbeat: d/beat}}").loops["l"]
    assert loop.every == 0.2
    assert loop.limits == (0.0, 100.0)
    assert loop.setpoint == 180.0
    assert loop.heartbeat == types.Heartbeat(("d", "beat"))
    assert loop.fail == types.Fail()
    assert loop.mode == "shadow"


ALL = (("d", "pv"), ("d", "sp"), ("d", "out"), ("d", "beat"), ("e", "x"))


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("", ALL),
        ("predict: on", ALL),
        ("predict: {order: 4}", ALL),
        ('predict: {tags: ["d/*"]}', ALL[:4]),
        ('predict: {tags: ["*/[px]*", d/pv]}', (("d", "pv"), ("e", "x"))),
        ("predict: {tags: [e/x, d/out]}", (("e", "x"), ("d", "out"))),
        ("predict: {tags: []}", ()),
    ],
)
def test_what_is_forecast(text: str, tags: tuple[tuple[str, str], ...]) -> None:
    made = config(PLANT + text)
    assert made.predict is not None
    assert made.predict.tags == tags
    by_device: dict[str, list[str]] = {}
    for owner, name in tags:
        by_device.setdefault(owner, []).append(name)
    assert {name: list(health.tags) for name, health in made.health.items()} == by_device


def test_forecast_settings_and_health() -> None:
    made = config(
        PLANT
        + "predict: {horizon: [5, 1, 5], interval: 0.5, order: 3, inputs: {d/pv: [d/out, d/sp]}}\n"
        + 'health: {d: {tags: [pv, "s*"], alarm: 0.2, hold: 1m, warmup: 50, calibrate: {a: 1.5, b: -2}}}\n'
    )
    assert made.predict is not None
    assert (made.predict.horizon, made.predict.interval, made.predict.order) == ((1, 5), 0.5, 3)
    assert dict(made.predict.inputs) == {("d", "pv"): (("d", "out"), ("d", "sp"))}
    assert dict(made.health) == {"d": types.HealthConfig(("pv", "sp"), 0.2, 60.0, 50, (1.5, -2.0))}


@pytest.mark.parametrize("word", ["off", "no", "false"])
def test_predict_and_page_can_be_off(word: str) -> None:
    made = config(PLANT + f"predict: {word}\npage: {word}\n")
    assert made.predict is None
    assert made.page is None
    assert made.health == {}


def test_mqtt_and_commands_and_page() -> None:
    made = config(
        PLANT
        + """
gateway: line4
state_dir: ./state
log: {level: debug}
mqtt:
  url: mqtts://broker:8883
  root: plant
  client_id: c
  username: u
  password: {credential: mqtt}
  ca: /a
  cert: /b
  key: /c
  keepalive: 20s
  batch: 10s
  twin_every: 6s
  forecast_every: 31s
  full_every: 2m
  compress: all
  flat: yes
  outbox: {max_size: 1GiB, max_age: 1d, batch: 5s, rate: 1_000, durable: yes, keep: 1h, min_free: 1MiB}
commands: {enabled: yes, skew: 5s, hmac: {env: KEY}}
page: {listen: "[::1]:0x1", control: true, token: {file: /t}}
""".replace("0x1", "81")
    )
    assert made.mqtt == types.MqttConfig(
        "mqtts://broker:8883", "plant", "c", "u", Secret("credential", "mqtt"), Path("/a"), Path("/b"), Path("/c"),
        20.0, 10.0, 6.0, 31.0, 120.0, "all", True,
        types.OutboxConfig(1 << 30, 86_400.0, 5.0, 1000, True, 3600.0, 1 << 20),
    )  # fmt: skip
    assert made.commands == types.CommandsConfig(True, 5.0, Secret("env", "KEY"))
    assert made.page == types.PageConfig("::1", 81, True, Secret("file", "/t"))
    assert (made.gateway, made.state_dir, made.log_level) == ("line4", Path("./state"), "debug")


def test_a_secret_never_shows_in_a_record() -> None:
    loaded: Loaded = parse(PLANT + "mqtt: {username: u, password: hunter2}", "f")
    assert loaded.config is not None
    assert loaded.config.mqtt.password == Secret("plain", "hunter2")
    assert "hunter2" not in repr(loaded.config)
    assert not any("hunter2" in str(problem) for problem in loaded.problems)

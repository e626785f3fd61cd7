"""A command line -> the text of a configuration, and what the checker finds in it, in words of the line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agent.config import oneline
from agent.config.load import for_run, parse
from agent.config.oneline import OneLine
from agent.config.scalars import Wrong
from agent.config.types import Config, Secret

LINE = OneLine(url="tcp://10.0.0.5:502", mqtt="mqtt://broker", gateway="line4", state_dir="/var/lib/my state")


def read(line: OneLine) -> tuple[Config | None, list[str]]:
    """The configuration that the text of a line holds, and each problem in its words."""
    loaded = parse(oneline.text(line), "try.yaml")
    return loaded.config, [oneline.in_words(one, line) for one in (*loaded.problems, *for_run(loaded))]


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        ("t: holding 100", {"t": {"holding": "100"}}),
        ("t:holding 100", {"t": {"holding": "100"}}),
        ("t: holding 0x64 int16", {"t": {"holding": "0x64", "type": "int16"}}),
        ("t: holding 100 float32 °C", {"t": {"holding": "100", "type": "float32", "unit": "°C"}}),
        (
            "t: input 9 float32 CDAB l/min",
            {"t": {"input": "9", "type": "float32", "order": "CDAB", "unit": "l/min"}},
        ),
        ("t: input 9 scale=0.1 %", {"t": {"input": "9", "scale": "0.1", "unit": "%"}}),
        ("t: holding 9 pulses per minute", {"t": {"holding": "9", "unit": "pulses per minute"}}),
        ("t: holding 9 unit=float32", {"t": {"holding": "9", "unit": "float32"}}),
        ("t: modicon 40101 int16", {"t": {"modicon": "40101", "type": "int16"}}),
        ("t: sunspec 101-103+14 W", {"t": {"sunspec": "101-103+14", "unit": "W"}}),
        ("c: coil 0-2", {"c0": {"coil": "0"}, "c1": {"coil": "1"}, "c2": {"coil": "2"}}),
        ("v: holding 7-8", {"v7": {"holding": "7"}, "v8": {"holding": "8"}}),
        ("m: modicon 00009-00010", {"m00009": {"modicon": "00009"}, "m00010": {"modicon": "00010"}}),
    ],
)
def test_a_tag(words: str, entries: dict[str, dict[str, str]]) -> None:
    assert oneline.tag(words) == entries


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        ("v: holding 0-98 float32", range(0, 99, 2)),
        ("v: holding 0-99 float32", range(0, 99, 2)),
        ("v: holding 5-16 float64", [5, 9, 13]),
        ("v: holding 5-16 string length=7", [5, 9, 13]),
        ("v: discrete 5-7", [5, 6, 7]),
        ("v: holding 0x10-0x12", [16, 17, 18]),
        ("v: holding 5-5", [5]),
    ],
)
def test_a_range_is_tags_one_behind_the_other(words: str, addresses: list[int]) -> None:
    config, problems = read(dataclasses.replace(LINE, tags=(words,)))
    assert config is not None and problems == []
    tags = config.devices["device"].tags
    assert [(name, tag.address) for name, tag in tags.items()] == [(f"v{one}", one) for one in addresses]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("t holding 1", "\"t holding 1\" is no tag; write 'NAME: holding 100 float32 °C'"),
        ("t: holding", "\"t: holding\" is no tag; write 'NAME: holding 100 float32 °C'"),
        ("t: holdin 1", '"holdin" is no table; did you mean holding?'),
        ("a.b: holding 1", '"a.b" is no name; names begin with a letter or digit and hold letters'),
        (
            "t: holding 1 flot32",
            '"flot32" is no type; did you mean float32?; a unit of that name is unit=flot32',
        ),
        ("t: holding 1 real32", '"real32" is no type; types: bool, int16, '),
        ("t: holding 1 CBDA", '"CBDA" is no type; did you mean '),
        ("t: holding 1 scael=2", '"scael" is not known here; did you mean scale=?'),
        ("t: holding 1 scale=", "scale= has no value; write scale=VALUE"),
        ("t: holding 1 int16 int32", "type is given twice; keep one of them"),
        ("t: holding 1 unit=V V", "unit is given twice; keep one of them"),
        ("t: holding 1 write=true", "nothing is written here; leave out write="),
        ("t: holding 9-5", '"9-5" ends before it begins; write 5-9'),
        ("t: holding 1-x", '"1-x" is no range; write first-last, as 8-11'),
        ("t: modicon 40009-5", '"40009-5" is no range of printed numbers; write first-last, as 40001-40099'),
        ("t: modicon 40009-40001", '"40009-40001" ends before it begins; write 40001-40009'),
        ("t: holding 0-60000", '"0-60000" is 60001 tags; name 2000 at most'),
    ],
)
def test_a_tag_that_is_none(words: str, said: str) -> None:
    with pytest.raises(Wrong) as wrong:
        oneline.text(dataclasses.replace(LINE, tags=(words,)))
    assert f"{wrong.value}; {wrong.value.hint}".startswith(f"--tag '{words}': {said}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "tpc://x"}, 'tpc://x: "tpc://" is not known; did you mean tcp://?'),
        ({"mqtt": "http://x"}, '--mqtt: "http://x" is no URL of a broker; write mqtt:'),
        (
            {"mqtt": "mqtt://me:secret@x"},
            "--mqtt: a user name or password has no place in this URL; use --username and --password-file",
        ),
        ({"unit": "256"}, '--unit: "256" is out of range; write 0 to 255'),
        ({"every": "5"}, '--every: "5" has no unit; write 5s'),
        ({"order": "ABDC"}, '--order: "ABDC" is not known here; did you mean'),
        ({"profile": "eastron"}, "--profile: there is no profile eastron; did you mean eastron-sdm"),
        ({"device": "a b"}, '--device: "a b" is no name; names begin'),
        ({"gateway": "RaspberryPi"}, "--gateway: RaspberryPi is what many machines are called"),
        ({"gateway": "line 4"}, '--gateway: "line 4" '),
        ({"page": "8080"}, '--page: "8080" is no host and port'),
        ({"tags": ("t: holding 65535 int32",)}, "--tag 't: holding 65535 int32': an int32 takes 2 registers"),
        (
            {"tags": ("t: holding 5 string",)},
            "--tag 't: holding 5 string': a string needs its length in bytes; add length=16",
        ),
        (
            {"tags": ("t: holding 1 scale=0,1",)},
            "--tag 't: holding 1 scale=0,1': \"0,1\" is no number; write 0.1",
        ),
        ({"tags": ("v: coil 1-2 scale=2",)}, "--tag 'v: coil 1-2 scale=2': scale has no meaning for a coil"),
    ],
)
def test_what_the_checker_finds_is_told_in_words_of_the_line(given: dict[str, Any], said: str) -> None:
    config, problems = read(dataclasses.replace(LINE, **{"tags": ("t: holding 1",), **given}))
    assert problems and all(one.startswith(said) for one in problems)
    assert config is None or "gateway" in given


def test_the_same_name_twice_and_nothing_at_all() -> None:
    with pytest.raises(Wrong, match="--tag 'v: holding 2-4': v3 is there already"):
        oneline.text(dataclasses.replace(LINE, tags=("v3: holding 9", "v: holding 2-4")))
    with pytest.raises(Wrong, match="there is nothing to read") as wrong:
        oneline.text(LINE)
    assert wrong.value.hint is not None and "--tag" in wrong.value.hint and "--profile" in wrong.value.hint
    with pytest.raises(Wrong, match="3600 tags are more than one line takes"):
        oneline.text(dataclasses.replace(LINE, tags=("v: holding 0-1799", "w: holding 0-1799")))


def test_everything_that_a_line_can_say_arrives() -> None:
    line = OneLine(
        url="tcp://10.0.0.5",
        mqtt="mqtts://broker:8883",
        gateway="0010",
        state_dir="/s: #1",
        device="on",
        tags=("no: holding 3 unit=off counter=true", 't: holding 4 "x":{y}'),
        unit="7",
        every="500ms",
        order="CDAB",
        username="null",
        password_file="/etc/my password",
        ca="/etc/ca.pem",
        page="[::1]:8099",
    )
    config, problems = read(line)
    assert config is not None and problems == []
    assert (config.gateway, str(config.state_dir)) == ("0010", "/s: #1")
    mqtt = config.mqtt
    assert (mqtt.url, mqtt.username, mqtt.ca) == ("mqtts://broker:8883", "null", Path("/etc/ca.pem"))
    assert mqtt.password == Secret("file", "/etc/my password")
    assert config.page is not None and (config.page.host, config.page.port) == ("::1", 8099)
    device = config.devices["on"]
    assert (device.url.text, device.unit, device.every, device.order) == (
        "tcp://10.0.0.5:502",
        7,
        0.5,
        "CDAB",
    )
    assert (device.tags["no"].unit, device.tags["no"].counter, device.tags["t"].unit) == (
        "off",
        True,
        '"x":{y}',
    )
    assert not config.commands.enabled and not config.loops
    assert all(tag.write is None for tag in device.tags.values())
    config, _ = read(dataclasses.replace(line, page="off"))
    assert config is not None and config.page is None


def test_a_profile_brings_its_tags_and_a_tag_of_the_line_is_added() -> None:
    config, problems = read(
        dataclasses.replace(LINE, profile="eastron-sdm120", tags=("x: input 900 float32",))
    )
    assert config is not None and problems == []
    tags = config.devices["device"].tags
    assert "x" in tags and len(tags) > 5

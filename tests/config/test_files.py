"""Files that are no configuration at all: each is one problem at its place, told soon."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.fields import ROOT
from agent.config.load import MOST_BYTES, load, parse
from agent.modbus.plan import describe


def told(path: Path) -> list[str]:
    loaded = load(path)
    assert loaded.config is None
    return [str(problem).removeprefix(str(path)) for problem in loaded.problems]


def test_missing_file(tmp_path: Path) -> None:
    assert told(tmp_path / "config.yaml") == [":1:1: there is no such file; name one that is there"]
    inner = tmp_path / "nowhere" / "config.yaml"
    assert told(inner) == [f":1:1: there is no such file; there is no folder {inner.parent} either"]


def test_a_file_without_the_right_to_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.touch(mode=0)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        (said,) = told(path)
    finally:
        if root:
            os.seteuid(0)
    assert said.startswith(":1:1: this user may not read the file; ")
    assert "chown root:edgetwin and chmod 640" in said


def test_directory(tmp_path: Path) -> None:
    assert told(tmp_path) == [":1:1: this is a directory; name a file"]
    (tmp_path / "config.yaml").touch()
    assert told(tmp_path) == [f":1:1: this is a directory; did you mean {tmp_path / 'config.yaml'}?"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"gateway: caf\xe9\n", ":1:1: the file is not UTF-8: byte 13 is 0xE9; save it as UTF-8"),
        (
            "gateway: a\n".encode("utf-16"),
            ":1:1: the file is not UTF-8: byte 1 is 0xFF; it looks like UTF-16; save it as UTF-8",
        ),
        (b"a: 1\nb: \0\n", ":2:4: the character U+0000 is no text; is this a YAML file?"),
        (b"\x7fELF\2\1\1\0", ":1:1: the character U+007F is no text; is this a YAML file?"),
        (b"", ":1:1: the file is empty; begin with gateway: and devices:"),
        (b"\xef\xbb\xbf", ":1:1: the file is empty; begin with gateway: and devices:"),
        (b"~\n", ":1:1: the file is empty; begin with gateway: and devices:"),
    ],
)
def test_content_that_is_no_yaml(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert told(path) == [words]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfgateway: line4\n")
    loaded = load(path)
    assert loaded.config is not None and loaded.config.gateway == "line4"


@pytest.mark.parametrize(
    ("mode", "open_to_all"), [(0o644, True), (0o604, True), (0o640, False), (0o600, False)]
)
def test_a_plain_secret_in_a_file_for_everybody_is_told_louder(
    tmp_path: Path, mode: int, open_to_all: bool
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("gateway: line4\nmqtt: {username: me, password: tulip}\n")
    path.chmod(mode)
    (told,) = [problem for problem in load(path).problems if problem.path == "mqtt.password"]
    assert told.severity == "warning"
    assert ("every user of this machine" in told.what) == open_to_all
    assert ("chmod o-r" in (told.hint or "")) == open_to_all
    assert "tulip" not in str(told)


def test_binary_garbage(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(random.Random(1).randbytes(100_000))
    assert len(told(path)) == 1


@pytest.mark.parametrize(
    "unit",
    [
        "\0",
        "a: b\n",
        "- a\n",
        "[",
        "a:\n ",
        "? a\n",
        "{a: b}, ",
        "x",
        '"x',
        "&a ",
        "\t",
        "*a ",
        "a{]:\n",
        "é\n",
    ],
)
def test_five_megabytes_of_garbage(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(unit * (5_000_000 // len(unit.encode())), encoding="utf-8")
    began = time.process_time()
    lines = told(path)
    assert 1 <= len(lines) <= 501
    assert time.process_time() - began < 15  # a second or two where nothing else runs


def test_a_file_over_32_mib_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + (1 << 20))
    assert told(path) == [":1:1: the file has 33 MiB, more than 32 MiB; is it the right one?"]


def test_many_mistakes_are_bounded() -> None:
    text = "devices:\n" + "".join(f"  d{k}: {{urls: x}}\n" for k in range(5000))
    problems = parse(text, "f").problems
    assert len(problems) == 501
    assert "more problems that are not shown" in str(problems[-1])


def test_aliases_cannot_multiply_problems() -> None:
    bad = "devices: &d\n" + "".join(f"  x{k}: &x{k} {{a: 1, b: 2, c: 3}}\n" for k in range(1000))
    problems = parse(bad + "loops: *d\nhealth: *d\n", "f").problems
    assert 1 <= len(problems) <= 501


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_problems_only(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "config.yaml"
    path.write_bytes(content)
    loaded = load(path)
    assert loaded.config is not None or loaded.problems


ALL_KEYS = sorted(
    {
        *ROOT.fields,
        "url",
        "tags",
        "holding",
        "type",
        "write",
        "pv",
        "out",
        "setpoint",
        "limits",
        "press1",
        "<<",
    }
)
VALUES = st.one_of(
    st.sampled_from(["tcp://h", "on", "off", "~", "0010", "12:30", "-1", "press1/a", "[]", "{}", '""', "*a", "&a b"]),
    st.text(max_size=8),
)  # fmt: skip


@st.composite
def yaml_like(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 12))):
        indent = " " * draw(st.sampled_from([0, 0, 2, 4, 6]))
        lines.append(f"{indent}{draw(st.sampled_from(ALL_KEYS))}: {draw(st.one_of(st.just(''), VALUES))}")
    return "\n".join(lines)


@settings(max_examples=500, deadline=None)
@given(yaml_like())
def test_random_yaml_gives_problems_only(text: str) -> None:
    loaded = parse(text, "f")
    errors = [problem for problem in loaded.problems if problem.severity == "error"]
    assert (loaded.config is None) == bool(errors)
    for problem in loaded.problems:
        assert "\n" not in str(problem)


@st.composite
def one_device(draw: st.DrawFn) -> str:
    """A device that may well be right: few kinds of value, close together."""
    tags = []
    for k in range(draw(st.integers(1, 8))):
        table = draw(st.sampled_from(["holding", "holding", "input", "coil", "discrete"]))
        given = f"{table}: {draw(st.integers(0, 60))}"
        if table in ("holding", "input"):
            given += (
                f", type: {draw(st.sampled_from(['uint16', 'int16', 'float32', 'uint64', 'bcd32', 'bool']))}"
            )
        given += draw(
            st.sampled_from(["", "", ", alone: true", ", every: 5s", ", scale_from: sf", ", write: true"])
        )
        tags.append(f"t{k}: {{{given}}}")
    registers, bits, gap = (
        draw(st.integers(1, 20)),
        draw(st.integers(1, 20)),
        draw(st.sampled_from(["auto", "0", "7"])),
    )
    limits = f"{{registers: {registers}, bits: {bits}, gap: {gap}}}"
    avoid = draw(st.sampled_from(["[]", "[holding 20-30]", "[holding 61-70, coil 5]"]))
    return (
        f"devices: {{d: {{url: tcp://h, limits: {limits}, avoid: {avoid}, "
        f"tags: {{sf: {{holding: 90, type: int16}}, {', '.join(tags)}}}}}}}"
    )


@settings(max_examples=300, deadline=None)
@given(one_device())
def test_what_passes_can_be_planned(text: str) -> None:
    """The planner raises for what cannot be read within the limits, so this must be told before."""
    loaded = parse(text, "f")
    if loaded.config is None:
        assert loaded.problems
        return
    requests = describe(loaded.config)["d"]["requests"]
    assert sum(request["wanted"] for request in requests) > 0


SCALAR = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats().map(repr),
    st.sampled_from(["a", "true", "off", "1s", "-1s", "0", "press1/a", "b", "hold", "8-11", "[1, 2]", "[2, 1]"]),
)  # fmt: skip


def flow(keys: list[str]) -> st.SearchStrategy[str]:
    """A mapping in one line, of some of these keys with any scalars."""
    pairs = st.dictionaries(st.sampled_from(keys), SCALAR, max_size=6)
    return pairs.map(lambda given: "{" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}")


TAG_KEYS = list(ROOT.fields["devices"].kind.of.fields["tags"].kind.of.fields)  # type: ignore[union-attr]
LOOP_KEYS = list(ROOT.fields["loops"].kind.of.fields)  # type: ignore[union-attr]


@settings(max_examples=500, deadline=None)
@given(flow(TAG_KEYS), flow(TAG_KEYS), flow(LOOP_KEYS))
def test_any_keys_of_tags_and_loops_give_problems_only(one: str, two: str, loop: str) -> None:
    text = f"devices:\n  press1: {{url: tcp://h, tags: {{a: {one}, b: {two}}}}}\nloops:\n  l: {loop}\n"
    loaded = parse(text, "f")
    assert loaded.config is not None or loaded.problems

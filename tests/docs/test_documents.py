"""What the documents tell people to type: commands have those options, pieces of YAML are taken, links lead on."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import trial
from agent.cli.main import build_parser, chosen_command
from agent.config import oneline
from agent.config.load import load, parse
from tests.docs.documents import DOCS, FENCE

ROOT = DOCS.parent
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

AROUND = {
    "file": "{}",
    "mqtt": "mqtt: {}",
    "devices": "devices:\n{1}",
    "tags": 'devices:\n  press1:\n    url: "tcp://10.0.0.5:502"\n    tags:\n{3}',
    "loop": (
        'devices:\n  press1:\n    url: "tcp://10.0.0.5:502"\n    tags:\n      pv: {holding: 1}\n'
        "      out: {holding: 2, write: true}\n      watchdog: {holding: 3, write: true}\n"
        "loops:\n  oven:\n    pv: press1/pv\n    out: press1/out\n    limits: [0, 100]\n    setpoint: 5\n{2}"
    ),
}
"""Where a piece of YAML may belong; the digit says how many steps it is set in."""


def pieces() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        for kind, text in FENCE.findall(path.read_text(encoding="utf-8")):
            if kind == "yaml":
                lines = [line for line in text.splitlines() if line.strip()]
                alone = len(lines) > 1 and all(re.match(r"\w+: \{.*\}( *#.*)?$", line) for line in lines)
                for piece in lines if alone else [text]:  # alternatives stand below each other
                    yield path.name, piece


def commands() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        fenced = (block.splitlines() for kind, block in FENCE.findall(text) if kind == "sh")
        quoted = re.findall(r"`(edgetwin [^`\n]+)`", text)
        for line in itertools.chain(*fenced, quoted):
            if line.strip().startswith("edgetwin ") and "…" not in line:
                yield path.name, line.strip()


def trials() -> Iterator[tuple[str, str]]:
    """The lines of `edgetwin try` and `make try`, as words for the command."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        yield from ((path.name, words) for words in re.findall(r'^make try ARGS="(.+)"$', text, re.MULTILINE))
        yield from ((path.name, words) for words in re.findall(r"^edgetwin try (.+)$", text, re.MULTILINE))


@pytest.mark.parametrize(("document", "words"), sorted(set(trials())))
def test_trials_are_configurations_without_a_mistake(document: str, words: str) -> None:
    args = build_parser("try").parse_args(["try", *shlex.split(words, comments=True), "--gateway", "line4"])
    loaded = parse(oneline.text(trial.line_of(args)), document)
    assert loaded.config is not None and loaded.problems == []


@pytest.mark.parametrize(("document", "line"), sorted(set(commands())))
def test_commands_are_as_the_product_takes_them(document: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words != ["--version"] and len(words) > 1:
        build_parser(chosen_command(words)).parse_args(words)  # SystemExit where an option is unknown
    else:
        assert chosen_command(words) is not None


@pytest.mark.parametrize(("document", "piece"), sorted(set(pieces())))
def test_yaml_is_taken(document: str, piece: str, tmp_path: Path) -> None:
    said = {}
    for name, around in AROUND.items():
        digit = re.search(r"\{(\d?)\}", around)
        assert digit is not None
        shift = "  " * int(digit[1] or 0)
        inner = "\n".join(shift + line for line in piece.splitlines())
        path = tmp_path / f"{name}.yaml"
        path.write_text(around.replace(digit[0], inner), encoding="utf-8")
        problems = [problem for problem in load(path).problems if problem.severity == "error"]
        missing = all("is missing" in one.what or "there is no" in one.what for one in problems)
        if not problems or (missing and name != "loop"):
            return
        said[name] = [str(problem) for problem in problems]
    pytest.fail(f"{document}: {piece}\n{said}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings]
            assert anchor in slugs, f"{target}: {slugs}"

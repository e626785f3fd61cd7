"""Golden cases: each folder of `cases` holds a config.yaml and exactly what is told of it.

Lines that begin with `run: ` are what `run` refuses beyond `check`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.load import for_run, load, parse

CASES = sorted((Path(__file__).parent / "cases").iterdir())


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_what_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    # From text, since what is told of a plain secret depends on the file's mode, and so on a checkout's umask.
    loaded = parse(Path("config.yaml").read_bytes().decode(), "config.yaml")
    told = [str(problem) for problem in loaded.problems] + [f"run: {problem}" for problem in for_run(loaded)]
    assert told == Path("problems.txt").read_text(encoding="utf-8").splitlines()
    errors = [problem for problem in loaded.problems if problem.severity == "error"]
    assert (loaded.config is None) == bool(errors)


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_every_place_is_in_the_file(folder: Path) -> None:
    loaded = load(folder / "config.yaml")
    for problem in (*loaded.problems, *for_run(loaded)):
        lines = Path(problem.file).read_text(encoding="utf-8").split("\n")
        assert 1 <= problem.line <= len(lines), problem
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1, problem


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_each_problem_says_what_would_be_right(folder: Path) -> None:
    loaded = load(folder / "config.yaml")
    assert [str(problem) for problem in (*loaded.problems, *for_run(loaded)) if not problem.hint] == []


def test_there_is_a_case_for_each_mistake_that_people_make() -> None:
    names = {folder.name for folder in CASES}
    assert names >= {
        "unknown_key", "misspelt_tag_in_loop", "duplicate_key", "type_that_does_not_exist", "negative_period", "octal",
        "base_60", "names", "tab", "empty_file", "alias_bomb", "address_past_the_end", "float64_past_the_end",
        "shared_bits", "two_loops_one_output", "serial_line_twice", "words_yaml_would_change",
    }  # fmt: skip

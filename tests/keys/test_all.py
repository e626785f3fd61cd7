"""No key is silently ignored: each has a test that sees its effect, or `run` refuses it as not built yet."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from agent.config.fields import NOT_BUILT
from tests.keys.table import EFFECTS, all_keys


def keys_with_a_test() -> Iterator[str]:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.keys.{path.stem}")
    yield from EFFECTS


def test_every_key_is_covered() -> None:
    without = [key for key in all_keys() if key not in {*keys_with_a_test(), *NOT_BUILT}]
    assert without == [], (
        "these keys have neither a test of their effect nor are they refused as not built yet"
    )


def test_no_key_has_an_effect_and_is_not_built() -> None:
    assert set(keys_with_a_test()) & set(NOT_BUILT) == set()


def test_every_tested_key_is_a_key() -> None:
    assert set(keys_with_a_test()) - set(all_keys()) == set()


def test_the_walk_finds_the_depths() -> None:
    keys = all_keys()
    assert len(keys) == len(set(keys)) > 130
    assert {"gateway", "mqtt.outbox.keep", "devices.*.tags.*.write.daily", "loops.*.fail.resume"} <= set(keys)

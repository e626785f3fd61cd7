"""The JSON Schema says what the reader says, as far as a schema can."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent.config.load import load
from agent.config.schema import json_schema

ROOT = Path(__file__).parents[2]
CASES = sorted((Path(__file__).parent / "cases").iterdir())
SCHEMA = jsonschema.Draft202012Validator(json_schema())

BEYOND = {
    "alias_bomb", "base_60", "duplicate_key", "names", "names_of_devices_and_loops", "octal", "merge_key", "no_values",
    "explicit_tag", "misspelt_tag_in_loop", "float64_past_the_end", "modicon", "one_address_each", "bits",
    "shared_bits", "profile_shared_bits",
    "types_and_their_keys", "scale_from", "write", "shared_bits_of_two_devices", "serial_line_twice", "urls",
    "two_loops_one_output", "loop_tags_of_a_wrong_kind", "loop_without_what_it_needs", "auto_without_a_net",
    "flash_register_in_a_loop", "health_of_what_is_not_forecast", "health_without_forecasts", "mqtt_urls",
    "page_control", "page_listen", "loop_limits_beyond_the_register", "many_at_once",
    "states_and_missing", "predictive_loops",
}  # fmt: skip
"""Mistakes that a schema need not see: values that do not fit each other, names that are not there, raw text."""


def as_json(value: Any) -> Any:
    """What an editor checks: JSON has text for keys only."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


def fits(path: Path) -> bool | None:
    """Whether the schema takes a file; None where no parser of YAML reads it."""
    try:
        return bool(SCHEMA.is_valid(as_json(yaml.safe_load(path.read_text(encoding="utf-8")))))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_example_fits() -> None:
    example = yaml.safe_load((ROOT / "config.example.yaml").read_text(encoding="utf-8"))
    assert [error.message for error in SCHEMA.iter_errors(as_json(example))] == []


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_schema_and_reader_agree(folder: Path) -> None:
    """What the reader takes, the schema takes; what the reader refuses by one value alone, the schema refuses."""
    loaded = load(folder / "config.yaml")
    if folder.name in ("alias_bomb", "empty_file", "only_comments"):
        assert loaded.config is None
        return
    verdict = fits(folder / "config.yaml")
    if loaded.config is not None:
        assert verdict is True
    elif folder.name not in BEYOND:
        assert not verdict


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("page: off", True),
        ("page: {listen: '127.0.0.1:1'}", True),
        ("page: 3", False),
        ("devices: {d: {url: tcp://h, every: 1s, tags: {a: {holding: 1, write: true}}}}", True),
        ("devices: {d: {url: tcp://h, every: 1, tags: {a: {holding: 1}}}}", False),
        ("devices: {d: {url: tcp://h, tags: {a: {holding: 70000}}}}", False),
        ("devices: {d: {url: tcp://h, tags: {a: {holding: 1, write: {function: x}}}}}", False),
        ("devices: {d: {url: tcp://h, tags: {a: {holding: 1, missing: 5, states: {0: off}}}}}", True),
        ("devices: {d: {tags: {a: {holding: 1}}}}", False),
        ("devices: {'a b': {url: tcp://h}}", False),
        ("predict: {horizon: []}", False),
        ("predict: {interval: 1}", False),
        ("predict: off", True),
        ("mqtt: {outbox: {max_size: 64}}", False),
        ("mqtt: {outbox: {max_size: 64MiB, keep: 0}}", True),
        ("log:", True),
        ("gatway: x", False),
    ],
)
def test_single_values(text: str, valid: bool) -> None:
    assert SCHEMA.is_valid(as_json(yaml.safe_load(text))) is valid


def test_every_key_has_words_and_defaults_fit() -> None:
    def walk(body: dict[str, Any]) -> int:
        seen = 0
        for value in body.get("properties", {}).values():
            assert value["description"]
            if "default" in value:
                assert jsonschema.Draft202012Validator(value).is_valid(value["default"]), value
            seen += 1 + walk(value)
        inner = [body.get("items"), body.get("additionalProperties"), *body.get("anyOf", ())]
        return seen + sum(walk(child) for child in inner if isinstance(child, dict))

    assert walk(json_schema()) > 150


def test_the_command_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json_schema()

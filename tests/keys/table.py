"""Every key of the configuration by its dotted path, and configurations that differ in one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from agent.config.fields import ROOT
from agent.config.kinds import Either, Items, Kind, Names, Section
from agent.config.load import parse
from agent.config.types import Config

EFFECTS: dict[str, str] = {}
"""Key -> the test that changes it and sees what that does."""

Test = Callable[..., Any]


def effect(*keys: str) -> Callable[[Test], Test]:
    """Marks the test that sees the effect of these keys."""

    def note(test: Test) -> Test:
        for key in keys:
            assert key not in EFFECTS, f"{key} has two tests"
            EFFECTS[key] = f"{test.__module__}.{test.__name__}"
        return test

    return note


def keys_of(kind: Kind, path: str = "") -> Iterator[str]:
    """Dotted paths of all keys that take a value; `*` stands for a name of the user's own."""
    match kind:
        case Section():
            for name, field in kind.fields.items():
                yield from keys_of(field.kind, f"{path}.{name}" if path else name)
        case Names(of=Section() | Either()):
            yield from keys_of(kind.of, f"{path}.*")
        case Either():
            yield path
            yield from keys_of(kind.mapping, path)
        case Items(of=Section() | Either()):
            yield from keys_of(kind.of, path)
        case _:
            yield path


def all_keys() -> list[str]:
    return list(keys_of(ROOT))


BASE: dict[str, Any] = {
    "gateway": "line4",
    "page": "off",
    "predict": "off",
    "devices": {
        "d": {
            "url": "tcp://127.0.0.1:502",
            "on_loss": "hold",
            "tags": {
                "t": {"holding": 100},
                "pv": {"holding": 10, "type": "float32"},
                "out": {"holding": 20, "type": "float32", "write": {"range": [0, 100]}},
                "sp": {"holding": 22},
                "ok": {"coil": 1},
                "ff": {"holding": 24, "type": "float32"},
                "beat": {"holding": 26, "write": True},
                "more": {"holding": 27, "write": True},
            },
        }
    },
    "loops": {"l": {"pv": "d/pv", "out": "d/out", "setpoint": 50, "mode": "auto"}},
}


def configured(changes: dict[str, Any] | None = None, *, without: tuple[str, ...] = ()) -> Config:
    """The small plant above with some keys set (dotted path -> value) or left out."""
    tree = copy.deepcopy(BASE)
    for path in without:
        *above, last = path.split(".")
        here: Any = tree
        for name in above:
            here = here[name]
        del here[last]
    for path, value in (changes or {}).items():
        *above, last = path.split(".")
        here = tree
        for name in above:
            if not isinstance(here.get(name), dict):
                here[name] = {}
            here = here[name]
        here[last] = value
    loaded = parse(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), "config.yaml")
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config

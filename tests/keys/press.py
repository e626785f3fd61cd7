"""The one device that the keys of mqtt and commands are tried with."""

from __future__ import annotations

from typing import Any

from agent.config.types import Config
from tests.keys.table import configured

PRESS = {
    "url": "tcp://127.0.0.1:502",
    "tags": {
        "temperature": {"holding": 0, "type": "float32"},
        "count": {"holding": 2, "type": "uint32"},
    },
}


def plant(mqtt: dict[str, Any], *, predict: Any = "off", **sections: Any) -> Config:
    """One device, press1, with these keys of mqtt."""
    tree = {"devices": {"press1": PRESS}, "mqtt": mqtt, "predict": predict, **sections}
    return configured(tree, without=("loops",))

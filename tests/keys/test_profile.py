"""The key of a device that names its profile."""

from __future__ import annotations

from pathlib import Path

from agent.config.load import load
from tests.keys.table import effect

CONFIG = """
devices:
  plain: {url: tcp://10.0.0.5, profile: ./press.yaml}
  own: {url: tcp://10.0.0.6, profile: press.yaml, order: DCBA, tags: {power: {every: 3s}, door: {coil: 1}}}
  shipped: {url: tcp://10.0.0.7, profile: carlo-gavazzi-em24}
"""
PROFILE = """
order: CDAB
every: 5s
tags:
  power: {holding: 100, type: float32}
"""


@effect("devices.*.profile")
def test_tags_and_defaults_come_from_it_and_the_configuration_wins(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "press.yaml").write_text(PROFILE)
    loaded = load(tmp_path / "config.yaml")
    assert loaded.problems == []
    assert loaded.config is not None
    plain, own, shipped = loaded.config.devices.values()
    power = plain.tags["power"]
    assert (power.address, power.type, power.order, power.every) == (100, "float32", "CDAB", 5.0)
    power = own.tags["power"]
    assert (power.address, power.type, power.order, power.every) == (100, "float32", "DCBA", 3.0)
    assert own.tags["door"].every == 5.0
    assert shipped.order == "CDAB"
    assert shipped.tags["model_code"].alone

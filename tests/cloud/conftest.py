"""Fixtures of the cloud side's tests."""

import pytest

from tests.brokers import mosquitto
from tests.cloud.transports import pki

__all__ = ["mosquitto", "pki", "spills_soon"]


@pytest.fixture
def spills_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits goes to disk after half a second without a link instead of five."""
    for module in ("store", "worker"):
        monkeypatch.setattr(f"agent.cloud.{module}.SPILL_AFTER", 0.5)

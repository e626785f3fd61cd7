"""Fixtures of the cloud side's tests."""

from tests.brokers import mosquitto

__all__ = ["mosquitto"]

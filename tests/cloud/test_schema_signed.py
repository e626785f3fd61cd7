"""Schemas of signed commands, and of numbers that begin at 1."""

from __future__ import annotations

import pytest

from tests.cloud.test_schema import GOOD, validator


@pytest.mark.parametrize("kind", ["cmd", "desired"])
def test_a_signed_body_is_known_too(kind: str) -> None:
    assert validator(kind).is_valid({"p": "{}", "sig": "ab" * 32})
    assert not validator(kind).is_valid({"sig": "ab" * 32})
    assert not validator(kind).is_valid({"p": "{}", "sig": "ab"})


@pytest.mark.parametrize("kind", ["data", "backfill"])
def test_numbers_of_batches_begin_at_one(kind: str) -> None:
    assert not validator(kind).is_valid(GOOD[kind] | {"seq": 0})

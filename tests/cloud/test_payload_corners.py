"""Bodies in the corners: names that collide, twins full of scores, text that is no text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from agent.cloud import payload
from agent.twin.records import HealthView, Row
from tests.cloud.harness import snapshot
from tests.cloud.test_payload import LAYOUT, STAMP, check, data, twin, wide_rows


def test_a_tag_named_as_a_key_of_the_flat_body_hides_neither() -> None:
    rows = [Row("press1", ("v", "v_", "ts", "level"), 1.0, [230.0, 1.0, 5, 2.5], None)]
    body = check("flat", payload.flat_body(STAMP, rows, t=3.0, seq=7))
    assert body["v"] == 1 and body["ts"] == STAMP.ms(3.0)
    assert (body["v__"], body["v_"], body["ts_"], body["level"]) == (230.0, 1.0, 5, 2.5)


def test_the_scores_of_a_twin_are_split_with_its_tags() -> None:
    names = [f"tag{i:03}" for i in range(200)]
    body = twin(snapshot(LAYOUT, 3.0))
    body["reported"] = {name: {"v": 1.0, "q": "good", "t": 0} for name in names}
    body["health"]["tags"] = dict.fromkeys(names, 0.987654321)
    parts = [check("twin", payload.decode(part)) for part in payload.split(body, 2000)]
    scores: dict[str, float] = {}
    for part in parts:
        assert set(part["health"]["tags"]) == set(part["reported"]) and part["health"]["score"] == 0.9
        scores |= part["health"]["tags"]
    assert scores == body["health"]["tags"]


def test_a_large_body_is_split_without_trying_every_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    original = payload.encode

    def counted(body: Mapping[str, Any]) -> bytes:
        made.append(original(body))
        return made[-1]

    whole = data(wide_rows(tags=400))
    monkeypatch.setattr(payload, "encode", counted)
    parts = payload.split(whole, 1500)
    assert len(parts) > 10 and len(made) <= 2 * len(parts)


def test_half_a_surrogate_pair_stops_no_body() -> None:
    assert json.loads(payload.encode({"text": "a\udc80b"})) == {"text": "a?b"}


def test_causes_stay_in_every_part() -> None:
    picture = dataclasses.replace(snapshot(LAYOUT, 3.0), health={"press1": HealthView(0.1, {}, ("count",))})
    body = twin(picture)
    parts = payload.split(body, len(payload.encode(body)) - 1)
    assert len(parts) > 1 and all(payload.decode(part)["health"]["causes"] == ["count"] for part in parts)

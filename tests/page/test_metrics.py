"""/metrics, read by Prometheus' own parser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from agent.page import metrics
from tests.page.harness import URL, Plant, get, plant, serving


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in ("gauge", "counter"), family.name
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def text_of(behind: Plant, **changes: Any) -> str:
    return metrics.text({**behind.status(), **changes}, behind.snapshot)


def test_what_is_served_parses(tmp_path: Path) -> None:
    with serving(plant(), tmp_path) as front:
        answer = get(front, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.body.decode())
    assert found["edgetwin_up", ()] == 1
    assert found["edgetwin_info", (("kernels", "numba"), ("version", "0.1.0"))] == 1
    assert found["edgetwin_line_requests_total", (("line", URL),)] == 120_450
    assert found["edgetwin_line_errors_total", (("kind", "timeout"), ("line", URL))] == 3
    assert found["edgetwin_line_rtt_seconds", (("line", URL), ("quantile", "0.99"))] == 0.00875
    assert found["edgetwin_scan_overruns_total", (("scan", "press1/1s"),)] == 1
    assert found["edgetwin_values_read_total", ()] == 930_000
    assert found["edgetwin_tags", (("quality", "good"),)] == 9
    assert found["edgetwin_tags", (("quality", "timeout"),)] == 1
    assert found["edgetwin_value", (("device", "press1"), ("tag", "temperature"))] == 181.375
    assert ("edgetwin_value", (("device", "pump2"), ("tag", "level"))) not in found
    assert found["edgetwin_health_score", (("device", "press1"),)] == 0.42
    assert found["edgetwin_loop_setpoint", (("loop", "oven"),)] == 180
    assert found["edgetwin_loop_mode", (("loop", "oven"), ("mode", "auto"))] == 1
    assert found["edgetwin_uplink_online", ()] == 1
    assert found["edgetwin_outbox_dropped_total", ()] == 0


def test_while_the_main_loop_is_silent_there_is_still_an_answer() -> None:
    text = metrics.text({"v": 1, "healthy": False, "problems": ["the main loop does not answer"]}, None)
    assert samples(text)["edgetwin_up", ()] == 0


def test_unknown_figures_are_absent_and_odd_ones_are_numbers() -> None:
    behind = plant()
    assert behind.snapshot is not None
    behind.snapshot.value[:3] = np.inf, -np.inf, np.nan
    lines = behind.status()["lines"]
    lines[URL]["rtt_ms"] = {"p50": None, "p99": None}
    found = samples(text_of(behind, lines=lines))
    assert not [name for name, _ in found if name == "edgetwin_line_rtt_seconds"]
    assert found["edgetwin_value", (("device", "press1"), ("tag", "temperature"))] == math.inf
    assert found["edgetwin_value", (("device", "press1"), ("tag", "pressure"))] == -math.inf
    assert ("edgetwin_value", (("device", "press1"), ("tag", "running"))) not in found


def test_labels_are_escaped() -> None:
    odd = 'rtu:///dev/tty"0\\1\nx'
    behind = plant()
    found = samples(text_of(behind, lines={odd: behind.status()["lines"][URL]}))
    assert found["edgetwin_line_up", (("line", odd),)] == 1

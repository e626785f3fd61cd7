"""/metrics in the text format of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agent.twin.quality import WORDS
from agent.twin.records import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, str], float]


def text(status: Mapping[str, Any], snapshot: Snapshot | None) -> str:
    """All metrics. Durations in seconds, counters end in _total."""
    blocks = [
        _metric("up", "gauge", "1 while the agent is healthy", [({}, float(bool(status.get("healthy"))))]),
        _metric(
            "info",
            "gauge",
            "version and kernels of the agent",
            [({"version": str(status.get("version")), "kernels": str(status.get("kernels"))}, 1.0)],
        ),
        *_counts(status),
        *_lines(status),
        *_scans(status),
        *_cloud(status),
        *_loops(status),
    ]
    if snapshot is not None:
        blocks += _twin(snapshot)
    return "".join(blocks)


def _counts(status: Mapping[str, Any]) -> list[str]:
    counts = status.get("counts", {})
    return [
        _metric(f"{name}_total", "counter", help_, [({}, float(counts[name]))])
        for name, help_ in (
            ("values_read", "values read, good or not"),
            ("values_bad", "values that were not good"),
            ("forecasts", "forecasts made"),
        )
        if name in counts
    ]


def _lines(status: Mapping[str, Any]) -> list[str]:
    lines: Mapping[str, Any] = status.get("lines", {})
    up = [({"line": url}, float(line["state"] == "up")) for url, line in lines.items()]
    requests = [({"line": url}, float(line["requests"])) for url, line in lines.items()]
    busy = [({"line": url}, float(line["utilisation"])) for url, line in lines.items()]
    errors = [
        ({"line": url, "kind": str(kind)}, float(count))
        for url, line in lines.items()
        for kind, count in line["errors"].items()
    ]
    rtt = [
        ({"line": url, "quantile": quantile}, line["rtt_ms"][name] / 1000)
        for url, line in lines.items()
        for name, quantile in (("p50", "0.5"), ("p99", "0.99"))
        if line["rtt_ms"][name] is not None
    ]
    devices = [
        ({"device": name, "state": str(device["state"])}, 1.0)
        for line in lines.values()
        for name, device in line["devices"].items()
    ]
    return [
        _metric("line_up", "gauge", "1 while the line is connected", up),
        _metric("line_requests_total", "counter", "Modbus requests sent", requests),
        _metric("line_errors_total", "counter", "Modbus requests that failed", errors),
        _metric("line_utilisation_ratio", "gauge", "share of time in which the line is busy", busy),
        _metric("line_rtt_seconds", "gauge", "round trip of a request", rtt),
        _metric("device_state", "gauge", "1 for the state that the device is in", devices),
    ]


def _scans(status: Mapping[str, Any]) -> list[str]:
    scans: Mapping[str, Any] = status.get("scans", {})
    late = [
        ({"scan": name, "quantile": quantile}, scan["late_ms"][key] / 1000)
        for name, scan in scans.items()
        for key, quantile in (("p50", "0.5"), ("p99", "0.99"))
        if scan["late_ms"][key] is not None
    ]
    return [
        _metric(
            "scans_total",
            "counter",
            "finished scans",
            [({"scan": n}, float(s["done"])) for n, s in scans.items()],
        ),
        _metric(
            "scan_overruns_total",
            "counter",
            "scans skipped since the one before had not ended",
            [({"scan": n}, float(s["overruns"])) for n, s in scans.items()],
        ),
        _metric("scan_late_seconds", "gauge", "how late a scan starts", late),
    ]


def _cloud(status: Mapping[str, Any]) -> list[str]:
    outbox, uplink = status.get("outbox"), status.get("uplink")
    if not outbox or not uplink:
        return []
    return [
        _metric(
            "uplink_online",
            "gauge",
            "1 while the broker is connected",
            [({}, float(uplink["state"] == "online"))],
        ),
        _metric("uplink_unacked", "gauge", "messages under way", [({}, float(uplink["unacked"]))]),
        _metric("outbox_batches", "gauge", "batches that wait", [({}, float(outbox["batches"]))]),
        _metric("outbox_bytes", "gauge", "bytes that wait", [({}, float(outbox["bytes"]))]),
        _metric("outbox_dropped_total", "counter", "batches given up", [({}, float(outbox["dropped"]))]),
    ]


def _loops(status: Mapping[str, Any]) -> list[str]:
    loops: Mapping[str, Any] = status.get("loops", {})
    return [
        _metric(
            f"loop_{name}",
            "gauge",
            help_,
            [({"loop": loop}, float(one[key])) for loop, one in loops.items() if one[key] is not None],
        )
        for name, key, help_ in (
            ("setpoint", "sp", "setpoint in the unit of the process variable"),
            ("process_variable", "pv", "process variable"),
            ("output", "out", "output"),
        )
    ] + [
        _metric(
            "loop_mode",
            "gauge",
            "1 for the mode",
            [({"loop": n, "mode": o["mode"]}, 1.0) for n, o in loops.items()],
        )
    ]


def _twin(snapshot: Snapshot) -> list[str]:
    by_quality = [0] * len(WORDS)
    for code in snapshot.quality.tolist():
        by_quality[code] += 1
    scores = [
        ({"device": name}, view.score) for name, view in snapshot.health.items() if view.score is not None
    ]
    values: list[Sample] = [
        ({"device": device, "tag": tag}, float(snapshot.value[row]))
        for row, (device, tag) in enumerate(snapshot.layout.keys)
        if snapshot.value[row] == snapshot.value[row]
    ]
    return [
        _metric(
            "tags",
            "gauge",
            "tags by quality",
            [({"quality": WORDS[i]}, float(n)) for i, n in enumerate(by_quality)],
        ),
        _metric("health_score", "gauge", "1 as always, 0 nothing like it", scores),
        _metric("value", "gauge", "newest value of a tag, absent where it has none", values),
    ]


def _metric(name: str, kind: str, help_: str, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    lines = [f"# HELP edgetwin_{name} {help_}", f"# TYPE edgetwin_{name} {kind}"]
    lines += [f"edgetwin_{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    return f"{{{inside}}}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

"""The rows of all tools as one Markdown table, with what Edgetwin is to reach beside them."""

from __future__ import annotations

from collections.abc import Mapping

TARGETS = {
    "50 tags: CPU, % of one core": "≤ 0.4",
    "1000 tags: CPU, % of one core": "≤ 1.2 with forecasts, ≤ 0.8 without",
    "50 tags: period p50 / p99 / max, s": "1.000 / ≤ 1.010",
    "1000 tags: period p50 / p99 / max, s": "1.000 / ≤ 1.010",
    "50 tags: lag in 60 s, s": "0.00",
    "1000 tags: lag in 60 s, s": "0.00",
}


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """`results`: name of the tool -> row -> figure. Rows in the order in which they first appear."""
    rows = list(dict.fromkeys(row for one in results.values() for row in one))
    lines = [["", "target", *results], ["---"] * (2 + len(results))]
    for row in rows:
        lines.append([row, TARGETS.get(row, ""), *(one.get(row, "") for one in results.values())])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)

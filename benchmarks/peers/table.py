"""The rows of all tools as one Markdown table, with what Edgetwin is to reach beside them."""

from __future__ import annotations

from collections.abc import Mapping

WHOLE = "0 / 0 / 0"
BOOKS = ", lost / doubled / out of order"
TARGETS = {
    "from nothing to the first value: s to install + s to start; commands; files to write": "one command",
    "50 tags: CPU, % of one core": "≤ 0.4",
    "1000 tags: CPU, % of one core": "≤ 1.2 with forecasts, ≤ 0.8 without; the least of all",
    "50 tags: period p50 / p99 / max, s": "1.000 / ≤ 1.010",
    "1000 tags: period p50 / p99 / max, s": "1.000 / ≤ 1.010",
    "50 tags: lag in 60 s, s": "0.00",
    "1000 tags: lag in 60 s, s": "0.00",
    "beside a silent unit: the healthy one's period, s": "p99 ≤ 1.020",
    "a hole in the range: legal tags published, of 110": "110",
    "a hole in the range: requests a scan, once learnt": "≤ 3",
    "broker away 12 s: readings of the outage" + BOOKS: WHOLE,
    "broker away 12 s: readings of the whole run" + BOOKS: WHOLE,
    "broker not there at start: readings of 12 s" + BOOKS: WHOLE,
    "kill -9 in an outage: readings of the 8 s before it" + BOOKS: "at most the open batch lost",
    "kill -9 in an outage: readings after it" + BOOKS: WHOLE,
    "PLC frozen 8 s: new values after, s": "≤ 1.5",
    "PLC frozen 8 s: old values published as new": "0",
    "PLC gone 10 s: new values after, s": "≤ 1.5",
    "PLC gone 10 s: old values published as new": "0",
}


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """`results`: name of the tool -> row -> figure. Rows in the order in which they first appear."""
    rows = list(dict.fromkeys(row for one in results.values() for row in one))
    lines = [["", "target", *results], ["---"] * (2 + len(results))]
    for row in rows:
        lines.append([row, TARGETS.get(row, ""), *(one.get(row, "") for one in results.values())])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)

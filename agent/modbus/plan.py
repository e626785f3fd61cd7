"""Which requests read a device's tags at the least cost of its line. Pure: plain data in, plain data out.

The cost of a request is an overhead (frames, silent gaps, the device's own time) and a price per register; the plan
is the exact minimum over all ways to cover the tags (dynamic programming over intervals sorted by start and end).
"""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.config.scalars import duration_text
from agent.config.types import Config, Device, Table, Tag, Url

READ_FUNCTION: dict[Table, int] = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
TABLE_OF: dict[int, Table] = {function: table for table, function in READ_FUNCTION.items()}
REGISTER_TABLES = ("holding", "input")

TCP_OVERHEAD_MS = 5.0
"""Of a request over TCP: round trip and the device's own time; a register more costs next to nothing."""
TCP_REGISTER_MS = 0.002
SERIAL_TURNAROUND_MS = 10.0
REQUEST_CHARACTERS, REPLY_CHARACTERS = 8, 5
FIXED_GAP_MS = 1.75
"""The 3.5-character gap is 1.75 ms above 19,200 baud (Modbus over serial line V1.02, 2.5.1.1)."""

SUPPOSED = (
    "  as if its SunSpec chain began at 40000 with a common model of 66; `run` and `read` walk the chain"
)

Span = tuple[int, int]
"""(first address, address after the last)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One read: `count` registers or bits from `address`; its reply holds all of `tags`, of which `wanted` are words
    (or bits) that a tag needs."""

    device: str
    unit: int
    function: int
    address: int
    count: int
    every: float
    tags: tuple[str, ...]
    wanted: int

    @property
    def table(self) -> Table:
        return TABLE_OF[self.function]


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a device has shown that it does not bear.

    illegal: spans per table that no request may touch, unless a tag lies there that was not refused itself;
    refused: tags that are read alone and seldom; longest: registers per request, 0 where the limit of the
    configuration holds. trusted: holes across which values were seen to come as they are without them.
    silent: those of `illegal` that the device does not even refuse: it does not answer.
    """

    illegal: tuple[tuple[Table, Span], ...] = ()
    refused: frozenset[str] = frozenset()
    longest: int = 0
    trusted: tuple[tuple[Table, Span], ...] = ()
    silent: tuple[tuple[Table, Span], ...] = ()


NOTHING_LEARNT = Learnt()


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds: of a request, of a register in it."""

    overhead: float
    register: float

    def of(self, table: Table, count: int) -> float:
        """Of a request for `count` registers or bits."""
        registers = count if table in REGISTER_TABLES else count / 16
        return self.overhead + self.register * registers


def line_cost(url: Url, pause: float = 0.0) -> Cost:
    """What requests cost on a line; `pause` is the device's own, in seconds."""
    if url.scheme != "rtu":
        return Cost(TCP_OVERHEAD_MS + 1000 * pause, TCP_REGISTER_MS)
    character = 1000.0 * url.character
    gap = 3.5 * character if url.baud <= 19200 else FIXED_GAP_MS
    frames = (REQUEST_CHARACTERS + REPLY_CHARACTERS) * character
    return Cost(frames + 2 * gap + SERIAL_TURNAROUND_MS + 1000 * pause, 2 * character)


def plan_device(
    device: Device, learnt: Learnt = NOTHING_LEARNT, *, cautious: bool = False
) -> tuple[Request, ...]:
    """The least-cost requests that read every tag of a device, each tag whole in one request.

    `cautious`: bridge only holes between registers that are trusted; what the others do to the values behind them is
    not known yet.

    Tags are planned apart by period and table; `alone` tags and those the device refused get requests of their own.
    Raises ValueError when a tag cannot be read within the device's limits (`check` refuses that first).
    """
    groups: dict[tuple[float, Table], list[Tag]] = {}
    requests: list[Request] = []
    for tag in device.tags.values():
        if tag.alone or tag.name in learnt.refused:
            requests.append(request_for(device, (tag.name,)))
        else:
            groups.setdefault((tag.every, tag.table), []).append(tag)
    for (every, table), tags in groups.items():
        unproven = _unproven(device, learnt, table) if cautious else []
        requests += _plan_group(device, learnt, every, table, tags, unproven)
    requests.sort(key=lambda request: (request.every, request.function, request.address))
    return tuple(requests)


def _plan_group(
    device: Device,
    learnt: Learnt,
    every: float,
    table: Table,
    tags: Sequence[Tag],
    unproven: Sequence[Span],
) -> Iterable[Request]:
    limit = device.limits.registers if table in REGISTER_TABLES else device.limits.bits
    if (
        learnt.longest and table in REGISTER_TABLES
    ):  # a tag stays whole, whatever was learnt before it was there
        limit = min(limit, max(learnt.longest, max(tag.count for tag in tags)))
    forbidden = [(avoid.first, avoid.last + 1) for avoid in device.avoid if avoid.table == table]
    forbidden += [span for where, span in learnt.illegal if where == table]
    forbidden += unproven
    forbidden = _outside_of_tags(forbidden, tags)
    spans = least_cost(
        _with_powers(tags, limit, device.limits.gap, forbidden),
        cost=line_cost(device.url, device.limits.pause),
        table=table,
        limit=limit,
        gap=device.limits.gap,
        forbidden=forbidden,
    )
    return _requests(device, every, table, spans, tags)


def holes_of(device: Device, table: Table) -> list[Span]:
    """What no tag of the device covers, between its tags of a table; an `alone` tag's address is such a hole too."""
    covered = _merged(
        (tag.address, tag.address + tag.count)
        for tag in device.tags.values()
        if tag.table == table and not tag.alone
    )
    return [(end, start) for (_, end), (start, _) in itertools.pairwise(covered)]


def _unproven(device: Device, learnt: Learnt, table: Table) -> list[Span]:
    if table not in REGISTER_TABLES:
        return []
    trusted = {span for where, span in learnt.trusted if where == table}
    return [hole for hole in holes_of(device, table) if hole not in trusted]


def _with_powers(tags: Sequence[Tag], limit: int, gap: int | None, forbidden: Sequence[Span]) -> list[Span]:
    """Each tag's span, stretched to the register of its power of ten where one request can hold both.

    A power of ten may change while the device runs, so value and power should stem from one reply. What no request
    may do for another tag's sake (touch a forbidden span, bridge a hole longer than `gap`) it may not do for this.
    """
    by_name = {tag.name: tag for tag in tags}
    covered = _merged((tag.address, tag.address + tag.count) for tag in tags)
    holes = [(end, start) for (_, end), (start, _) in itertools.pairwise(covered)]
    barriers = _merged([*forbidden, *(hole for hole in holes if gap is not None and hole[1] - hole[0] > gap)])
    starts = [first for first, _ in barriers]
    spans = []
    for tag in tags:
        first, after = tag.address, tag.address + tag.count
        power = by_name.get(tag.scale_from) if tag.scale_from else None
        if power is not None:
            low, high = min(first, power.address), max(after, power.address + power.count)
            last = bisect_left(starts, high) - 1
            if high - low <= limit and (last < 0 or barriers[last][1] <= low):
                first, after = low, high
        spans.append((first, after))
    return spans


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same addresses as spans in order that do not touch."""
    merged: list[Span] = []
    for first, after in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], after))
        else:
            merged.append((first, after))
    return merged


def _outside_of_tags(forbidden: Iterable[Span], tags: Sequence[Tag]) -> list[Span]:
    """Forbidden spans less what tags themselves cover: a tag is read even where its neighbourhood is not."""
    covered = sorted((tag.address, tag.address + tag.count) for tag in tags)
    free: list[Span] = []
    for first, after in forbidden:
        for start, end in covered:
            if start >= after or end <= first:
                continue
            if first < start:
                free.append((first, start))
            first = max(first, end)
        if first < after:
            free.append((first, after))
    return sorted(free)


def _requests(
    device: Device, every: float, table: Table, spans: Sequence[Span], tags: Sequence[Tag]
) -> Iterable[Request]:
    """Requests for spans sorted by start; each tag goes to the last one that holds it (values and powers together)."""
    starts = [first for first, _ in spans]
    held: list[list[Tag]] = [[] for _ in spans]
    home: dict[str, int] = {}
    for tag in tags:
        place = bisect_right(starts, tag.address) - 1
        while spans[place][1] < tag.address + tag.count:
            place -= 1  # an earlier, longer one holds it
        home[tag.name] = place
    for tag in tags:
        if tag.scale_from in home:
            place = next(
                (k for k, span in enumerate(spans) if _holds_both(span, tag, device)), home[tag.name]
            )
            home[tag.name] = place
            if _holds_both(spans[place], tag, device):
                home[tag.scale_from] = place
    for tag in tags:
        held[home[tag.name]].append(tag)
    for (first, after), mine in zip(spans, held):
        if mine:
            yield Request(
                device=device.name,
                unit=device.unit,
                function=READ_FUNCTION[table],
                address=first,
                count=after - first,
                every=every,
                tags=tuple(tag.name for tag in mine),
                wanted=_wanted(mine),
            )


def _holds_both(span: Span, tag: Tag, device: Device) -> bool:
    power = device.tags.get(tag.scale_from or "")
    return (
        power is not None
        and span[0] <= min(tag.address, power.address)
        and max(tag.address + tag.count, power.address + power.count) <= span[1]
    )


def _wanted(tags: Iterable[Tag]) -> int:
    return len({address for tag in tags for address in range(tag.address, tag.address + tag.count)})


def least_cost(
    spans: Iterable[Span], *, cost: Cost, table: Table, limit: int, gap: int | None, forbidden: Sequence[Span]
) -> list[Span]:
    """The cheapest set of requests so that each span lies whole in one of them, in linear time after sorting.

    No request is longer than `limit`, bridges a hole longer than `gap` (None: any that pays) or touches a forbidden
    span. Equal costs: fewer requests, then fewer registers. Raises ValueError when a span alone breaks a rule.
    """
    atoms = _outermost(spans)
    overhead, price = _whole_costs(cost, table)
    best: list[tuple[int, int, int] | None] = [(0, 0, 0), *[None] * len(atoms)]
    came_from = [0] * (len(atoms) + 1)
    window: deque[tuple[tuple[int, int, int], int]] = (
        deque()
    )  # starts that may still serve, the cheapest first
    earliest, barrier, passed = 0, 0, 0
    for end, (first, after) in enumerate(atoms):
        so_far = best[end]
        if so_far is not None:
            key = (so_far[0] - price * first, so_far[1], so_far[2] - first)
            while window and window[-1][0] > key:
                window.pop()
            window.append((key, end))
        if gap is not None and end and first - atoms[end - 1][1] > gap:
            earliest = end
        while passed < len(forbidden) and forbidden[passed][0] < after:
            barrier = max(barrier, forbidden[passed][1])
            passed += 1
        while earliest <= end and atoms[earliest][0] < max(barrier, after - limit):
            earliest += 1
        while window and window[0][1] < earliest:
            window.popleft()
        if window:
            (spent, requests, registers), start = window[0]
            best[end + 1] = (spent + overhead + price * after, requests + 1, registers + after)
            came_from[end + 1] = start
    if best[-1] is None:
        raise ValueError("a tag does not fit into one request within the device's limits")
    chosen: list[Span] = []
    count = len(atoms)
    while count:
        start = came_from[count]
        chosen.append((atoms[start][0], atoms[count - 1][1]))
        count = start
    return chosen[::-1]


def _whole_costs(cost: Cost, table: Table) -> tuple[int, int]:
    """Of a request and of a register (or bit) in it, in picoseconds, so that equal costs compare equal."""
    overhead = cost.of(table, 0)
    return round(1e9 * overhead), round(1e9 * (cost.of(table, 1) - overhead))


def _outermost(spans: Iterable[Span]) -> list[Span]:
    """Spans without those inside another; start and end both increase strictly."""
    kept: list[Span] = []
    for first, after in sorted(set(spans), key=lambda span: (span[0], -span[1])):
        if not kept or after > kept[-1][1]:
            kept.append((first, after))
    return kept


def request_for(device: Device, names: tuple[str, ...]) -> Request:
    """One request that holds just these tags of one table, from the first of their addresses to the last."""
    tags = [device.tags[name] for name in names]
    first = min(tag.address for tag in tags)
    after = max(tag.address + tag.count for tag in tags)
    return Request(
        device=device.name,
        unit=device.unit,
        function=READ_FUNCTION[tags[0].table],
        address=first,
        count=after - first,
        every=tags[0].every,
        tags=names,
        wanted=_wanted(tags),
    )


def split(request: Request, device: Device) -> tuple[Request, ...]:
    """Two requests instead of one, cut at the widest hole near its middle; itself when it holds one tag only."""
    tags = sorted((device.tags[name] for name in request.tags), key=lambda tag: (tag.address, tag.count))
    if len(tags) < 2:
        return (request,)
    quarter = len(tags) // 4
    cuts = range(max(1, quarter), max(2, len(tags) - quarter))

    def hole(cut: int) -> int:
        return tags[cut].address - tags[cut - 1].address - tags[cut - 1].count

    cut = max(cuts, key=lambda cut: (hole(cut), -abs(2 * cut - len(tags))))
    return tuple(
        dataclasses.replace(request_for(device, tuple(tag.name for tag in part)), every=request.every)
        for part in (tags[:cut], tags[cut:])
    )


def cycle_ms(device: Device, requests: Iterable[Request]) -> float:
    """Estimated time of one pass over the requests, in milliseconds."""
    cost = line_cost(device.url, device.limits.pause)
    return sum(cost.of(request.table, request.count) for request in requests)


def describe(config: Config) -> dict[str, Any]:
    """The `plan` of `edgetwin check --plan --json`."""
    plans = {device.name: plan_device(device) for device in config.devices.values()}
    return {
        name: {
            "requests": [
                {
                    "table": request.table,
                    "address": request.address,
                    "count": request.count,
                    "wanted": request.wanted,
                    "every": duration_text(request.every),
                }
                for request in requests
            ],
            "cycle_ms": round(cycle_ms(config.devices[name], requests), 1),
            "period_ms": round(1000 * min((request.every for request in requests), default=0.0), 3),
        }
        for name, requests in plans.items()
    }


def text(config: Config) -> list[str]:
    """The plan as lines for a person."""
    lines = []
    for name, plan in describe(config).items():
        device = config.devices[name]
        read = sum(request["count"] for request in plan["requests"])
        wanted = sum(request["wanted"] for request in plan["requests"])
        lines.append(
            f"{name}  {device.url.text} unit {device.unit}: {len(plan['requests'])} requests, {read} words read, "
            f"{wanted} wanted, about {plan['cycle_ms']:g} ms of {plan['period_ms']:g} ms"
        )
        if any(tag.sunspec is not None for tag in device.tags.values()):
            lines.append(SUPPOSED)
        lines += [
            f"  {request['table']} {request['address']}-{request['address'] + request['count'] - 1}"
            f" ({request['count']}, {request['wanted']} wanted) every {request['every']}"
            for request in plan["requests"]
        ]
    return lines


def warnings(config: Config) -> list[tuple[str, str]]:
    """(device, words) for each line whose periods cannot be kept: at its first device."""
    load: dict[str, float] = {}
    first: dict[str, str] = {}
    for device in config.devices.values():
        cost = line_cost(device.url, device.limits.pause)
        busy = sum(
            cost.of(request.table, request.count) / (1000 * request.every) for request in plan_device(device)
        )
        load[device.url.text] = load.get(device.url.text, 0.0) + busy
        first.setdefault(device.url.text, device.name)
    return [
        (
            first[url],
            f"the periods on {url} cannot be kept: its requests need about {100 * busy:.0f} % of the time",
        )
        for url, busy in load.items()
        if busy > 1.0
    ]

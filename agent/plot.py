"""Charts as SVG text: numbers in, one self-contained picture out, readable on a light and on a dark ground. Pure.

    from agent.plot import Band, Line, Panel, Rule, chart

    text = chart(
        [
            Panel(
                [
                    Band(t, low, high, "90 % interval"),
                    Line(t, measured, "measured"),
                    Line(t, setpoint, "setpoint", colour=1, step=True, dashed=True),
                    Rule(80.0, "high limit"),
                ],
                title="reactor temperature",
                unit="°C",
            ),
            Panel([Line(t, output, "output", colour=2, step=True)], title="valve", unit="%", low=0.0, high=100.0),
        ],
        title="loop tc1",
    )
    Path("out.svg").write_text(text, encoding="utf-8")

NaN in y (or in low or high) breaks a line or band. A line of any number of points is drawn as first, least, greatest
and last of each pixel column, so that a chart stays small and no spike is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape

Numbers = Sequence[float]
Point = tuple[float, float]

RIGHT, TOP, GAP = 14.0, 34.0, 16.0  # pixels
LETTER = 6.4
"""Width of one letter of the 11 px text, in pixels: a guess that is seldom too small."""
ROW = 16.0
SECONDS = (1, 2, 5, 10, 15, 30)
TIME_STEPS = (
    *SECONDS,
    *(60 * n for n in SECONDS),
    *(3600 * n for n in (1, 2, 3, 6, 12)),
    *(86_400 * n for n in (1, 2, 5, 10, 20, 50, 100, 200, 400)),
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_TIME = 2.5e11
"""Seconds that still have a date (year 9892); x beyond it is shown as plain numbers."""

STYLE = (
    ".c{--g:#fff;--t:#24292f;--f:#d0d7de;--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#cf222e;--c5:#57606a}"
    "@media(prefers-color-scheme:dark){.c{--g:#0d1117;--t:#e6edf3;--f:#30363d;"
    "--c0:#58a6ff;--c1:#f0883e;--c2:#3fb950;--c3:#bc8cff;--c4:#ff7b72;--c5:#8b949e}}"
    ".c text{font:11px system-ui,sans-serif;fill:var(--t)}.c .h{font-size:14px;font-weight:600}.c .p{font-weight:600}"
    ".c .g{fill:var(--g)}.c .f{stroke:var(--f);fill:none}"
    + "".join(
        f".c .l{n}{{stroke:var(--c{n});fill:none;stroke-width:1.4;stroke-linejoin:round;stroke-linecap:round}}"
        f".c .b{n}{{fill:var(--c{n});fill-opacity:.2}}"
        for n in range(6)
    )
)
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """A curve. x (not decreasing) and y of equal length; colour: 0 to 5; step: each y holds until the next x."""

    x: Numbers
    y: Numbers
    name: str = ""
    colour: int = 0
    dashed: bool = False
    step: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """The ground between two curves; x (not decreasing), low and high of equal length."""

    x: Numbers
    low: Numbers
    high: Numbers
    name: str = ""
    colour: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A dashed straight line across the panel: at a height, or at an x where `upright`."""

    at: float
    name: str = ""
    colour: int = 5
    upright: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. shapes: later ones lie on top.

    unit stands at the y axis, x_unit at the x axis. clock: x is Unix seconds and is shown as UTC. low, high, x_ends:
    fixed ends of the axes instead of those of the data. height: of the plot area, in pixels.
    """

    shapes: Sequence[Line | Band | Rule]
    title: str = ""
    unit: str = ""
    x_unit: str = "s"
    x_ends: tuple[float, float] | None = None
    clock: bool = False
    low: float | None = None
    high: float | None = None
    height: float = 160.0


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a panel's numbers lie on the picture."""

    left: float
    top: float
    width: float
    height: float
    x: Point  # least and greatest
    y: Point

    def at(self, x: float, y: float) -> Point:
        return self.across(x), self.down(y)

    def across(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * self.width

    def down(self, y: float) -> float:
        part = (self.y[1] - y) / (self.y[1] - self.y[0])
        return self.top + min(max(part, -10.0), 11.0) * self.height


def chart(panels: Sequence[Panel], *, title: str = "", width: int = 900) -> str:
    """The panels under each other as one SVG document. width: in pixels, at least 200.

    Raises ValueError for a shape whose columns differ in length, and for a colour that is none.
    """
    for panel in panels:
        for shape in panel.shapes:
            _checked(shape)
    width = max(width, 200)
    parts: list[str] = []
    top = TOP if title else 6.0
    for number, panel in enumerate(panels):
        drawn, top = _panel(panel, number, top=top, width=width)
        parts += drawn
    height = math.ceil(top)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="c" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{_text(title or 'chart')}</title><style>{STYLE}</style>",
        f'<rect class="g" width="{width}" height="{height}"/>',
    ]
    if title:
        head.append(f'<text class="h" x="10" y="20">{_text(title)}</text>')
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _checked(shape: Line | Band | Rule) -> None:
    if not 0 <= shape.colour < COLOURS:
        raise ValueError(f"a colour is from 0 to {COLOURS - 1}, not {shape.colour}")
    if isinstance(shape, Line) and len(shape.x) != len(shape.y):
        raise ValueError(f"the line {shape.name} has {len(shape.x)} x and {len(shape.y)} y")
    if isinstance(shape, Band) and not len(shape.x) == len(shape.low) == len(shape.high):
        raise ValueError(f"the band {shape.name} has columns of different length")


def _panel(panel: Panel, number: int, *, top: float, width: int) -> tuple[list[str], float]:
    """The elements of one panel, and where the next one begins."""
    x_range, y_range = _ranges(panel)
    y_ticks, y_labels = _ticks(y_range, most=max(2, int(panel.height // 32)))
    left = 14.0 + LETTER * max((len(label) for label in y_labels), default=1)
    words, top = _heading(panel, left=left, top=top, width=width)
    frame = _Frame(left, top, width - left - RIGHT, panel.height, x_range, y_range)
    clock = panel.clock and abs(x_range[0]) < LAST_TIME and abs(x_range[1]) < LAST_TIME
    most = max(2, int(frame.width // 95))
    x_ticks, x_labels = _clock_ticks(x_range, most=most) if clock else _ticks(x_range, most=most)
    parts, bottom = words, top + panel.height
    for tick, label in zip(y_ticks, y_labels, strict=True):
        y = frame.down(tick)
        parts.append(f'<path class="f" d="M{left:.1f} {y:.1f}h{frame.width:.1f}"/>')
        parts.append(f'<text x="{left - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick, label in zip(x_ticks, x_labels, strict=True):
        x = frame.across(tick)
        parts.append(f'<path class="f" d="M{x:.1f} {top:.1f}v{panel.height:.1f}"/>')
        x = min(x, width - 4.0 - 0.5 * LETTER * len(label))  # the last one stays on the picture
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<clipPath id="k{number}"><rect x="{left:.1f}" y="{top:.1f}" width="{frame.width:.1f}" '
        f'height="{panel.height:.1f}"/></clipPath><g clip-path="url(#k{number})">'
    )
    parts += [_shape(shape, frame) for shape in panel.shapes]
    unit = f"UTC, from {_moment(x_range[0]):%Y-%m-%d}" if clock else panel.x_unit
    parts.append(
        f'</g><text x="{width - RIGHT:.1f}" y="{bottom + 28:.1f}" text-anchor="end">{_text(unit)}</text>'
    )
    return parts, bottom + 28.0 + GAP


def _heading(panel: Panel, *, left: float, top: float, width: int) -> tuple[list[str], float]:
    """Title, unit and legend above the plot area, in as many rows as they need; and where the plot area begins."""
    name = f"{panel.title} [{panel.unit}]" if panel.unit else panel.title
    parts = [f'<text class="p" x="{left:.1f}" y="{top + 11:.1f}">{_text(name)}</text>'] if name else []
    x = left + (LETTER * 1.1 * len(name) + 20.0 if name else 0.0)
    for shape in panel.shapes:
        if not shape.name:
            continue
        wide = 24.0 + LETTER * len(shape.name) + 14.0
        if x + wide > width - RIGHT and x > left:
            x, top = left, top + ROW
        if isinstance(shape, Band):
            parts.append(
                f'<rect class="b{shape.colour}" x="{x:.1f}" y="{top + 2:.1f}" width="18" height="10"/>'
            )
        else:
            dash = ' stroke-dasharray="5 3"' if isinstance(shape, Rule) or shape.dashed else ""
            parts.append(f'<path class="l{shape.colour}" d="M{x:.1f} {top + 7:.1f}h18"{dash}/>')
        parts.append(f'<text x="{x + 23:.1f}" y="{top + 11:.1f}">{_text(shape.name)}</text>')
        x += wide
    return parts, top + ROW + 4.0


def _shape(shape: Line | Band | Rule, frame: _Frame) -> str:
    if isinstance(shape, Rule):
        if shape.upright:
            way = f"M{frame.across(shape.at):.1f} {frame.top:.1f}v{frame.height:.1f}"
        else:
            way = f"M{frame.left:.1f} {frame.down(shape.at):.1f}h{frame.width:.1f}"
        return f'<path class="l{shape.colour}" stroke-dasharray="5 3" d="{way}"/>'
    if isinstance(shape, Band):
        way = "".join(_outline(run) for run in _spans(shape, frame))
        return f'<path class="b{shape.colour}" d="{way}"/>'
    dash = ' stroke-dasharray="5 3"' if shape.dashed else ""
    way = "".join(_polyline(run, shape.step) for run in _thin(shape, frame))
    return f'<path class="l{shape.colour}"{dash} d="{way}"/>'


def _polyline(run: list[Point], step: bool) -> str:
    if len(run) == 1:  # a lone point between two gaps is drawn as a dot
        return f"M{run[0][0] - 0.7:.1f} {run[0][1]:.1f}h1.4"
    first = f"M{run[0][0]:.1f} {run[0][1]:.1f}"
    if step:
        return first + "".join(f"H{x:.1f}V{y:.1f}" for x, y in run[1:])
    return first + "L" + " ".join(f"{x:.1f} {y:.1f}" for x, y in run[1:])


def _outline(run: list[tuple[float, float, float]]) -> str:
    if len(run) == 1:
        run = [(run[0][0] - 0.7, *run[0][1:]), (run[0][0] + 0.7, *run[0][1:])]
    there = " ".join(f"{x:.1f} {y:.1f}" for x, _, y in run)
    back = " ".join(f"{x:.1f} {y:.1f}" for x, y, _ in reversed(run))
    return f"M{there}L{back}Z"


def _thin(line: Line, frame: _Frame) -> Iterator[list[Point]]:
    """Unbroken runs of pixel points; of each pixel column the first, the least, the greatest and the last."""
    run: list[Point] = []
    column: list[Point] = []
    for x, y in zip(line.x, line.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            run += _four(column)
            if run:
                yield run
            run, column = [], []
            continue
        point = frame.at(float(x), float(y))
        if column and math.floor(point[0]) != math.floor(column[0][0]):
            run += _four(column)
            column = []
        column.append(point)
    run += _four(column)
    if run:
        yield run


def _four(column: list[Point]) -> list[Point]:
    if len(column) <= 4:
        return column
    kept = {0, len(column) - 1}
    kept.add(min(range(len(column)), key=lambda i: column[i][1]))
    kept.add(max(range(len(column)), key=lambda i: column[i][1]))
    return [column[i] for i in sorted(kept)]


def _spans(band: Band, frame: _Frame) -> Iterator[list[tuple[float, float, float]]]:
    """Unbroken runs of (x, y of low, y of high) in pixels, one per pixel column: the widest reach of both edges."""
    run: list[tuple[float, float, float]] = []
    for x, low, high in zip(band.x, band.low, band.high, strict=True):
        if not (math.isfinite(x) and math.isfinite(low) and math.isfinite(high)):
            if run:
                yield run
            run = []
            continue
        across, below, above = frame.across(float(x)), frame.down(float(low)), frame.down(float(high))
        if len(run) > 1 and math.floor(run[-1][0]) == math.floor(across):
            run[-1] = (across, max(run[-1][1], below), min(run[-1][2], above))
        else:
            run.append((across, below, above))
    if run:
        yield run


def _ranges(panel: Panel) -> tuple[Point, Point]:
    """Ends of both axes: of what is drawn, with a little air above and below."""
    x_least, x_most, y_least, y_most = math.inf, -math.inf, math.inf, -math.inf
    for shape in panel.shapes:
        if isinstance(shape, Rule):
            xs, ys = ([shape.at], []) if shape.upright else ([], [shape.at])
            columns: list[tuple[Numbers, Numbers]] = [(xs, ys)]
        elif isinstance(shape, Band):
            columns = [(shape.x, shape.low), ((), shape.high)]
        else:
            columns = [(shape.x, shape.y)]
        for xs_, ys_ in columns:
            x_least, x_most = _widened(xs_, x_least, x_most)
            y_least, y_most = _widened(ys_, y_least, y_most)
    y_least, y_most = _apart(y_least, y_most)
    air = 0.04 * (y_most - y_least)
    low = y_least - air if panel.low is None else panel.low
    high = y_most + air if panel.high is None else panel.high
    return _apart(*(panel.x_ends or (x_least, x_most))), _apart(low, high)


def _widened(values: Numbers, least: float, most: float) -> Point:
    for value in values:
        if value < least and value > -math.inf:
            least = float(value)
        if value > most and value < math.inf:
            most = float(value)
    return least, most


def _apart(least: float, most: float) -> Point:
    """Ends that differ enough for an axis, whatever the data."""
    if not (math.isfinite(least) and math.isfinite(most)):
        return 0.0, 1.0
    if most - least <= 1e-12 * max(abs(least), abs(most)):
        half = max(1e-3 * abs(least), 0.5 if least == 0.0 else 1e-300)
        return least - half, least + half
    return least, most


def _ticks(ends: Point, *, most: int) -> tuple[list[float], list[str]]:
    """At most `most` + 1 round numbers between both ends, steps of 1, 2 or 5, and how they are written."""
    rough = (ends[1] - ends[0]) / most
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0.0 else 0.0
    if not (power > 0.0 and math.isfinite(rough)):
        return [], []
    step = next((n * power for n in (1.0, 2.0, 5.0) if n * power >= rough), 10.0 * power)
    first, last = math.ceil(ends[0] / step - 1e-9), math.floor(ends[1] / step + 1e-9)
    ticks = [n * step for n in range(int(first), int(last) + 1)]
    largest = max((abs(tick) for tick in ticks), default=0.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if largest >= 1e9 or decimals > 6:
        digits = max(1, math.ceil(math.log10(max(largest / step, 1.0)) + 1e-9) + 1)
        return ticks, [f"{tick:.{digits}g}" for tick in ticks]
    return ticks, [
        f"{tick + 0.0:.{decimals}f}".replace("-0", "0") if tick == 0.0 else f"{tick:.{decimals}f}"
        for tick in ticks
    ]


def _clock_ticks(ends: Point, *, most: int) -> tuple[list[float], list[str]]:
    """Round moments of UTC between both ends, and how they are written."""
    rough = (ends[1] - ends[0]) / most
    if rough < 1.0:
        return _fine_ticks(ends, most=most)
    step = next((n for n in TIME_STEPS if n >= rough), None) or 86_400 * math.ceil(rough / 86_400)
    ticks = [float(n * step) for n in range(math.ceil(ends[0] / step), math.floor(ends[1] / step) + 1)]
    form = "%Y-%m-%d" if step >= 86_400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    return ticks, [
        f"{_moment(tick):%m-%d}" if step < 86_400 and tick % 86_400 == 0 else f"{_moment(tick):{form}}"
        for tick in ticks
    ]


def _fine_ticks(ends: Point, *, most: int) -> tuple[list[float], list[str]]:
    """Round parts of a second between both ends, and how they are written."""
    began = float(math.floor(ends[0]))
    ticks, labels = _ticks((ends[0] - began, ends[1] - began), most=most)
    return [began + tick for tick in ticks], [
        f"{_moment(began + int(whole)):%H:%M:%S}{point}{part}"
        for whole, point, part in (label.partition(".") for label in labels)
    ]


def _moment(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def _text(words: str) -> str:
    """Words that may stand in XML: escaped, without the control characters that it forbids."""
    return escape("".join(letter if letter.isprintable() else " " for letter in words))

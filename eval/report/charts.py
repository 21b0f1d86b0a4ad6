"""Charts of a section as SVG: one metric against another, with a marker for each run, and curves of an analysis.

Colours are those of the classes s0, s1, … in report.css. The shapes of markers distinguish methods without colours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

from eval.report.tradeoff import Curve, Point, pareto_front

WIDTH, HEIGHT = 440, 340  # units of the drawing; letters are 13 high
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 52
COLOURS = 7  # of report.css; 7 and 8 have no common divisor, so pairs of colour and shape repeat late
SHAPES = (
    "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1 -5 0Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -5.8L5.6 4.4H-5.6Z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",
    "M0 5.8L5.6 -4.4H-5.6Z",
    "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M0 -6L5.7 -1.9L3.5 4.9H-3.5L-5.7 -1.9Z",
    "M-6 -3.5H6L0 6.5Z M-6 3.5H6L0 -6.5Z",
)


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Args:
        name: with the unit.
        higher: whether more is better.
        digits: of a value after the point.
        scale: by which values are multiplied.
    """

    name: str
    higher: bool
    digits: int
    scale: float = 1.0


def draw_chart(found: Sequence[Curve], x: Axis, y: Axis, styles: Mapping[str, int]) -> str:
    """An <svg> element with axes, error bars, curves, markers with tooltips, and the Pareto front.

    An axis is logarithmic where its values are positive and the largest is more than 20 times the smallest.

    Args:
        found: at least one curve.
        x: the horizontal axis.
        y: the vertical axis.
        styles: number of each method, for its colour and shape.
    """
    across = _Span.around(_ends(found, 0, x.scale), LEFT, WIDTH - RIGHT)
    up = _Span.around(_ends(found, 1, y.scale), HEIGHT - BOTTOM, TOP)
    svg = Element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    svg.set("aria-label", f"{y.name} against {x.name}: {', '.join(curve.method for curve in found)}")
    better = ("better →" if x.higher else "← better"), ("better ↑" if y.higher else "better ↓")
    _draw_axes(svg, (across, up), (x.name, y.name), better)

    def place(point: Point) -> Point:
        return across.at(point[0] * x.scale), up.at(point[1] * y.scale)

    points = [point for curve in found for point in curve.points]
    best = [place(points[index]) for index in pareto_front(points, (x.higher, y.higher))]
    front = SubElement(svg, "path", {"class": "front", "d": _staircase(best, x.higher)})
    SubElement(front, "title").text = "Pareto front: no run is better on both axes"
    for curve in found:
        group = SubElement(svg, "g", {"class": f"s{styles[curve.method] % COLOURS}"})
        places = [place(point) for point in curve.points]
        if len(places) > 1:
            SubElement(group, "path", {"class": "curve", "d": "M" + "L".join(map(_xy, places))})
        for point, bars in zip(curve.points, curve.bars, strict=True):
            for k, bar in enumerate(bars):
                if bar:
                    ends = [place((end, point[1]) if k == 0 else (point[0], end)) for end in bar]
                    SubElement(group, "path", {"class": "bar", "d": "M" + "L".join(map(_xy, ends))})
        for point, label, (px, py) in zip(curve.points, curve.labels, places, strict=True):
            texts = (f"{axis.name} {v * axis.scale:.{axis.digits}f}" for axis, v in zip((x, y), point, strict=True))
            _draw_marker(group, styles[curve.method], (px, py), "\n".join([label, *texts]))
    return tostring(svg, encoding="unicode")


@dataclass(frozen=True)
class Line:
    """A line of `draw_lines`.

    Args:
        label: what it is of.
        style: number of its colour and shape.
        points: (x, y) of each, in the order in which they are joined; those that are not finite are left out.
        dashed: whether it is dashed, and has no marker.
    """

    label: str
    style: int
    points: Sequence[Point]
    dashed: bool = False


def draw_lines(lines: Sequence[Line], x: str, y: str, among: Sequence[Line] = ()) -> str:
    """An <svg> element with axes and lines, each with a marker at its end; "" if no line has a finite point.

    The horizontal axis is linear. The vertical one is logarithmic as in `draw_chart`. It is also where dashed lines go
    more than 20 times as high as the others, which would lie on the ground; values of 0 and less are then left out.

    Args:
        lines: of one chart.
        x: name of the horizontal axis, with the unit.
        y: of the vertical one.
        among: lines of the drawings beside it, which have the same axes.
    """

    def finite(line: Line) -> list[Point]:
        return [point for point in line.points if all(map(math.isfinite, point))]

    held = [*lines, *among]
    tops = [[point[1] for line in held if line.dashed is dashed for point in finite(line)] for dashed in (False, True)]
    solid, dashed = (max(values, default=0.0) for values in tops)
    positive = dashed > 20 * solid > 0

    def drawn(line: Line) -> list[Point]:
        return [point for point in finite(line) if point[1] > 0 or not positive]

    found = [(line, points) for line in lines if (points := drawn(line))]
    if not found:
        return ""
    xs, ys = zip(*(point for line in held for point in drawn(line)), strict=True)
    across = _Span.around(xs, LEFT, WIDTH - RIGHT, linear=True)
    up = _Span.around(ys, HEIGHT - BOTTOM, TOP)
    svg = Element("svg", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    svg.set("aria-label", f"{y} against {x}: {', '.join(dict.fromkeys(line.label for line, _ in found))}")
    _draw_axes(svg, (across, up), (x, y), ("", ""))
    for line, points in found:
        group = SubElement(svg, "g", {"class": f"s{line.style % COLOURS}"})
        places = [(across.at(point[0]), up.at(point[1])) for point in points]
        path = SubElement(group, "path", {"class": f"curve{' dashed' * line.dashed}"})
        path.set("d", "M" + "L".join(map(_xy, places)))
        if line.dashed:
            SubElement(path, "title").text = line.label
        else:
            _draw_marker(group, line.style, places[-1], line.label)
    return tostring(svg, encoding="unicode")


def shape_of(style: int) -> str:
    """The path of a method's marker, around (0, 0)."""
    return SHAPES[style % len(SHAPES)]


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers from low to high: 3 to 8 multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: an end of the axis, positive on a logarithmic one.
        high: the other, larger.
        log: whether the axis is logarithmic: it has 1, 2, 5, 10, … or, from 1000 times the lowest on, powers of ten.
    """
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        several = (1, 2, 5) if high < 1000 * low else (1,)
        return [m * 10.0**k for k in decades for m in several if low <= m * 10.0**k <= high]
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Span:
    """An axis: its values from low to high lie from the place `start` to the place `end`."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, linear: bool = False) -> "_Span":
        low, high = min(values := list(values)), max(values)
        if low > 0 and high > 20 * low and not linear:
            return cls(low / 1.2, high * 1.2, True, start, end)
        tiny = high - low < 1e-6 * abs(high)  # such as the interval of a single image, rounding alone
        margin = (0.07 * abs(high) if tiny else 0.07 * (high - low)) or 1.0
        return cls(low - margin, high + margin, False, start, end)

    def at(self, value: float) -> float:
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts; on a linear axis all have as many digits as their step needs."""
        values = ticks(self.low, self.high, self.log)
        if self.log or len(values) < 2:
            return [(value, f"{value:.6g}") for value in values]
        digits = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
        return [(value, f"{value:.{digits}f}") for value in values]


def _ends(found: Sequence[Curve], k: int, scale: float) -> list[float]:
    values = [point[k] for curve in found for point in curve.points]
    values += [end for curve in found for bars in curve.bars for end in bars[k] or ()]
    return [value * scale for value in values]


def _draw_marker(group: Element, style: int, place: Point, tooltip: str) -> None:
    marker = SubElement(group, "path", {"class": "marker", "d": shape_of(style)})
    marker.set("transform", f"translate({place[0]:.1f} {place[1]:.1f})")
    SubElement(marker, "title").text = tooltip


def _draw_axes(svg: Element, spans: Sequence[_Span], names: Sequence[str], better: Sequence[str]) -> None:
    """Ticks, grid, and names, each followed by where better values are, if that is not ""."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    group = SubElement(svg, "g", {"class": "axes"})
    for value, text in spans[0].ticks():
        at = spans[0].at(value)
        SubElement(group, "path", {"class": "grid", "d": f"M{at:.1f} {TOP}V{bottom}"})
        SubElement(group, "path", {"class": "tick", "d": f"M{at:.1f} {bottom}v5"})
        _write(group, at, bottom + 19, text, "middle")
    for value, text in spans[1].ticks():
        at = spans[1].at(value)
        SubElement(group, "path", {"class": "grid", "d": f"M{LEFT} {at:.1f}H{right}"})
        SubElement(group, "path", {"class": "tick", "d": f"M{LEFT} {at:.1f}h-5"})
        _write(group, LEFT - 9, at + 4.5, text, "end")
    SubElement(group, "path", {"class": "frame", "d": f"M{LEFT} {TOP}V{bottom}H{right}"})
    texts = [
        f"{name}{', log scale' if span.log else ''}{f' ({where})' if where else ''}"
        for name, span, where in zip(names, spans, better, strict=True)
    ]
    _write(group, right, HEIGHT - 10, texts[0], "end")
    _write(group, 2, 16, texts[1], "start")


def _write(group: Element, x: float, y: float, text: str, anchor: str) -> None:
    SubElement(group, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}).text = text


def _staircase(places: Sequence[Point], x_higher: bool) -> str:
    """The border of what the places dominate, from left to right: a corner has the worse x and the worse y of two."""
    d = f"M{_xy(places[0])}"
    for _, (x, y) in pairwise(places):
        d += f"V{y:.1f}H{x:.1f}" if x_higher else f"H{x:.1f}V{y:.1f}"
    return d


def _xy(place: Point) -> str:
    return f"{place[0]:.1f} {place[1]:.1f}"

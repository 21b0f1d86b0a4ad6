"""Two metrics against each other: the runs of a method as a curve, and what a curve dominates."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.rows import TableRow

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """The runs of one method, from the lowest x to the highest.

    Args:
        method: its name.
        points: (x, y) of each run.
        labels: names of the runs in the table.
        bars: for x and y of each run, the ends of what the table shows behind ±, or None.
    """

    method: str
    points: list[Point]
    labels: list[str]
    bars: list[tuple[Point | None, Point | None]]


def curves(rows: Sequence[TableRow], x_key: str, y_key: str) -> list[Curve]:
    """A curve per method through those of its rows that have both numbers, finite ones, in the order of the table.

    Args:
        rows: of a section.
        x_key: a metric or a cost.
        y_key: another.
    """
    found = defaultdict(list)
    for row in rows:
        point = tuple(_finite(row.values.get(key)) for key in (x_key, y_key))
        if None not in point:
            bars = _bar(row, x_key), _bar(row, y_key)
            found[row.method].append((point, row.label, bars))
    return [
        Curve(method, *map(list, zip(*sorted(runs, key=lambda run: run[:2]), strict=True)))
        for method, runs in found.items()
    ]


def pareto_front(points: Sequence[Point], higher: tuple[bool, bool]) -> list[int]:
    """Indexes of the points that no other point dominates, from the lowest x to the highest.

    A point dominates another if it is at least as good on both axes and better on one; equal points stay together.

    Args:
        points: (x, y) each.
        higher: for x and for y, whether more is better.
    """
    signed = [_signed(point, higher) for point in points]
    front, best = [], float("-inf")
    for index in sorted(range(len(points)), key=signed.__getitem__, reverse=True):
        if signed[index][1] > best or (front and signed[index] == signed[front[-1]]):
            front.append(index)
            best = signed[index][1]
    return sorted(front, key=points.__getitem__)


def dominated_area(points: Sequence[Point], higher: tuple[bool, bool], corner: Point) -> float:
    """Area of what the points dominate and is itself at least as good as the corner, in the product of both units.

    This is the hypervolume indicator in two dimensions (Zitzler and Thiele, 1998), exact.

    Args:
        points: (x, y) each; one that is worse than the corner on an axis adds nothing.
        higher: for x and for y, whether more is better.
        corner: the worst point that counts.
    """
    x0, y0 = _signed(corner, higher)
    area, reached = 0.0, y0
    for x, y in sorted((_signed(point, higher) for point in points), reverse=True):
        if x > x0 and y > reached:
            area += (x - x0) * (y - reached)
            reached = y
    return area


def shares(found: Sequence[Curve], higher: tuple[bool, bool]) -> list[float] | None:
    """Share, from 0 to 1, that each curve dominates of the box around all points; None if the box is flat."""
    everything = [point for curve in found for point in curve.points]
    if not everything:
        return None
    low, high = (tuple(map(end, zip(*everything, strict=True))) for end in (min, max))
    size = (high[0] - low[0]) * (high[1] - low[1])
    if not size:
        return None
    corner = low[0] if higher[0] else high[0], low[1] if higher[1] else high[1]
    return [dominated_area(curve.points, higher, corner) / size for curve in found]


def _signed(point: Point, higher: tuple[bool, bool]) -> Point:
    """The point with axes on which more is better."""
    return point[0] if higher[0] else -point[0], point[1] if higher[1] else -point[1]


def _finite(value: object) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _bar(row: TableRow, key: str) -> Point | None:
    """The ends of what the table shows behind ±."""
    value, std = _finite(row.values.get(key)), row.std.get(key)
    if value is not None and std is not None:
        return value - std, value + std
    ci95 = row.metrics[key]["ci95"] if key in row.metrics else None
    return (ci95[0], ci95[1]) if ci95 and all(map(math.isfinite, ci95)) else None

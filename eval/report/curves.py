"""Curves of an analysis → drawings of the page: a chart of each curve that runs have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.records import CurveRecord
from eval.report.charts import COLOURS, Line, draw_lines, shape_of
from eval.report.rows import TableRow
from eval.report.sections import natural


@dataclass(frozen=True)
class _Drawn:
    """A curve of a run: the number and the label of its row, and its record."""

    number: int
    row: str
    curve: CurveRecord


def legend_entry(name: str, style: int, share: str = "") -> dict[str, Any]:
    """A line of a chart's legend, for the template."""
    return {"method": name, "colour": style % COLOURS, "shape": shape_of(style), "share": share}


def draw_curves(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """A chart of each curve that a row has, for the template: a line for each run, in the panel that it names."""
    found: dict[str, list[_Drawn]] = {}
    for number, row in enumerate(rows):
        for seed in row.curves():
            for name, curve in seed.items():
                found.setdefault(name, []).append(_Drawn(number, row.label, curve))
    return [_chart(every) for every in found.values()]


def _chart(every: Sequence[_Drawn]) -> dict[str, Any]:
    from markupsafe import Markup

    first = every[0].curve
    names = _names(every)
    styles = _styles(every, names)
    panels: dict[str, list[Line]] = {}
    for drawn, name in zip(every, names, strict=True):
        panels.setdefault(drawn.curve.get("panel", ""), []).extend(_lines(drawn.curve, name, styles[name]))
    among = [line for lines in panels.values() for line in lines]
    axes = first["x"]["header"], first["y"]["header"]
    drawings = [
        {"name": panel, "svg": Markup(draw_lines(panels[panel], *axes, among))} for panel in sorted(panels, key=natural)
    ]
    dashed = first.get("dashed")
    return {
        "title": first["title"],
        "panels": [drawing for drawing in drawings if drawing["svg"]],
        "legend": [legend_entry(name, styles[name]) for name in sorted(styles, key=lambda name: styles[name])],
        "key": f"Solid: {first.get('solid')}. Dashed: {dashed['label']}." if dashed else "",
    }


def _lines(curve: CurveRecord, name: str, style: int) -> list[Line]:
    """The dashed line of a curve below its own."""
    found = [Line(name, style, [(x, y) for x, y in curve["points"]])]
    if dashed := curve.get("dashed"):
        points = [(x, y) for x, y in dashed["points"]]
        found.insert(0, Line(f"{name}: {dashed['label']}", style, points, dashed=True))
    return found


def _names(every: Sequence[_Drawn]) -> list[str]:
    """What the legend calls each curve: its own label, if that tells the runs of every panel apart, or its row's."""
    places: dict[tuple[str, str], set[int]] = {}
    for drawn in every:
        places.setdefault((drawn.curve.get("panel", ""), drawn.curve.get("label", "")), set()).add(drawn.number)
    short = all("label" in drawn.curve for drawn in every) and all(len(rows) == 1 for rows in places.values())
    return [drawn.curve.get("label", "") if short else drawn.row for drawn in every]


def _styles(every: Sequence[_Drawn], names: Sequence[str]) -> dict[str, int]:
    """A colour and shape of each name: those of its row or, where rows share a name, in the order of names."""
    numbers = {name: drawn.number for drawn, name in zip(every, names, strict=True)}
    if all(name == drawn.row for drawn, name in zip(every, names, strict=True)):
        return numbers
    return {name: style for style, name in enumerate(sorted(numbers, key=natural))}

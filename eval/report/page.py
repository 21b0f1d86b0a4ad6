"""Finished runs of a task → report.html, one file that loads nothing but the images beside it.

Untrusted input (names, captions, settings) reaches the page escaped: by Jinja2 in the text, and as JSON that the script
reads. A content security policy lets no other script run.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.files import write_atomically
from eval.report.charts import Axis, draw_chart
from eval.report.comparison import format_support
from eval.report.curves import draw_curves, legend_entry
from eval.report.gallery import list_pngs, make_gallery, readable
from eval.report.reproduction import lines_of
from eval.report.rows import Entry, Running, TableRow
from eval.report.sections import (
    FORWARDS,
    TIED,
    TIED_MEANS,
    Column,
    Section,
    cell_text,
    mark_of,
    metric_columns,
    spreads_of,
)
from eval.report.thumbnails import make_thumbnails
from eval.report.tradeoff import curves, shares

TEMPLATES = Path(__file__).parent / "templates"
BUDGET = 13_000_000  # bytes of all thumbnails
CLASSES = {"reproduced": "holds", "not reproduced": "fails", "not comparable": "undecided"}  # of a verdict's colour
KEPT = ".thumbnails.json"  # beside the page: those of its last writing
REALISM = ("fid", "fid_infinity", "kid", "kid_subsets", "clip", "dclip")  # all other metrics are of faithfulness


def write_html(task_folder: Path, sections: Sequence[Section], running: Sequence[Running], path: Path) -> None:
    """Write tables, claims, charts, galleries and the provenance of a task's runs as one HTML file.

    Full pictures are shown from the folders of the runs, by paths relative to the page, and small ones without them.

    Args:
        task_folder: where the runs lie.
        sections: its finished runs.
        running: its other runs, of which the page says only what became of them.
        path: of the page; a page that is there is replaced at once.

    Raises:
        OSError: if it cannot be written; it names `path`, and the page that was there stays.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    galleries = [make_gallery(task_folder, section, path.parent) for section in sections]
    folders = list(dict.fromkeys(folder for found in galleries if found for folder in found[1]))
    wanted = {folder: list_pngs(folder) for folder in folders}
    made = make_thumbnails([png for pngs in wanted.values() for png in pngs], BUDGET, path.with_name(KEPT))
    thumbnails = [{png.stem: made[png] for png in wanted[folder]} for folder in folders]
    for found in galleries:
        for column, folder in zip(found[0]["columns"], found[1], strict=True) if found else ():
            column["thumbnails"] = folders.index(folder)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    html = environment.get_template("report.html.j2").render(
        task=task_folder.name,
        sections=[
            {**_view(section), "gallery": Markup(_json(found[0])) if found else None}
            for section, found in zip(sections, galleries, strict=True)
        ],
        running=running,
        thumbnails=[Markup(_json(folder)) for folder in thumbnails],
        tied=TIED,
        tied_means=TIED_MEANS,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    write_atomically(html.encode(errors="backslashreplace"), path)  # commands may name files that are no text


def _json(value: Any) -> str:
    """For a <script type="application/json">, which no text in it can end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """The hash by which a content security policy allows a script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _view(section: Section) -> dict[str, Any]:
    """The texts of the section's table, its claims, charts and provenance."""
    columns = [
        {"header": c.title, "protocol": _protocol(section, c), "first": "descending" if c.higher else "ascending"}
        for c in section.columns
    ]
    rows = [{"label": row.label, "cells": [_cell(row, column) for column in section.columns]} for row in section.rows]
    return {
        "title": section.title,
        "warnings": section.warnings,
        "notes": section.notes,
        "claims": [{"verdict": c.verdict, "text": c.text, "support": format_support(c)} for c in section.claims],
        "reproductions": _reproductions(section),
        "columns": columns,
        "rows": rows,
        "marks": {cell["mark"] for row in rows for cell in row["cells"]},
        "spread": spreads_of(section.rows),
        "curves": draw_curves(section.rows),
        "runs": [_provenance(row.label, entry) for row in section.rows for entry in row.entries],
        **_charts(section),
    }


def _reproductions(section: Section) -> list[dict[str, str]]:
    """Verdict and numbers of each published number; those that are not comparable are lines by what differs."""
    return [
        {"verdict": verdict, "class": CLASSES[verdict], "text": text}
        for verdict, text in lines_of(section.reproductions)
    ]


def _cell(row: TableRow, column: Column) -> dict[str, Any]:
    text = cell_text(row, column, interval=True)
    number, _, rest = text.partition(" ±")
    value = row.values.get(column.key)
    if isinstance(value, str):  # a published number, with how it is known
        leading = re.match(r"[+-]?\d+(\.\d+)?", text)
        value = leading.group() if leading else value
    elif value is not None:
        value = readable(value)
    shown = {"number": number, "rest": f"±{rest}" if rest else "", "mark": mark_of(row, column)}
    return shown | {"value": "" if value is None else value}


def _protocol(section: Section, column: Column) -> str:
    return next((row.metrics[column.key]["protocol"] for row in section.rows if column.key in row.metrics), "")


def _charts(section: Section) -> dict[str, Any]:
    """Realism against faithfulness, and each of both against the cost: a drawing per pair of axes."""
    shown = {column.key for column in section.columns} if section.compares else set()  # an analysis is of no quality
    metrics = [column for column in metric_columns(section.rows) if column.key in shown]
    realism = [column for column in metrics if column.key in REALISM]
    faithfulness = [column for column in metrics if column.key not in REALISM]
    quality = [*realism, *faithfulness] if FORWARDS.key in shown else []
    styles: dict[str, int] = {}
    for row in section.rows:
        styles.setdefault(row.method, len(styles))
    return {
        "realism": [_option(column) for column in realism],
        "faithfulness": [_option(column) for column in faithfulness],
        "quality": [_option(column) for column in quality],
        "tradeoffs": [_chart(section, x, y, styles) for y in realism for x in faithfulness],
        "costs": [_chart(section, FORWARDS, y, styles, area=False) for y in quality],
    }


def _option(column: Column) -> dict[str, str]:
    return {"key": column.key, "name": column.header}


def _chart(section: Section, x: Column, y: Column, styles: dict[str, int], area: bool = True) -> dict[str, Any]:
    from markupsafe import Markup

    found = curves(section.rows, x.key, y.key)
    across, up = (Axis(c.header, bool(c.higher), c.digits, c.scale) for c in (x, y))
    areas = shares(found, (across.higher, up.higher)) if area else None
    legend = [
        legend_entry(curve.method, styles[curve.method], f"{100 * areas[k]:.0f} %" if areas else "")
        for k, curve in enumerate(found)
    ]
    svg = Markup(draw_chart(found, across, up, styles)) if found else ""
    return {"x": x.key, "y": y.key, "svg": svg, "legend": legend, "areas": areas is not None}


def _provenance(label: str, entry: Entry) -> dict[str, Any]:
    """How a run came about, as its folder has it."""
    run, costs, config = entry.run, entry.run.get("costs", {}), entry.folder / "config.yaml"
    dirty = " with uncommitted changes" if run.get("dirty") else ""
    facts = {
        "seed": run["seed"],
        "device": run.get("device"),
        "code": f"{run.get('revision')}{dirty}" if run.get("revision") else None,
        "start": run["start"],
        "end": run.get("end"),
        "forwards per image": _short(costs.get("forwards_per_image")),
        "backwards per image": _short(costs.get("backwards_per_image")),
        "seconds per image": _short(costs.get("seconds_per_image")),
        "peak memory, MiB": run.get("peak_memory_mib"),
        "versions": ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()),
    }
    return {
        "label": label,
        "folder": entry.folder.name,
        "command": run.get("command"),
        "facts": {name: value for name, value in facts.items() if value not in (None, "")},
        "weights": run["weights"],
        "config": config.read_text(encoding="utf-8") if config.exists() else "",
    }


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

"""Finished runs of a task → report.html, one file that asks for nothing but the images beside it.

What strangers wrote (names, captions, settings) reaches the page escaped: by Jinja2 in the text, and as JSON that the
script reads; a content security policy lets no other script run.
"""

import base64
import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from eval.edits import read_edits
from eval.files import write_atomically
from eval.report.charts import COLOURS, Axis, draw_chart, shape_of
from eval.report.sections import METRICS, Column, Running, Section, cell_text, mark_of
from eval.report.thumbnails import SMALL, make_thumbnails
from eval.report.tradeoff import curves, shares

TEMPLATES = Path(__file__).parent / "templates"
BUDGET = 13_000_000  # bytes of all thumbnails
KEPT = ".thumbnails.json"  # beside the page: those of its last writing
REALISM = ("fid", "fid_infinity", "kid", "clip", "dclip")
FAITHFULNESS = ("psnr", "ssim", "l2", "lpips", "counterpart_psnr", "factor_error", "edit_error", "kept_error")
FAITHFULNESS += ("background_psnr", "background_ssim", "background_mse", "background_lpips")
NFE = "network_evaluations_per_image"


def write_page(task_folder: Path, sections: list[Section], running: list[Running], path: Path) -> None:
    """Write tables, claims, charts, a gallery and the provenance of a task's runs as one HTML file.

    Full pictures are shown from the folders of the runs, by paths relative to the page, and small ones without them.

    Args:
        task_folder: where the runs lie.
        sections: its finished runs.
        running: its other runs, of which the page says only how far they are.
        path: of the page; a page that is there is replaced at once.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    galleries = [_gallery(task_folder, section, path.parent) for section in sections]
    folders = list(dict.fromkeys(folder for gallery, found in galleries for folder in found))
    wanted = {folder: _pngs(folder) for folder in folders}
    made = make_thumbnails([png for pngs in wanted.values() for png in pngs], BUDGET, path.with_name(KEPT))
    thumbnails = [{png.stem: made[png] for png in wanted[folder]} for folder in folders]
    for gallery, found in galleries:
        for column, folder in zip(gallery["columns"], found, strict=True):
            column["thumbnails"] = folders.index(folder)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    html = environment.get_template("report.html.j2").render(
        task=task_folder.name,
        sections=[
            {**_view(section), "runs": _provenance(task_folder, section), "gallery": Markup(_json(gallery))}
            for section, (gallery, _) in zip(sections, galleries, strict=True)
        ],
        running=running,
        thumbnails=[Markup(_json(folder)) for folder in thumbnails],
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    write_atomically(html.encode(), path)


def _json(value: Any) -> str:
    """For a <script type="application/json">, which no text in it can end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """By which a content security policy knows a script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _view(section: Section) -> dict[str, Any]:
    """The texts of the section's table, its claims and charts."""
    rows = [
        {"label": label, "cells": [_cell(values, column) for column in section.columns]}
        for label, values in section.rows
    ]
    marks = {cell["mark"] for row in rows for cell in row["cells"]}
    columns = [
        {"header": column.header, "protocol": _protocol(section, column), "first": _first(column)}
        for column in section.columns
    ]
    spread = {"std" if values.get("std") else "ci95" for _, values in section.rows}
    return {
        "title": section.title,
        "warnings": section.warnings,
        "notes": section.notes,
        "claims": section.claims,
        "columns": columns,
        "rows": rows,
        "marks": marks,
        "spread": spread,
        **_charts(section),
    }


def _cell(values: dict[str, Any], column: Column) -> dict[str, Any]:
    text = cell_text(values, column, interval=True)
    number, _, rest = text.partition(" ±")
    leading = re.match(r"[+-]?\d+(\.\d+)?", text)
    value = values.get(column.key)
    if isinstance(value, str):  # a published number, with how it is known
        value = leading.group() if leading else value
    elif value is not None:
        value = _readable(value)
    shown = {"number": number, "rest": f"±{rest}" if rest else "", "mark": mark_of(values, column)}
    return shown | {"value": "" if value is None else value}


def _protocol(section: Section, column: Column) -> str:
    found = (values["metrics"][column.key]["protocol"] for _, values in section.rows if column.key in values["metrics"])
    return next(found, "")


def _first(column: Column) -> str:
    """The order that shows the best row first."""
    return "descending" if column.header.endswith("↑") or column.key == "images_per_second" else "ascending"


def _charts(section: Section) -> dict[str, Any]:
    """Realism against faithfulness, and each of both against the cost: a drawing per pair of axes."""
    shown = {column.key: column for column in section.columns}
    realism, faithfulness = ([shown[key] for key in keys if key in shown] for keys in (REALISM, FAITHFULNESS))
    quality = [*realism, *faithfulness]
    styles: dict[str, int] = {}
    for _, values in section.rows:
        styles.setdefault(values["identity"]["method"]["name"], len(styles))
    pairs = [(x, y) for y in realism for x in faithfulness]
    cost = Column(NFE, "network evaluations per image ↓", 0)
    return {
        "realism": [_option(column) for column in realism],
        "faithfulness": [_option(column) for column in faithfulness],
        "quality": [_option(column) for column in quality],
        "tradeoffs": [_chart(section, x, y, styles) for x, y in pairs],
        "costs": [_chart(section, cost, y, styles, area=False) for y in quality],
    }


def _option(column: Column) -> dict[str, str]:
    return {"key": column.key, "name": _name(column)}


def _name(column: Column) -> str:
    return column.header.removesuffix(" ↓").removesuffix(" ↑")


def _chart(section: Section, x: Column, y: Column, styles: dict[str, int], area: bool = True) -> dict[str, Any]:
    from markupsafe import Markup

    found = curves(section.rows, x.key, y.key)
    across, up = (Axis(_name(c), c.header.endswith("↑"), c.digits, c.scale) for c in (x, y))
    areas = shares(found, (across.higher, up.higher)) if area else None
    legend = [
        {
            "method": curve.method,
            "colour": styles[curve.method] % COLOURS,
            "shape": shape_of(styles[curve.method]),
            "share": f"{areas[k]:.0%}".replace("%", " %") if areas else "",
        }
        for k, curve in enumerate(found)
    ]
    svg = Markup(draw_chart(found, across, up, styles)) if found else ""
    return {"x": x.key, "y": y.key, "svg": svg, "legend": legend, "areas": areas is not None}


def _gallery(task_folder: Path, section: Section, start: Path) -> tuple[dict[str, Any], list[Path]]:
    """What the script needs to show the images of a section, and the folder of each of its columns."""
    first = section.rows[0][1]
    data = task_folder / "data"
    columns = [("source", "source", data / first["data"]["source"])]
    columns += [(label, "result", task_folder / values["folder"] / "images") for label, values in section.rows]
    if first["data"]["counterpart"]:
        columns.append(("true counterpart", "counterpart", data / first["data"]["counterpart"]))
    tables = [_per_image(task_folder / values["folder"] / "per_image.csv") for _, values in section.rows]
    pngs = _pngs(columns[1][2])
    keys = {key for table in tables for row in table.values() for key in row}
    known = [*METRICS, Column("seconds", "seconds ↓", 2)]
    metrics = [column for column in known if column.key in keys]
    edits = read_edits(columns[0][2])
    gallery = {
        "small": bool(pngs) and _is_small(pngs[0]),
        "ids": [png.stem for png in pngs],
        "captions": {image: [edit.source, edit.target] for image, edit in edits.items()},
        "columns": [
            {"label": label, "kind": kind, "folder": Path(os.path.relpath(folder, start)).as_posix()}
            for label, kind, folder in columns
        ],
        "metrics": [
            {"key": c.key, "name": _name(c), "digits": c.digits, "scale": c.scale, "higher": c.header.endswith("↑")}
            for c in metrics
        ],
        "values": {
            column.key: [[table.get(png.stem, {}).get(column.key) for png in pngs] for table in tables]
            for column in metrics
        },
    }
    return gallery, [folder for *_, folder in columns]


def _pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def _is_small(path: Path) -> bool:
    with Image.open(path) as image:
        return max(image.size) <= SMALL


def _per_image(path: Path) -> dict[str, dict[str, float | str]]:
    """The numbers of per_image.csv by image, those that are infinite as text; none without the file."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: dict(_numbers(row.items())) for row in csv.DictReader(file)}


def _numbers(cells: Iterable[tuple[str, str]]) -> Iterable[tuple[str, float | str]]:
    for key, text in cells:
        if key != "id" and text:
            value = float(f"{float(text):.6g}")
            if not math.isnan(value):
                yield key, _readable(value)


def _readable(value: float) -> float | str:
    """For JavaScript: JSON has no infinite numbers, and JavaScript spells them out."""
    return str(value).replace("inf", "Infinity") if math.isinf(value) else value


def _provenance(task_folder: Path, section: Section) -> list[dict[str, Any]]:
    """How each run came about, as its folder has it."""
    found = []
    for label, values in section.rows:
        for folder in values.get("folders", [values["folder"]]):
            place = task_folder / folder
            config = place / "config.yaml"
            run = json.loads((place / "run.json").read_bytes())
            dirty = " with uncommitted changes" if run.get("dirty") else ""
            facts = {
                "seed": run["identity"]["seed"],
                "device": run.get("device"),
                "code": f"{run['revision']}{dirty}" if run.get("revision") else None,
                "start": run.get("start"),
                "end": run.get("end"),
                "network evaluations per image": _short(run.get(NFE)),
                "seconds per image": _short(run.get("seconds_per_image")),
                "peak memory, MiB": run.get("peak_memory_mib"),
                "versions": ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()),
            }
            found.append(
                {
                    "label": label,
                    "folder": folder,
                    "command": run.get("command"),
                    "facts": {name: value for name, value in facts.items() if value not in (None, "")},
                    "checkpoints": run.get("checkpoints", {}),
                    "config": config.read_text(encoding="utf-8") if config.exists() else "",
                }
            )
    return found


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

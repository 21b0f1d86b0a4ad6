"""What the page's script needs to show the images of a section, with their numbers."""

import math
import os
from pathlib import Path
from typing import Any

from PIL import Image

from eval.edits import read_edits
from eval.report.rows import TableRow
from eval.report.sections import Column, Section, metric_columns
from eval.report.thumbnails import SMALL

SECONDS = Column("seconds", "seconds", 2, higher=False)


def make_gallery(task_folder: Path, section: Section, start: Path) -> tuple[dict[str, Any], list[Path]] | None:
    """The images of a section and their numbers, JSON-like, and the folder of each of its columns.

    Args:
        task_folder: where the runs are.
        section: the table.
        start: the folder to which paths are relative.

    Returns:
        None where the runs made no images.
    """
    if section.picture is None:
        return None
    data = task_folder / "data"
    columns: list[tuple[str, str, Path]] = []
    if section.data["source"]:
        columns.append(("source", "source", data / section.data["source"]))
    columns += [(row.label, "result", row.entries[0].folder / "images") for row in section.rows]
    if section.data["ground_truth"]:
        columns.append(("ground truth", "ground-truth", data / section.data["ground_truth"]))
    results = next(folder for _, kind, folder in columns if kind == "result")
    ids = [png.stem for png in list_pngs(results)]
    tables = [row.per_image() for row in section.rows]
    metrics = _columns(section.rows, {key for table in tables for row in table.values() for key in row})
    edits = read_edits(data / section.data["source"]) if section.data["source"] else {}
    gallery = {
        "small": bool(ids) and _is_small(results / f"{ids[0]}.png"),
        "ids": ids,
        "captions": {image: [edit.source, edit.target] for image, edit in edits.items()},
        "columns": [
            {"label": label, "kind": kind, "folder": Path(os.path.relpath(folder, start)).as_posix()}
            for label, kind, folder in columns
        ],
        "metrics": [
            {"key": c.key, "name": c.header, "digits": c.digits, "scale": c.scale, "higher": c.higher} for c in metrics
        ],
        "values": {
            column.key: [[_short(table.get(image, {}).get(column.key)) for image in ids] for table in tables]
            for column in metrics
        },
    }
    return gallery, [folder for *_, folder in columns]


def list_pngs(folder: Path) -> list[Path]:
    """The PNGs of a folder, sorted by name."""
    return sorted(folder.glob("*.png"))


def readable(value: float) -> float | str:
    """A number for JavaScript: JSON has no infinite numbers, and JavaScript spells them out."""
    return str(value).replace("inf", "Infinity") if math.isinf(value) else value


def _columns(rows: list[TableRow], keys: set[str]) -> list[Column]:
    """The metrics that images have a value of."""
    return [column for column in [*metric_columns(rows), SECONDS] if column.key in keys]


def _is_small(path: Path) -> bool:
    with Image.open(path) as image:
        return max(image.size) <= SMALL


def _short(value: float | None) -> float | str | None:
    """A number with six digits; None where there is none."""
    return None if value is None or math.isnan(value) else readable(float(f"{value:.6g}"))

"""Finished runs of a task → one table: printed, table.md and table.csv.

Runs share a table only where they may be compared; others get a table of their own below it.
"""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich import box
from rich.console import Console
from rich.table import Table

from eval.edits import read_edits
from eval.grid import draw_grid
from eval.sections import COSTS, METRICS, UNSELECTED, Column, Section, best_of, read_sections


def _cell(values: dict[str, Any], column: Column, interval: bool = False) -> str:
    value = values.get(column.key)
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    text = f"{value * column.scale:.{column.digits}f}"
    ci95 = values["metrics"].get(column.key, {}).get("ci95") if interval else None
    return text + (f" ±{(ci95[1] - ci95[0]) / 2 * column.scale:.{column.digits}f}" if ci95 else "")


def to_markdown(section: Section) -> str:
    """The section as Markdown, with half-widths of the 95 % intervals where there are such."""
    header = ["method", *(column.header for column in section.columns)]
    lines = [
        f"## {section.title}",
        "",
        f"![first images]({section.picture})",
        "",
        "| " + " | ".join(header) + " |",
        "|---" + "|---:" * len(section.columns) + "|",
    ]
    for label, values in section.rows:
        cells = [label, *(_cell(values, column, interval=True) for column in section.columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in [*section.warnings, *section.notes]), ""])


def to_rich(section: Section, width: int) -> Table:
    """The section for a terminal: a row per method or, where `width` is too small for that, a column per method."""
    lines = [["method", *(column.header.replace(" dB", "") for column in section.columns)]]
    lines += [[label, *(_cell(values, column) for column in section.columns)] for label, values in section.rows]
    if sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) + 2 > width:
        lines = [list(column) for column in zip(*lines, strict=True)]
    table = Table(title=section.title, caption="\n".join(section.warnings), box=box.SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    for index, header in enumerate(lines[0]):
        table.add_column(header, justify="right" if index else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def to_csv(sections: list[Section]) -> str:
    """All sections as one CSV: a line a run, raw values, intervals and protocol strings."""
    keys = [c.key for c in METRICS]
    fields = ["task", "protocol", "tier", "data", "data_digest", "n", "of", "missing", "method", "selection", "seed"]
    fields += ["random_weights", "folder"]
    parts = {key: ("", "_low", "_high", "_protocol", *(("_unselected",) if key in UNSELECTED else ())) for key in keys}
    fields += [f"{key}{part}" for key in keys for part in parts[key]] + [c.key for c in COSTS]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n", restval="")
    writer.writeheader()
    for section in sections:
        for label, values in section.rows:
            row = {"task": values["identity"]["task"], "data": values["data"]["name"], "n": values["data"]["n"]}
            row |= {"data_digest": section.digest, "method": label, "seed": values["identity"]["seed"]}
            row |= {"protocol": values["identity"]["protocol"], "random_weights": " ".join(values["random_weights"])}
            row |= {"folder": values["folder"], "tier": values.get("tier"), "selection": best_of(values)}
            row |= {"of": values["data"].get("of"), "missing": len(values["data"].get("missing", []))}
            row |= {c.key: values[c.key] for c in COSTS}
            row |= {f"{key}_unselected": values.get(f"{key}_unselected") for key in UNSELECTED}
            for key, entry in values["metrics"].items():
                low, high = entry["ci95"] or ("", "")
                row |= {
                    key: entry["value"],
                    f"{key}_low": low,
                    f"{key}_high": high,
                    f"{key}_protocol": entry["protocol"],
                }
            writer.writerow(row)
    return text.getvalue()


def write_tables(task_folder: Path) -> None:
    """Write table.md, table.csv and a picture per table anew from all finished runs; safe beside other writers."""
    with FileLock(task_folder / ".table.lock"):
        sections = read_sections(task_folder)
        (task_folder / "table.md").write_text("\n".join(map(to_markdown, sections)))
        (task_folder / "table.csv").write_text(to_csv(sections))
        for section in sections:
            data = section.rows[0][1]["data"]
            source = task_folder / "data" / data["source"]
            grid = [("source", source)]
            grid += [(label, task_folder / values["folder"] / "images") for label, values in section.rows]
            if data["counterpart"]:
                grid.append(("true counterpart", task_folder / "data" / data["counterpart"]))
            texts = {image_id: edit.target for image_id, edit in read_edits(source).items()}
            draw_grid(grid, captions=texts).save(task_folder / section.picture)


def print_tables(task_folder: Path, digests: Collection[str]) -> None:
    """Print the tables of some data to the terminal."""
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    for section in read_sections(task_folder):
        if section.digest in digests:
            console.print(to_rich(section, console.width))
            console.print(f"{task_folder}/table.md, table.csv, {section.picture}", highlight=False)

"""Finished runs of a task → one table: printed, table.md and table.csv.

Runs share a table only where images and protocol are the same; others get a table of their own below it.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich import box
from rich.console import Console
from rich.table import Table

from eval.grid import draw_grid
from eval.paper import LEVELS, Paper, agrees, explain, read_paper


@dataclass(frozen=True)
class Column:
    """A column of the table: where its number comes from and how people read it."""

    key: str
    header: str
    digits: int
    scale: float = 1.0


METRICS = (
    Column("fid", "FID ↓", 2),
    Column("kid", "KID×10³ ↓", 2, 1000),
    Column("psnr", "PSNR dB ↑", 2),
    Column("ssim", "SSIM ↑", 3),
    Column("l2", "L2 ↓", 2),
    Column("counterpart_psnr", "true-pair PSNR ↑", 2),
    Column("factor_error", "factor error ↓", 3),
)
COSTS = (
    Column("network_evaluations_per_image", "NFE/image", 0),
    Column("seconds_per_image", "s/image", 2),
    Column("images_per_second", "images/s", 2),
)


@dataclass(frozen=True)
class Section:
    """Runs that may be compared: their columns, what the numbers mean, and which of them are not real results."""

    title: str
    warnings: list[str]
    notes: list[str]
    columns: list[Column]
    rows: list[tuple[str, dict[str, Any]]]
    digest: str

    @property
    def picture(self) -> str:
        """File name of the pictures of these runs."""
        return f"grid-{self.digest}.png"


def read_sections(task_folder: Path) -> list[Section]:
    """Group the finished runs of a task by images, protocol, and whether their weights are random."""
    groups, paper = defaultdict(list), read_paper(task_folder)
    for record in sorted(task_folder.glob("*/run.json")):
        run = json.loads(record.read_bytes())
        if run["status"] == "finished":
            metrics = json.loads((record.parent / "metrics.json").read_bytes())["metrics"]
            protocols = tuple(sorted((key, entry["protocol"]) for key, entry in metrics.items()))
            if any("/RANDOM-" in protocol for _, protocol in protocols):
                run["random_weights"] = [*run["random_weights"], "Inception"]
            key = run["data"]["digest"], run["identity"]["protocol"], protocols, bool(run["random_weights"])
            groups[key].append(({**run, "folder": record.parent.name}, metrics))
    return [_section(runs, dict(key[2]), key[0], paper) for key, runs in groups.items()]


def _section(runs: list[tuple[dict, dict]], protocols: dict[str, str], digest: str, paper: Paper) -> Section:
    first = runs[0][0]
    n, data, name = first["data"]["n"], first["data"]["name"], first["identity"]["protocol"]
    random = sorted({part for run, _ in runs for part in run["random_weights"]})
    title = f"{first['identity']['task']}: {n} {'image' if n == 1 else 'images'} of {data}, protocol {name}"
    rows = [
        (label, {**{key: entry["value"] for key, entry in metrics.items()}, **run, "metrics": metrics})
        for label, (run, metrics) in zip(_labels([run for run, _ in runs]), runs, strict=True)
    ]
    columns = [c for c in METRICS if any(values.get(c.key) is not None for _, values in rows)]
    warnings = []
    if random:
        title = f"RANDOM WEIGHTS – {title}"
        warnings.append(
            f"RANDOM WEIGHTS ({', '.join(random)}): these numbers show that the program runs, nothing else."
        )
    if first["embedded"]:
        warnings.append(
            "Embedded world: small networks trained by this project; not comparable with any paper's numbers."
        )
    changed = [label for label, values in rows if not values["published_settings"]]
    if changed and not first["embedded"]:
        warnings.append(f"Not the published settings: {', '.join(changed)}.")
    if n < 2048 and "fid" in protocols:
        warnings.append(
            f"FID from {n} {'image' if n == 1 else 'images'} is biased upwards; compare it within this table only."
        )
    if "fid" not in protocols:
        warnings.append("No FID and KID: there is no reference set (data.reference).")
    notes = [f"{c.header}: {protocols[c.key]}" for c in columns]
    if not random and not first["embedded"]:
        columns, more = _with_paper(columns, rows, paper)
        notes += more
    return Section(title, warnings, notes, [*columns, *COSTS], rows, digest)


def _with_paper(
    columns: list[Column], rows: list[tuple[str, dict[str, Any]]], paper: Paper
) -> tuple[list[Column], list[str]]:
    """The columns with those of published numbers after each, their cells put into the rows, and footnotes."""
    found, shown = [], []
    for column in columns:
        found.append(column)
        known = []
        for label, values in rows:
            published = paper.values.get((values["identity"]["method"]["name"], column.key))
            if published is None:
                continue
            agreed = agrees(published, values)
            mark = LEVELS[published.verification][0] + ("" if agreed else "*")
            std = f" ±{published.std * column.scale:.{column.digits}f}" if published.std is not None else ""
            values[f"paper_{column.key}"] = f"{published.value * column.scale:.{column.digits}f}{std} {mark}"
            if agreed and values.get(column.key) is not None:
                difference = (values[column.key] - published.value) * column.scale
                values[f"delta_{column.key}"] = f"{difference:+.{column.digits}f}"
            known.append((label, column.header, published, agreed))
        name = column.header.removesuffix(" ↓").removesuffix(" ↑")
        if known:
            found.append(Column(f"paper_{column.key}", f"paper {name}", column.digits))
        if any(f"delta_{column.key}" in values for _, values in rows):
            found.append(Column(f"delta_{column.key}", f"Δ {name}", column.digits))
        shown += known
    return found, explain(paper, shown)


def _labels(runs: list[dict]) -> list[str]:
    """Method names, followed by the settings in which runs of one method differ."""
    settings = [_flat({k: v for k, v in run["identity"].items() if k != "data"}) for run in runs]
    labels = []
    for mine in settings:
        same = [other for other in settings if other["method.name"] == mine["method.name"]]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in same)]
        detail = ", ".join(f"{key.removeprefix('method.')}={mine[key]}" for key in differing)
        labels.append(mine["method.name"] + (f" ({detail})" if detail else ""))
    return labels


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
    fields = ["task", "protocol", "data", "data_digest", "n", "method", "seed", "random_weights", "folder"]
    fields += [f"{key}{part}" for key in keys for part in ("", "_low", "_high", "_protocol")] + [c.key for c in COSTS]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n", restval="")
    writer.writeheader()
    for section in sections:
        for label, values in section.rows:
            row = {"task": values["identity"]["task"], "data": values["data"]["name"], "n": values["data"]["n"]}
            row |= {"data_digest": section.digest, "method": label, "seed": values["identity"]["seed"]}
            row |= {"protocol": values["identity"]["protocol"], "random_weights": " ".join(values["random_weights"])}
            row |= {"folder": values["folder"]} | {c.key: values[c.key] for c in COSTS}
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
            grid = [("source", task_folder / "data" / data["source"])]
            grid += [(label, task_folder / values["folder"] / "images") for label, values in section.rows]
            if data["counterpart"]:
                grid.append(("true counterpart", task_folder / "data" / data["counterpart"]))
            draw_grid(grid).save(task_folder / section.picture)


def print_tables(task_folder: Path, digests: Collection[str]) -> None:
    """Print the tables of some data to the terminal."""
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    for section in read_sections(task_folder):
        if section.digest in digests:
            console.print(to_rich(section, console.width))
            console.print(f"{task_folder}/table.md, table.csv, {section.picture}", highlight=False)

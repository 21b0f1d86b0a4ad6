"""Finished runs of a task → one table and one page: printed, table.md, table.csv, table.tex and report.html.

python -m eval.report outputs/cat2dog           all runs of a task
python -m eval.report RUN RUN --output DIR      some runs, which must fit into one table

Runs share a table only where they may be compared; others get a table of their own below it.
"""

import argparse
import csv
import io
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from filelock import FileLock
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.edits import read_edits
from eval.files import write_atomically
from eval.report.comparison import Verdict
from eval.report.grid import draw_grid
from eval.report.latex import to_latex
from eval.report.page import write_page
from eval.report.sections import (
    COSTS,
    METRICS,
    UNSELECTED,
    Running,
    Section,
    best_of,
    cell_text,
    mark_of,
    read_running,
    read_sections,
)

TIED = "≈ "


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
        cells = [label]
        for column in section.columns:
            text, mark = cell_text(values, column, interval=True), mark_of(values, column)
            cells.append(f"**{text}**" if mark == "best" else f"{TIED}{text}" if mark == "tied" else text)
        lines.append("| " + " | ".join(cells) + " |")
    told = [*section.warnings, *map(told_verdict, section.claims), *section.notes]
    return "\n".join([*lines, "", *(f"- {note}" for note in told), ""])


def to_rich(section: Section, width: int) -> Table:
    """The section for a terminal: a row per method or, where `width` is too small for that, a column per method."""
    lines = [[Text("method"), *(Text(column.header.replace(" dB", "")) for column in section.columns)]]
    for label, values in section.rows:
        lines.append([Text(label)])
        for column in section.columns:
            mark = mark_of(values, column)
            text = (TIED if mark == "tied" else "") + cell_text(values, column)
            lines[-1].append(Text(text, style="bold" if mark == "best" else ""))
    if sum(max(cell.cell_len for cell in column) + 2 for column in zip(*lines, strict=True)) + 2 > width:
        lines = [list(column) for column in zip(*lines, strict=True)]
    judged = [verdict for verdict in section.claims if verdict.probability is not None]
    told = [*section.warnings, *map(told_verdict, judged)]
    if any("tied" in values.get("marks", {}).values() for _, values in section.rows):
        told.append(f"{TIED.strip()} not distinguishable from the best of the column (paired bootstrap, 95 %)")
    table = Table(title=section.title, caption="\n".join(told), box=box.SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    for index, header in enumerate(lines[0]):
        table.add_column(header, justify="right" if index else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def told_verdict(verdict: Verdict) -> str:
    """A claim's verdict in a line."""
    how = "no such runs or numbers" if verdict.probability is None else f"probability {verdict.probability:.3f}"
    return f"{verdict.verdict}: {verdict.text} ({how})"


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
        for label, values in section.runs:
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
    """Write tables, pictures and page anew from all finished runs; safe beside other writers."""
    with FileLock(task_folder / ".table.lock"):
        write_report(task_folder, read_sections(task_folder), read_running(task_folder), task_folder)


def write_report(task_folder: Path, sections: list[Section], running: list[Running], output: Path) -> None:
    """Write table.md, table.csv, table.tex, report.html and a picture per table: each whole, or as it was before.

    The caller holds the folder's lock.

    Args:
        task_folder: where the runs are.
        sections: their tables.
        running: runs that are not finished.
        output: the folder to write to.
    """
    unfinished = "\n".join(["", "## Not finished", "", *(f"- {run}" for run in running), ""]) if running else ""
    write_atomically(("\n".join(map(to_markdown, sections)) + unfinished).encode(), output / "table.md")
    write_atomically(to_csv(sections).encode(), output / "table.csv")
    write_atomically("\n".join(map(to_latex, sections)).encode(), output / "table.tex")
    for section in sections:
        data = section.rows[0][1]["data"]
        source = task_folder / "data" / data["source"]
        grid = [("source", source)]
        grid += [(label, task_folder / values["folder"] / "images") for label, values in section.rows]
        if data["counterpart"]:
            grid.append(("true counterpart", task_folder / "data" / data["counterpart"]))
        texts = {image_id: edit.target for image_id, edit in read_edits(source).items()}
        picture = io.BytesIO()
        draw_grid(grid, captions=texts).save(picture, "PNG")
        write_atomically(picture.getvalue(), output / section.picture)
    write_page(task_folder, sections, running, output / "report.html")


def print_tables(task_folder: Path, digests: Collection[str] | None = None) -> None:
    """Print the tables of some data, or of all, to the terminal."""
    for section in read_sections(task_folder):
        if digests is None or section.digest in digests:
            _print(section, task_folder)


def _print(section: Section, folder: Path) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(to_rich(section, console.width))
    console.print(f"{folder}/table.md, table.csv, table.tex, report.html, {section.picture}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write and print the tables and the page of what the command line names."""
    parser = argparse.ArgumentParser("python -m eval.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="+", type=Path, help="a task's folder, or folders of runs")
    parser.add_argument("--output", type=Path, help="where to write; the task's folder by default")
    options = parser.parse_args(arguments)
    try:
        task_folder, sections, running = _find(options.folders)
        output = options.output or task_folder
        if options.output is None and len(options.folders) > 1:
            raise ValueError("the tables of some runs need a folder of their own; give --output DIR")
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".table.lock"):
            write_report(task_folder, sections, running, output)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    for section in sections:
        _print(section, output)
    for run in running:
        print(run)


def _find(folders: Sequence[Path]) -> tuple[Path, list[Section], list[Running]]:
    """The task's folder, tables and unfinished runs that some folders stand for.

    Raises:
        ValueError: if they are no folders of a task or of runs, or runs do not fit into one table.
    """
    folders = [folder.resolve() for folder in folders]
    runs = [folder for folder in folders if (folder / "run.json").is_file()]
    if not runs and len(folders) == 1 and folders[0].is_dir():
        sections, running = read_sections(folders[0]), read_running(folders[0])
        if not sections and not running:
            raise ValueError(f"{folders[0]} has no runs; give a task's folder, for example outputs/cat2dog, or runs")
        return folders[0], sections, running
    strange = [folder for folder in folders if folder not in runs]
    if strange:
        raise ValueError(f"{strange[0]} is no folder of a run; give one task's folder, or folders with a run.json")
    tasks = sorted({run.parent for run in runs})
    if len(tasks) > 1:
        raise ValueError(
            f"runs of different tasks ({', '.join(task.name for task in tasks)}) have no common table; give one's"
        )
    names = {run.name for run in runs}
    sections = read_sections(tasks[0], names)
    if len(sections) > 1:
        raise ValueError(
            f"these runs do not fit into one table: {'; '.join(section.title for section in sections)}, with "
            f"protocols, images or tiers of their own; give the runs of one, or {tasks[0]}, which gets a table for each"
        )
    return tasks[0], sections, [run for run in read_running(tasks[0]) if run.folder in names]


if __name__ == "__main__":
    main()

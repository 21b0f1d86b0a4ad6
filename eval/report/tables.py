"""Finished runs of a task → tables and a page: printed, table.md, table.csv, table.tex, grid-*.png and report.html.

python -m eval.report outputs/cat2dog           all runs of a task
python -m eval.report RUN RUN --output DIR      some runs, which must fit into one table
python -m eval.report outputs/cat2dog --export FILE.zip     the same, and all of it in a file for others
python -m eval.report FILE.zip                  the tables and the page of such a file, unpacked beside it

Runs share a table only where they may be compared; others get a table of their own below it.
"""

import argparse
import csv
import io
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich import box
from rich.table import Table
from rich.text import Text

from eval import terminal
from eval.edits import read_edits
from eval.files import remove_leftovers, write_atomically
from eval.report.categories import categories_markdown
from eval.report.comparison import format_verdict
from eval.report.export import export
from eval.report.exported import check_export, open_export
from eval.report.grid import draw_grid
from eval.report.labels import best_of
from eval.report.latex import to_latex
from eval.report.page import write_html
from eval.report.reproduction import format_reproductions
from eval.report.rows import COSTS, Running, TableRow
from eval.report.sections import TIED, TIED_MEANS, Section, cell_text, mark_of, read_task

LOCK = ".table.lock"


def to_markdown(section: Section) -> str:
    """The section as Markdown, with half-widths of the 95 % intervals where there are such."""
    header = ["method", *(column.title for column in section.columns)]
    lines = [
        f"## {_as_text(section.title)}",
        "",
        *([f"![first images]({section.picture})", ""] if section.picture else []),
        "| " + " | ".join(header) + " |",
        "|---" + "|---:" * len(section.columns) + "|",
    ]
    for row in section.rows:
        cells = [_as_text(row.label)]
        for column in section.columns:
            text, mark = cell_text(row, column, interval=True), mark_of(row, column)
            cells.append(f"**{text}**" if mark == "best" else f"{text} {TIED}" if mark == "tied" else text)
        lines.append("| " + " | ".join(cells) + " |")
    verdicts = [*format_reproductions(section.reproductions), *map(format_verdict, section.claims)]
    remarks = [*section.warnings, *verdicts, *section.notes]
    return "\n".join([*lines, "", *(f"- {_as_text(remark)}" for remark in remarks), ""])


def _as_text(text: str) -> str:
    """A text whose names end no cell and begin no HTML."""
    return text.replace("|", r"\|").replace("<", r"\<")


def to_rich(section: Section, width: int) -> Table:
    """The section for a terminal: a row per run or, where only that fits into `width`, a column per run."""
    lines = [[Text("method"), *(Text(terminal.fitted(column.title.replace(" dB", ""))) for column in section.columns)]]
    for row in section.rows:
        lines.append([Text(terminal.fitted(row.label))])
        for column in section.columns:
            mark = mark_of(row, column)
            text = cell_text(row, column) + (f" {TIED}" if mark == "tied" else "")
            lines[-1].append(Text(terminal.fitted(text), style="bold" if mark == "best" else ""))
    turned = [list(column) for column in zip(*lines, strict=True)]
    if _width(lines) > width >= _width(turned):
        lines = turned
    judged = [verdict for verdict in section.claims if verdict.support is not None]
    remarks = [*section.warnings, *format_reproductions(section.reproductions), *map(format_verdict, judged)]
    if any("tied" in row.marks.values() for row in section.rows):
        remarks.append(f"{TIED} {TIED_MEANS}")
    table = Table(title=section.title, caption="\n".join(remarks), box=box.SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    for index, header in enumerate(lines[0]):
        if index:
            table.add_column(header, justify="right", overflow="fold")
        else:
            words = [len(word) for line in lines for word in line[0].plain.split()]
            table.add_column(header, min_width=max(words))
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _width(lines: Sequence[Sequence[Text]]) -> int:
    """Characters that a table of these cells takes."""
    return sum(max(cell.cell_len for cell in column) + 2 for column in zip(*lines, strict=True)) + 2


def to_csv(sections: Sequence[Section]) -> str:
    """All sections as one CSV: a line for each run, with raw values, intervals and protocol strings."""
    fields = ["task", "protocol", "tier", "data", "data_digest", "n", "of", "missing", "method", "selection", "seed"]
    fields += ["random_weights", "folder", "scores"]
    rows = [row for section in sections for row in section.runs]
    keys = dict.fromkeys(key for row in rows for key in row.metrics)
    chosen = {key for row in rows for key, metric in row.metrics.items() if "unselected" in metric}
    judged = {key.removesuffix("_reproduced") for row in rows for key in row.values if key.endswith("_reproduced")}
    for key in keys:
        parts = ("", "_low", "_high", "_protocol", *(("_unselected",) if key in chosen else ()))
        parts += ("_reproduced",) if key in judged else ()
        fields += [f"{key}{part}" for part in parts]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*fields, *COSTS], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(map(_csv_line, rows))
    return text.getvalue()


def _csv_line(row: TableRow) -> dict[str, Any]:
    (entry,) = row.entries
    run, data = entry.run, entry.run["data"]
    line: dict[str, Any] = {
        "task": run["task"], "protocol": entry.scores["protocol"], "tier": run.get("tier"), "data": data["name"],
        "data_digest": data["digest"], "n": data["n"], "of": data.get("of"), "missing": len(data.get("missing", [])),
        "method": row.label, "selection": best_of(run), "seed": run["seed"],
        "random_weights": " ".join([*run["random_weights"], *entry.scores["random_weights"]]),
        "folder": entry.folder.name, "scores": entry.scores_folder.name,
    }  # fmt: skip
    for key, metric in row.metrics.items():
        low, high = metric["ci95"] or ("", "")
        line |= {f"{key}_low": low, f"{key}_high": high, f"{key}_protocol": metric["protocol"]}
    return line | row.values


def write_tables(task_folder: Path) -> None:
    """Write table.md, table.csv and table.tex from all finished runs; other processes may do so at the same time.

    Raises:
        OSError: if a file cannot be written; the one that was there stays.
    """
    with FileLock(task_folder / LOCK):
        _write_tables(*read_task(task_folder), task_folder)


def write_page(task_folder: Path) -> None:
    """Write report.html and the pictures of the tables, as `write_tables` does."""
    with FileLock(task_folder / LOCK):
        remove_leftovers(task_folder)
        _write_page(task_folder, *read_task(task_folder), task_folder)


def _write_tables(sections: Sequence[Section], running: Sequence[Running], output: Path) -> None:
    unfinished = "\n".join(["", "## Not finished", "", *(f"- {run}" for run in running), ""]) if running else ""
    write_atomically(("\n".join(map(to_markdown, sections)) + unfinished).encode(), output / "table.md")
    write_atomically(to_csv(sections).encode(), output / "table.csv")
    write_atomically("\n".join(map(to_latex, sections)).encode(), output / "table.tex")


def _write_all(task_folder: Path, names: Collection[str]) -> None:
    """Tables and page of some runs, in their folder."""
    sections, running = read_task(task_folder, names)
    _write_tables(sections, running, task_folder)
    _write_page(task_folder, sections, running, task_folder)


def _write_page(task_folder: Path, sections: Sequence[Section], running: Sequence[Running], output: Path) -> None:
    for section in sections:
        if section.picture:
            _write_picture(task_folder, section, output / section.picture)
    if by_kind := categories_markdown(task_folder, sections):
        write_atomically(by_kind.encode(), output / "categories.md")
    write_html(task_folder, sections, running, output / "report.html")


def _write_picture(task_folder: Path, section: Section, path: Path) -> None:
    """The first images of a section: source, each row, and the true results where there are such."""
    data, grid, texts = section.data, [], {}
    if data["source"]:
        source = task_folder / "data" / data["source"]
        grid.append(("source", source))
        texts = {image_id: edit.target for image_id, edit in read_edits(source).items()}
    grid += [(row.label, row.entries[0].folder / "images") for row in section.rows]
    if data["ground_truth"]:
        grid.append(("ground truth", task_folder / "data" / data["ground_truth"]))
    picture = io.BytesIO()
    draw_grid(grid, captions=texts).save(picture, "PNG")
    write_atomically(picture.getvalue(), path)


def print_tables(task_folder: Path, digests: Collection[str] | None = None) -> None:
    """Print the tables of some data, or of all, to the terminal."""
    sections, _ = read_task(task_folder)
    for section in sections:
        if digests is None or section.data["digest"] in digests:
            _print(section, task_folder)


def _print(section: Section, folder: Path) -> None:
    console = terminal.console()
    console.print(to_rich(section, console.width))
    picture = f", {section.picture}" if section.picture else ""
    console.print(f"{folder}/table.md, table.csv, table.tex, report.html{picture}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write and print the tables and the page of what the command line names."""
    terminal.adapt_output()
    parser = argparse.ArgumentParser("python -m eval.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="+", type=Path, help="a task's folder, folders of runs, or an export")
    parser.add_argument("--output", type=Path, help="where to write; the task's folder by default")
    parser.add_argument("--export", type=Path, metavar="FILE.zip", help="also write all of it to a zip")
    options = parser.parse_args(arguments)
    try:
        if len(options.folders) == 1 and options.folders[0].suffix == ".zip":
            options.folders, options.output = [open_export(options.folders[0], options.output)], None
        task_folder, sections, running = _find(options.folders)
        check_export(task_folder)
        output = options.output or task_folder
        if options.output is None and len(options.folders) > 1 and not options.export:
            raise ValueError("the tables of some runs need a folder of their own; give --output DIR")
        if options.output or len(options.folders) == 1:
            output.mkdir(parents=True, exist_ok=True)
            with FileLock(output / LOCK):
                _write_tables(sections, running, output)
                _write_page(task_folder, sections, running, output)
        if options.export:
            count = export(task_folder, sections, options.export, _write_all)
            print(f"{options.export}: {count} files")
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
        sections, running = read_task(folders[0])
        if not sections and not running:
            raise ValueError(f"{folders[0]} has no runs; give a task's folder, for example outputs/cat2dog, or runs")
        return folders[0], sections, running
    others = [folder for folder in folders if folder not in runs]
    if others:
        raise ValueError(f"{others[0]} is no folder of a run; give one task's folder, or folders with a run.json")
    tasks = sorted({run.parent for run in runs})
    if len(tasks) > 1:
        raise ValueError(
            f"runs of different tasks ({', '.join(task.name for task in tasks)}) have no common table; give one's"
        )
    sections, running = read_task(tasks[0], {run.name for run in runs})
    if len(sections) > 1:
        raise ValueError(
            f"these runs do not fit into one table: {'; '.join(section.title for section in sections)}, with "
            f"protocols, images or tiers of their own; give the runs of one, or {tasks[0]}, which gets a table for each"
        )
    return tasks[0], sections, running


if __name__ == "__main__":
    main()

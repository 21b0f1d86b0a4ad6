"""Finished runs of a task → sections: rows that may be compared, their columns, and what to know about them.

Rows share a section only where images, protocols, tier and selection are the same.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from eval.records import DataRecord, untrained
from eval.report.comparison import Verdict, judge_claims, mark
from eval.report.labels import best_of, choice_of, label_rows
from eval.report.paper import LEVELS, Paper, agrees, explain, read_paper
from eval.report.reproduction import Reproduction, judge, note_in
from eval.report.rows import Entry, Running, TableRow, canonical, group_seeds, merge_seeds, read_entries

SHOWN = 5  # names of missing images
FEW = 2048  # images below which the bias of FID is large
IMAGE_STUDIES = ("translate", "edit")  # whose tables need not say what kind of run they are of
TRAIN = "train"  # whose numbers are of a training: nothing to claim of them or to set against a cost
TIED = "†"  # behind a value
TIED_MEANS = "tied with the best of the column (paired bootstrap, 95 %)"
SYNTHETIC = (
    "Pets, a synthetic benchmark: small networks trained by this project; not comparable with any paper's numbers."
)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        key: of the metric or cost.
        header: its name, without an arrow.
        digits: after the point.
        scale: factor of what is shown.
        higher: whether more is better; None where nothing is.
        arrow: whether the header says so.
    """

    key: str
    header: str
    digits: int
    scale: float = 1.0
    higher: bool | None = None
    arrow: bool = True

    @property
    def title(self) -> str:
        """The header with its arrow."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher if self.arrow else None]
        return self.header + arrow


FORWARDS = Column("forwards_per_image", "forwards/image", 0, higher=False, arrow=False)
COSTS = (
    FORWARDS,
    Column("backwards_per_image", "backwards/image", 0, higher=False, arrow=False),
    Column("seconds_per_image", "s/image", 2, higher=False, arrow=False),
    Column("images_per_second", "images/s", 2, higher=True, arrow=False),
)


@dataclass(frozen=True)
class Section:
    """A table of rows that may be compared.

    Args:
        title: the heading.
        warnings: what keeps its numbers from being real results.
        notes: what the numbers mean.
        columns: behind the label.
        rows: runs that differ in their seed alone are one.
        data: the images.
        picture: file name of the picture of its first images; None where its runs make no images.
        claims: what the experiment claims, and whether it holds.
        runs: all runs, a row for each seed.
        compares: whether quality may be set against quality and cost.
        reproductions: which published numbers are reproduced.
    """

    title: str
    warnings: list[str]
    notes: list[str]
    columns: list[Column]
    rows: list[TableRow]
    data: DataRecord
    picture: str | None
    claims: list[Verdict] = field(default_factory=list)
    runs: list[TableRow] = field(default_factory=list)
    compares: bool = True
    reproductions: list[Reproduction] = field(default_factory=list)


def read_task(task_folder: Path, only: Collection[str] | None = None) -> tuple[list[Section], list[Running]]:
    """The tables of a task, and its runs that are not finished.

    Args:
        task_folder: outputs/<task>.
        only: names of the runs' folders; None for all.
    """
    entries, running = read_entries(task_folder)
    chosen = [entry for entry in entries if only is None or entry.folder.name in only]
    groups: defaultdict[Any, list[Entry]] = defaultdict(list)
    for entry in chosen:
        groups[_kind(entry)].append(entry)
    paper, claims, count = read_paper(task_folder), _read_claims(task_folder), Counter()
    sections = []
    for group in groups.values():
        digest = group[0].run["data"]["digest"]
        picture = None
        if (group[0].folder / "images").is_dir():
            count[digest] += 1
            picture = f"grid-{digest}{f'-{count[digest]}' if count[digest] > 1 else ''}.png"
        sections.append(_section(group, picture, paper, claims))
    return _with_different_titles(sections), [run for run in running if only is None or run.folder in only]


def cell_text(row: TableRow, column: Column, interval: bool = False) -> str:
    """What a table's cell shows, with the half-width of its 95 % interval if asked."""
    value = row.values.get(column.key)
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    text = f"{value * column.scale:.{column.digits}f}"
    if column.key in row.std:
        return f"{text} ±{row.std[column.key] * column.scale:.{column.digits}f}"
    ci95 = row.metrics[column.key]["ci95"] if interval and column.key in row.metrics else None
    return text + (f" ±{(ci95[1] - ci95[0]) / 2 * column.scale:.{column.digits}f}" if ci95 else "")


def mark_of(row: TableRow, column: Column) -> Literal["", "best", "tied"]:
    """Whether a row has the best value of a column or one that is tied with it."""
    return row.marks.get(column.key, "")


def spreads_of(rows: Sequence[TableRow]) -> set[Literal["ci95", "std"]]:
    """What ± means in a table."""
    found: set[Literal["ci95", "std"]] = {"std" for row in rows if row.std}
    if any(metric["ci95"] for row in rows for metric in row.metrics.values()):
        found.add("ci95")
    return found


def _kind(entry: Entry) -> Any:
    """What the rows of one table share."""
    run, scores = entry.run, entry.scores
    protocols = {key: metric["protocol"] for key, metric in scores["metrics"].items()}
    about = [run["study"], run["data"]["digest"], scores["protocol"], protocols, scores["reference"], run.get("tier")]
    return canonical([*about, choice_of(run), bool(untrained(run, scores))])


def _read_claims(task_folder: Path) -> list[dict[str, Any]]:
    path = task_folder / "claims.json"
    return json.loads(path.read_bytes()) if path.exists() else []


def _section(entries: list[Entry], picture: str | None, paper: Paper, claims: list[dict[str, Any]]) -> Section:
    first = entries[0]
    trained = first.run["study"] == TRAIN
    random = sorted({part for entry in entries for part in untrained(entry.run, entry.scores)})
    rows = [merge_seeds(group) for group in group_seeds(entries)]
    runs = [merge_seeds([entry]) for entry in entries]
    ways = {best_of(entry.run) for entry in entries}
    alike = len(ways) == 1
    label_rows(rows, with_selection=not alike)
    label_rows(runs, with_selection=not alike)
    rows.sort(key=lambda row: natural(row.label))
    mark(rows)
    columns = [column for column in metric_columns(rows) if any(row.values[column.key] is not None for row in rows)]
    notes = [f"{column.title}: {first.scores['metrics'][column.key]['protocol']}" for column in columns]
    reproductions: list[Reproduction] = []
    if not random and not first.run["synthetic"]:
        reproductions = judge(rows, columns, paper)
        for row in rows:
            note_in([run for run in runs if run.entries[0] in row.entries], reproductions, row.label)
        columns, more = _with_paper(columns, rows, paper)
        notes += more
    columns, more = _with_unselected(columns, rows)
    title = ("RANDOM WEIGHTS – " if random else "") + _title(first)
    return Section(
        title + (f", {next(iter(ways))}" if alike and ways != {""} else ""),
        [*_warnings_of_weights(rows, random), *_warnings_of_data(first)],
        [*_notes_on_marks(rows), *notes, *more],
        [*columns, *([] if trained else _cost_columns(rows))],
        rows,
        first.run["data"],
        picture,
        [] if random or trained else judge_claims(claims, rows),  # random weights support no claim
        runs,
        picture is not None and not trained,
        reproductions,
    )


def metric_columns(rows: Sequence[TableRow]) -> list[Column]:
    """A column of each metric, in the order of the records."""
    found: dict[str, Column] = {}
    for row in rows:
        for key, metric in row.metrics.items():
            column = Column(key, metric["header"], metric["digits"], metric["scale"], metric["higher_is_better"])
            found.setdefault(key, column)
    return list(found.values())


def _cost_columns(rows: list[TableRow]) -> list[Column]:
    """The costs that a row has; gradients only where some are taken."""
    return [
        column
        for column in COSTS
        if any(row.values[column.key] is not None for row in rows)
        and (column.key != "backwards_per_image" or any(row.values[column.key] for row in rows))
    ]


def _with_different_titles(sections: list[Section]) -> list[Section]:
    """Sections of one title say which images they are of; where that is not enough, they are numbered."""
    titles = Counter(section.title for section in sections)
    found = [
        replace(section, title=f"{section.title} (images {section.data['digest']})")
        if titles[section.title] > 1
        else section
        for section in sections
    ]
    titles, seen = Counter(section.title for section in found), Counter()
    for k, section in enumerate(found):
        if titles[section.title] > 1:
            seen[section.title] += 1
            found[k] = replace(section, title=f"{section.title}, {seen[section.title]}")
    return found


def natural(label: str) -> list[str]:
    """A key that sorts the numbers in labels as numbers."""
    return [f"{float(part):012.4f}" if part[:1].isdigit() else part for part in re.split(r"(\d+(?:\.\d+)?)", label)]


def _notes_on_marks(rows: list[TableRow]) -> list[str]:
    """What ± and the marks mean."""
    notes, spreads = [], spreads_of(rows)
    if "ci95" in spreads:
        notes.append("±: half the 95 % interval of a bootstrap over the images")
    if "std" in spreads:
        notes.append("± of rows of several seeds: standard deviation over seeds")
    if any("tied" in row.marks.values() for row in rows):
        notes.append(f"bold: best of the column; {TIED}: {TIED_MEANS}")
    return notes


def _title(entry: Entry) -> str:
    run, data = entry.run, entry.run["data"]
    n, of = data["n"], data.get("of")
    count = f"{n} of {of} tuples" if of else f"{n} {'image' if n == 1 else 'images'}"
    study = "" if run["study"] in IMAGE_STUDIES else f"{run['study']}, "
    tier = f", tier {run.get('tier')}" if run.get("tier") else ""
    return f"{run['task']}: {study}{count} of {data['name']}, protocol {entry.scores['protocol']}{tier}"


def _warnings_of_weights(rows: list[TableRow], random: list[str]) -> list[str]:
    warnings = []
    if random:
        warnings.append(
            f"RANDOM WEIGHTS ({', '.join(random)}): these numbers show that the program runs, nothing else."
        )
    changed = [row.label for row in rows if not row.run["published_settings"]]
    if rows[0].run["synthetic"]:
        warnings.append(SYNTHETIC)
    elif changed:
        warnings.append(f"Not the published settings: {', '.join(changed)}.")
    return warnings


def _warnings_of_data(entry: Entry) -> list[str]:
    warnings, data, metrics = [], entry.run["data"], entry.scores["metrics"]
    missing = data.get("missing")
    if missing:
        names = list(dict.fromkeys(missing))
        some = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        warnings.append(
            f"{len(missing)} of {data.get('of')} tuples are missing, because their images are not here: {some}."
        )
    if "fid" in metrics and (n := metrics["fid"]["n"]) < FEW:
        warnings.append(
            f"{metrics['fid']['header']} from {n} {'image' if n == 1 else 'images'} is biased upwards; compare it "
            "within this table only."
        )
    if entry.run["study"] == "translate" and "fid" not in metrics:
        warnings.append("No FID and KID: there is no reference set (data.reference).")
    return warnings


def _with_unselected(columns: list[Column], rows: list[TableRow]) -> tuple[list[Column], list[str]]:
    """The columns with that of the mean over all candidates after each that has one, and a note on them."""
    found, headers = [], []
    for column in columns:
        found.append(column)
        key = f"{column.key}_unselected"
        if any(row.values.get(key) is not None for row in rows):
            header = f"{column.header}, all"
            found.append(Column(key, header, column.digits, column.scale))
            headers.append(header)
    how = best_of(rows[0].run)
    note = f"{'; '.join(headers)}: mean over all candidates; the other columns are of the {how or 'selected ones'}"
    return found, [note] if headers else []


def _with_paper(columns: list[Column], rows: list[TableRow], paper: Paper) -> tuple[list[Column], list[str]]:
    """The columns with those of published numbers after each, their cells put into the rows, and footnotes."""
    found, shown = [], []
    for column in columns:
        found.append(column)
        known = []
        for row in rows:
            published = paper.values.get((row.method, column.key))
            if published is None:
                continue
            agreed = agrees(published, row.entries[0])
            level = LEVELS[published.verification][0] + ("" if agreed else "*")
            std = f" ±{published.std * column.scale:.{column.digits}f}" if published.std is not None else ""
            row.values[f"paper_{column.key}"] = f"{published.value * column.scale:.{column.digits}f}{std} {level}"
            value = row.values[column.key]
            if agreed and isinstance(value, int | float):
                difference = (value - published.value) * column.scale
                row.values[f"delta_{column.key}"] = f"{difference:+.{column.digits}f}"
            known.append((row.label, column.title, published, agreed))
        if known:
            found.append(Column(f"paper_{column.key}", f"paper {column.header}", column.digits))
        if any(f"delta_{column.key}" in row.values for row in rows):
            found.append(Column(f"delta_{column.key}", f"Δ {column.header}", column.digits))
        shown += known
    return found, explain(paper, shown)

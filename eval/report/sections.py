"""Finished runs of a task → sections: runs that may be compared, their columns, and what to know about them.

Runs share a section only where images, protocol, tier and selection are the same.
"""

import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from eval.report.comparison import Row, Verdict, judge_claims, mark, over_seeds
from eval.report.paper import LEVELS, Paper, agrees, explain, read_paper

SHOWN = 5  # names of missing images


@dataclass(frozen=True)
class Column:
    """A column of the table: where its number comes from and how people read it."""

    key: str
    header: str
    digits: int
    scale: float = 1.0


METRICS = (
    Column("fid", "FID ↓", 2),
    Column("fid_infinity", "FID∞ ↓", 2),
    Column("kid", "KID×10³ ↓", 2, 1000),
    Column("kid_subsets", "KID×10³ by subsets ↓", 2, 1000),
    Column("psnr", "PSNR dB ↑", 2),
    Column("ssim", "SSIM ↑", 3),
    Column("l2", "L2 ↓", 2),
    Column("lpips", "LPIPS ↓", 3),
    Column("counterpart_psnr", "true-pair PSNR ↑", 2),
    Column("factor_error", "factor error ↓", 3),
    Column("clip", "CLIP ↑", 3),
    Column("dclip", "D-CLIP ↑", 3),
    Column("edit_error", "edit error ↓", 3),
    Column("kept_error", "others' error ↓", 3),
    Column("background_psnr", "background PSNR ↑", 2),
    Column("background_ssim", "background SSIM ↑", 3),
    Column("background_mse", "background MSE×10⁴ ↓", 2, 1e4),
    Column("background_lpips", "background LPIPS×10³ ↓", 2, 1e3),
)
UNSELECTED = ("clip", "dclip", "psnr", "ssim", "l2")  # may come with their mean over all candidates of a best of N
COSTS = (
    Column("network_evaluations_per_image", "NFE/image", 0),
    Column("seconds_per_image", "s/image", 2),
    Column("images_per_second", "images/s", 2),
)


@dataclass(frozen=True)
class Running:
    """A run that is not finished: it is at work, was cut off, or has failed with an error."""

    folder: str
    method: str
    done: int
    of: int
    start: str
    error: str | None = None

    def __str__(self) -> str:
        """What became of it, in a line."""
        done = f"{self.done} of {self.of} images"
        state = f"failed after {done}: {self.error}" if self.error else f"running, {done}, since {self.start}"
        return f"{self.method} ({self.folder}): {state}"


@dataclass(frozen=True)
class Section:
    """Runs that may be compared: their columns, what the numbers mean, and which of them are not real results.

    A row stands for the runs that differ in their seed alone; `runs` has them one by one. Its data have the name
    `digest`, and the file of its first images is `picture`.
    """

    title: str
    warnings: list[str]
    notes: list[str]
    columns: list[Column]
    rows: list[tuple[str, dict[str, Any]]]
    digest: str
    picture: str
    claims: list[Verdict] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)


def read_sections(task_folder: Path, only: Collection[str] | None = None) -> list[Section]:
    """Group the finished runs of a task by images, protocol, tier, selection, and whether their weights are random.

    Args:
        task_folder: outputs/<task>.
        only: names of the runs' folders; None for all.
    """
    groups, paper, claims = defaultdict(list), read_paper(task_folder), _read_claims(task_folder)
    for folder, run, metrics in _read_runs(task_folder):
        if metrics is not None and (only is None or folder.name in only):
            protocols = tuple(sorted((key, entry["protocol"]) for key, entry in metrics.items()))
            marked = {_network(key) for key, text in protocols if "RANDOM-" in text}
            run["random_weights"] = [*run["random_weights"], *sorted(marked)]
            asked = json.dumps((run.get("selection") or {}).get("asked"), sort_keys=True)
            kind = run["identity"]["protocol"], run.get("tier"), asked, bool(run["random_weights"])
            groups[run["data"]["digest"], protocols, kind].append(({**run, "folder": folder.name}, metrics))
    sections, count = [], Counter()
    for (digest, protocols, _), runs in groups.items():
        count[digest] += 1
        picture = f"grid-{digest}{f'-{count[digest]}' if count[digest] > 1 else ''}.png"
        sections.append(_section(runs, dict(protocols), digest, picture, paper, claims, task_folder))
    titles = Counter(section.title for section in sections)
    return [replace(s, title=f"{s.title} (images {s.digest})") if titles[s.title] > 1 else s for s in sections]


def _network(key: str) -> str:
    """What computes a metric, for people."""
    return "CLIP" if "clip" in key else "LPIPS" if "lpips" in key else "Inception"


def _read_claims(task_folder: Path) -> list[dict[str, Any]]:
    path = task_folder / "claims.json"
    return json.loads(path.read_bytes()) if path.exists() else []


def read_running(task_folder: Path) -> list[Running]:
    """The runs of a task that are not finished, with how many of their images are there."""
    found = []
    for folder, run, metrics in _read_runs(task_folder):
        if metrics is None:
            done = len(list((folder / "images").glob("*.png")))
            method = run["identity"]["method"]["name"]
            error = run.get("error") if run["status"] == "failed" else None
            found.append(Running(folder.name, method, done, run["data"]["n"], run["start"], error))
    return found


def _read_runs(task_folder: Path) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any] | None]]:
    """Folder, record and, of finished runs, metrics; runs whose files are damaged are passed over with a warning."""
    for path in sorted(task_folder.glob("*/run.json")):
        try:
            run = json.loads(path.read_bytes())
            finished = run["status"] == "finished"
            metrics = json.loads((path.parent / "metrics.json").read_bytes())["metrics"] if finished else None
        except (OSError, ValueError, TypeError, KeyError):
            warnings.warn(
                f"{path.parent} is left out: its run.json or metrics.json is missing or damaged; start its command "
                "again, which mends it or says what to do",
                stacklevel=2,
            )
            continue
        yield path.parent, run, metrics


def cell_text(values: dict[str, Any], column: Column, interval: bool = False) -> str:
    """What a table's cell shows of a row, with the half-width of its 95 % interval if asked."""
    value = values.get(column.key)
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    text = f"{value * column.scale:.{column.digits}f}"
    if column.key in values.get("std", {}):
        return f"{text} ±{values['std'][column.key] * column.scale:.{column.digits}f}"
    ci95 = values["metrics"].get(column.key, {}).get("ci95") if interval else None
    return text + (f" ±{(ci95[1] - ci95[0]) / 2 * column.scale:.{column.digits}f}" if ci95 else "")


def mark_of(values: dict[str, Any], column: Column) -> Literal["", "best", "tied"]:
    """Whether a row has the best value of a column, or one that cannot be told apart from it."""
    return values.get("marks", {}).get(column.key, "")


def best_of(run: dict[str, Any]) -> str:
    """How a run's images were selected: "best of 540 by dclip", or "" where each is the only one."""
    selection = run.get("selection")
    if not selection or selection["candidates"] == 1:
        return ""
    return f"best of {selection['candidates']} by {selection['metric']}"


def _section(
    runs: list[tuple[dict, dict]],
    protocols: dict[str, str],
    digest: str,
    picture: str,
    paper: Paper,
    claims: list[dict[str, Any]],
    task_folder: Path,
) -> Section:
    first = runs[0][0]
    random = sorted({part for run, _ in runs for part in run["random_weights"]})
    seeds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run, metrics in runs:
        alike = {key: value for key, value in run["identity"].items() if key != "seed"}
        seeds[json.dumps(alike, sort_keys=True)].append({**run, "metrics": metrics})
    merged = [over_seeds(sorted(group, key=lambda row: row["identity"]["seed"])) for group in seeds.values()]
    rows = [(label, _values(row["metrics"]) | row) for label, row in zip(_labels(merged), merged, strict=True)]
    single = [
        (label, _values(metrics) | run | {"metrics": metrics})
        for label, (run, metrics) in zip(_labels([run for run, _ in runs]), runs, strict=True)
    ]
    rows.sort(key=lambda row: _natural(row[0]))
    mark(rows, task_folder)
    columns = [c for c in METRICS if any(values.get(c.key) is not None for _, values in rows)]
    notes = [f"{c.header}: {protocols[c.key]}" for c in columns]
    if not random and not first["embedded"]:
        columns, more = _with_paper(columns, rows, paper)
        notes += more
    columns, more = _with_unselected(columns, rows)
    warnings = [*_warnings_of_weights(rows, random), *_warnings_of_data(first["data"], protocols)]
    ways = {best_of(run) for run, _ in runs}
    title = ("RANDOM WEIGHTS – " if random else "") + _title(first) + (f", {ways.pop()}" if _one(ways) else "")
    notes = [*_notes_on_intervals(rows), *notes, *more]
    verdicts = judge_claims(claims, rows, task_folder)
    return Section(title, warnings, notes, [*columns, *COSTS], rows, digest, picture, verdicts, single)


def _natural(label: str) -> list[str]:
    """A key that sorts the numbers in labels as numbers."""
    return [f"{float(part):012.4f}" if part[:1].isdigit() else part for part in re.split(r"(\d+(?:\.\d+)?)", label)]


def _notes_on_intervals(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What ± and the marks mean."""
    notes = []
    if any(entry.get("ci95") for _, values in rows for entry in values["metrics"].values()):
        notes.append("±: half the 95 % interval of a bootstrap over the images")
    if any(values["std"] for _, values in rows):
        notes.append("± of rows of several seeds: standard deviation over seeds")
    if any("tied" in values["marks"].values() for _, values in rows):
        notes.append("bold: best of the column; ≈: not distinguishable from it (paired bootstrap, 95 %)")
    return notes


def _one(ways: set[str]) -> bool:
    """Whether all runs were selected in one way, which the title then says."""
    return len(ways) == 1 and ways != {""}


def _values(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    unselected = {f"{key}_unselected": metrics[key].get("unselected") for key in UNSELECTED if key in metrics}
    return {key: entry["value"] for key, entry in metrics.items()} | unselected


def _title(run: dict[str, Any]) -> str:
    data, n, identity = run["data"], run["data"]["n"], run["identity"]
    count = f"{n} of {data['of']} tuples" if data.get("of") else f"{n} {'image' if n == 1 else 'images'}"
    tier = f", tier {run['tier']}" if run.get("tier") else ""
    return f"{identity['task']}: {count} of {data['name']}, protocol {identity['protocol']}{tier}"


def _warnings_of_weights(rows: list[tuple[str, dict[str, Any]]], random: list[str]) -> list[str]:
    warnings = []
    if random:
        warnings.append(
            f"RANDOM WEIGHTS ({', '.join(random)}): these numbers show that the program runs, nothing else."
        )
    changed = [label for label, values in rows if not values["published_settings"]]
    if rows[0][1]["embedded"]:
        warnings.append(
            "Embedded world: small networks trained by this project; not comparable with any paper's numbers."
        )
    elif changed:
        warnings.append(f"Not the published settings: {', '.join(changed)}.")
    return warnings


def _warnings_of_data(data: dict[str, Any], protocols: dict[str, str]) -> list[str]:
    warnings, n, missing = [], data["n"], data.get("missing")
    if missing:
        names = list(dict.fromkeys(missing))
        some = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        warnings.append(
            f"{len(missing)} of {data['of']} tuples are missing, because their images are not here: {some}."
        )
    if n < 2048 and "fid" in protocols:
        warnings.append(
            f"FID from {n} {'image' if n == 1 else 'images'} is biased upwards; compare it within this table only."
        )
    if "fid" not in protocols and "clip" not in protocols:
        warnings.append("No FID and KID: there is no reference set (data.reference).")
    return warnings


def _with_unselected(columns: list[Column], rows: list[tuple[str, dict[str, Any]]]) -> tuple[list[Column], list[str]]:
    """The columns with that of the mean over all candidates after each that has one, and a note on them."""
    found, headers = [], []
    for column in columns:
        found.append(column)
        key = f"{column.key}_unselected"
        if any(values.get(key) is not None for _, values in rows):
            header = f"{column.header.removesuffix(' ↓').removesuffix(' ↑')}, all"
            found.append(Column(key, header, column.digits, column.scale))
            headers.append(header)
    how = best_of(rows[0][1])
    note = f"{'; '.join(headers)}: mean over all candidates; the other columns are of the {how or 'selected ones'}"
    return found, [note] if headers else []


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
    """Method names, followed by how images were selected and by the settings in which runs of one method differ."""
    settings = [_flat({k: v for k, v in run["identity"].items() if k != "data"}) for run in runs]
    alike, labels = _one({best_of(run) for run in runs}), []
    for run, mine in zip(runs, settings, strict=True):
        same = [other for other in settings if other["method.name"] == mine["method.name"]]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in same)]
        seeds = run.get("seeds", [])
        details = ["" if alike else best_of(run), f"{len(seeds)} seeds" if len(seeds) > 1 else ""]
        details += [f"{key.removeprefix('method.')}={mine[key]}" for key in differing]
        detail = ", ".join(filter(None, details))
        labels.append(mine["method.name"] + (f" ({detail})" if detail else ""))
    return labels


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

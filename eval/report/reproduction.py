"""Is a published number reproduced? A verdict where everything else is equal, or what is not.

The tolerance is read from a run's own config.yaml, so it was stated before the run. `paper.tolerance` in it has

    stds        so many of the published standard deviations, where one is published that is not 0
    relative    a part of the published value, by metric, where none is
    seeds       how many runs it takes, 3 if it does not say; a method that draws no noise needs 1

and a published value can have a `tolerance` of its own, in its unit.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from eval.report.paper import Paper, Published, differences
from eval.report.rows import TableRow

SEEDS = 3
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where it is there
ANSWERS = {"reproduced": "yes", "not reproduced": "no"}  # in table.csv


@dataclass(frozen=True)
class Reproduction:
    """What a row says of a published number.

    Args:
        label: of the row.
        key: of the metric.
        header: of its column.
        verdict: "not comparable" where something but the number differs.
        reasons: what differs then: protocol, data set, count, settings, tier, seeds, tolerance, value.
        text: the numbers, where they are compared.
    """

    label: str
    key: str
    header: str
    verdict: Literal["reproduced", "not reproduced", "not comparable"]
    reasons: tuple[str, ...]
    text: str


def judge(rows: Sequence[TableRow], columns: Sequence[Any], paper: Paper) -> list[Reproduction]:
    """The verdicts on all published numbers that a table's rows and columns have.

    Args:
        rows: of the table.
        columns: its metrics, see `sections.Column`.
        paper: the published numbers.
    """
    found = []
    for row in rows:
        for column in columns:
            published = paper.values.get((row.method, column.key))
            if published is not None:
                found.append(_judge(row, column, published))
    return found


def lines_of(found: Sequence[Reproduction]) -> list[tuple[str, str]]:
    """Verdict and text for each number that is compared, and for all others that differ in the same."""
    lines = [(one.verdict, f"{one.label}, {one.header}: {one.text}") for one in found if not one.reasons]
    alike: defaultdict[tuple[str, ...], dict[str, list[str]]] = defaultdict(dict)
    for one in found:
        if one.reasons:
            alike[one.reasons].setdefault(one.label, []).append(one.header)
    for reasons, rows in alike.items():
        names = "; ".join(f"{label}, {' and '.join(headers)}" for label, headers in rows.items())
        lines.append(("not comparable", f"{names} ({'; '.join(reasons)})"))
    return lines


def format_reproductions(found: Sequence[Reproduction]) -> list[str]:
    """The lines of a table."""
    return [f"{verdict}: {text}" for verdict, text in lines_of(found)]


def note_in(runs: Sequence[TableRow], found: Sequence[Reproduction], label: str) -> None:
    """Write the verdicts on a row into its runs, for table.csv: yes, no, or what differs."""
    for one in found:
        for run in runs if one.label == label else ():
            run.values[f"{one.key}_reproduced"] = ANSWERS.get(one.verdict, f"not comparable: {'; '.join(one.reasons)}")


def _judge(row: TableRow, column: Any, published: Published) -> Reproduction:
    reasons = list(dict.fromkeys(reason for entry in row.entries for reason in differences(published, entry)))
    value, tolerance, seeds = row.values.get(column.key), None, SEEDS
    if not reasons:
        stated = {_stated(entry.folder, row.method, column.key) for entry in row.entries}
        tolerance, seeds = next(iter(stated)) if len(stated) == 1 else (None, SEEDS)
        if tolerance is None:
            reasons.append("tolerance: none was stated before the run")
        if len(row.entries) < seeds:
            reasons.append(f"seeds: {len(row.entries)} of {seeds}")
        if not isinstance(value, int | float):
            reasons.append("value: none")
    if reasons or tolerance is None or not isinstance(value, int | float):
        return Reproduction(row.label, column.key, column.header, "not comparable", tuple(reasons), "")
    near = abs(value - published.value) <= tolerance
    ours, theirs, within = (f"{x * column.scale:.{column.digits}f}" for x in (value, published.value, tolerance))
    text = f"{ours} against {theirs}, tolerance ±{within}, {len(row.entries)} seed{'s' * (len(row.entries) > 1)}"
    return Reproduction(row.label, column.key, column.header, "reproduced" if near else "not reproduced", (), text)


def _stated(folder: Path, method: str, key: str) -> tuple[float | None, int]:
    """The tolerance and the number of seeds that a run's own configuration states for a published number."""
    path = folder / "config.yaml"
    try:
        content: Any = LOADER(path.read_bytes()).get_single_data() if path.is_file() else {}
    except yaml.YAMLError:
        return None, SEEDS
    paper = content.get("paper") if isinstance(content, dict) else None
    if not isinstance(paper, dict):
        return None, SEEDS
    rule = paper.get("tolerance") or {}
    for value in paper.get("values") or ():
        if isinstance(value, dict) and (value.get("method"), value.get("metric")) == (method, key):
            return tolerance_of(value, rule), value.get("seeds") or rule.get("seeds") or SEEDS
    return None, SEEDS


def tolerance_of(value: Mapping[str, Any], rule: Mapping[str, Any]) -> float | None:
    """How far from a published value counts as reproduced, in its unit; None where nothing says so.

    Args:
        value: an entry of `paper.values`.
        rule: `paper.tolerance`.
    """
    if value.get("tolerance") is not None:
        return float(value["tolerance"])
    if value.get("std") and rule.get("stds"):
        return float(rule["stds"] * value["std"])
    relative = (rule.get("relative") or {}).get(value["metric"])
    return None if relative is None else float(relative * abs(value["value"]))

"""Runs on disk → rows of a table: a run with one of its scores, or runs that differ in their seed alone."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from eval.records import (
    CurveRecord,
    MetricRecord,
    RunRecord,
    ScoresRecord,
    by_protocol,
    list_scores,
    read_bootstrap,
    read_curves,
    read_per_image,
    read_run,
    read_scores,
)

COSTS = ("forwards_per_image", "backwards_per_image", "seconds_per_image", "images_per_second")


@dataclass(frozen=True)
class Entry:
    """A finished run with one of its scores.

    Args:
        folder: of the run.
        scores_folder: in it.
        run: run.json.
        scores: metrics.json.
    """

    folder: Path
    scores_folder: Path
    run: RunRecord
    scores: ScoresRecord


@dataclass(frozen=True)
class Running:
    """A run without numbers: it is at work, was cut off, has failed, or is not scored yet.

    Args:
        folder: name of its folder.
        method: name of its method.
        state: what became of it, for people.
        start: when it began, ISO 8601.
    """

    folder: str
    method: str
    state: str
    start: str

    def __str__(self) -> str:
        """The whole line."""
        return f"{self.method} ({self.folder}): {self.state}; begun {self.start}"


@dataclass
class TableRow:
    """A row of a table.

    Args:
        label: the first cell.
        entries: a run, or the runs that differ in their seed alone, by seed.
        metrics: by key; of several seeds, with means as values and without intervals.
        values: what cells show, by column: metrics, costs, and texts of published numbers.
        std: standard deviations over seeds, by metric.
        marks: which values are the best of their column or tied with it; `comparison.mark` fills it.
    """

    label: str
    entries: Sequence[Entry]
    metrics: dict[str, MetricRecord]
    values: dict[str, float | str | None]
    std: dict[str, float] = field(default_factory=dict)
    marks: dict[str, Literal["best", "tied"]] = field(default_factory=dict)

    @property
    def run(self) -> RunRecord:
        """run.json of the first seed."""
        return self.entries[0].run

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.run["method"]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [entry.run["seed"] for entry in self.entries]

    @cached_property
    def replicates(self) -> dict[str, np.ndarray]:
        """Each metric's values on resamples of the images, (B,) float64, the mean over seeds.

        Metrics that do not have as many resamples in all seeds are left out.
        """
        found = [read_bootstrap(entry.scores_folder) for entry in self.entries]
        shared = [key for key in found[0] if len({len(one.get(key, ())) for one in found}) == 1]
        return {key: np.array([one[key] for one in found], dtype=np.float64).mean(axis=0) for key in shared}

    def per_image(self) -> dict[str, dict[str, float]]:
        """The numbers of each image in the first seed's run."""
        return read_per_image(self.entries[0].scores_folder)

    def curves(self) -> list[dict[str, CurveRecord]]:
        """The curves of each seed, by name."""
        return [read_curves(entry.scores_folder) for entry in self.entries]


def read_entries(task_folder: Path) -> tuple[list[Entry], list[Running]]:
    """The runs of a task: those with scores, one entry for each of these, and those without.

    Records that are damaged or of an earlier version are left out with a warning.
    """
    entries, running = [], []
    for path in sorted(task_folder.glob("*/run.json")):
        found: list[tuple[Path, ScoresRecord]] = []
        try:
            run = read_run(path.parent)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        folders = list_scores(path.parent)
        for folder in folders:
            try:
                found += [(folder, scores) for scores in by_protocol(read_scores(folder))]
            except ValueError as error:
                warnings.warn(str(error), stacklevel=2)
        if run["status"] != "finished" or not folders:
            running.append(_running(path.parent, run))
            continue
        entries += [Entry(path.parent, folder, run, scores) for folder, scores in found]
        running += [
            Running(path.parent.name, run["method"], f"not scored ({name}): {failure['error']}", run["start"])
            for name, failure in run.get("unscored", {}).items()
        ]
    return entries, running


def merge_seeds(entries: Sequence[Entry], label: str = "") -> TableRow:
    """Runs that differ in their seed alone as one row: means, and standard deviations over seeds."""
    first = entries[0]
    metrics, std = dict(first.scores["metrics"]), {}
    costs: dict[str, Any] = {key: _mean([entry.run.get("costs", {}).get(key) for entry in entries]) for key in COSTS}
    if len(entries) > 1:
        for key, metric in metrics.items():
            alike = [entry.scores["metrics"][key] for entry in entries]
            values = [one["value"] for one in alike if one["value"] is not None]
            metrics[key] = {**metric, "value": _mean([one["value"] for one in alike]), "ci95": None}
            if len(values) == len(entries):
                std[key] = stdev(values)
            if "unselected" in metric:
                metrics[key]["unselected"] = _mean([one.get("unselected") for one in alike])
    values = {key: metric["value"] for key, metric in metrics.items()}
    values |= {f"{key}_unselected": metric["unselected"] for key, metric in metrics.items() if "unselected" in metric}
    return TableRow(label, entries, metrics, {**values, **costs}, std)


def group_seeds(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The runs that differ in their seed alone, together, and sorted by seed."""
    groups: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        alike = {key: value for key, value in entry.run["identity"].items() if key != "seed"}
        groups[repr(canonical((entry.run["method"], alike, entry.scores["identity"])))].append(entry)
    return [sorted(group, key=lambda entry: entry.run["seed"]) for group in groups.values()]


def canonical(value: Any) -> Any:
    """JSON-like content in a form in which equal content compares equal, whatever the order of keys."""
    if isinstance(value, dict):
        return tuple(sorted((key, canonical(inner)) for key, inner in value.items()))
    return tuple(map(canonical, value)) if isinstance(value, list | tuple) else value


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _running(folder: Path, run: RunRecord) -> Running:
    images = folder / "images"
    done = f"{len(list(images.glob('*.png')))} of {run['data']['n']} images" if images.is_dir() else ""
    if run["status"] == "failed":
        state = f"failed{f' after {done}' if done else ''}: {run.get('error', 'no reason is known')}"
    elif run["status"] == "finished":
        reasons = [failure["error"] for failure in run.get("unscored", {}).values()]
        state = f"made, and not scored: {reasons[0]}" if reasons else "made, and not scored yet"
    else:
        state = f"running{f', {done}' if done else ''}"
    return Running(folder.name, run["method"], state, run["start"])

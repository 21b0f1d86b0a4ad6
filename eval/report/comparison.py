"""Comparing the rows of a table: seeds of one method together, which differences are real, and whether claims hold.

Differences are paired: the same resamples of the same images for both rows, so that what both share cancels.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from eval.metrics.statistics import difference, mean_replicates, resamples

Row = tuple[str, dict[str, Any]]  # label; a run's record, metrics, and what the table shows
RESAMPLES = 1000
SURE = 0.975


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim that an experiment makes.

    Args:
        text: the claim.
        verdict: "holds" or "fails" where at least 97.5 % of the bootstrap's resamples say so.
        probability: that it holds, by the bootstrap; None where a run or a number is missing.
    """

    text: str
    verdict: Literal["holds", "fails", "undecided"]
    probability: float | None


def over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs that differ in their seed alone, as one row: means, and standard deviations over seeds.

    Args:
        rows: records with their metrics' entries under "metrics" and their folder's name under "folder".
    """
    first = {**rows[0], "folders": [row["folder"] for row in rows], "seeds": [row["identity"]["seed"] for row in rows]}
    if len(rows) == 1:
        return first | {"std": {}}
    metrics, deviations = {}, {}
    for key, entry in first["metrics"].items():
        values = [row["metrics"][key]["value"] for row in rows if row["metrics"].get(key, {}).get("value") is not None]
        whole = len(values) == len(rows)
        metrics[key] = {**entry, "value": fmean(values) if whole else None, "ci95": None}
        if whole:
            deviations[key] = stdev(values)
        others = [row["metrics"][key].get("unselected") for row in rows if key in row["metrics"]]
        if entry.get("unselected") is not None and None not in others:
            metrics[key]["unselected"] = fmean(others)
    costs = ("network_evaluations_per_image", "seconds_per_image", "images_per_second")
    mean_costs = {
        key: fmean(row[key] for row in rows) for key in costs if all(row.get(key) is not None for row in rows)
    }
    return first | mean_costs | {"metrics": metrics, "std": deviations}


def mark(rows: Sequence[Row], task_folder: Path) -> None:
    """Write into each row which of its values are the best of their column, or cannot be told apart from it."""
    for _, values in rows:
        values["marks"] = {}
    keys = dict.fromkeys(key for _, values in rows for key in values["metrics"])
    for key in keys:
        known = [values for _, values in rows if values["metrics"].get(key, {}).get("value") is not None]
        if len(known) < 2 or "higher_is_better" not in known[0]["metrics"][key]:
            continue
        sign = 1 if known[0]["metrics"][key]["higher_is_better"] else -1
        best = max(known, key=lambda values: sign * values["metrics"][key]["value"])
        best["marks"][key] = "best"
        ours = replicates(best, key, task_folder)
        for other in known:
            theirs = replicates(other, key, task_folder)
            if other is best or ours is None or theirs is None or ours.shape != theirs.shape:
                continue
            apart = difference(best["metrics"][key]["value"], other["metrics"][key]["value"], ours, theirs)
            if not apart.distinguishable:
                other["marks"][key] = "tied"


def judge_claims(claims: Sequence[Mapping[str, Any]], rows: Sequence[Row], task_folder: Path) -> list[Verdict]:
    """What the rows say of an experiment's claims.

    Args:
        claims: each with text, method, than (another method), and better: metrics in which the first is the better one.
        rows: of one table.
        task_folder: where their runs are.
    """
    return [_judge(claim, rows, task_folder) for claim in claims]


def replicates(values: Mapping[str, Any], key: str, task_folder: Path, count: int | None = None) -> Tensor | None:
    """A metric's values on resamples of a row's images, (B,), the mean over its seeds; None where they are not known.

    Args:
        values: the row's.
        key: of the metric.
        task_folder: where its runs are.
        count: number of resamples for means over images; all there are by default.
    """
    found = [_of_run(task_folder / folder, key, count or RESAMPLES) for folder in values["folders"]]
    known = [one for one in found if one is not None]
    return torch.stack(known).mean(0) if len(known) == len(found) else None


def _of_run(folder: Path, key: str, count: int) -> Tensor | None:
    bootstrap, per_image = folder / "bootstrap.csv", folder / "per_image.csv"
    if bootstrap.exists() and (stored := _column(bootstrap, key)) is not None:
        return stored
    if not per_image.exists() or (known := _column(per_image, key)) is None:
        return None
    return mean_replicates(known, resamples(len(known), count))


def _column(path: Path, key: str) -> Tensor | None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or key not in rows[0]:
        return None
    rows = sorted(rows, key=lambda row: row["id"]) if "id" in rows[0] else rows
    return torch.tensor([float(row[key]) if row[key] else torch.nan for row in rows], dtype=torch.float64)


def _judge(claim: Mapping[str, Any], rows: Sequence[Row], task_folder: Path) -> Verdict:
    sides = [[v for _, v in rows if v["identity"]["method"]["name"] == claim[side]] for side in ("method", "than")]
    if any(len(side) != 1 for side in sides):
        return Verdict(claim["text"], "undecided", None)
    one, other = sides[0][0], sides[1][0]
    parts: list[tuple[str, list[Any], list[dict[str, Any]]]] = []
    for key in claim["better"]:
        entries = [row["metrics"].get(key, {}) for row in (one, other)]
        if any(entry.get("value") is None for entry in entries):
            return Verdict(claim["text"], "undecided", None)
        pair = [replicates(row, key, task_folder) for row in (one, other)]
        if pair[0] is None or pair[1] is None:
            return Verdict(claim["text"], "undecided", None)
        parts.append((key, pair, entries))
    count = min(len(pair[0]) for _, pair, _ in parts)
    holds = torch.ones(count, dtype=torch.bool)
    for key, pair, entries in parts:
        if len(pair[0]) != count:  # the same resamples for all parts
            pair[:] = [replicates(row, key, task_folder, count) for row in (one, other)]
        apart = pair[0] - pair[1]
        apart = apart - apart.nanmean() + entries[0]["value"] - entries[1]["value"]
        holds &= apart > 0 if entries[0]["higher_is_better"] else apart < 0
    probability = holds.double().mean().item()
    verdict = "holds" if probability >= SURE else "fails" if probability <= 1 - SURE else "undecided"
    return Verdict(claim["text"], verdict, probability)

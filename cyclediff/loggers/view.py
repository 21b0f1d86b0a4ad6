"""What loggers show of a run with one of its scores, read from its files; nothing here is computed."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cyclediff.errors import UserError
from eval.records import MetricRecord, RunRecord, ScoresRecord, list_scores, read_run, read_scores, untrained
from eval.report.labels import choice_of

UNSENT = ("paths", "paper", "logger")  # of the configuration: no fact about the run
FAITHFULNESS, REALISM = ("psnr", "ssim"), ("fid", "dclip")  # axes of the trade-off; the first that a run has is taken


@dataclass(frozen=True)
class ImageRow:
    """One image of a run.

    Args:
        id: of the image.
        source: its PNG before; None where there is none.
        result: its PNG after; None where the run makes no images.
        ground_truth: the true result, where there is one.
        values: its line in per_image.csv, and the texts of an edit; None where a cell is empty.
    """

    id: str
    source: Path | None
    result: Path | None
    ground_truth: Path | None
    values: dict[str, float | str | None]


@dataclass(frozen=True)
class Point:
    """A finished run in the trade-off chart."""

    label: str
    method: str
    x: float
    y: float


@dataclass(frozen=True)
class Tradeoff:
    """Faithfulness against realism, a point per run that may be compared.

    Args:
        x: key of the metric across.
        y: key of the metric upwards.
        x_protocol: how x was measured, for all points.
        y_protocol: how y was measured, for all points.
        points: this run's and others', in the order of their folders.
    """

    x: str
    y: str
    x_protocol: str
    y_protocol: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class RunView:
    """What loggers show of a finished run with one of its scores.

    Args:
        folder: outputs/<task>/<run>.
        scores_folder: <run>/scores/<scores>.
        name: of the run's folder and of the scores': equal names mean equal runs.
        task: name of the task.
        method: name of the method.
        seed: of the run.
        config: the configuration, without machine paths, published numbers and the logger's own settings.
        provenance: run.json, and what metrics.json says beside the metrics.
        metrics: by key, as metrics.json has them.
        costs: seconds, evaluations of networks, memory … by name.
        labels: what keeps the numbers from being real results, by tag ("synthetic", "random-weights"), as a sentence.
        images: the first ones.
        tradeoff: None where the run lacks one of the two metrics.
    """

    folder: Path
    scores_folder: Path
    name: str
    task: str
    method: str
    seed: int
    config: dict[str, Any]
    provenance: dict[str, Any]
    metrics: dict[str, MetricRecord]
    costs: dict[str, float]
    labels: dict[str, str]
    images: tuple[ImageRow, ...]
    tradeoff: Tradeoff | None


def read_view(folder: Path, scores_folder: Path, images: int) -> RunView:
    """Read a finished run and one of its scores.

    Args:
        folder: of the run, in its task's folder.
        scores_folder: of the scores, in the run's folder.
        images: how many to show, at most.

    Raises:
        UserError: if the run is not finished.
        ValueError: if a record is damaged or of an earlier version.
    """
    run, scores = read_run(folder), read_scores(scores_folder)
    if run["status"] != "finished":
        raise UserError(f"{folder} is not finished (status {run['status']}); start its command again, then log it")
    costs: dict[str, Any] = {**run.get("costs", {}), "peak_memory_mib": run.get("peak_memory_mib")}
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    return RunView(
        folder,
        scores_folder,
        f"{folder.name}-{scores_folder.name}",
        run["task"],
        run["method"],
        run["seed"],
        {key: value for key, value in config.items() if key not in UNSENT},
        {**run, "scores": {key: value for key, value in scores.items() if key != "metrics"}},
        scores["metrics"],
        {key: value for key, value in costs.items() if value is not None},
        _labels(run, scores),
        _images(folder, scores_folder, run, images),
        _tradeoff(folder, run, scores),
    )


def _lines(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _labels(run: RunRecord, scores: ScoresRecord) -> dict[str, str]:
    labels, random = {}, untrained(run, scores)
    if run["synthetic"]:
        labels["synthetic"] = (
            "pets, a synthetic benchmark: small networks trained by this project; not comparable with any paper's "
            "numbers"
        )
    if random:
        labels["random-weights"] = (
            f"untrained networks ({', '.join(random)}); these numbers show that the program runs, nothing else"
        )
    return labels


def _images(folder: Path, scores_folder: Path, run: RunRecord, count: int) -> tuple[ImageRow, ...]:
    prepared, data = folder.parent / "data", run["data"]
    source, truth = (prepared / name if name else None for name in (data["source"], data["ground_truth"]))
    results = folder / "images" if (folder / "images").is_dir() else None
    texts = {row["id"]: row for row in _lines(source / "edits.csv")} if source else {}
    found = []
    for row in _lines(scores_folder / "per_image.csv")[:count]:
        image_id = row.pop("id")
        edit = texts.get(image_id)
        values: dict[str, Any] = {f"{part} text": edit[part] for part in ("source", "target")} if edit else {}
        values |= {key: float(text) if text else None for key, text in row.items()}
        before, after, true = (place and place / f"{image_id}.png" for place in (source, results, truth))
        found.append(ImageRow(image_id, before, after, true, values))
    return tuple(found)


def _tradeoff(folder: Path, run: RunRecord, scores: ScoresRecord) -> Tradeoff | None:
    metrics = scores["metrics"]
    x, y = (
        next((key for key in keys if key in metrics and metrics[key]["value"] is not None), None)
        for keys in (FAITHFULNESS, REALISM)
    )
    if x is None or y is None:
        return None
    labels = {(row["folder"], row["scores"]): row["method"] for row in _lines(folder.parent / "table.csv")}
    mine, points = _comparable(run, scores, x, y), []
    for path, other, theirs in _finished(folder.parent):
        if _comparable(other, theirs, x, y) == mine:
            ends = theirs["metrics"][x]["value"], theirs["metrics"][y]["value"]
            if ends[0] is not None and ends[1] is not None:
                label = labels.get((path.parent.parent.name, path.name), path.parent.parent.name)
                points.append(Point(label, other["method"], ends[0], ends[1]))
    return Tradeoff(x, y, metrics[x]["protocol"], metrics[y]["protocol"], tuple(points))


def _finished(task_folder: Path) -> list[tuple[Path, RunRecord, ScoresRecord]]:
    """Folders of scores of a task's finished runs, with their records; those that cannot be read are left out."""
    found = []
    for path in sorted(task_folder.glob("*/run.json")):
        try:
            run = read_run(path.parent)
            if run["status"] == "finished":
                found += [(scores, run, read_scores(scores)) for scores in list_scores(path.parent)]
        except ValueError:
            continue
    return found


def _comparable(run: RunRecord, scores: ScoresRecord, x: str, y: str) -> Sequence[Any]:
    """What runs in one chart share: images, protocols, selection, and whether their numbers are real."""
    protocols = [scores["metrics"][key]["protocol"] if key in scores["metrics"] else None for key in (x, y)]
    asked = json.dumps(choice_of(run), sort_keys=True)
    reference = json.dumps(scores["reference"], sort_keys=True)
    return run["data"]["digest"], protocols, reference, run.get("tier"), asked, bool(untrained(run, scores))

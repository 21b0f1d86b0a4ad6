"""A finished run as its files tell it, for loggers to show; nothing here is computed."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cyclediff.errors import UserError

UNSENT = ("paths", "paper", "logger")  # of the configuration: no fact about the run
FAITHFULNESS, REALISM = ("psnr", "ssim"), ("fid", "dclip")  # axes of the trade-off; the first that a run has is taken
RANDOM = "/RANDOM-"  # in the protocol string of a metric whose network is untrained


@dataclass(frozen=True)
class ImageRow:
    """One image of a run.

    Args:
        id: of the image.
        source: its PNG before.
        result: its PNG after.
        counterpart: the true result, where there is one.
        values: its line in per_image.csv, and the texts of an edit; None where a cell is empty.
    """

    id: str
    source: Path
    result: Path
    counterpart: Path | None
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
    """What loggers show of a finished run.

    Args:
        folder: outputs/<task>/<run>.
        name: of the run's folder.
        task: name of the task.
        method: name of the method.
        seed: of the run.
        config: the configuration, without machine paths, published numbers and the logger's own settings.
        provenance: all that run.json says beside costs.
        metrics: metrics.json by key: value, ci95, n, n_reference, higher_is_better, protocol, perhaps unselected.
        costs: seconds, network evaluations, memory … by name.
        labels: what keeps the numbers from being real results, by tag ("embedded", "random-weights"), as a sentence.
        images: the first ones.
        tradeoff: None where the run lacks one of the two metrics.
    """

    folder: Path
    name: str
    task: str
    method: str
    seed: int
    config: dict[str, Any]
    provenance: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    costs: dict[str, float]
    labels: dict[str, str]
    images: tuple[ImageRow, ...]
    tradeoff: Tradeoff | None


def read_view(folder: Path, images: int) -> RunView:
    """Read a finished run.

    Args:
        folder: of the run, in its task's folder.
        images: how many to show, at most.

    Raises:
        UserError: if the run is not finished.
    """
    run = _read(folder / "run.json")
    if run["status"] != "finished":
        raise UserError(f"{folder} is not finished (status {run['status']}); start its command again, then log it")
    metrics = _read(folder / "metrics.json")["metrics"]
    costs = {key: value for key, value in run.items() if key != "schema" and type(value) in (int, float)}
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    identity = run["identity"]
    return RunView(
        folder,
        folder.name,
        identity["task"],
        identity["method"]["name"],
        identity["seed"],
        {key: value for key, value in config.items() if key not in UNSENT},
        {key: value for key, value in run.items() if key not in costs},
        metrics,
        costs,
        _labels(run, metrics),
        _images(folder, run["data"], images),
        _tradeoff(folder, run, metrics),
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def _rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _random(run: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> list[str]:
    """The untrained networks behind a run's images or numbers."""
    return [*run["random_weights"], *(key for key, entry in metrics.items() if RANDOM in entry["protocol"])]


def _labels(run: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> dict[str, str]:
    labels, random = {}, _random(run, metrics)
    if run["embedded"]:
        labels["embedded"] = "small networks trained by this project; not comparable with any paper's numbers"
    if random:
        labels["random-weights"] = (
            f"untrained networks ({', '.join(random)}); these numbers show that the program runs, nothing else"
        )
    return labels


def _images(folder: Path, data: dict[str, Any], count: int) -> tuple[ImageRow, ...]:
    prepared = folder.parent / "data"
    source = prepared / data["source"]
    texts = {row["id"]: row for row in _rows(source / "edits.csv")}
    found = []
    for row in _rows(folder / "per_image.csv")[:count]:
        image_id = row.pop("id")
        edit = texts.get(image_id)
        values: dict[str, Any] = {f"{part} text": edit[part] for part in ("source", "target")} if edit else {}
        values |= {key: _number(text) for key, text in row.items()}
        file = f"{image_id}.png"
        counterpart = prepared / data["counterpart"] / file if data["counterpart"] else None
        found.append(ImageRow(image_id, source / file, folder / "images" / file, counterpart, values))
    return tuple(found)


def _number(text: str) -> float | None:
    return float(text) if text else None


def _tradeoff(folder: Path, run: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> Tradeoff | None:
    x, y = (
        next((key for key in keys if metrics.get(key, {}).get("value") is not None), None)
        for keys in (FAITHFULNESS, REALISM)
    )
    if x is None or y is None:
        return None
    labels = {row["folder"]: row["method"] for row in _rows(folder.parent / "table.csv")}
    mine, points = _comparable(run, metrics, x, y), []
    for path in sorted(folder.parent.glob("*/run.json")):
        other = _read(path)
        if other["status"] != "finished":
            continue
        values = _read(path.parent / "metrics.json")["metrics"]
        if _comparable(other, values, x, y) == mine and None not in (values[x]["value"], values[y]["value"]):
            name = path.parent.name
            method = other["identity"]["method"]["name"]
            points.append(Point(labels.get(name, name), method, values[x]["value"], values[y]["value"]))
    return Tradeoff(x, y, metrics[x]["protocol"], metrics[y]["protocol"], tuple(points))


def _comparable(run: dict[str, Any], metrics: dict[str, dict[str, Any]], x: str, y: str) -> tuple:
    """What runs in one chart share: images, protocols, selection, and whether their numbers are real."""
    protocols = [metrics.get(key, {}).get("protocol") for key in (x, y)]
    asked = (run.get("selection") or {}).get("asked")
    return run["data"]["digest"], protocols, run.get("tier"), asked, bool(_random(run, metrics))

"""What a run leaves on disk: run.json, and a folder of scores for each way of scoring it. One schema, 2, for all.

outputs/<task>/<run>/run.json
outputs/<task>/<run>/scores/<protocol>-<hash8>/metrics.json, per_image.csv, bootstrap.csv, perhaps curves.json
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from eval.files import write_atomically

SCHEMA = 2
OTHER = re.compile(r"[a-z0-9_]+/[a-z0-9]+")  # a protocol's name


class DataRecord(TypedDict):
    """The images of a run.

    name: for people. dataset: the published data set, whole and checked, or None. digest: equal ones mean equal images.
    n: number of images. source, ground_truth: names of folders below <task>/data, or None. of: number of images that a
    list asked for. missing: those of them that are not there.
    """

    name: str
    dataset: str | None
    digest: str
    n: int
    source: str | None
    ground_truth: str | None
    of: NotRequired[int]
    missing: NotRequired[list[str]]


class SelectionRecord(TypedDict):
    """Best of N: number of candidates, the metric that chooses, and the settings that were asked for."""

    candidates: int
    metric: str
    asked: Any


class CostsRecord(TypedDict, total=False):
    """What an image cost: evaluations of networks without and with a gradient, seconds, and images a second.

    network_share: the part of the time that networks took, from 0 to 1.
    """

    forwards_per_image: float | None
    backwards_per_image: float | None
    seconds_per_image: float | None
    images_per_second: float | None
    network_share: float | None


class RunRecord(TypedDict):
    """run.json.

    identity: all that decides what was made. synthetic: whether the task is made up by this project. weights: sha256 or
    hub id and commit of each network. random_weights: untrained networks. unscored: why a folder of scores has no
    numbers, by its name. files: sha256 of files beside run.json.
    """

    schema: int
    study: str
    status: Literal["running", "finished", "failed"]
    identity: dict[str, Any]
    task: str
    method: str
    seed: int
    synthetic: bool
    data: DataRecord
    weights: dict[str, str]
    random_weights: list[str]
    published_settings: bool
    start: str
    costs: NotRequired[CostsRecord]
    end: NotRequired[str]
    error: NotRequired[str]
    error_type: NotRequired[str]
    traceback: NotRequired[str]
    code: NotRequired[str]
    revision: NotRequired[str | None]
    dirty: NotRequired[bool]
    python: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[str]
    tier: NotRequired[str | None]
    selection: NotRequired[SelectionRecord | None]
    device: NotRequired[str]
    world_size: NotRequired[int]
    peak_memory_mib: NotRequired[int]
    ranks: NotRequired[list[dict[str, Any]]]
    unscored: NotRequired[dict[str, dict[str, str]]]
    files: NotRequired[dict[str, str]]


class MetricRecord(TypedDict):
    """A number, and all that a table needs to show it.

    value: None where there is none. ci95: ends of the 95 % interval, or None. n, n_reference: numbers of images.
    protocol: how it was made; numbers of two protocols are not compared. That of another protocol than its record's
    begins with the name and a colon, see `by_protocol`. higher_is_better: None where nothing is. header, digits, scale:
    name of the column, without an arrow; digits after the point; factor of what is shown. unselected: mean over all
    candidates.
    """

    value: float | None
    ci95: Sequence[float] | None
    n: int
    n_reference: int | None
    higher_is_better: bool | None
    protocol: str
    header: str
    digits: int
    scale: float
    unselected: NotRequired[float | None]


class ReferenceRecord(TypedDict):
    """The images that FID and KID compare with."""

    name: str
    digest: str


class ScoresRecord(TypedDict):
    """metrics.json.

    identity: all that decides the numbers, besides the images. random_weights: untrained networks. files: sha256 of the
    files beside it. pairing: of folders that no run made, the images that are missing, extra or unreadable.
    """

    schema: int
    protocol: str
    identity: dict[str, Any]
    metrics: dict[str, MetricRecord]
    random_weights: list[str]
    reference: ReferenceRecord | None
    code: NotRequired[str]
    files: NotRequired[dict[str, str]]
    pairing: NotRequired[dict[str, list[str]]]


class AxisRecord(TypedDict):
    """An axis of a curve."""

    header: str


class DashedRecord(TypedDict):
    """A second line of a curve, such as a bound: what it is, and its points."""

    label: str
    points: list[tuple[float, float]]


class CurveRecord(TypedDict):
    """A curve of curves.json.

    points: pairs of x and y, in the order in which they are joined. panel: the setting that has a drawing of its own
    beside those of other runs, with the same axes. label: the setting in which the runs of a drawing differ, where that
    is shorter than the name of the run. solid: what `points` are, where there is a dashed line.
    """

    title: str
    x: AxisRecord
    y: AxisRecord
    points: list[tuple[float, float]]
    panel: NotRequired[str]
    label: NotRequired[str]
    solid: NotRequired[str]
    dashed: NotRequired[DashedRecord]


def read_run(folder: Path) -> RunRecord:
    """The run.json of a folder.

    Raises:
        ValueError: if it is missing, damaged or of another schema; the sentence names the folder.
    """
    return _read(folder, folder / "run.json", RunRecord.__required_keys__)


def read_scores(folder: Path) -> ScoresRecord:
    """The metrics.json of a folder of scores.

    Raises:
        ValueError: as `read_run`.
    """
    return _read(folder, folder / "metrics.json", ScoresRecord.__required_keys__)


def by_protocol(scores: ScoresRecord) -> list[ScoresRecord]:
    """A record for each protocol by which one pass has scored, each with its metrics; the record's own comes first."""
    found: dict[str, dict[str, MetricRecord]] = {scores["protocol"]: {}}
    for key, metric in scores["metrics"].items():
        name, colon, _ = metric["protocol"].partition(": ")
        own = name if colon and OTHER.fullmatch(name) else scores["protocol"]
        found.setdefault(own, {})[key] = metric
    return [{**scores, "protocol": name, "metrics": metrics} for name, metrics in found.items()]


def list_scores(run_folder: Path) -> list[Path]:
    """The folders of scores of a run, sorted by name; those without metrics.json are not finished."""
    return sorted(path.parent for path in (run_folder / "scores").glob("*/metrics.json"))


def read_per_image(folder: Path) -> dict[str, dict[str, float]]:
    """The numbers of per_image.csv by image; empty cells are left out. Without the file there are none."""
    path = folder / "per_image.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("id"): {key: float(text) for key, text in row.items() if text} for row in rows}


def read_bootstrap(folder: Path) -> dict[str, list[float]]:
    """The values of each metric on resamples of the images; metrics can have unequal numbers of resamples."""
    path = folder / "bootstrap.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    columns = zip(*lines, strict=True)
    return {key: [float(text) for text in column if text] for key, column in zip(header, columns, strict=False)}


def read_curves(folder: Path) -> dict[str, CurveRecord]:
    """The curves of a folder of scores by name; none without curves.json."""
    path = folder / "curves.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def untrained(run: RunRecord, scores: ScoresRecord) -> list[str]:
    """The untrained networks behind a run's images or numbers, by name."""
    marked = [key for key, entry in scores["metrics"].items() if "RANDOM-" in entry["protocol"]]
    return sorted({*run["random_weights"], *(scores["random_weights"] or marked)})


def write_scores(
    folder: Path,
    record: ScoresRecord,
    rows: Sequence[Mapping[str, Any]],
    replicates: Mapping[str, Sequence[float]],
    curves: Mapping[str, CurveRecord] | None = None,
) -> None:
    """Write a folder of scores, each file whole or not at all, metrics.json last.

    Args:
        folder: is made if need be.
        record: of metrics.json; `files` is added.
        rows: of per_image.csv, each with "id" and the same keys; no file is written without rows.
        replicates: of bootstrap.csv, values of each metric on resamples; no file is written without any.
        curves: of curves.json; no file is written without any.

    Raises:
        OSError: if a file cannot be written; it names the file.
    """
    contents: dict[str, bytes] = {}
    if rows:
        contents["per_image.csv"] = _csv([list(rows[0]), *(list(row.values()) for row in rows)])
    if replicates:
        contents["bootstrap.csv"] = _csv([list(replicates), *zip_longest(*replicates.values(), fillvalue="")])
    if curves:
        contents["curves.json"] = _json(curves)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(content, folder / name)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_atomically(_json({**record, "files": files}), folder / "metrics.json")


def _csv(lines: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _read(folder: Path, path: Path, needed: frozenset[str]) -> Any:
    try:
        record = json.loads(path.read_bytes())
        schema = record["schema"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, path) from error
    if schema != SCHEMA:
        raise ValueError(
            f"{folder} was made by an earlier version (schema {schema}); delete it, and its command makes it again"
        )
    if not record.keys() >= needed:
        raise _damaged(folder, path)
    return record


def _damaged(folder: Path, path: Path) -> ValueError:
    return ValueError(
        f"{folder} is left out: its {path.name} is missing or damaged; start its command again, which repairs it or "
        "says what to do"
    )

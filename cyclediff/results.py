"""The record of a run: its folder, named by what was asked for, and how its numbers came about."""

import contextlib
import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclediff.errors import UserError
from cyclediff.images import write_atomically

SCHEMA = 1
ROOT = Path(__file__).parents[1]
CODE = ("run.py", "cyclediff", "baselines", "eval")  # a change here can change numbers
VIEWS = ("charts", "comparison", "grid", "latex", "log", "page", "paper", "report", "sections", "tensorboard_logger")
VIEWS += ("thumbnails", "tradeoff", "view", "wandb_logger")  # modules that only show numbers
PACKAGES = ("torch", "diffusers", "torchmetrics", "clean-fid", "hydra-core", "numpy", "pillow", "safetensors")


@dataclass(frozen=True)
class Scored:
    """Numbers of a run: metrics, a row per image, and the replicates of metrics that are no means over images."""

    metrics: Mapping[str, Any]
    rows: list[dict[str, Any]]
    replicates: Mapping[str, Sequence[float]]


class Run:
    """One cell of a table on disk.

    Args:
        task_folder: outputs/<task>.
        identity: everything that decides the images and numbers, JSON-like; its hash is in the folder's name. No path,
            batch size or device belongs here.
    """

    def __init__(self, task_folder: Path, identity: Mapping[str, Any]):
        self.identity = dict(identity)
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        self.path = task_folder / f"{identity['method']['name']}-{digest}"
        self.images = self.path / "images"

    def is_finished(self, provenance: Mapping[str, Any], allow_code_change: bool) -> bool:
        """Whether there is nothing left to do; insists that what there is was made by the same code and weights.

        Raises:
            UserError: if it was made by other code (and that is not allowed) or with other weights.
        """
        record = self.path / "run.json"
        if not record.exists():
            return False
        earlier = json.loads(record.read_bytes())
        if earlier["checkpoints"] != provenance["checkpoints"]:
            raise UserError(f"{self.path} was made with other weights; delete the folder, or put those weights back")
        if provenance["code"] not in (earlier["code"], earlier.get("continued_by")):
            if not allow_code_change:
                raise UserError(
                    f"{self.path} was made by code {earlier['code']} (revision {earlier['revision']}), and the code is "
                    f"now {provenance['code']}; add allow_code_change=true to keep its images, or delete the folder"
                )
            self.write_json("run.json", {**earlier, "continued_by": provenance["code"]})
        return earlier["status"] == "finished"

    def start(self, config: str, provenance: Mapping[str, Any]) -> None:
        """Create the folder and its record, or clean up after an earlier start that was cut off."""
        if (self.path / "run.json").exists():
            for leftover in self.images.glob(".*.tmp"):
                leftover.unlink()
            return
        self.images.mkdir(parents=True, exist_ok=True)
        write_atomically(config.encode(), self.path / "config.yaml")
        self.write_json("run.json", {**provenance, "identity": self.identity, "status": "running", "start": now()})

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The ids whose image is not there yet."""
        return [image_id for image_id in ids if not self.image(image_id).exists()]

    def image(self, image_id: str) -> Path:
        """Where the translation of an image lies."""
        return self.images / f"{image_id}.png"

    def log_batch(self, ids: Sequence[str], **costs: float | None) -> None:
        """Append what a batch cost to progress.jsonl, which a resumed run reads back."""
        with (self.path / "progress.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"ids": list(ids), **costs}))  # a new line also after a line cut by a kill

    def log_candidates(self, image_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the candidates of an image to candidates.jsonl; before its PNG, so that a finished image has them."""
        with (self.path / "candidates.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"id": image_id, "rows": rows}))

    def candidates(self) -> list[dict[str, Any]]:
        """A row per candidate and image, the last entry of an image that was done again."""
        log = self.path / "candidates.jsonl"
        found: dict[str, list[dict[str, Any]]] = {}
        for line in log.read_text().splitlines() if log.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                found[entry["id"]] = entry["rows"]
        return [{"id": image_id, **row} for image_id in sorted(found) for row in found[image_id]]

    def write_candidates(self) -> None:
        """Write candidates.parquet from what was logged."""
        import pyarrow
        from pyarrow import parquet

        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(self.candidates()), buffer)
        write_atomically(buffer.getvalue().to_pybytes(), self.path / "candidates.parquet")

    def batches(self) -> list[dict[str, Any]]:
        """The batches logged so far; the last entry for a batch that was done again."""
        log = self.path / "progress.jsonl"
        found = {}
        for line in log.read_text().splitlines() if log.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                batch = json.loads(line)
                found[tuple(batch["ids"])] = batch
        return list(found.values())

    def finish(self, scored: Scored, costs: Mapping[str, Any]) -> None:
        """Write per_image.csv, bootstrap.csv and metrics.json, and mark the run finished, in this order."""
        self._write_csv("per_image.csv", list(scored.rows[0]), scored.rows)
        if scored.replicates:
            keys, values = list(scored.replicates), zip(*scored.replicates.values(), strict=True)
            self._write_csv("bootstrap.csv", keys, [dict(zip(keys, line, strict=True)) for line in values])
        self.write_json("metrics.json", {"schema": SCHEMA, "metrics": scored.metrics})
        record = json.loads((self.path / "run.json").read_bytes())
        self.write_json("run.json", {**record, **costs, "status": "finished", "end": now()})
        (self.path / "candidates.jsonl").unlink(missing_ok=True)  # candidates.parquet holds them

    def _write_csv(self, name: str, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(text.getvalue().encode(), self.path / name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one of the run's JSON files."""
        write_json(content, self.path / name)


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomically((json.dumps(content, indent=2) + "\n").encode(), path)


def provenance() -> dict[str, Any]:
    """Where numbers come from: schema, code, git revision and the versions of what computes."""
    return {
        "schema": SCHEMA,
        "code": code_digest(),
        **_revision(),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in PACKAGES},
    }


@cache
def code_digest() -> str:
    """First 8 hexadecimal digits of a hash of the source that computes images and numbers."""
    digest = hashlib.sha256()
    for part in CODE:
        files = sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / part]
        for file in (file for file in files if file.stem not in VIEWS):
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _revision() -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None  # no git, or not a checkout: the code's digest still tells
        return result.stdout.strip()

    return {"revision": git("rev-parse", "--short", "HEAD"), "dirty": bool(git("status", "--porcelain"))}

"""The record of a run: its folder, named by what was asked for, and how its numbers came about."""

import contextlib
import csv
import hashlib
import io
import json
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclediff.data.images import is_whole_png, unwritable, write_atomically
from cyclediff.errors import UserError

SCHEMA = 1
FAILURE = ("error", "error_type", "traceback")  # of run.json, where a run has failed
ROOT = Path(__file__).parents[2]
CODE = ("run.py", "cyclediff", "baselines", "eval")  # a change here can change numbers
VIEWS = ("charts", "comparison", "grid", "latex", "log", "page", "paper", "report", "sections", "tensorboard_logger")
VIEWS += (
    "doctor",
    "download",
    "sweep",
    "thumbnails",
    "tradeoff",
    "view",
    "wandb_logger",
)  # modules that only show numbers
PACKAGES = ("torch", "diffusers", "torchmetrics", "clean-fid", "hydra-core", "numpy", "pillow", "safetensors")
FILES = ("config.yaml", "per_image.csv", "bootstrap.csv", "metrics.json", "candidates.parquet")  # watched by run.json
NEEDED = {"status", "code", "revision", "checkpoints"}  # what run.json must have


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
        rank: number of this process among those that make the run; each appends to logs of its own, and all are read.
    """

    def __init__(self, task_folder: Path, identity: Mapping[str, Any], rank: int = 0):
        self.identity = dict(identity)
        self.rank = rank
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        self.path = task_folder / f"{identity['method']['name']}-{digest}"
        self.images = self.path / "images"

    def is_finished(self, provenance: Mapping[str, Any], allow_code_change: bool) -> bool:
        """Whether there is nothing left to do; insists that what there is was made by the same code and weights.

        A finished run with damaged or missing files is not finished: what it lacks is made again, with a warning.

        Raises:
            UserError: if it was made by other code (and that is not allowed) or with other weights, or its record is
                missing or cannot be read.
        """
        earlier = self._record()
        if earlier is None:
            return False
        if earlier["checkpoints"] != provenance["checkpoints"]:
            raise UserError(f"{self.path} was made with other weights; delete the folder, or put those weights back")
        if provenance["code"] not in (earlier["code"], earlier.get("continued_by")):
            if not allow_code_change:
                raise UserError(
                    f"{self.path} was made by code {earlier['code']} (revision {earlier['revision']}), and the code is "
                    f"now {provenance['code']}; add allow_code_change=true to keep its images, or delete the folder"
                )
            self.write_json("run.json", {**earlier, "continued_by": provenance["code"]})
        if earlier["status"] != "finished":
            return False
        damaged = self._damaged(earlier)
        if damaged:
            warnings.warn(
                f"{self.path} was finished, but {damaged[0]} is missing or was changed since; it is made again",
                stacklevel=2,
            )
        return not damaged

    def start(self, config: str, provenance: Mapping[str, Any]) -> None:
        """Create the folder and its record, or clean up after an earlier start that was cut off."""
        earlier = self._record()
        if earlier:
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink()
        else:
            self.images.mkdir(parents=True, exist_ok=True)
            earlier = {**provenance, "identity": self.identity, "start": now()}
        earlier = {key: value for key, value in earlier.items() if key not in FAILURE}
        if earlier.get("files", {}).get("config.yaml") != self._digests().get("config.yaml", ""):
            write_atomically(config.encode(), self.path / "config.yaml")
        files = {"config.yaml": self._digests()["config.yaml"]}
        self.write_json("run.json", {**earlier, "status": "running", "files": files})

    def noted(self, key: str) -> Any:
        """What an earlier start of this run noted; None where there was none."""
        return (self._record() or {}).get(key)

    def fail(self, error: Exception) -> None:
        """Note why the run has no result; the same command tries again."""
        record = json.loads((self.path / "run.json").read_bytes())
        trace = "".join(traceback.format_exception(error))
        sentence = " ".join(str(error).split()) or type(error).__name__
        failure = dict(zip(FAILURE, (sentence, type(error).__name__, trace), strict=True))
        self.write_json("run.json", {**record, "status": "failed", "end": now(), **failure})

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The ids whose image, or whose candidates in a run that chooses among such, are not there or not whole."""
        chooses = "selection" in self.identity
        return [
            image_id
            for image_id in ids
            if not is_whole_png(self.image(image_id)) or (chooses and image_id not in self._with_candidates)
        ]

    def image(self, image_id: str) -> Path:
        """Where the translation of an image lies."""
        return self.images / f"{image_id}.png"

    def log_batch(self, ids: Sequence[str], **costs: float | None) -> None:
        """Append what a batch cost to progress.jsonl, which a resumed run reads back."""
        self._append("progress", {"ids": list(ids), **costs})

    def log_candidates(self, image_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the candidates of an image to candidates.jsonl; before its PNG, so that a finished image has them."""
        self._append("candidates", {"id": image_id, "rows": rows})
        self._with_candidates.add(image_id)

    def candidates(self) -> list[dict[str, Any]]:
        """A row per candidate and image, the last entry of an image that was done again."""
        found = self._kept_candidates()
        for entry in self._entries("candidates", "id", "rows"):
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
        found = {tuple(batch["ids"]): batch for batch in self._entries("progress", "ids", "seconds")}
        return list(found.values())

    def finish(self, scored: Scored, costs: Mapping[str, Any]) -> None:
        """Write per_image.csv, bootstrap.csv and metrics.json, and mark the run finished, in this order."""
        self._write_csv("per_image.csv", list(scored.rows[0]), scored.rows)
        if scored.replicates:
            keys, values = list(scored.replicates), zip(*scored.replicates.values(), strict=True)
            self._write_csv("bootstrap.csv", keys, [dict(zip(keys, line, strict=True)) for line in values])
        self.write_json("metrics.json", {"schema": SCHEMA, "metrics": scored.metrics})
        record = json.loads((self.path / "run.json").read_bytes())
        self.write_json("run.json", {**record, **costs, "status": "finished", "end": now(), "files": self._digests()})
        for log in self.path.glob("candidates*.jsonl"):
            log.unlink()  # candidates.parquet holds them

    def _write_csv(self, name: str, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(text.getvalue().encode(), self.path / name)

    def _record(self) -> dict[str, Any] | None:
        """run.json; None where nothing was made yet."""
        path = self.path / "run.json"
        if not path.exists() and not any(self.images.glob("*.png")):
            return None
        try:
            record = json.loads(path.read_bytes())
            if not isinstance(record, dict) or not record.keys() >= NEEDED:
                raise ValueError("not a run's record")
        except (FileNotFoundError, ValueError) as error:
            raise UserError(
                f"{path} is missing or damaged, so nothing says what made the images beside it; put back a copy of it, "
                f"or delete {self.path}, and the same command makes them again"
            ) from error
        return record

    def _digests(self) -> dict[str, str]:
        paths = [self.path / name for name in FILES]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}

    def _damaged(self, record: Mapping[str, Any]) -> list[str]:
        """Files of a finished run that are not as they were when it finished."""
        noted, found = record.get("files", {}), self._digests()
        changed = [name for name in FILES if noted.get(name) != found.get(name)]
        if changed or "metrics.json" not in found:
            return changed or ["metrics.json"]
        with (self.path / "per_image.csv").open(newline="") as file:
            return [f"images/{image_id}.png" for image_id in self.missing([row["id"] for row in csv.DictReader(file)])]

    @cached_property
    def _with_candidates(self) -> set[str]:
        return {row["id"] for row in self.candidates()}

    def _kept_candidates(self) -> dict[str, list[dict[str, Any]]]:
        """What candidates.parquet has of an earlier finish, by image; nothing where it is missing or damaged."""
        path = self.path / "candidates.parquet"
        found: dict[str, list[dict[str, Any]]] = {}
        if path.exists():
            from pyarrow import parquet

            with contextlib.suppress(OSError, ValueError):  # Arrow's own errors are among these
                for row in parquet.read_table(path).to_pylist():
                    found.setdefault(row.pop("id"), []).append(row)
        return found

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        log = self.path / (f"{name}-{self.rank}.jsonl" if self.rank else f"{name}.jsonl")
        try:
            with log.open("a") as file:
                file.write("\n" + json.dumps(entry))  # a new line also after a line cut by a kill
        except OSError as error:
            raise unwritable(log, error) from error

    def _entries(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """The lines of all processes' logs that are whole and have these keys; those of later starts come last."""
        found = []
        for log in sorted(self.path.glob(f"{name}*.jsonl")):
            for line in log.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and entry.keys() >= set(keys):
                        found.append(entry)
        return sorted(found, key=lambda entry: entry.get("start", 0))

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

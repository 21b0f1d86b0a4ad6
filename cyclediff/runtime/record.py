"""The record of a run: a folder named by what was asked for, and inside it a folder for each way to score it."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclediff.data.images import unwritable, write_atomically
from cyclediff.errors import UserError
from cyclediff.runtime.artifacts import Artifact, append_line, log_of, read_lines
from cyclediff.runtime.study import Scored
from eval.records import SCHEMA, write_scores

FAILURE = ("error", "error_type", "traceback")  # of run.json, where a run has failed
ROOT = Path(__file__).parents[2]
CODE = ("cyclediff", "baselines", "eval")  # a change here can change numbers
VIEWS = ("cyclediff/cli", "cyclediff/loggers", "eval/report")  # folders of what only starts runs or shows numbers
PACKAGES = ("torch", "diffusers", "torchmetrics", "clean-fid", "hydra-core", "numpy", "pillow", "safetensors")
NEEDED = {"status", "code", "revision", "identity"}  # what run.json must have


class Run:
    """A run's folder: its artifacts, and how they came about.

    Args:
        task_folder: outputs/<task>.
        identity: everything that decides the artifacts, JSON-like, with `method.name`; its hash names the folder.
        artifacts: what is made of each item.
        rank: number of this process among those that make the run.
    """

    def __init__(
        self, task_folder: Path, identity: Mapping[str, Any], artifacts: Mapping[str, Artifact], rank: int = 0
    ):
        self.identity, self.artifacts, self.rank = dict(identity), artifacts, rank
        self.path = task_folder / f"{identity['method']['name']}-{hash_of(self.identity)}"

    def is_finished(self, ids: Sequence[str], provenance: Mapping[str, Any], allow_code_change: bool) -> bool:
        """Whether all artifacts are there and whole; what is there must have been made by the same code.

        A finished run with damaged or missing files is not finished: what it lacks is made again, with a warning.

        Raises:
            UserError: if it was made by other code (and that is not allowed) or by an earlier version, or its record
                is missing or cannot be read.
        """
        earlier = self._record()
        if earlier is None:
            return False
        if provenance["code"] not in (earlier["code"], earlier.get("continued_by")):
            if not allow_code_change:
                raise UserError(
                    f"{self.path} was made by code {earlier['code']} (revision {earlier['revision']}), and the code is "
                    f"now {provenance['code']}; add allow_code_change=true to keep its images, or delete the folder"
                )
            self.write_json("run.json", {**earlier, "continued_by": provenance["code"]})
        if earlier["status"] != "finished":
            return False
        damaged = changed_files(self.path, earlier["files"])
        damaged += [f"what was made of {item}" for item in self.missing(ids)]
        if damaged:
            warnings.warn(
                f"{self.path} was finished, but {damaged[0]} is missing or was changed since; it is made again",
                stacklevel=2,
            )
        return not damaged

    def start(self, config: str, provenance: Mapping[str, Any]) -> None:
        """Create the folder and its record, or clean up after an earlier start that was cut off.

        Scores of an earlier finish are removed: they are of artifacts that are no longer whole.
        """
        earlier = self._record()
        if earlier:
            for leftover in [*self.path.rglob(".*.tmp"), *self.path.glob("scores/*/metrics.json")]:
                leftover.unlink()
        else:
            for folder in ("", *(artifact.folder for artifact in self.artifacts.values())):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            earlier = {**provenance, "identity": self.identity, "start": now()}
        more = provenance if earlier.get("status") == "failed" else {}  # a training that failed has no notes of its end
        earlier = {**more, **{key: value for key, value in earlier.items() if key not in FAILURE}}
        if changed_files(self.path, {"config.yaml": earlier.get("files", {}).get("config.yaml", "")}):
            write_atomically(config.encode(), self.path / "config.yaml")
        files = digests(self.path, ["config.yaml"])
        self.write_json("run.json", {**earlier, "status": "running", "files": files})

    def noted(self, key: str) -> Any:
        """What an earlier start of this run noted; None where there was none."""
        return (self._record() or {}).get(key)

    def fail(self, error: Exception) -> None:
        """Note why the run has no result; the same command tries again."""
        record = json.loads((self.path / "run.json").read_bytes())
        self.write_json("run.json", {**record, "status": "failed", "end": now(), **_failure(error)})

    def note_scoring(self, scores: str, error: Exception | None) -> None:
        """Note why a folder of scores has no numbers, or that it has them by now (no error)."""
        record = json.loads((self.path / "run.json").read_bytes())
        unscored = {key: value for key, value in record.get("unscored", {}).items() if key != scores}
        if error:
            unscored[scores] = {"end": now(), **_failure(error)}
        if unscored != record.get("unscored", {}):
            self.write_json("run.json", {**record, "unscored": unscored})

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The items that lack one of their artifacts, or whose artifact is not whole."""
        ids = list(ids)
        whole = [artifact.whole(self.path, ids) for artifact in self.artifacts.values()]
        return [item for item in ids if not all(item in found for found in whole)]

    def log_batch(self, ids: Sequence[str], **costs: float | None) -> None:
        """Append what a batch cost to progress.jsonl, which a resumed run reads back."""
        append_line(log_of(self.path, "progress", self.rank), {"ids": list(ids), **costs})

    def batches(self) -> list[dict[str, Any]]:
        """The batches logged so far; the last entry for a batch that was done again."""
        entries = read_lines(self.path.glob("progress*.jsonl"), "ids", "seconds")
        return list({tuple(batch["ids"]): batch for batch in entries}.values())

    def finish(self, costs: Mapping[str, Any]) -> None:
        """Bring the artifacts into their final form, and mark the run finished."""
        files = [name for artifact in self.artifacts.values() if (name := artifact.close(self.path))]
        record = json.loads((self.path / "run.json").read_bytes())
        noted = digests(self.path, ["config.yaml", *files])
        self.write_json("run.json", {**record, **costs, "status": "finished", "end": now(), "files": noted})

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one of the run's JSON files."""
        write_json(content, self.path / name)

    def _record(self) -> dict[str, Any] | None:
        """run.json; None where nothing was made yet."""
        path = self.path / "run.json"
        made = (file for pattern in ("images/*.png", "*.jsonl", "*.parquet") for file in self.path.glob(pattern))
        if not path.exists() and not any(made):
            return None
        try:
            record = json.loads(path.read_bytes())
            if not isinstance(record, dict) or not record.keys() >= NEEDED:
                raise ValueError("not a run's record")
        except (FileNotFoundError, ValueError) as error:
            raise UserError(
                f"{path} is missing or damaged, so nothing says what made the results beside it; put back a copy, or "
                f"delete {self.path}, and the same command makes them again"
            ) from error
        if record.get("schema") != SCHEMA:
            raise UserError(
                f"{self.path} was made by another version of this program (schema {record.get('schema')}, now "
                f"{SCHEMA}); delete it, and the same command makes it again"
            )
        return record


class ScoreFolder:
    """The numbers of a run, made in one way: `<run>/scores/<protocol>-<hash>/`.

    Args:
        run: the run's folder.
        identity: everything that decides the numbers, besides the artifacts; `protocol` is their name.
    """

    def __init__(self, run: Path, identity: Mapping[str, Any]):
        self.identity, self.protocol = dict(identity), identity["protocol"]["name"]
        self.path = run / "scores" / f"{self.protocol.replace('/', '-')}-{hash_of(self.identity)}"

    def is_finished(self, code: str) -> bool:
        """Whether the numbers are there, made by this code, and their files are as they were written."""
        try:
            record = json.loads((self.path / "metrics.json").read_bytes())
            alike = (record["schema"], record["code"]) == (SCHEMA, code)
            return alike and not changed_files(self.path, record["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, scored: Scored, code: str) -> None:
        """Write the numbers; metrics.json is last.

        Raises:
            UserError: if the disk does not take them.
        """
        record: Any = {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "identity": self.identity,
            "metrics": scored.metrics,
            "random_weights": list(scored.random_weights),
            "reference": scored.reference,
            "code": code,
        }
        curves: Any = scored.curves
        try:
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed
                leftover.unlink()
            write_scores(self.path, record, scored.rows, scored.replicates, curves)
        except OSError as error:
            raise unwritable(Path(error.filename or self.path), error) from error


def _failure(error: Exception) -> dict[str, str]:
    trace = "".join(traceback.format_exception(error))
    sentence = " ".join(str(error).split()) or type(error).__name__
    return dict(zip(FAILURE, (sentence, type(error).__name__, trace), strict=True))


def hash_of(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Sha256 of those of a folder's files that are there."""
    paths = [folder / name for name in names]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def changed_files(folder: Path, noted: Mapping[str, str]) -> list[str]:
    """Files that are missing, or not as they were noted."""
    found = digests(folder, noted)
    return [name for name, digest in noted.items() if found.get(name) != digest]


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomically((json.dumps(content, indent=2) + "\n").encode(), path)


def provenance(method: str) -> dict[str, Any]:
    """Where numbers come from: schema, code, git revision and the versions of what computes.

    Args:
        method: the class's full name. Where it lies outside of this project, its file counts as code, too.
    """
    return {
        "schema": SCHEMA,
        "code": code_digest(method.rpartition(".")[0]),
        **_revision(),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in PACKAGES},
    }


@cache
def code_digest(module: str = "cyclediff.method") -> str:
    """First 8 hexadecimal digits of a hash of the source that computes artifacts and numbers.

    Args:
        module: of the method, perhaps outside of this project.
    """
    digest = hashlib.sha256()
    spec = importlib.util.find_spec(module)
    origin = Path(spec.origin) if spec and spec.origin else None
    if origin and not origin.is_relative_to(ROOT):
        digest.update(origin.read_bytes())
    for file in sorted(file for part in CODE for file in (ROOT / part).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith(tuple(f"{view}/" for view in VIEWS)):
            digest.update(name.encode() + b"\0" + file.read_bytes())
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
            return None  # no git, or not a checkout: the code's digest is enough
        return result.stdout.strip()

    return {"revision": git("rev-parse", "--short", "HEAD"), "dirty": bool(git("status", "--porcelain"))}

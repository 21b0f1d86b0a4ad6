"""Runs of a task as one zip: numbers, images, settings, tables and page, with the sha256 of every file.

The zip holds a task's folder as it lies in outputs, with `export.json` beside the runs:

    export.json                             format, task, and sha256 by path
    RUN/run.json, config.yaml, images, scores/*
    data/SOURCE, data/GROUND_TRUTH          what the page shows beside the results
    paper.json, claims.json                 published numbers and claims
    table.*, report.html, grid-*.png        made anew wherever it is opened

Absolute paths of the machine are replaced by `PATH/` and their last part, in settings and records. Nothing else is
changed. Tracebacks and the files of unfinished runs are left out.
"""

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.report.reproduction import LOADER
from eval.report.sections import Section

INDEX, FORMAT = "export.json", 1
RECORDS = ("run.json", "config.yaml", "metrics.json")  # files whose paths of the machine are replaced
OF_RUN = ("run.json", "config.yaml", "images/*.png")
OF_SCORES = ("metrics.json", "per_image.csv", "bootstrap.csv", "curves.json")
OF_DATA = ("*.png", "edits.csv", "masks/*.png")
OF_TASK = ("paper.json", "claims.json")
DERIVED = re.compile(r"table\.(md|csv|tex)|report\.html|categories\.md|grid-[\w-]+\.png")  # made of the others
PART = r"[^\x00-\x1f\x7f./\\:][^\x00-\x1f\x7f/\\:]{0,249}"  # of a path: nothing hidden, no .. and no drive
NAME = re.compile(rf"(?:{PART}/){{0,4}}{PART}")
SUFFIXES = (".json", ".yaml", ".csv", ".png", ".md", ".tex", ".html")
LEFT_OUT = ("traceback", "unscored")  # of run.json
WINDOWS = r"[A-Za-z]:\\(?:[^\s\\\"',;:\]})]+\\)*"
HERE = re.compile(rf"(?<![\w.:/~\\-])(?:file://)?(?:~?/(?:[^\s/\"',;:\]}})]+/)*|{WINDOWS})(?=[^\s/\"',;:\]}})])")
WHOLE = re.compile(r"(?:file://)?(?:~?/|[A-Za-z]:\\)[^\n,:;\[\]{}]*[^\s/]/?")
DATE = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal runs give equal bytes


def export(
    task_folder: Path, sections: Sequence[Section], target: Path, write: Callable[[Path, Collection[str]], None]
) -> int:
    """Write a zip of the runs of some tables, whole or not at all. Returns the number of its files.

    Args:
        task_folder: where the runs are.
        sections: their tables.
        target: of the zip; one that is there is replaced.
        write: makes tables and page in a copy of the folder, of the runs with these names.

    Raises:
        ValueError: if there is nothing to export, or it is not to be a zip.
        OSError: if it cannot be written; what was there stays.
    """
    if target.suffix != ".zip":
        raise ValueError(f"--export writes a zip; got {target}, name a file that ends with .zip")
    entries = {entry.folder.name: entry for s in sections for row in s.runs for entry in row.entries}
    if not entries:
        raise ValueError(f"{task_folder} has no finished run with numbers, so there is nothing to export")
    named = (entry.run["data"][key] for entry in entries.values() for key in ("source", "ground_truth"))
    folders = {f"data/{name}" for name in named if name}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as place:
        copy = Path(place, task_folder.name)
        for name in sorted(entries):
            _copy(task_folder / name, copy / name, OF_RUN)
            for scores in sorted((task_folder / name / "scores").iterdir()):
                _copy(scores, copy / name / "scores" / scores.name, OF_SCORES)
        for name in sorted(folders):
            _copy(task_folder / name, copy / name, OF_DATA)
        _copy(task_folder, copy, OF_TASK)
        for path in sorted(file for file in copy.rglob("*") if file.name in RECORDS):
            _without_paths(path)
        for name in sorted(entries):
            _note_config(copy / name)
        write(copy, set(entries))
        files = sorted(path for path in copy.rglob("*") if path.is_file() and not path.name.startswith("."))
        index = {path.relative_to(copy).as_posix(): _sha256(path) for path in files}
        if odd := [name for name in index if not is_plain(name)]:
            raise ValueError(f"{odd[0]!r} has a name that others could not unpack; give this image another id")
        content = {"format": FORMAT, "task": task_folder.name, "files": index}
        _zip(content, copy, target)
    return len(index)


def is_plain(name: str) -> bool:
    """Whether a path in a zip leads nowhere else, and is of a kind that an export has."""
    return bool(NAME.fullmatch(name)) and name.endswith(SUFFIXES)


def without_paths(text: str) -> str:
    """A text in which absolute paths are `PATH/` and their last part."""
    if WHOLE.fullmatch(text):  # also one with spaces
        return "PATH/" + text.rstrip("/").replace("\\", "/").rpartition("/")[2]
    return HERE.sub("PATH/", text)


def command_without_paths(command: str) -> str:
    """A command line, in which a path may be quoted."""
    try:
        parts = [word.partition("=") for word in shlex.split(command)]
    except ValueError:
        return without_paths(command)
    return shlex.join(without_paths(key) + equals + without_paths(value) for key, equals, value in parts)


def _copy(folder: Path, to: Path, patterns: Sequence[str]) -> None:
    """The files of a folder that fit a pattern, as links where the disk can."""
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        place = to / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.name in RECORDS or path.is_symlink():
                raise OSError
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)


def _without_paths(path: Path) -> None:
    if path.suffix == ".json":
        text = json.dumps(_replaced(json.loads(path.read_bytes())), indent=2) + "\n"
    else:
        content = _replaced(LOADER(path.read_bytes()).get_single_data())
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(text, encoding="utf-8")


def _replaced(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        kept = {name: inner for name, inner in value.items() if name not in LEFT_OUT}
        return {without_paths(str(name)): _replaced(inner, str(name)) for name, inner in kept.items()}
    if isinstance(value, list):
        return [_replaced(inner) for inner in value]
    if isinstance(value, str):
        return command_without_paths(value) if key == "command" else without_paths(value)
    return value


def _note_config(run: Path) -> None:
    """Give run.json the checksum of the settings as they are exported."""
    record = json.loads((run / "run.json").read_bytes())
    if "config.yaml" in record.get("files", {}) and (run / "config.yaml").exists():
        record["files"]["config.yaml"] = _sha256(run / "config.yaml")
    (run / "run.json").write_text(json.dumps(record | {"exported": True}, indent=2) + "\n", encoding="utf-8")


def _zip(content: Mapping[str, Any], folder: Path, target: Path) -> None:
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(INDEX, DATE), json.dumps(content, indent=1) + "\n")
            for name in content["files"]:
                info = zipfile.ZipInfo(name, DATE)
                info.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
                with (folder / name).open("rb") as file, archive.open(info, "w") as to:
                    shutil.copyfileobj(file, to)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

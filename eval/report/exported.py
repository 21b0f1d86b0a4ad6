"""An exported zip, from anyone, becomes a task's folder again: names, sizes and checksums are checked before its use.

Nothing in it is executed. Tables and page are made anew from its numbers and images; those in the zip are only checked.
"""

import hashlib
import json
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.files import printable
from eval.report.export import DERIVED, FORMAT, INDEX, PART, is_plain

TASK = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
MOST_FILES = 500_000
MOST_BYTES = 64 << 30  # of all
MOST_OF_ONE = 512 << 20
MOST_OF_INDEX = 128 << 20
CHUNK = 1 << 20


def open_export(path: Path, output: Path | None = None) -> Path:
    """Unpack an exported zip, whole or not at all. Returns the task's folder.

    Args:
        path: of the zip.
        output: where the task's folder goes; beside the zip, in a folder of its name, by default.

    Raises:
        ValueError: if it is no export, has names that lead elsewhere, is too large, or has a wrong checksum.
    """
    place = output or path.with_suffix("")
    try:
        with zipfile.ZipFile(path) as archive:
            index = _read_index(archive, path)
            target = place / index["task"]
            if target.exists():
                raise ValueError(f"{target} is there already; give --output DIR, or remove it")
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=place) as temporary:
                folder = Path(temporary, index["task"])
                folder.mkdir()
                for name, digest in index["files"].items():
                    _unpack(archive, name, digest, folder, path)
                (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
                _require_inner_names(folder, path)
                folder.rename(target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # damaged, encrypted, unknown
        raise ValueError(f"{printable(path)} is no readable zip ({error}); get it again") from error
    return target


def check_export(folder: Path) -> None:
    """Require that an unpacked export is as its `export.json` says; folders without one are not checked.

    Raises:
        ValueError: if a file is missing, was changed, or has a name that leads elsewhere.
    """
    path = folder / INDEX
    if not path.is_file():
        return
    index = _parsed(path.read_bytes(), path)
    for name, digest in index["files"].items():
        file = folder / name
        if DERIVED.fullmatch(name):
            continue
        if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{printable(file)} is missing, and {path} lists it; unpack the export again")
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                raise ValueError(f"{printable(file)} is not as it was exported (sha256); unpack the export again")
    _require_inner_names(folder, path)


def _read_index(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """The list of files, which must be that of the zip."""
    names = archive.namelist()
    if INDEX not in names or archive.getinfo(INDEX).file_size > MOST_OF_INDEX:
        raise ValueError(f"{printable(path)} is no export of this program: it has no {INDEX}; make one with --export")
    with archive.open(INDEX) as file:
        index = _parsed(file.read(MOST_OF_INDEX), path)
    if sorted(names) != sorted([INDEX, *index["files"]]):
        other = min(set(names) ^ {INDEX, *index["files"]}, default="a file twice")
        raise ValueError(f"{printable(path)} does not hold what its {INDEX} lists ({other!r}); get it again")
    total = 0
    for info in archive.infolist():
        total += info.file_size
        if stat.S_ISLNK(info.external_attr >> 16) or info.is_dir():
            raise ValueError(f"{printable(path)}: {info.filename!r} is a link or a folder; an export has plain files")
        if info.file_size > MOST_OF_ONE or total > MOST_BYTES:
            raise ValueError(
                f"{printable(path)}: {info.filename!r} makes it too large; at most {MOST_OF_ONE >> 20} MiB a file and "
                f"{MOST_BYTES >> 30} GiB in all are read"
            )
    return index


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    """A list of files whose names lead nowhere else."""
    wrong = f"{printable(path)} is no export of this program: its {INDEX} cannot be read"
    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(wrong) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("files"), dict):
        raise ValueError(f"{wrong}, or is of another version; export again with this one (format {FORMAT})")
    if not isinstance(index.get("task"), str) or not TASK.fullmatch(index["task"]):
        raise ValueError(f"{wrong}: its task is no plain name")
    if len(index["files"]) > MOST_FILES:
        raise ValueError(f"{printable(path)} lists {len(index['files'])} files; at most {MOST_FILES} are read")
    for name, digest in index["files"].items():
        if not is_plain(name):
            raise ValueError(f"{printable(path)} has a file named {name[:80]!r}, which no export has; do not trust it")
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{wrong}: {name!r} has no sha256")
    return index


def _unpack(archive: zipfile.ZipFile, name: str, digest: str, folder: Path, path: Path) -> None:
    """Write a file whose checksum is right; what can be made anew is checked only."""
    info, found, size = archive.getinfo(name), hashlib.sha256(), 0
    target = None if DERIVED.fullmatch(name) else folder / name
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, (target or Path(os.devnull)).open("wb") as to:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > info.file_size:
                raise ValueError(f"{printable(path)}: {name!r} is larger than it says; do not trust it")
            found.update(chunk)
            to.write(chunk)
    if found.hexdigest() != digest:
        raise ValueError(f"{printable(path)}: {name!r} has another sha256 than {INDEX} says; get it again")


def _require_inner_names(folder: Path, path: Path) -> None:
    """Require that records name folders of images by plain names."""
    for record in folder.glob("*/run.json"):
        what = f"{printable(path)}: {record.parent.name}/run.json"
        try:
            data: Mapping[str, Any] = json.loads(record.read_bytes())["data"]
            names = [data["source"], data["ground_truth"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{what} is no run's record; get it again") from error
        for name in names:
            if name is not None and not (isinstance(name, str) and re.fullmatch(PART, name)):
                raise ValueError(f"{what} names a folder elsewhere; do not trust it")

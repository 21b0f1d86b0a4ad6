"""Which files real experiments need, where they come from, and which are here: conf/assets.yaml."""

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from omegaconf import OmegaConf

from cyclediff.data.images import write_atomically
from cyclediff.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pin:
    """What is known of the bytes of a file.

    Args:
        sha256: of the whole file; None where nobody has published it.
        size: in bytes, if known.
        strict: whether another file is refused. Where one source alone says so, there is only a warning.
        source: who says so.
        within: by how many bytes the size may differ; above 0 the size is a guess from the architecture.
    """

    sha256: str | None
    size: int | None
    strict: bool
    source: str
    within: int = 0

    def size_fault(self, size: int) -> str | None:
        """What is wrong with a size in bytes; None if nothing is."""
        if self.size is None or abs(size - self.size) <= self.within:
            return None
        if self.within:
            return (
                f"it has {size} bytes, where {self.size} ± {self.within} are expected (a guess, because no checksum is "
                f"public: the size of {self.source})"
            )
        return f"it has {size} bytes, not the {self.size} that are pinned (by {self.source})"

    def fault(self, size: int, sha256: str) -> str | None:
        """What is wrong with a file of this size and sha256; None if nothing is."""
        if self.sha256 and sha256 != self.sha256:
            return f"it has sha256 {sha256}, not the pinned {self.sha256} (by {self.source})"
        return self.size_fault(size)

    def label(self) -> str:
        """In a few words, for people."""
        if self.sha256:
            return f"sha256 {self.sha256} (by {self.source})"
        return f"sha256 not pinned yet; some {(self.size or 0) / 1e6:.0f} MB expected (a guess)"


@dataclass(frozen=True)
class Asset:
    """A file of weights, a folder of images, or a repository of the Hugging Face hub.

    Args:
        name: the published file name, the folder's name, or the repository's id.
        kind: "checkpoints", "datasets" or "hub".
        what: what it is, for people.
        used_by: experiments.
        licence: as far as a source states it.
        pin: of the file, or of the data set's archive.
        note: what else to know.
        urls: addresses with their origin (`from`) and what is known of them (`known`).
        archive: name of the data set's archive.
        holds: folders of the data set with their number of images; None is not counted.
        files: of the repository, or patterns of them.
        pins: of files of the repository, or of a folder of weights.
    """

    name: str
    kind: str
    what: str
    used_by: list[str]
    licence: str
    pin: Pin | None = None
    note: str | None = None
    urls: list[dict[str, str]] = field(default_factory=list)
    archive: str | None = None
    holds: dict[str, int | None] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    pins: dict[str, Pin] = field(default_factory=dict)

    def direct_urls(self) -> list[str]:
        """Addresses that answer with the file itself."""
        return [direct for entry in self.urls if (direct := direct_url(entry["url"]))]

    def by_hand(self) -> list[str]:
        """Addresses for a browser."""
        return [entry["url"] for entry in self.urls if not direct_url(entry["url"])]


def catalogue(conf: Path) -> dict[str, Asset]:
    """Every known asset by its name, from conf/assets.yaml."""
    content: Any = OmegaConf.to_container(OmegaConf.load(conf / "assets.yaml"))
    found = {}
    for kind, group in content.items():
        for name, entry in group.items():
            pin = Pin(**entry.pop("pin")) if "pin" in entry else None
            pins = {file: Pin(**pinned) for file, pinned in entry.pop("pins", {}).items()}
            found[name] = Asset(name=name, kind=kind, pin=pin, pins=pins, **entry)
    return found


def direct_url(url: str) -> str | None:
    """The address under which a sharing service serves the file of a link; None where only a browser gets it."""
    if found := re.match(r"https://drive\.google\.com/file/d/([\w-]+)", url):
        return f"https://drive.usercontent.google.com/download?id={found[1]}&export=download&confirm=t"
    parts = urlsplit(url)
    if parts.hostname == "www.dropbox.com":  # the rest of the query stays: newer links need their rlkey
        query = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if key != "dl"]
        return urlunsplit(parts._replace(query=urlencode([*query, ("dl", "1")])))
    if parts.hostname == "huggingface.co" and "/resolve/" in parts.path:
        return url
    by_hand = ("drive.google.com", "1drv.ms", "huggingface.co", "forms.gle", "efrosgans.eecs.berkeley.edu")
    return None if parts.hostname in by_hand else url


def locate(path: str) -> Path:
    """A relative path is looked up where one is, then in the project."""
    inside = ROOT / path
    return Path(path) if Path(path).exists() or not inside.exists() else inside


def file_sha256(path: Path) -> str:
    """Of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path, assets: dict[str, Asset], cache: Path) -> str:
    """What identifies weights: the sha256 of a file, or of a folder's files with their names.

    Args:
        path: the file or folder.
        assets: the catalogue, with the checksums that are pinned.
        cache: folder of known checksums.

    Raises:
        UserError: if a file's sha256 is pinned by several sources and another. Files that
            scripts/make_random_checkpoints.py wrote are let through: every table says what they are.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        known, asset = cached_sha256(files, cache), assets.get(path.name)
        pins = asset.pins if asset else {}
        for file in files:
            _require_pinned(file, known[file], pins.get(file.relative_to(path).as_posix()))
        names = "".join(f"{file.relative_to(path).as_posix()}{known[file]}" for file in files)
        return hashlib.sha256(names.encode()).hexdigest()
    digest, asset = cached_sha256([path], cache)[path], assets.get(path.name)
    _require_pinned(path, digest, asset.pin if asset and asset.kind == "checkpoints" else None)
    return digest


def _require_pinned(path: Path, digest: str, pin: Pin | None) -> None:
    if pin and pin.strict and pin.sha256 not in (None, digest) and not _carries_mark(path):
        raise UserError(
            f"{path} has sha256 {digest}, conf/assets.yaml pins {pin.sha256} (by {pin.source}); get the file again, or "
            "change the pin if you trust yours"
        )


def _carries_mark(path: Path) -> bool:
    """Whether one of the tensors in a file of torch's begins with the mark of random weights; no code in it runs."""
    from eval.random_mark import MARK

    marks = tuple(mark.numpy().tobytes() for mark in (MARK, MARK.half()))
    try:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if "/data/" in name]
            return any(file.open(name).read(len(marks[0])).startswith(marks) for name in names)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):  # no zip, or none of torch's
        return False


def cached_sha256(files: Sequence[Path], cache: Path) -> dict[Path, str]:
    """The sha256 of files. One whose size, time and inode are as they were is not read again.

    Args:
        files: of any size.
        cache: folder of known checksums, which is made if need be. Where it cannot be written, files are read again.
    """
    table = cache / "checksums.json"
    try:
        known = json.loads(table.read_bytes())
    except (OSError, ValueError):  # not there, or damaged
        known = {}
    known = known if isinstance(known, dict) else {}
    found, new = {}, {}
    for file in files:
        about = file.stat()
        state = [about.st_size, about.st_mtime_ns, about.st_ino]
        name = str(file.resolve())
        entry = known.get(name)
        if not (isinstance(entry, list) and entry[:-1] == state):
            entry = new[name] = [*state, file_sha256(file)]
        found[file] = entry[-1]
    if new:
        with contextlib.suppress(OSError, UserError):
            cache.mkdir(parents=True, exist_ok=True)
            write_atomically(json.dumps(known | new).encode(), table)
    return found


def missing_screen(task: str, needed: Iterable[Path], assets: dict[str, Asset], hint: str) -> str:
    """What to do about missing files, on one screen.

    Args:
        task: the experiment.
        needed: its files and folders.
        assets: the catalogue.
        hint: what can run instead.
    """
    needed = list(needed)
    missing = [path for path in needed if not path.exists()]
    here = [path.name for path in needed if path.exists()]
    lines = [f"files and folders missing for {task}: {len(missing)} of {len(needed)}"]
    for path in missing:
        asset = assets.get(path.name) or next((a for n, a in assets.items() if n in path.parts), None)
        lines.append(f"  {path}")
        if asset:
            direct, by_hand = asset.direct_urls(), asset.by_hand()
            known = asset.pin.label() if asset.pin else "sha256 not pinned yet"
            address, *others = [*direct, *(f"by hand: {url}" for url in by_hand)]
            more = f"  (+ {len(others)} more)" if others else ""
            lines += [f"      {asset.what}", *([] if asset.archive else [f"      {known}"]), f"      {address}{more}"]
    lines += [
        f"here: {', '.join(here) or 'none'}",
        f"get:  python scripts/assets.py fetch {task}; `status {task}` lists all",
    ]
    return "\n".join([*lines, f"run:  {hint}"])

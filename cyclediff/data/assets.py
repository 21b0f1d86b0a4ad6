"""Which files real experiments need, where they come from, and which are here: conf/assets.yaml."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cyclediff.data.images import write_atomically
from cyclediff.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Asset:
    """A file of weights, or a folder of images.

    Args:
        name: the published file name, or the folder's name.
        kind: "checkpoints" or "datasets".
        what: what it is, for people.
        used_by: experiments.
        licence: as far as a source states it.
        size: in bytes, if known.
        sha256: if someone has pinned it.
        note: what else to know.
        urls: addresses with their origin (`from`) and what is known of them (`known`).
    """

    name: str
    kind: str
    what: str
    used_by: list[str]
    licence: str
    size: int | None
    sha256: str | None
    note: str | None
    urls: list[dict[str, str]]

    def direct_urls(self) -> list[str]:
        """Addresses that answer with the file itself."""
        return [direct for entry in self.urls if (direct := direct_url(entry["url"]))]

    def by_hand(self) -> list[str]:
        """Addresses for a browser."""
        return [entry["url"] for entry in self.urls if not direct_url(entry["url"])]


def catalogue(conf: Path) -> dict[str, Asset]:
    """Every known asset by its name, from conf/assets.yaml."""
    content: Any = OmegaConf.to_container(OmegaConf.load(conf / "assets.yaml"))
    return {
        name: Asset(name=name, kind=kind, **entry) for kind, group in content.items() for name, entry in group.items()
    }


def direct_url(url: str) -> str | None:
    """The address under which a sharing service serves the file of a link; None where only a browser gets it."""
    if found := re.match(r"https://drive\.google\.com/file/d/([\w-]+)", url):
        return f"https://drive.usercontent.google.com/download?id={found[1]}&export=download&confirm=t"
    if url.startswith("https://www.dropbox.com/"):
        return url.split("?")[0] + "?dl=1"
    by_hand = ("https://drive.google.com/", "https://1drv.ms/", "https://huggingface.co/datasets/")
    return None if url.startswith(by_hand) else url


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
        UserError: if the file's sha256 is pinned and another.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        known = cached_sha256(files, cache)
        names = "".join(f"{file.relative_to(path).as_posix()}{known[file]}" for file in files)
        return hashlib.sha256(names.encode()).hexdigest()
    digest, asset = cached_sha256([path], cache)[path], assets.get(path.name)
    if asset and asset.sha256 and asset.sha256 != digest:
        raise UserError(
            f"{path} has sha256 {digest}, conf/assets.yaml pins {asset.sha256}; get the file again, or pin the new one"
        )
    return digest


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
    lines = [f"{task} needs {len(needed)} files and folders; {len(missing)} of them are missing"]
    for path in missing:
        asset = assets.get(path.name) or next((a for n, a in assets.items() if n in path.parts), None)
        lines.append(f"  {path}")
        if asset and asset.kind == "datasets":
            lines.append(f"      {asset.what}: {asset.note}")
        elif asset:
            ways = [*asset.direct_urls(), *asset.by_hand()]
            more = f"  (+ {len(ways) - 1} more)" if len(ways) > 1 else ""
            lines += [f"      {asset.what}; sha256 {asset.sha256 or 'not pinned yet'}", f"      {ways[0]}{more}"]
    lines += [
        f"here: {', '.join(here) or 'none'}",
        f"get:  python scripts/assets.py fetch {task}; `status {task}` lists all",
    ]
    return "\n".join([*lines, f"run:  {hint}"])

"""Archives of data sets: what they hold stays inside its folder, and is counted."""

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from cyclediff.errors import UserError
from eval.files import SUFFIXES

CHUNK = 1 << 16
Counts = Mapping[str, int | None]  # folder → number of its images; None is not counted


def unpack(archive: Path, folder: Path, holds: Counts | None = None) -> int:
    """Extract a zip or tar into a folder; returns the number of files.

    It is extracted beside the folder and moved there when complete, so that a damaged archive leaves nothing.

    Args:
        archive: the file.
        folder: is made if need be.
        holds: what a data set must hold: folders and their numbers of images. They lie at the top of the archive or in
            one folder there, whose name is left out. What lies beside them is not kept. None: everything is kept.

    Raises:
        UserError: if it is no archive, is damaged or encrypted, is larger than the disk has room for, holds something
            else than it should, or a member would land outside of the folder or is neither a file nor a folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                infos = file.infolist()
                for info in infos:
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    _require_inside(archive, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                return _extract(archive, sum(info.file_size for info in infos), folder, file.extractall, holds)
        with tarfile.open(archive) as file:
            members = file.getmembers()
            while file.fileobj and file.fileobj.read(CHUNK):  # to the checksum at the end, which tarfile leaves unread
                pass
            for member in members:
                _require_inside(archive, member.name, member.isfile() or member.isdir())
            extract = partial(file.extractall, members=members, filter="data")
            return _extract(archive, sum(member.size for member in members), folder, extract, holds)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{archive} is damaged or neither zip nor tar ({reason}); get it again") from error
    except (RuntimeError, NotImplementedError, ValueError) as error:  # encrypted, or a compression without a decoder
        raise UserError(f"{archive} cannot be extracted here ({error}); extract it by other means") from error


def _require_inside(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain or path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        raise UserError(
            f"{archive} holds {name!r}, which would leave the folder or is a link or a device; nothing was extracted"
        )


def _extract(archive: Path, size: int, folder: Path, extract: Callable[[Path], object], holds: Counts | None) -> int:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(f"{archive} holds {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left; make room")
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as staging:
        content = Path(staging, "content")
        content.mkdir()
        extract(content)
        if holds:
            content = _data_set(archive, content, holds)
        files = [path for path in content.rglob("*") if path.is_file()]
        if not os.path.lexists(folder):
            os.replace(content, folder)  # at once, so that a folder that is there is whole
            return len(files)
        targets = [folder / path.relative_to(content) for path in files]
        for target in targets:
            if not target.parent.resolve().is_relative_to(folder.resolve()):  # through a link that was there before
                raise UserError(
                    f"{archive} would write to {target.parent.resolve()}, through a link in {folder}; remove the link"
                )
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return len(files)


def _data_set(archive: Path, content: Path, holds: Counts) -> Path:
    """The folder of what was extracted that holds the data set, and nothing else."""
    places = [content, *(path for path in sorted(content.iterdir()) if path.is_dir())]
    found = next((place for place in places if all((place / name).is_dir() for name in holds)), None)
    if found is None:
        raise UserError(
            f"{archive} does not hold the folders {', '.join(holds)}, neither at its top nor in one folder; get the "
            "archive of this data set"
        )
    if wrong := miscounts(found, holds):
        raise UserError(
            f"{archive} is another version or incomplete: {'; '.join(wrong)}; get it again (data.check=false accepts "
            "other images that you unpack yourself)"
        )
    kept = {PurePosixPath(name).parts[0] for name in holds}
    for path in found.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def miscounts(folder: Path, holds: Counts) -> list[str]:
    """Where a data set's folder holds another number of images than it should: a sentence for each place."""
    wrong = []
    for name, expected in holds.items():
        paths = (folder / name).rglob("*")
        found = sum(path.suffix.lower() in SUFFIXES and not path.name.startswith(".") for path in paths)
        if expected is not None and found != expected:
            wrong.append(f"{name} has {found} images, not {expected}")
    return wrong

"""Downloads that continue after a break, and are checked before they get their name; archives that stay inside."""

import gzip
import json
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock

from cyclediff.data.assets import file_sha256
from cyclediff.errors import UserError

CHUNK = 1 << 16  # a chunk that a broken connection cuts is lost
TRIES = 5  # in a row without a new byte
Check = Callable[[Path], object]
Report = Callable[[int, int | None], None]


class MirrorError(Exception):
    """Why an address did not give the file."""


def fetch(
    urls: list[str], target: Path, sha256: str | None, check: Check, report: Report, stall: float = 30, pause: float = 1
) -> str:
    """Get a file from the first mirror that gives it; returns its sha256.

    What has arrived stays in `<name>.part` and is continued by the next try, also of another process.

    Args:
        urls: mirrors, in this order.
        target: the file.
        sha256: what it must be, if known.
        check: raises UserError if the file is not what it should be.
        report: called with bytes so far and in total.
        stall: seconds without a byte after which a connection is given up.
        pause: seconds before the next try, doubled each time.

    Raises:
        UserError: if no mirror gave it; says what each did.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = []
    with FileLock(target.with_name(f".{target.name}.lock")):
        for url in urls:
            try:
                _complete(url, part, report, stall, pause)
                digest = file_sha256(part)
                if sha256 and digest != sha256:
                    raise MirrorError(f"sha256 {digest}, not the pinned {sha256}")
                check(part)
            except (MirrorError, UserError) as error:
                failures.append(f"{url}: {error}")
                if not isinstance(error, Interrupted):
                    _forget(part)
                continue
            part.replace(target)
            _forget(part)
            return digest
    raise UserError(f"no mirror gave {target.name}: {'; '.join(failures) or 'it has no direct address'}")


class Interrupted(MirrorError):
    """The address gave a part of the file, which is kept."""


def _complete(url: str, part: Path, report: Report, stall: float, pause: float) -> None:
    """Fill `part` from one address, over as many connections as it takes."""
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            for total in _continue(url, part, stall):
                report(part.stat().st_size, total)
            return
        except (requests.RequestException, OSError) as error:
            gained = (part.stat().st_size if part.exists() else 0) > before
            idle = 0 if gained else idle + 1
            if idle >= TRIES:
                raise Interrupted(_reason(error)) from error
            time.sleep(pause * 2**idle)


def _continue(url: str, part: Path, stall: float) -> Iterator[int | None]:
    """One connection: yields the total size after each chunk, returns when the file is whole."""
    note = _note(part)
    known = json.loads(note.read_text()) if note.exists() else {}
    have = part.stat().st_size if part.exists() and known.get("url") == url else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("etag"):
            headers["If-Range"] = known["etag"]
    with requests.get(url, headers=headers, stream=True, timeout=(10, stall)) as answer:
        if answer.status_code == 416 and have == known.get("total"):
            return
        if answer.status_code not in (200, 206):
            if answer.status_code == 416:
                part.unlink()
                raise requests.ConnectionError("the server has another file now")
            raise MirrorError(f"the server answered {answer.status_code} {answer.reason}")
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise MirrorError("the server sent a web page")
        resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        note.write_text(json.dumps({"url": url, "etag": answer.headers.get("ETag"), "total": total}))
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                file.flush()
                yield total
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def unpack(archive: Path, folder: Path) -> int:
    """Extract a zip or tar into a folder; returns the number of files.

    It is extracted beside the folder and moved there when complete, so that a damaged archive leaves nothing.

    Raises:
        UserError: if it is no archive, is damaged or encrypted, is larger than the disk has room for, or a member would
            land outside of the folder or is neither a file nor a folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                infos = file.infolist()
                for info in infos:
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    _require_inside(archive, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
                return _extract(archive, sum(info.file_size for info in infos), folder, file.extractall)
        with tarfile.open(archive) as file:
            members = file.getmembers()
            while file.fileobj and file.fileobj.read(CHUNK):  # to the checksum at the end, which tarfile leaves unread
                pass
            for member in members:
                _require_inside(archive, member.name, member.isfile() or member.isdir())
            extract = partial(file.extractall, members=members, filter="data")
            return _extract(archive, sum(member.size for member in members), folder, extract)
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


def _extract(archive: Path, size: int, folder: Path, extract: Callable[[Path], object]) -> int:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(f"{archive} holds {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left; make room")
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as staging:
        extract(Path(staging))
        files = [path for path in Path(staging).rglob("*") if path.is_file()]
        targets = [folder / path.relative_to(staging) for path in files]
        for target in targets:
            if not target.parent.resolve().is_relative_to(folder.resolve()):  # through a link that was there before
                raise UserError(
                    f"{archive} would write to {target.parent.resolve()}, through a link in {folder}; remove the link"
                )
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return len(files)


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if "timed out" in str(error):
        return "it stopped answering"
    return str(error)[:200]

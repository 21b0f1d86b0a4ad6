"""Downloads that continue after a break, and are checked before they get their name."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import requests
from filelock import FileLock
from urllib3.exceptions import NewConnectionError

from cyclediff.data.assets import Pin, file_sha256
from cyclediff.errors import UserError

CHUNK = 1 << 16  # a chunk that a broken connection cuts is lost
TRIES = 5  # in a row without a new byte
UNREACHABLE_TRIES = 2  # where no connection comes about: mostly there is no network at all
Check = Callable[[Path], object]
Report = Callable[[int, int | None], None]


class MirrorError(Exception):
    """Why an address did not give the file."""


def fetch(
    urls: list[str], target: Path, pin: Pin | None, check: Check, report: Report, stall: float = 30, pause: float = 1
) -> str:
    """Get a file from the first mirror that gives it; returns its sha256.

    What has arrived stays in `<name>.part` and is continued by the next try, also of another process.

    Args:
        urls: mirrors, in this order.
        target: the file.
        pin: what is known of its bytes. Only a strict one refuses a file; a wrong size is refused before the download.
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
                _complete(url, part, pin, report, stall, pause)
                digest = file_sha256(part)
                if pin and pin.strict and (fault := pin.fault(part.stat().st_size, digest)):
                    raise MirrorError(fault)
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


def _complete(url: str, part: Path, pin: Pin | None, report: Report, stall: float, pause: float) -> None:
    """Fill `part` from one address, over as many connections as it takes."""
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            for total in _continue(url, part, pin, stall):
                report(part.stat().st_size, total)
            return
        except (requests.RequestException, OSError) as error:
            gained = (part.stat().st_size if part.exists() else 0) > before
            idle = 0 if gained else idle + 1
            if idle >= (TRIES if not _is_unreachable(error) else UNREACHABLE_TRIES):
                raise Interrupted(_reason(error)) from error
            time.sleep(pause * 2**idle)


def _continue(url: str, part: Path, pin: Pin | None, stall: float) -> Iterator[int | None]:
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
        require_no_downgrade(url, [*(step.url for step in answer.history), answer.url])
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
        if total is not None and pin and pin.strict and (fault := pin.size_fault(total)):
            raise MirrorError(fault)
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise Interrupted(f"{(total - start) / 1e9:.1f} GB are to come, and the disk has {free / 1e9:.1f} GB left")
        note.write_text(json.dumps({"url": url, "etag": answer.headers.get("ETag"), "total": total}))
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                file.flush()
                yield total
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def require_no_downgrade(url: str, visited: Sequence[str]) -> None:
    """Require that an address of https does not lead to plain http.

    Raises:
        MirrorError: if it does.
    """
    if url.startswith("https:") and not all(step.startswith("https:") for step in visited):
        raise MirrorError("it leads to plain http, where anyone on the way can change the file")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _is_unreachable(error: Exception) -> bool:
    """Whether no connection came about: no such host, or it refuses."""
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(cause, NewConnectionError)


def _reason(error: Exception) -> str:
    if _is_unreachable(error):
        return "it cannot be reached; check the connection"
    if "timed out" in str(error):
        return "it stopped answering"
    return str(error)[:200]

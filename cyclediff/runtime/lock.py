"""One process at a time in a run's folder: a lock that dies with its process, and a file that says who holds it."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cyclediff.data.images import unwritable
from cyclediff.errors import UserError

LOCK, OWNER = ".lock", "owner.json"
BEAT = 10.0  # seconds between an owner's signs of life
PATIENCE = 60.0  # seconds of silence after which an owner on another machine counts as dead


@contextmanager
def claimed(folder: Path, command: str) -> Iterator[None]:
    """Hold a run's folder while it is being made; a second run in it is refused.

    The lock is the kernel's (flock), so it is free again as soon as its process is dead, however it died. Between
    machines it holds where the file system shares it, as Linux's NFS does unless it is mounted with nolock or
    local_lock. So the owner also gives signs of life in owner.json, and one on another machine is respected until it
    was silent for PATIENCE seconds. Times are the file system's, so clocks of machines need not agree.

    Args:
        folder: of the run; it is made if need be.
        command: the owner's command line, for the sentence that others get.

    Raises:
        UserError: if another process has the folder, or it cannot be written.
    """
    owner = folder / OWNER
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise _taken(folder, _read(owner)) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        _take(folder, command)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(owner, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            with suppress(OSError):
                owner.unlink()
    finally:
        lock.release()


def _take(folder: Path, command: str) -> None:
    """Write owner.json, in place of one whose owner is dead."""
    owner, host = folder / OWNER, socket.gethostname()
    start = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {"host": host, "pid": os.getpid(), "start": start, "command": command}
    while True:
        try:
            with owner.open("x") as file:  # "x": of two machines one succeeds, also on NFS
                json.dump(mine, file)
            return
        except FileExistsError:
            other = _read(owner)
            if other.get("host") != host:  # of this machine: flock says that it is dead
                _wait_for_silence(folder, other)
            owner.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(owner, error) from error


def _wait_for_silence(folder: Path, other: Mapping[str, Any]) -> None:
    seen = _modified(folder / OWNER)
    while True:
        (folder / LOCK).touch()
        if _modified(folder / LOCK) - seen > PATIENCE:
            return
        time.sleep(PATIENCE / 60)
        latest = _modified(folder / OWNER)
        if not latest:
            return
        if latest != seen:
            raise _taken(folder, other)


def _modified(path: Path) -> float:
    """Seconds; 0 where there is no such file. NFS shows a file's state anew to those who open it."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _read(owner: Path) -> dict[str, Any]:
    try:
        found = json.loads(owner.read_bytes())
    except (OSError, ValueError):  # gone by now, or not yet written
        return {}
    return found if isinstance(found, dict) else {}


def _taken(folder: Path, owner: Mapping[str, Any]) -> UserError:
    who = "another process"
    if owner.keys() >= {"host", "pid", "start", "command"}:
        who = f"process {owner['pid']} on {owner['host']} since {owner['start']} ({owner['command']})"
    return UserError(f"{folder} is being made by {who}; wait for it, or stop it and start the same command again")


def _beat(owner: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):  # a disk that is away for a while must not end the run
            os.utime(owner)

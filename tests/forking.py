"""run.py in forked processes, so that its imports are paid for once, with faults put in from inside."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
PRELOAD = [
    "run",
    "baselines.sdedit",
    "cyclediff.models.load_text",
    "cyclediff.models.pixel",
    "cyclediff.pets.networks",
    "cyclediff.runtime.execution",
    "cyclediff.studies.edit",
    "cyclediff.studies.editing",
    "cyclediff.studies.similarity",
    "diffusers.models.unets.unet_2d",
    "diffusers.models.unets.unet_2d_condition",
    "eval.evaluate",
    "eval.metrics.candidates",
    "eval.report.tables",
    "open_clip",
    "pyarrow.parquet",
    "torchmetrics.functional.image",
    "wandb",
]


def start(arguments: list[str], log: Path, fault: Callable[[], None] | None = None, cwd: Path | None = None):
    """Begin run.py; its output goes to the file `log`, and `fault()` is called before it."""
    return fork(_program, arguments, [log], fault, cwd or log.parent)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run run.py to its end; returns what `subprocess.run` does."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = fork(_program, arguments, logs, None, cwd or Path.cwd())
        process.join(900)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, *(log.read_text() for log in logs))


def finish(arguments: list[str], log: Path, fault: Callable[[], None] | None = None, cwd: Path | None = None):
    """Run run.py to its end. Returns its exit code (negative: the signal that ended it) and what it printed."""
    process = start(arguments, log, fault, cwd)
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode, log.read_text()


def fork(target: Callable[..., None], *arguments: object):
    """A process that has this program's imports already."""
    FORKS.set_forkserver_preload(PRELOAD)
    process = FORKS.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _program(arguments: list[str], logs: list[Path], fault: Callable[[], None] | None, cwd: Path) -> None:
    """What it prints and its errors go to the first and the last of `logs`."""
    import run

    outputs = [os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for log in logs]
    os.dup2(outputs[0], 1)
    os.dup2(outputs[-1], 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.chdir(cwd)
    sys.argv = ["run.py", *arguments]
    if fault:
        fault()
    try:
        run.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclass(frozen=True)
class At:
    """Does something at the n-th time that the program is about to write a file of a certain name.

    Args:
        name: of the file, a pattern for the end of its path.
        count: 1 for the first time.
        act: called with the file that is being written: the temporary one where such is about to get its name.
    """

    name: str
    count: int
    act: Callable[[str], None]

    def __call__(self) -> None:
        times = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal times
            if event == "os.rename":
                written, destination = arguments[:2]
            elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("awx"):
                written = destination = arguments[0]
            else:
                return
            if fnmatch(os.fspath(destination), f"*/{self.name}"):
                times += 1
                if times == self.count:
                    self.act(os.fspath(written))

        sys.addaudithook(watch)


def killed(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_half_way(path: str) -> None:
    """As if the kill came while this file was written: half a line is there of a log, half the file of others."""
    if path.endswith(".jsonl"):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, b'\n{"id": "source0000", "ids": ["source0000"], "ro')
    elif os.path.exists(path):
        os.truncate(path, os.path.getsize(path) // 2)
    killed(path)


def stopped(path: str) -> None:
    """Stops all threads until SIGCONT comes."""
    os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Refusing:
    """A disk that takes no file whose path contains `part`: an error at every open for writing and every rename."""

    part: str
    number: int

    def __call__(self) -> None:
        def watch(event: str, arguments: tuple) -> None:
            touched = _touched(event, arguments)
            if touched and self.part in touched and not (event == "os.mkdir" and os.path.exists(touched)):
                raise OSError(self.number, os.strerror(self.number), touched)

        sys.addaudithook(watch)


@dataclass(frozen=True)
class Recording:
    """Notes whatever is written, made, renamed or removed, a path a line in the file `notes`; `home` is HOME."""

    notes: Path
    home: Path

    def __call__(self) -> None:
        os.environ["HOME"] = str(self.home)
        handle = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def watch(event: str, arguments: tuple) -> None:
            touched = _touched(event, arguments)
            if touched:
                os.write(handle, os.path.abspath(touched).encode() + b"\n")

        sys.addaudithook(watch)


def _touched(event: str, arguments: tuple) -> str | None:
    """The path that is about to change, if an audit event says that one is."""
    if event == "open":
        changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        touched = arguments[0] if changes else None
    elif event in ("os.rename", "os.link", "os.symlink"):
        touched = arguments[1]
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod"):
        relative = arguments[-1] not in (-1, None) and not os.path.isabs(arguments[0])  # to a folder that is open
        touched = None if relative else arguments[0]
    else:
        return None
    return os.fsdecode(touched) if isinstance(touched, str | bytes | os.PathLike) else None

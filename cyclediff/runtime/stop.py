"""An orderly stop: at SIGTERM the batch in hand is finished and written, then the program ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = "stopped; finished images are kept, and the same command goes on from there"
_asked, _busy = threading.Event(), threading.Event()


class Stopped(BaseException):
    """Ends the program with exit code 0 and this sentence; like KeyboardInterrupt, no `except Exception` holds it."""


def listen() -> None:
    """Hear SIGTERM from now on; where someone hears it already, as submitit does to requeue a job, it is theirs."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _hear)


def requested() -> bool:
    """Whether SIGTERM has come."""
    return _asked.is_set()


@contextmanager
def after_the_batch() -> Iterator[None]:
    """Inside, SIGTERM interrupts nothing and `requested` tells of it; it ends the program at the latest on leaving.

    Raises:
        Stopped: on leaving, if SIGTERM has come.
    """
    _busy.set()
    try:
        yield
    finally:
        _busy.clear()
    if requested():
        raise Stopped(STOPPED)


def _hear(*_: Any) -> None:
    _asked.set()
    if not _busy.is_set():
        raise Stopped(STOPPED)

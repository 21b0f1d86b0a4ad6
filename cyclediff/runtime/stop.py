"""An orderly stop: at SIGTERM the current batch is finished and written, then the program ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = "stopped; finished images are kept, and the same command continues from there"
_asked, _busy = threading.Event(), threading.Event()


class Stopped(BaseException):
    """Ends the program with exit code 0 and this sentence. `except Exception` does not catch it."""


def listen() -> None:
    """Handle SIGTERM from now on. Where it has a handler, such as submitit's that requeues a job, that one stays."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _handle)


def requested() -> bool:
    """Whether SIGTERM has come."""
    return _asked.is_set()


@contextmanager
def after_the_batch() -> Iterator[None]:
    """Inside, SIGTERM interrupts nothing and `requested` becomes true. The program ends on leaving.

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


def _handle(*_: Any) -> None:
    _asked.set()
    if not _busy.is_set():
        raise Stopped(STOPPED)

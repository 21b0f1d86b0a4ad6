"""One run in several processes: which part is whose, what the first does for all, and how all end together.

Processes exchange small Python objects only, so they meet on the CPU (gloo), whatever the networks run on.
"""

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

from cyclediff.runtime import stop

T = TypeVar("T")
EXCHANGE = timedelta(hours=1)  # for all to take part in an exchange; a process that dies ends the wait at once
WORK = timedelta(days=365)  # for all to finish their part of the work
FAILED, STOPPING, REPORTED = "failed", "stopping", "reported"  # keys of the store
LOST = (
    "error: another process of this job has ended without a message (killed, or out of memory?); finished images are "
    "kept, and the same command continues from there"
)


class Lost(Exception):
    """Another process has ended, so this one cannot continue."""


@dataclass(frozen=True)
class _Group:
    store: Any
    waiting: Any  # a group of its own, as waits for work have another limit than exchanges


def start() -> None:
    """Join the other processes, if torchrun or submitit has started several."""
    if "WORLD_SIZE" not in os.environ and "SUBMITIT_EXECUTOR" in os.environ:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    if world() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # C++ traces drown the sentence when a process has ended
        _join()


def rank() -> int:
    """Number of this process; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process prints, and writes what is written once."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process is here, however long the others work.

    Raises:
        Lost: if one of them has ended.
    """
    if world() == 1:
        return
    from torch import distributed

    arrived = distributed.barrier(_join().waiting, async_op=True)
    while not arrived.is_completed():
        stopping()
        time.sleep(0.02)
    arrived.wait()


def gather(value: T) -> list[T]:
    """What every process gives, in the order of ranks."""
    if world() == 1:
        return [value]
    from torch import distributed

    _join()
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value)
    return found


def from_first(work: Callable[[], T]) -> T:
    """What the first process gets from `work`, which the others do not do, however long it takes."""
    if world() == 1:
        return work()
    from torch import distributed

    box: list[Any] = [work() if is_first() else None]
    wait_for_all()
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def after_first(work: Callable[[], T]) -> T:
    """The result of work that leaves files: the first process does it, then the others find them."""
    if is_first():
        found = work()
        wait_for_all()
        return found
    wait_for_all()
    return work()


class SharedCount:
    """A number to which all processes add.

    Args:
        name: of the number; each is used once.
    """

    def __init__(self, name: str):
        self._name, self._own = name, 0

    def add(self, count: int) -> int:
        """Add to it; returns what it is by now."""
        self._own += count
        return self._own if world() == 1 else _store().add(self._name, count)


def stopping() -> bool:
    """Whether any process was asked to stop; to be asked between batches.

    Raises:
        Lost: if another process has failed.
    """
    if world() == 1:
        return stop.requested()
    store = _store()
    if store.check([FAILED]):
        raise Lost
    if stop.requested():
        store.set(STOPPING, "")
    return store.check([STOPPING])


def end(text: str, code: int) -> NoReturn:
    """Print why the program ends, in one process only, and end it in all."""
    if world() == 1:
        print(text, file=sys.stderr)
        sys.exit(code)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it as soon as one has ended
    try:
        reported = _store().add(REPORTED, 1) > 1
        if code:
            _store().set(FAILED, "")
    except RuntimeError:  # the store was in a process that has ended, and that one has printed it
        reported = True
    if not reported:
        print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an exchange may be pending, and no one will complete it


def is_lost(error: Exception) -> bool:
    """Whether an error says only that another process has ended: that one knows why."""
    of_torch = type(error).__name__.startswith("Dist")  # DistNetworkError, DistStoreError, …
    return isinstance(error, Lost) or of_torch or "gloo" in str(error)


def end_by_error(error: Exception) -> NoReturn:
    """End all processes by an error that is no mistake of the user; the first that has one shows its traceback."""
    if world() == 1:
        raise error
    end(LOST if is_lost(error) else "".join(traceback.format_exception(error)).rstrip(), 1)


@cache
def _store() -> Any:
    """What all processes read and write at any time: torchrun's, or one in the first process."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://")))[0]


@cache
def _join() -> _Group:
    from torch import distributed

    distributed.init_process_group("gloo", store=_store(), rank=rank(), world_size=world(), timeout=EXCHANGE)
    atexit.register(distributed.destroy_process_group)  # else its threads can abort the interpreter as it ends
    return _Group(_store(), distributed.new_group(timeout=WORK))

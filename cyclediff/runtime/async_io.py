"""Reading and writing beside the work of the networks: one batch ahead, and at most one behind."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cyclediff.runtime.artifacts import Artifact

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], work: Callable[[T], R], thread: Executor) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, which is done while the caller is busy with the item before it."""
    last: tuple[T, Future[R]] | None = None
    for item in items:
        this = item, thread.submit(work, item)
        if last:
            yield last[0], last[1].result()
        last = this
    if last:
        yield last[0], last[1].result()


class Writer:
    """Writes artifacts in a thread, in order. On leaving, all are written; an error is raised there or before."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1)
        self._last: list[Future[None]] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # also after an error: what is finished is kept
        if error is None:
            self._settle()

    def write(self, results: Sequence[tuple[Artifact, Path, str, Any, int]]) -> None:
        """Begin to write results (artifact, run, item, content, rank); waits until those of the last call are written.

        Raises:
            UserError: if one of those could not be written.
        """
        self._settle()
        self._last = [
            self._thread.submit(artifact.write, run, item, content, rank)
            for artifact, run, item, content, rank in results
        ]

    def _settle(self) -> None:
        for written in self._last:
            written.result()
        self._last = []

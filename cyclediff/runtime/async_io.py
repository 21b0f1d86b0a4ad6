"""Pictures from and to the disk beside the work of the networks: one batch ahead, and at most one behind."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from torch import Tensor

from cyclediff.data.images import to_pil, write_png

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
    """Writes PNGs in a thread, in order. On leaving, all are written; an error is raised there or at the next batch."""

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

    def write(self, pictures: Sequence[Tensor], paths: Sequence[Path]) -> None:
        """Begin to write pictures, each uint8 (3, h, w); waits until those of the last batch are written.

        Raises:
            UserError: if one of those could not be written.
        """
        self._settle()
        self._last = [self._thread.submit(_write, picture, path) for picture, path in zip(pictures, paths, strict=True)]

    def _settle(self) -> None:
        for written in self._last:
            written.result()
        self._last = []


def _write(picture: Tensor, path: Path) -> None:
    write_png(to_pil(picture), path)

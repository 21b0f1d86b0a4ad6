"""One progress bar per run, in images, that also moves within a batch."""

from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def format_duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


class ItemProgress:
    """A bar over images that also moves within a batch: every evaluation of a network counts.

    How many evaluations a batch takes is known from the first batch; until it is done the bar stands still and counts.

    Args:
        name: what is running.
        total: number of images.
        shown: false for a bar that nobody sees.
    """

    def __init__(self, name: str, total: int, shown: bool = True):
        done = TextColumn("{task.fields[done]}/{task.total} images · step {task.fields[calls]}")
        columns = TextColumn("{task.description:>16}", markup=False), BarColumn(), done, TimeElapsedColumn()
        self._progress = Progress(*columns, TextColumn("· left"), TimeRemainingColumn(), disable=not shown)
        self._task = self._progress.add_task(name, total=total, done=0, calls=0)
        self._done = self._calls = self._calls_per_batch = self._images = 0

    def __enter__(self) -> "ItemProgress":
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._progress.disable:  # older versions of rich print a line even so
            self._progress.stop()

    def show_done(self, images: int) -> None:
        """Say how many images there are by now, whoever made them."""
        self._done = images
        self._show()

    def step(self) -> None:
        """Count an evaluation in the batch that is running."""
        self._calls += 1
        self._show()

    def finish_batch(self, images: int) -> None:
        """Note how many evaluations a batch of so many images took."""
        self._calls_per_batch, self._images, self._calls = self._calls, images, 0

    def _show(self) -> None:
        within = min(self._calls / self._calls_per_batch, 1.0) * self._images if self._calls_per_batch else 0
        completed = min(self._done + within, self._progress.tasks[0].total or 0)
        self._progress.update(self._task, completed=completed, done=self._done, calls=self._calls)

"""What a run leaves of each item on disk. An artifact knows whether it is whole, so a run can resume."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cyclediff.data.images import is_whole_png, to_pil, unwritable, write_atomically, write_png

if TYPE_CHECKING:
    from torch import Tensor


class Artifact(Protocol):
    """One kind of result, of all items of a run."""

    @property
    def folder(self) -> str:
        """Where in the run's folder its files are; empty for the run's folder itself."""
        ...

    def whole(self, run: Path, items: Iterable[str]) -> set[str]:
        """The items whose result is on disk and complete."""
        ...

    def write(self, run: Path, item: str, content: Any, rank: int) -> None:
        """Write the result of an item.

        Raises:
            UserError: if the disk does not take it.
        """
        ...

    def close(self, run: Path) -> str | None:
        """All items are done: bring the artifact into its final form. Returns the name of its file, if it is one."""
        ...


@dataclass(frozen=True)
class Pictures:
    """A PNG of each item, `<folder>/<id>.png`, from uint8 (3, h, w)."""

    folder: str = "images"

    def whole(self, run: Path, items: Iterable[str]) -> set[str]:
        """Items with a PNG that begins and ends as one."""
        return {item for item in items if is_whole_png(run / self.folder / f"{item}.png")}

    def write(self, run: Path, item: str, content: "Tensor", rank: int) -> None:
        """Write a PNG, whole or not at all."""
        write_png(to_pil(content), run / self.folder / f"{item}.png")

    def close(self, run: Path) -> str | None:
        """PNGs are in their final form."""
        return None


@dataclass(frozen=True)
class Tensors:
    """A tensor of each item, `<folder>/<id>.safetensors`, under the key "code"."""

    folder: str

    def whole(self, run: Path, items: Iterable[str]) -> set[str]:
        """Items whose file is as long as its header says."""
        return {item for item in items if is_whole_safetensors(run / self.folder / f"{item}.safetensors")}

    def write(self, run: Path, item: str, content: "Tensor", rank: int) -> None:
        """Write a file, whole or not at all."""
        from safetensors.torch import save

        write_atomically(save({"code": content.contiguous().cpu()}), run / self.folder / f"{item}.safetensors")

    def close(self, run: Path) -> str | None:
        """The files are in their final form."""
        return None


@dataclass(frozen=True)
class Rows:
    """Some rows of numbers of each item: `<name>.jsonl` while the run lasts, then `<name>.parquet`."""

    name: str
    folder: str = ""
    _seen: dict[Path, set[str]] = field(default_factory=dict, repr=False, compare=False)

    def whole(self, run: Path, items: Iterable[str]) -> set[str]:
        """Items that have rows."""
        if run not in self._seen:
            self._seen[run] = {row["id"] for row in self.read(run)}
        return self._seen[run] & set(items)

    def write(self, run: Path, item: str, content: Sequence[Mapping[str, Any]], rank: int) -> None:
        """Append the rows of an item to this process's log."""
        append_line(log_of(run, self.name, rank), {"id": item, "rows": list(content)})
        self._seen.setdefault(run, set()).add(item)

    def read(self, run: Path) -> list[dict[str, Any]]:
        """All rows, each with its item's id, in the order of ids; the last ones of an item that was done again."""
        found = dict(self._kept(run))
        for entry in read_lines(run.glob(f"{self.name}*.jsonl"), "id", "rows"):
            found[entry["id"]] = entry["rows"]
        return [{"id": item, **row} for item in sorted(found) for row in found[item]]

    def close(self, run: Path) -> str | None:
        """Write the parquet file, and remove the logs."""
        import pyarrow
        from pyarrow import parquet

        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(self.read(run)), buffer)
        write_atomically(buffer.getvalue().to_pybytes(), run / f"{self.name}.parquet")
        for log in run.glob(f"{self.name}*.jsonl"):
            log.unlink()
        return f"{self.name}.parquet"

    def _kept(self, run: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """What the parquet file of an earlier finish has; nothing where it is missing or damaged."""
        path = run / f"{self.name}.parquet"
        if not path.exists():
            return
        from pyarrow import parquet

        found: dict[str, list[dict[str, Any]]] = {}
        with contextlib.suppress(OSError, ValueError):  # Arrow's own errors are among these
            for row in parquet.read_table(path).to_pylist():
                found.setdefault(row.pop("id"), []).append(row)
        yield from found.items()


def is_whole_safetensors(path: Path) -> bool:
    """Whether a file of tensors is there and not cut."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def log_of(run: Path, name: str, rank: int) -> Path:
    """The log to which a process appends; each has one of its own, and all are read."""
    return run / (f"{name}-{rank}.jsonl" if rank else f"{name}.jsonl")


def append_line(log: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry to a log of JSON lines.

    Raises:
        UserError: if the disk does not take it.
    """
    try:
        with log.open("a") as file:
            file.write("\n" + json.dumps(entry))  # a new line also after a line that a kill has cut
    except OSError as error:
        raise unwritable(log, error) from error


def read_lines(logs: Iterable[Path], *keys: str) -> list[dict[str, Any]]:
    """The whole lines of all processes' logs that have these keys; those of later starts come last."""
    found = []
    for log in sorted(logs):
        for line in log.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.keys() >= set(keys):
                    found.append(entry)
    return sorted(found, key=lambda entry: entry.get("start", 0))

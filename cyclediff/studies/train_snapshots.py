"""What a training leaves: snapshots on the way, and the weights of the last and of the best one, each with a card."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclediff.data.images import to_pil, write_atomically, write_png
from cyclediff.errors import UserError
from cyclediff.runtime.artifacts import is_whole_safetensors
from cyclediff.runtime.record import write_json
from cyclediff.runtime.training import HISTORY

if TYPE_CHECKING:
    from torch import Tensor, nn

CHOICE = "fid"  # by which the best snapshot is chosen, lowest first
WEIGHTS = "weights"  # folder of a run
TRAP = (
    "chosen as the best of {n} snapshots by the very score that it is given here, so that score is too good; last is "
    "what the training gave"
)


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of a training, in a folder of their own.

    Args:
        folder: of sheets, scores, and the weights of the latest and of the best one.
        steps: of the training.
        every: steps between two; there is also one after the last step.
        unit: in which people count, such as epoch.
        period: its steps.
    """

    folder: Path
    steps: int
    every: int
    unit: str
    period: int

    @property
    def ids(self) -> list[str]:
        """A name for each, in order."""
        return [_id(step) for step in [*range(self.every, self.steps, self.every), self.steps]]

    @property
    def pictures(self) -> Path:
        """Folder of what the latest one has made."""
        found = self.folder / "pictures"
        found.mkdir(parents=True, exist_ok=True)
        return found

    def sheet(self, item: str) -> Path:
        """The sheet of one."""
        return self.folder / f"{item}.png"

    def weights(self, which: str) -> Path:
        """The weights of the `last` or the `best` one."""
        return self.folder / f"{which}.safetensors"

    def rows(self) -> list[dict[str, Any]]:
        """Step and metrics of those that there are, in order."""
        path = self.folder / "snapshots.json"
        return json.loads(path.read_bytes()) if path.exists() else []

    def history(self) -> list[dict[str, float]]:
        """Losses, as `cyclediff.runtime.training` wrote them."""
        return json.loads((self.folder / HISTORY).read_bytes())

    def units(self, step: int) -> float:
        """What people count, such as epochs, after so many steps."""
        return step / self.period

    def best(self) -> dict[str, Any] | None:
        """The row that is best by `CHOICE`, the first of equal ones; None where none has a value."""
        known = [row for row in self.rows() if CHOICE in row["metrics"]]
        return min(known, key=_choice, default=None)

    def add(self, step: int, sheet: "Tensor", metrics: Mapping[str, Any], network: "nn.Module", dtype: str) -> None:
        """Write one; those of later steps, of a start that was stopped after its checkpoint, are forgotten."""
        kept = [row for row in self.rows() if row["step"] < step]
        row = {"step": step, "metrics": dict(metrics)}
        rows = [*kept, row]
        write_png(to_pil(sheet), self.sheet(_id(step)))
        content = _safetensors(network, dtype, step)
        write_atomically(content, self.weights("last"))
        if CHOICE in metrics and all(_choice(row) < _choice(each) for each in kept):
            write_atomically(content, self.weights("best"))
        write_json(rows, self.folder / "snapshots.json")

    def require_code(self, code: str, allow_change: bool) -> None:
        """Require that a training continues with the code with which it began.

        Raises:
            UserError: if it does not.
        """
        path = self.folder / "code.json"
        began = json.loads(path.read_bytes()) if path.exists() else code
        if began != code and not allow_change:
            raise UserError(
                f"the training in {self.folder} was begun by code {began}, and the code is now {code}; add "
                "allow_code_change=true to continue it, or delete the folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(began, path)


@dataclass(frozen=True)
class TrainedWeights:
    """The weights with their cards, which `keep` writes; they belong to all items of a run."""

    folder: str = WEIGHTS

    def whole(self, run: Path, items: Iterable[str]) -> set[str]:
        """All items, if the weights that a card describes are there, those of the last step among them."""
        cards = sorted((run / self.folder).glob("*.json"))
        whole = all(is_whole_safetensors(card.with_suffix(".safetensors")) for card in cards)
        return set(items) if whole and run / self.folder / "last.json" in cards else set()

    def write(self, run: Path, item: str, content: None, rank: int) -> None:
        """Nothing: a snapshot has no weights of its own."""

    def close(self, run: Path) -> str | None:
        """The files are in their final form."""
        return None


def keep(run: Path, snapshots: Snapshots, history: Sequence[Mapping[str, float]], about: Mapping[str, Any]) -> None:
    """Write the weights of the last snapshot, and of the best one where they are scored, with cards.

    Args:
        run: the run's folder.
        snapshots: of the training, all of them.
        history: of the losses.
        about: what cards say besides.
    """
    rows, best = snapshots.rows(), snapshots.best()
    chosen = {"last": rows[-1]} | ({"best": best} if best else {})
    (run / WEIGHTS).mkdir(parents=True, exist_ok=True)
    for which, row in chosen.items():
        content, step = snapshots.weights(which).read_bytes(), row["step"]
        losses = next(each for each in history if each["step"] >= step)
        card = {
            "name": f"{about['method']}_{about['task']}", "kept": which, "step": step, "steps": snapshots.steps,
            snapshots.unit: round(snapshots.units(step), 3), "of": round(snapshots.units(snapshots.steps), 3),
            **about, "losses": {key: v for key, v in losses.items() if key not in ("step", "rate", "seconds")},
            "scores": {key: [entry["value"], entry["protocol"]] for key, entry in row["metrics"].items()},
            "parameters": _parameters(content), "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        card |= {"note": TRAP.format(n=len(rows))} if which == "best" else {}
        write_atomically(content, run / WEIGHTS / f"{which}.safetensors")
        write_json(card, run / WEIGHTS / f"{which}.json")


def rounded(network: "nn.Module", dtype: str) -> "nn.Module":
    """The same network, with its weights rounded in place to how they are kept: what is scored is what is kept."""
    import torch

    if dtype != "float32":
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(getattr(torch, dtype)))
    return network


def _safetensors(network: "nn.Module", dtype: str, step: int) -> bytes:
    import torch
    from safetensors.torch import save

    state = {key: value.to("cpu", getattr(torch, dtype)).contiguous() for key, value in network.state_dict().items()}
    return save(state, {"step": str(step)})


def _parameters(content: bytes) -> int:
    from safetensors.torch import load

    return sum(value.numel() for value in load(content).values())


def _choice(row: Mapping[str, Any]) -> float:
    value = row["metrics"][CHOICE]["value"]
    return math.inf if value is None else value


def _id(step: int) -> str:
    return f"step{step:07d}"

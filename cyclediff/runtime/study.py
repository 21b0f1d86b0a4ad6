"""What a kind of run is: the Protocol that batching, resume, processes and the record know, and nothing else."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cyclediff.runtime.artifacts import Artifact

if TYPE_CHECKING:
    import torch

    from cyclediff.runtime.meter import Meter


@dataclass(frozen=True)
class Execution:
    """How a run is computed.

    Args:
        seed: the run's seed.
        batch_size: what goes through the networks at once: items, or candidates of items.
        device: where the networks are.
        noise_device: where noise is drawn.
        trace: where the trace of a profile goes; None for no profile.
    """

    seed: int
    batch_size: int
    device: "torch.device"
    noise_device: "torch.device"
    trace: Path | None = None


@dataclass(frozen=True)
class Items:
    """What a run works on.

    Args:
        ids: one of each item, in order. Ids name files and key the noise.
        record: what run.json says of them under "data": at least `name`, `digest` and `n`.
        kinds: by id what the items of one batch must have in common, such as their size; empty: all are alike.
    """

    ids: Sequence[str]
    record: Mapping[str, Any]
    kinds: Mapping[str, Hashable] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """The numbers of a run.

    Args:
        metrics: by key: value, ci95, n, n_reference, higher_is_better, protocol, header, digits, scale.
        rows: one of each item.
        replicates: by key: values on resamples of the items, for intervals of differences.
        curves: by name, see `eval.records.CurveRecord`.
        random_weights: which networks behind the numbers have random weights.
        reference: name and digest of what the items were compared with, where that is a set.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    replicates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    random_weights: Sequence[str] = ()
    reference: Mapping[str, Any] | None = None


class Study(Protocol):
    """A kind of run. It is built from the configuration; nothing heavy is imported or loaded before `load`."""

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """What is made of each item, by name, in the order in which it is written."""
        ...

    def needs(self) -> None:
        """Check settings, weights and data before anything slow.

        Raises:
            UserError: one sentence about a setting, or a screen about what is missing.
        """
        ...

    def items(self) -> Items:
        """The items, prepared on disk where they are images."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Everything that can change the artifacts; valid after `items`."""
        ...

    def score_identity(self) -> Mapping[str, Any]:
        """Everything else that can change the numbers made from them; `protocol` is their name."""
        ...

    def record(self) -> Mapping[str, Any]:
        """What run.json says besides: weights, selection, and so on."""
        ...

    def load(self, device: "torch.device") -> None:
        """Load the networks."""
        ...

    @property
    def parts(self) -> int:
        """How many results are made of each item (candidates); they count in the size of a batch. After `load`."""
        ...

    def evaluate(self, count: int) -> None:
        """Evaluate the networks once on so many items or candidates, to measure what that takes."""
        ...

    def batch_size_key(self) -> str:
        """What the best batch size depends on, besides the device."""
        ...

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Say and check what there is to say and check before the first batch; returns notes for run.json.

        Raises:
            UserError: if the run should not start.
        """
        ...

    def read(self, ids: Sequence[str]) -> Any:
        """The inputs of a batch. It is called in a thread, one batch ahead."""
        ...

    def make(
        self, ids: Sequence[str], inputs: Any, size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """The contents of each item's artifacts, by their names.

        Args:
            ids: the batch.
            inputs: of `read`, or a slice of it where memory was not enough for the batch.
            size: what may go through the networks at once.
            execution: of the run.
            meter: every evaluation of a network goes through it.
        """
        ...

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """The numbers of a whole run, from its folder and what its batches cost; `load` need not have been called."""
        ...

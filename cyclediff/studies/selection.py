"""Best of N: which candidates an edit has, and which of them wins."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

from cyclediff.runtime.study import Scored

RANKING = ("dclip", "clip", "psnr", "ssim")  # scores by which a candidate can win
METRICS_OF_CLIP = ("dclip", "clip")


@dataclass(frozen=True)
class Candidate:
    """One way to make an edit.

    Args:
        index: its number in the official order.
        encoding: number of its (trial, source_guidance, skip), which keys its noise: candidates that differ in
            `guidance` alone share it.
        trial: number of the attempt.
        source_guidance: guidance scale of the encoder.
        skip: timesteps that are left out at the noisy end.
        guidance: guidance scale of the decoder.
    """

    index: int
    encoding: int
    trial: int
    source_guidance: float
    skip: int
    guidance: float

    def record(self) -> dict[str, Any]:
        """Its settings, as a row of the table of candidates begins."""
        return {key: value for key, value in vars(self).items() if key != "encoding"}


@dataclass(frozen=True)
class Grid:
    """The candidates of an edit: all combinations.

    Args:
        trials: number of attempts with other noise.
        source_guidance: guidance scales of the encoder.
        skip: numbers of timesteps that are left out at the noisy end.
        guidance: guidance scales of the decoder.
    """

    trials: int
    source_guidance: tuple[float, ...]
    skip: tuple[int, ...]
    guidance: tuple[float, ...]
    SETTINGS: ClassVar[tuple[str, ...]] = ("trial", "source_guidance", "skip", "guidance")

    def __post_init__(self):
        for key in ("source_guidance", "skip", "guidance"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values) or min(values) < 0:
                raise ValueError(
                    f"selection.grid.{key} must be a list of different numbers, none negative; got {values}"
                )
        if self.trials < 1:
            raise ValueError(f"selection.trials must be at least 1; got {self.trials}")

    def candidates(self) -> list[Candidate]:
        """In the order of the official code: trials outermost, then encoder scales, skips, and decoder scales."""
        encodings = enumerate(product(range(self.trials), self.source_guidance, self.skip))
        every = [(number, *settings, guidance) for number, settings in encodings for guidance in self.guidance]
        return [Candidate(index, *settings) for index, settings in enumerate(every)]


def rank(row: Mapping[str, Any], metric: str) -> tuple[bool, float, int]:
    """A key that sorts candidates from worst to best: by score, and of equal ones the first is best.

    Below all others are those whose score is undefined: unchanged images. The official code takes the first such one
    for the best. So of candidates that all are undefined, as where source and target text are the same, the first is
    best; a run says so before it begins.

    Args:
        row: a candidate's `index`, and its `<metric>` and `<metric>_defined`, which a lone candidate need not have; the
            score is None where no candidate of the image can have one.
        metric: the score.
    """
    return row.get(f"{metric}_defined", True), row.get(metric) or 0.0, -row["index"]


def grid_for(asked: Grid, method: Any) -> Grid:
    """The candidates that a method can make of those that are asked for.

    Args:
        asked: all of them.
        method: see `Method`. One that always starts at pure noise, and draws none, has one trial and no skip.

    Raises:
        ValueError: if a skip leaves no timestep.
    """
    if max(asked.skip) >= method.num_steps:
        raise ValueError(
            f"selection.grid.skip must be less than the {method.num_steps} timesteps of {method.name}; "
            f"got {max(asked.skip)}"
        )
    return asked if method.starts_at else Grid(1, asked.source_guidance, (0,), asked.guidance)


def with_unselected(scored: Scored, candidates: Sequence[Mapping[str, Any]], without: Collection[str]) -> Scored:
    """Scores with the mean over all candidates beside each: the best of N by a score is an optimistic number of it.

    Args:
        scored: of the chosen ones.
        candidates: all of them, with their scores.
        without: metrics of which candidates have another kind of score.
    """
    metrics = {}
    for key, entry in scored.metrics.items():
        found = [row[key] for row in candidates if row.get(key) is not None] if key not in without else []
        metrics[key] = {**entry, "unselected": sum(found) / len(found)} if found else entry
    return replace(scored, metrics=metrics)

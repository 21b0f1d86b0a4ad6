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
class Prune:
    """When candidates are ranked by what they would become, and how many of them go on.

    Args:
        at: shares of the sampler's steps that are still to be made, each between 0 and 1.
        keep: share of an image's candidates in a batch that go on, above 0 and below 1; one at least.
    """

    at: tuple[float, ...]
    keep: float

    def __post_init__(self):
        if not self.at or not all(0 < share < 1 for share in self.at):
            raise ValueError(f"selection.prune.at must be a list of numbers between 0 and 1; got {list(self.at)}")
        if not 0 < self.keep < 1:
            raise ValueError(f"selection.prune.keep must be between 0 and 1; got {self.keep}")

    def steps(self, num_steps: int) -> list[int]:
        """The numbers of steps left at which candidates are ranked."""
        return sorted({max(1, round(share * num_steps)) for share in self.at})

    def count(self, candidates: int) -> int:
        """How many of so many go on."""
        return max(1, round(self.keep * candidates))


def read_prune(asked: Any) -> Prune | None:
    """`selection.prune` of the configuration.

    Raises:
        ValueError: if it is no {at: [SHARE, …], keep: SHARE} with shares in range.
    """
    if asked is None:
        return None
    match asked:
        case {"at": list(at), "keep": float(keep), **more} if not more and all(isinstance(x, float) for x in at):
            return Prune(tuple(at), keep)
    raise ValueError(f"selection.prune must be null or such as {{at: [0.3], keep: 0.5}}; got {asked}")


@dataclass(frozen=True)
class Grid:
    """The candidates of an edit: all combinations.

    Args:
        trials: number of attempts with other noise.
        source_guidance: guidance scales of the encoder.
        skip: numbers of timesteps that are left out at the noisy end.
        guidance: guidance scales of the decoder.
        prune: when some of them are dropped; None for never.
    """

    trials: int
    source_guidance: tuple[float, ...]
    skip: tuple[int, ...]
    guidance: tuple[float, ...]
    prune: Prune | None = None
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
        ValueError: if a skip leaves no timestep, or candidates should be dropped that cannot.
    """
    if asked.prune and (len(asked.candidates()) == 1 or not method.inverts or method.attention):
        raise ValueError(
            "selection.prune drops some of several candidates of cyclediffusion without attention control; got "
            f"{method.name} and {len(asked.candidates())}, leave it out (selection.prune=null)"
        )
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
    if any(row.get("dropped") for row in candidates):
        return scored  # a mean over those that were kept would be one of chosen ones
    metrics = {}
    for key, entry in scored.metrics.items():
        found = [row[key] for row in candidates if row.get(key) is not None] if key not in without else []
        metrics[key] = {**entry, "unselected": sum(found) / len(found)} if found else entry
    return replace(scored, metrics=metrics)

"""Best of N: which candidates an edit has, and which of them wins."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One way to make an edit.

    Args:
        index: its number in the official order.
        chain: number of its (trial, source_guidance, skip), which keys its noise: candidates that differ in `guidance`
            alone share it.
        trial: number of the attempt.
        source_guidance: guidance scale of the encoder.
        skip: timesteps that are left out at the noisy end.
        guidance: guidance scale of the decoder.
    """

    index: int
    chain: int
    trial: int
    source_guidance: float
    skip: int
    guidance: float


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
        chains = enumerate(product(range(self.trials), self.source_guidance, self.skip))
        every = [(chain, *settings, guidance) for chain, settings in chains for guidance in self.guidance]
        return [Candidate(index, *settings) for index, settings in enumerate(every)]


def rank(row: Mapping[str, Any], metric: str) -> tuple[bool, float, int]:
    """A key that sorts candidates from worst to best: by score, and of equal ones the first is best.

    Below all others are those whose score is undefined: unchanged images. The official code takes the first such one
    for the best.

    Args:
        row: a candidate's `index`, and its `<metric>` and `<metric>_defined`, which a lone candidate need not have.
        metric: the score.
    """
    return row.get(f"{metric}_defined", True), row.get(metric, 0.0), -row["index"]

"""How sure a number is, and whether two numbers differ: bootstrap over images (Efron & Tibshirani 1993).

A metric's replicates are its values on resamples of the images, drawn with replacement. Resamples are the same for the
same number of images and seed, so that the replicates of two runs on the same images are pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BOUNDS = (0.025, 0.975)


@dataclass(frozen=True)
class Difference:
    """Value of one run minus that of another.

    Args:
        value: the difference.
        low: end of its 95 % interval.
        high: the other end.
        probability: share of the pairs of replicates in which the first is below the second; equal ones count half.
    """

    value: float
    low: float
    high: float
    probability: float

    @property
    def distinguishable(self) -> bool:
        """Whether 0 is outside of the interval."""
        return not self.low <= 0 <= self.high


def resamples(n: int, count: int, seed: int = 0) -> Tensor:
    """How often each of n images is in each of `count` resamples of n images: (count, n) int64, rows sum to n."""
    if n < 1:
        raise ValueError(f"there must be images to resample; got {n}")
    rows = torch.randint(n, (count, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(count, n, dtype=torch.int64).scatter_add_(1, rows, torch.ones_like(rows))


def mean_replicates(values: Tensor, counts: Tensor) -> Tensor:
    """Means of resamples.

    Args:
        values: one of each image, (n,), NaN for images that have none.
        counts: from `resamples`, (B, n).

    Returns:
        (B,) float64, means over the images that have a value; NaN where no image of a resample has one.
    """
    known = ~values.isnan()
    weights = counts[:, known].double()
    return weights @ values[known].double() / weights.sum(1)


def interval(value: float, replicates: Tensor) -> tuple[float, float]:
    """95 % interval of an estimator at this number of images: percentiles of its replicates, moved to the value.

    Replicates are moved so that their mean is the value. For a mean over images this changes next to nothing. The
    Fréchet distance of a resample, though, is larger than that of the sample, because copies take the place of images
    as if there were fewer of them, and percentiles as they are would lie above the value itself. The interval is of
    what the estimator gives on average at this number of images, not of its limit for infinitely many.

    Args:
        value: of the metric on all images.
        replicates: on resamples, (B,); NaN ones are left out.

    Returns:
        Low and high; NaN if there are no replicates.
    """
    known = replicates[~replicates.isnan()].double()
    if not len(known):
        return float("nan"), float("nan")
    low, high = (known - known.mean() + value).quantile(torch.tensor(BOUNDS, dtype=torch.float64)).tolist()
    return low, high


def difference(value_a: float, value_b: float, replicates_a: Tensor, replicates_b: Tensor) -> Difference:
    """Compare two runs on the same images by the replicates of the same resamples; what both share cancels.

    Args:
        value_a: of the metric, first run.
        value_b: second run.
        replicates_a: (B,); pairs with a NaN are left out.
        replicates_b: (B,), of the same resamples.

    Raises:
        ValueError: if the replicates are not pairs.
    """
    if replicates_a.shape != replicates_b.shape:
        raise ValueError(
            f"replicates of two runs must come in pairs; got {len(replicates_a)} and {len(replicates_b)}; compute both "
            "from the same images and with the same number of resamples"
        )
    apart = (replicates_a - replicates_b).double()
    apart = apart[~apart.isnan()]
    value = value_a - value_b
    moved = apart - apart.mean() + value
    probability = ((moved < 0).double() + (moved == 0).double() / 2).mean().item()
    return Difference(value, *interval(value, apart), probability)

"""How sure a number is: bootstrap over images (Efron & Tibshirani 1993).

A metric's replicates are its values on resamples of the images, drawn with replacement. Resamples are the same for the
same number of images and seed. So the replicates of two runs on the same images are pairs, which
`eval.report.comparison` compares.
"""

import torch
from torch import Tensor

BOUNDS = (0.025, 0.975)


def resamples(n: int, count: int, seed: int = 0) -> Tensor:
    """How often each of n images is in each of `count` resamples of n images.

    Returns:
        (count, n) int64, rows sum to n. The first rows are the same for any larger `count`.

    Raises:
        ValueError: if there is no image.
    """
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

    Replicates are moved so that their mean is the value. For a mean over images this changes almost nothing. But the
    Fréchet distance of a resample is larger than that of the sample: copies act as if there were fewer images.
    Percentiles that are not moved would lie above the value itself. The interval is of what the estimator gives on
    average at this number of images, not of its limit for infinitely many.

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

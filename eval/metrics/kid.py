"""Kernel distance between two sets of features (KID, arXiv 1801.01401), over all images, over subsets, and resampled.

The kernel is (x·y / d + 1)³ on features of length d, in float64. Raw; tables show the distance times 1000 and say so.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.metrics.frechet import refuse_infinite

ROWS = 1024  # of a kernel matrix in memory at once


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD² over all images (arXiv 1801.01401, Eq. 4); it can be negative.

    All images at once, not the mean over random subsets: with a few hundred images every subset is nearly the whole
    set, and the closed form has no randomness.

    Args:
        a: features (n_a, d), n_a >= 2.
        b: features (n_b, d), n_b >= 2.

    Raises:
        ValueError: if the estimator is not defined, a feature is not finite, or the two have unequal d.
    """
    _check(a, b)
    a, b = a.double(), b.double()
    return (_within(a) + _within(b) - 2 * _between(a, b).mean()).item()


def kernel_distance_subsets(a: Tensor, b: Tensor, size: int, count: int, seed: int = 0) -> Tensor:
    """Unbiased MMD² of pairs of random subsets, as KID was published; their mean is the number to report.

    Args:
        a: features (n_a, d).
        b: features (n_b, d).
        size: images in a subset, drawn without replacement from either side.
        count: number of pairs.
        seed: of the draws.

    Returns:
        (count,) float64.

    Raises:
        ValueError: as `kernel_distance`, and if there are fewer images than `size`.
    """
    _check(a, b)
    if not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"a subset must have 2 images at least and no more than either set, which have {len(a)} and {len(b)}; got "
            f"{size}; choose a smaller one, or the distance over all images"
        )
    generator = torch.Generator().manual_seed(seed)
    pairs = [[side[torch.randperm(len(side), generator=generator)[:size]] for side in (a, b)] for _ in range(count)]
    return torch.tensor([kernel_distance(*pair) for pair in pairs], dtype=torch.float64)


def kernel_replicates(a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
    """Kernel distances between resamples of `a` and the whole of `b`.

    An image's pairs with its own copies are left out, as those with itself are: with w copies of each of n images in
    all, the first term is Σ_{i≠j} w_i w_j k_ij / (n² - Σ w_i²). Copies then add no bias.

    Args:
        a: features (n_a, d).
        b: features (n_b, d), n_b >= 2.
        counts: how often each image is in each resample, (B, n_a) integers.

    Returns:
        (B,) float64; NaN where a resample has one image only.

    Raises:
        ValueError: as `kernel_distance`, and if the counts are of other images.
    """
    _check(a, b)
    if counts.dim() != 2 or counts.shape[1] != len(a):
        raise ValueError(f"resamples of {len(a)} images must be (B, {len(a)}) counts; got {tuple(counts.shape)}")
    a, b, w = a.double(), b.double(), counts.double()
    n = w.sum(1)
    pairs = sum((((w[:, rows] @ kernel) * w).sum(1) for rows, kernel in _kernels(a)), torch.zeros_like(n))
    return pairs / (n.square() - w.square().sum(1)) + _within(b) - 2 * (w @ _between(a, b)) / n


def _check(a: Tensor, b: Tensor) -> None:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images on each side; got {len(a)} and {len(b)}")
    for side in (a, b):
        refuse_infinite(side)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"both sides need features of one network; got {a.shape[1]} and {b.shape[1]} features an image"
        )


def _within(x: Tensor) -> Tensor:
    """Mean kernel of the pairs of unlike images."""
    return torch.stack([kernel.sum() for _, kernel in _kernels(x)]).sum() / (len(x) * (len(x) - 1))


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Mean kernel of each image of `a` with those of `b`, (n_a,)."""
    return torch.cat([_kernel(block, b).mean(1) for block in a.split(ROWS)])


def _kernels(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the kernel matrix of x with itself, block by block, with zeros for an image and itself."""
    for start in range(0, len(x), ROWS):
        rows = slice(start, min(start + ROWS, len(x)))
        kernel = _kernel(x[rows], x)
        kernel.diagonal(start).zero_()
        yield rows, kernel


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base.square().mul_(base)

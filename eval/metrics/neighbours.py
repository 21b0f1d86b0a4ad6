"""Density and coverage (arXiv 2002.09797): are generated images where real ones are, and are all of these covered?

A real image's ball reaches to its k-th nearest neighbour among the other real images. Inside means closer than that,
as in the authors' package prdc and in dgm-eval; torch-fidelity's precision and recall also count what is just as far.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.metrics.frechet import refuse_infinite

K = 5  # of prdc's examples and of dgm-eval
BLOCK = 2**24  # numbers of a block of distances in memory, 128 MiB


def density(generated: Tensor, real: Tensor, k: int = K) -> Tensor:
    """In how many real images' balls each generated image is, divided by k; the density is the mean.

    Args:
        generated: features (n, d).
        real: features (m, d), m > k.
        k: number of the neighbour that the balls reach to.

    Returns:
        float64 (n,).

    Raises:
        ValueError: if a feature is not finite, there are too few real images, or the two have unequal d.
    """
    radii = _radii(generated, real, k)
    return torch.cat([(block < radii).double().sum(1) / k for block in _distances(generated, real)])


def coverage(generated: Tensor, real: Tensor, k: int = K) -> float:
    """The share of real images whose ball has a generated image inside.

    Args:
        generated: features (n, d), n >= 1.
        real: features (m, d), m > k.
        k: see `density`.

    Raises:
        ValueError: see `density`.
    """
    radii = _radii(generated, real, k)
    nearest = torch.stack([block.amin(0) for block in _distances(generated, real)]).amin(0)
    return (nearest < radii).double().mean().item()


def _radii(generated: Tensor, real: Tensor, k: int) -> Tensor:
    for side in (generated, real):
        refuse_infinite(side)
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"both sides need features of one network; got {generated.shape[1]} and {real.shape[1]} features an image"
        )
    if len(real) <= k or not len(generated):
        raise ValueError(
            f"balls to the neighbour {k} need more than {k} reference images, and a generated one; got {len(real)} and "
            f"{len(generated)}"
        )
    return torch.cat([block.kthvalue(k + 1, dim=1).values for block in _distances(real, real)])  # the first is itself


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Distances of each row of a to those of b in float64, block by block; differences are taken exactly."""
    a, b = a.double(), b.double()
    for part in a.split(max(1, BLOCK // len(b))):
        yield torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist")

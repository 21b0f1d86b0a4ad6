"""Fréchet distance between two sets of features (FID, arXiv 1706.08500)."""

import math

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), in float64.

    tr (C_a C_b)^½ is the nuclear norm of A Bᵀ / √((n_a - 1)(n_b - 1)) for centred features A and B, so no matrix square
    root is needed, also where there are fewer images than features.

    Args:
        a: features (n_a, d), n_a >= 2.
        b: features (n_b, d), n_b >= 2.

    Raises:
        ValueError: if a covariance is not defined.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 images on each side; got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = (a - mean_a) / math.sqrt(len(a) - 1), (b - mean_b) / math.sqrt(len(b) - 1)
    cross = torch.linalg.svdvals(_compact(a) @ _compact(b).T).sum()
    distance = (mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave equal sets a hair below zero


def _compact(x: Tensor) -> Tensor:
    """A matrix of at most d rows with the same xᵀx."""
    return torch.linalg.qr(x, mode="r").R if x.shape[0] > x.shape[1] else x

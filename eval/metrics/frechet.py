"""Fréchet distance between two sets of features (FID, arXiv 1706.08500), its resamples, and its limit for many images.

Symbols: X are centred features divided by √(n - 1), so that C = XᵀX is their covariance; F is any matrix with
FᵀF = C_b. tr (C_a C_b)^½ is the nuclear norm of X Fᵀ: no matrix square root is needed, and there may be fewer images
than features.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

NARROW = 256  # columns below which halving a product gains nothing
BLOCK = 2**22  # numbers that a block of resamples may hold, 32 MiB


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a Fréchet distance needs of a set of features.

    Args:
        mean: (d,) float64.
        covariance: (d, d) float64, symmetric; it may be singular.
        n: number of images; None where it is not known.
    """

    mean: Tensor
    covariance: Tensor
    n: int | None = None


def frechet_distance(a: Tensor, b: Tensor | Statistics) -> float:
    """|mu_a - mu_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), in float64.

    Args:
        a: features (n_a, d), n_a >= 2.
        b: features (n_b, d), n_b >= 2, or what is known of them.

    Raises:
        ValueError: if a covariance is not defined, a feature is not finite, or the two have unequal d.
    """
    _check(a, b)
    a = a.double()
    mean, d = a.mean(0), a.shape[1]
    x = (a - mean) / math.sqrt(len(a) - 1)
    few = len(a) < d or (isinstance(b, Tensor) and len(b) < d)
    mean_b, factor, trace = _reference(b, compact=not few)
    if few:
        product = x @ factor.T
        with _one_thread():
            cross = torch.linalg.svdvals(product).sum()
    else:  # the eigenvalues of F C_a Fᵀ are the squares, at a quarter of the cost and half of the digits
        cross = _sum_of_roots(_congruent(factor, _gram(x)))
    distance = (mean - mean_b).square().sum() + x.square().sum() + trace - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave equal sets a hair below zero


def frechet_replicates(a: Tensor, b: Tensor | Statistics, counts: Tensor) -> Tensor:
    """Fréchet distances between resamples of `a` and the whole of `b`.

    What involves `b` is computed once. A resample then costs the eigenvalues of one matrix whose size is the number of
    its unlike images or the rank of C_b, whichever is smaller.

    Args:
        a: features (n_a, d).
        b: features (n_b, d), n_b >= 2, or what is known of them.
        counts: how often each image is in each resample, (B, n_a) integers; rows may sum to any number >= 2.

    Returns:
        (B,) float64.

    Raises:
        ValueError: as `frechet_distance`, and if a resample has fewer than 2 images.
    """
    _check(a, b)
    if counts.dim() != 2 or counts.shape[1] != len(a) or (counts.sum(1) < 2).any():
        raise ValueError(
            f"resamples of {len(a)} images must be (B, {len(a)}) counts whose rows sum to at least 2; got "
            f"{tuple(counts.shape)}"
        )
    mean_b, factor, trace = _reference(b, compact=True)
    weights = counts.double()
    n = weights.sum(1)
    center = a.double().mean(0)
    x = a.double() - center
    means = weights @ x / n[:, None]
    spread = (weights @ x.square().sum(1) - n * means.square().sum(1)) / (n - 1)
    projected = x @ factor.T
    apart = (means - (mean_b - center)).square().sum(1)
    by_images = (counts > 0).sum(1).max() < len(factor)
    cross = _cross_by_images(projected, weights) if by_images else _cross_by_features(projected, weights)
    return (apart + spread + trace - 2 * cross).clamp(min=0)


def frechet_infinity(a: Tensor, b: Tensor | Statistics, points: int = 15, seed: int = 0) -> float:
    """The distance extrapolated to infinitely many images in `a` (FID∞, arXiv 1911.07023).

    A line is fitted to the distances of random subsets of `a`, of n/2 to n images, against 1/n; its value at 0 is the
    result. Two things differ from the paper. Subsets are drawn at random, because these images exist already; the paper
    generates them from Sobol sequences. Their size starts at half of the images; the paper starts at 5,000 of 50,000.
    `b` is fixed, as in the paper, and its own share of the bias stays. The line is right if n is larger than the number
    of features that matter. With fewer images the result is still too large, and its noise is several times that of the
    distance.

    Args:
        a: features (n_a, d), n_a >= 4.
        b: features (n_b, d), n_b >= 2, or what is known of them.
        points: number of subsets, the last of which is all of `a`.
        seed: of the subsets.

    Raises:
        ValueError: as `frechet_distance`, and if there are fewer than 4 images.
    """
    if len(a) < 4:
        raise ValueError(f"an extrapolated Fréchet distance needs at least 4 images; got {len(a)}")
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(len(a) // 2, len(a), points, dtype=torch.float64).round().long()
    counts = torch.zeros(points, len(a), dtype=torch.int64)
    for row, size in zip(counts, sizes.tolist(), strict=True):
        row[torch.randperm(len(a), generator=generator)[:size]] = 1
    distances = frechet_replicates(a, b, counts)
    design = torch.stack([1 / sizes.double(), torch.ones(points, dtype=torch.float64)], dim=1)
    return torch.linalg.lstsq(design, distances[:, None]).solution[1].item()


def _check(a: Tensor, b: Tensor | Statistics) -> None:
    sides = [a, b] if isinstance(b, Tensor) else [a]
    if min(map(len, sides)) < 2:
        got = " and ".join(str(len(side)) for side in sides)
        raise ValueError(f"a Fréchet distance needs at least 2 images on each side; got {got}")
    for side in sides:
        refuse_infinite(side)
    d = b.shape[1] if isinstance(b, Tensor) else len(b.mean)
    if a.shape[1] != d:
        raise ValueError(f"both sides need features of one network; got {a.shape[1]} and {d} features an image")


def refuse_infinite(features: Tensor) -> None:
    """Raise a ValueError if some of the features (n, d) are not finite."""
    wrong = (~features.isfinite()).any(1).sum().item()
    if wrong:
        raise ValueError(
            f"{wrong} of {len(features)} images have features that are not finite; check these images and the network, "
            "and run it in float32"
        )


def _reference(b: Tensor | Statistics, compact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, F and trace; F has min(n, d) rows at most if `compact`, else perhaps one for each image."""
    if isinstance(b, Statistics):
        return b.mean.double(), _factor(b.covariance.double()), b.covariance.double().trace()
    b = b.double()
    mean = b.mean(0)
    x = (b - mean) / math.sqrt(len(b) - 1)
    compact = compact and len(b) > b.shape[1]
    return mean, _factor(_gram(x)) if compact else x, x.square().sum()


def _gram(x: Tensor) -> Tensor:
    """XᵀX; of its two equal halves only one is computed."""
    if x.shape[1] <= NARROW:
        return x.T @ x
    left, right = x.tensor_split(2, dim=1)
    cross = left.T @ right
    return torch.cat([torch.cat([_gram(left), cross], dim=1), torch.cat([cross.T, _gram(right)], dim=1)])


def _factor(covariance: Tensor) -> Tensor:
    """F with FᵀF = covariance: Cholesky's, or where that fails the eigenvectors', without eigenvalues below zero."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return lower.T
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.max() * torch.finfo(torch.float64).eps
    return (vectors[:, kept] * values[kept].sqrt()).T


def _congruent(factor: Tensor, covariance: Tensor) -> Tensor:
    """F C Fᵀ; the upper half may be missing. With a triangular F, LAPACK takes a third of the time."""
    from scipy.linalg import get_lapack_funcs

    if factor.shape != covariance.shape or factor.tril(-1).any():
        return factor @ covariance @ factor.T
    matrices = covariance.cpu().numpy(), factor.T.cpu().numpy()
    (reduce,) = get_lapack_funcs(("sygst",), matrices)
    return torch.from_numpy(reduce(*matrices, itype=2, lower=1)[0])


def _cross_by_images(projected: Tensor, weights: Tensor) -> Tensor:
    """Nuclear norm of √w (g - mean) / √(n - 1) for each row of weights, from products of images; g is X Fᵀ."""
    products = projected @ projected.T
    found = []
    for row in weights:
        n, kept = row.sum(), row > 0
        w = row[kept]
        gram = products[kept][:, kept]
        to_mean = gram @ w / n
        centred = gram - to_mean[:, None] - to_mean + w @ to_mean / n
        root = (w / (n - 1)).sqrt()
        found.append(_sum_of_roots(root[:, None] * centred * root))
    return torch.stack(found)


def _cross_by_features(projected: Tensor, weights: Tensor) -> Tensor:
    """The same from products of features, many resamples at once where they are small."""
    found = []
    for block in weights.split(max(1, BLOCK // max(1, projected.numel()))):
        n = block.sum(1, keepdim=True)
        means = block @ projected / n
        x = (block / (n - 1)).sqrt()[:, :, None] * (projected - means[:, None])
        found.append(_sum_of_roots(x.mT @ x))
    return torch.cat(found)


def _sum_of_roots(symmetric: Tensor) -> Tensor:
    """Of the eigenvalues, (..., d, d) → (...); only the lower half is read."""
    with _one_thread():
        return torch.linalg.eigvalsh(symmetric).clamp(min=0).sqrt().sum(-1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute spectra on one thread. More threads gain little; on a busy machine they mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Kernel distance between two sets of features (KID, arXiv 1801.01401)."""

from torch import Tensor


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD² with the kernel (x·y / d + 1)³ over all images, in float64; it can be negative.

    All images at once, not the mean over random subsets: with a few hundred images every subset is nearly the whole
    set, and the closed form has no randomness. Raw; tables show it times 1000 and say so.

    Args:
        a: features (n_a, d), n_a >= 2.
        b: features (n_b, d), n_b >= 2.

    Raises:
        ValueError: if the estimator is not defined.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images on each side; got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    mean_a = (within_a.sum() - within_a.trace()) / (len(a) * (len(a) - 1))
    mean_b = (within_b.sum() - within_b.trace()) / (len(b) * (len(b) - 1))
    return (mean_a + mean_b - 2 * _kernel(a, b).mean()).item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3

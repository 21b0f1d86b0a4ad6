"""An image in another one's colours: the linear Monge-Kantorovitch map of Pitié and Kokaram (2007)."""

import torch
from torch import Tensor


def in_colours_of(targets: Tensor, images: Tensor) -> Tensor:
    """Images (n, 3, h, w) in the colours of others, see `match_colours`; on 8 bits, as in the official code."""

    def bits(image: Tensor) -> Tensor:
        return (255 * (image.movedim(0, 2) + 1) / 2).clamp(0, 255)

    made = []
    for image, target in zip(images, targets, strict=True):
        matched = match_colours(bits(image).to(torch.uint8), bits(target).round().to(torch.uint8))
        made.append(matched.movedim(2, 0).to(images) / 127.5 - 1)
    return torch.stack(made)


def match_colours(image: Tensor, reference: Tensor) -> Tensor:
    """Give an image the mean and covariance of another one's colours, as DiffuseIT's official code does it.

    Both are stretched to [0, 1] by their smallest and largest value, and so is the result. So it always spans the whole
    range, and its contrast is not the reference's. A direction of colour in which the image does not vary stays so.

    Args:
        image: uint8 (h, w, 3).
        reference: uint8 of any size, (h', w', 3).

    Returns:
        uint8, the shape of image.

    Raises:
        ValueError: if one of them has one value only.
    """
    x, y = (_stretched(picture.double()) for picture in (image, reference))
    matched = (x - x.mean(dim=(0, 1))) @ transfer_matrix(_covariance(x), _covariance(y)) + y.mean(dim=(0, 1))
    return (255 * _stretched(matched)).round().to(torch.uint8)


def transfer_matrix(A: Tensor, B: Tensor) -> Tensor:
    """The symmetric M with M A M = B: A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2), of covariances (3, 3)."""
    root, inverse = _power(A, 0.5), _power(A, -0.5)
    return inverse @ _power(root @ B @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a positive matrix; eigenvalues that are 0 but for rounding stay 0."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    positive = values > 1e-12 * values.max()
    return vectors @ torch.diag(torch.where(positive, values.clamp(min=1e-300) ** exponent, 0.0)) @ vectors.mT


def _covariance(x: Tensor) -> Tensor:
    return x.flatten(0, 1).mT.cov()


def _stretched(x: Tensor) -> Tensor:
    low, high = x.min(), x.max()
    if low == high:
        raise ValueError("a picture of one value has no colours to match; choose another, or match_colours=false")
    return (x - low) / (high - low)

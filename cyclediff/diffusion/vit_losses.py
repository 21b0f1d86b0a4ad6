"""Losses on the features of a vision transformer: structure from the keys of a layer, appearance from its CLS token.

They are those of Splice (arXiv 2201.00424) and DiffuseIT (arXiv 2209.15264). Each is per image, so that the images of a
batch do not depend on each other, and differentiable in its first argument. Keys are (n, tokens, d), with the CLS token
among them; a CLS token is (n, d).
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
SMALLEST_NORM = 1e-8


class Features(NamedTuple):
    """What a layer makes of images: its keys (n, tokens, d), and the CLS token (n, d) of its output."""

    keys: Tensor
    cls: Tensor


class FeatureNetwork(Protocol):
    """A vision transformer; `cyclediff.models.vit.ViT` in a run."""

    def __call__(self, image: Tensor) -> Features:
        """Features of images (n, 3, h, w) in [-1, 1], not clamped; a gradient flows to the images."""
        ...


def self_similarity(keys: Tensor) -> Tensor:
    """Cosines between all tokens of an image, (n, tokens, tokens)."""
    norm = keys.norm(dim=-1)
    return keys @ keys.mT / (norm[:, :, None] * norm[:, None, :]).clamp(min=SMALLEST_NORM)


def structure(keys: Tensor, similarity: Tensor) -> Tensor:
    """How far the self-similarity is from another, (n,): the mean square of their difference.

    Args:
        keys: of the output.
        similarity: `self_similarity` of the image whose structure is kept.
    """
    return (self_similarity(keys) - similarity).square().mean(dim=(1, 2))


def contrast(keys: Tensor, others: Tensor) -> Tensor:
    """Cross entropy of finding each token's own place in another image, (n,).

    The candidates of token i are the other image's token i, then all its tokens. Token i itself stands among the latter
    with a cosine of -10, as in the official code, so it has no weight there.

    Args:
        keys: of the output.
        others: keys of the image whose content is kept, same shape.
    """
    cosines = F.normalize(keys, dim=-1, eps=0) @ F.normalize(others, dim=-1, eps=0).mT
    positive = cosines.diagonal(dim1=1, dim2=2)[..., None]
    itself = torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
    logits = torch.cat((positive, cosines.masked_fill(itself, -10.0)), dim=2) / TEMPERATURE
    return -logits.log_softmax(dim=2)[:, :, 0].mean(dim=1)


def cls_distance(cls: Tensor, other: Tensor) -> Tensor:
    """Mean square of the difference of two CLS tokens, (n,): the style loss."""
    return (cls - other).square().mean(dim=1)

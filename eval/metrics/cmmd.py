"""CMMD (arXiv 2401.09603): a kernel distance between CLIP's features of two sets of images.

The kernel is exp(-|x - y|² / (2·10²)) on features of length 1. The estimator is the biased one, with each image's pair
with itself, times 1000, as the authors' code has it. It is computed in float64; theirs is in float32.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eval.metrics.clip import open_clip_scorer
from eval.metrics.features import Extractor
from eval.metrics.frechet import refuse_infinite

SIGMA = 10.0
SCALE = 1000.0
ROWS = 1024  # of a kernel matrix in memory at once


def cmmd(a: Tensor, b: Tensor) -> float:
    """The distance of two sets of features.

    Args:
        a: (n_a, d), n_a >= 1; the published ones have length 1.
        b: (n_b, d).

    Raises:
        ValueError: if a set is empty, a feature is not finite, or the two have unequal d.
    """
    return cmmd_replicates(a, b, torch.ones(1, len(a), dtype=torch.int64)).item()


def cmmd_replicates(a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
    """Distances between resamples of `a` and the whole of `b`.

    Args:
        a: features (n_a, d).
        b: features (n_b, d).
        counts: how often each image is in each resample, (B, n_a) integers.

    Returns:
        (B,) float64.

    Raises:
        ValueError: as `cmmd`.
    """
    for side in (a, b):
        refuse_infinite(side)
    if a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(
            f"CMMD needs images on both sides and features of one network; got {len(a)} × {a.shape[1]} and {len(b)} × "
            f"{b.shape[1]}"
        )
    a, b, w = a.double(), b.double(), counts.double()
    n = w.sum(1)
    own = sum(((w[:, i : i + ROWS] @ _kernel(a[i : i + ROWS], a)) * w).sum(1) for i in range(0, len(a), ROWS)) / n**2
    other = torch.stack([_kernel(block, b).sum() for block in b.split(ROWS)]).sum() / len(b) ** 2
    between = w @ torch.cat([_kernel(block, b).mean(1) for block in a.split(ROWS)]) / n
    return SCALE * (own + other - 2 * between)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    squares = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (-squares / (2 * SIGMA**2)).exp()


@cache
def cmmd_features(path: str, model: str | None = None, device: str = "cpu") -> Extractor:
    """CLIP's features of pictures as CMMD's code prepares them: bicubic without antialiasing, in floats, to a square.

    Args:
        path: of CLIP, see `open_clip_scorer`.
        model: open_clip's name of a single file or of "openai": ViT-L-14-336-quickgelu is the published one; None for
            a folder or repository, which says it itself.
        device: where it runs.

    Raises:
        ValueError: see `open_clip_scorer`.
    """
    scorer = open_clip_scorer(path, model, device)
    prepared = scorer.network.visual.preprocess_cfg
    side = prepared["size"] if isinstance(prepared["size"], int) else prepared["size"][0]
    mean, std = (torch.tensor(prepared[name])[:, None, None] for name in ("mean", "std"))

    def read(picture: Image.Image) -> Tensor:
        x = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float()[None] / 255
        return (F.interpolate(x, (side, side), mode="bicubic", align_corners=False)[0] - mean) / std

    def features(batch: Tensor) -> Tensor:
        return F.normalize(scorer.network.encode_image(batch).double(), dim=1)

    name = scorer.protocol.partition("/")[0]
    return Extractor(f"{name}/bicubic{side}-noantialias", read, features, device, scorer.random)

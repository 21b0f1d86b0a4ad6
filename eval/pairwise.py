"""Faithfulness of one image to another, per image; a table's number is the mean over images.

Every function takes two uint8 tensors (n, 3, h, w), decoded PNGs, and returns float64 (n,). The definitions are those
of the official evaluators of CycleDiffusion (ChenWu98/cycle-diffusion) and EGSDE (ML-GSAI/EGSDE), which agree on them.
"""

from typing import Any

import torch
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mse) on [0, 1]; 100 for equal images, as both evaluators have it.

    The mean over images of dB is not the dB of the pooled error that many libraries compute.
    """
    mse = _mse(a, b)
    return torch.where(mse == 0, 100.0, -10 * mse.clamp(min=1e-300).log10())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11×11 Gaussian window, sigma 1.5, per channel, where the window fits.

    Images must be larger than the window.
    """
    border = SSIM_WINDOW // 2  # torchmetrics reflects the image at its border; the papers leave the border out
    return _ssim_maps(a, b)[..., border:-border, border:-border].mean(dim=(1, 2, 3))


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of the images on [0, 1], not divided by the number of pixels."""
    return (_unit(a) - _unit(b)).flatten(1).norm(dim=1)


def background(a: Tensor, b: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """PSNR, SSIM and mean squared error on [0, 1] outside of an edit, as PnPInversion's evaluator defines them.

    Both images are multiplied by 1 - mask and compared as wholes: black where the edit was, so that the larger the
    mask, the better the numbers. SSIM includes the border, where torchmetrics reflects the image.

    Args:
        a: uint8 (n, 3, h, w).
        b: the same.
        mask: bool (n, 1, h, w), true where an edit may change something.

    Returns:
        float64 (n,) for each of psnr, ssim and mse; NaN where the mask leaves nothing.
    """
    a, b = (torch.where(mask, 0, image) for image in (a, b))
    values = {"psnr": psnr(a, b), "ssim": _ssim_maps(a, b).mean(dim=(1, 2, 3)), "mse": _mse(a, b)}
    empty = mask.all(dim=(1, 2, 3))
    return {key: torch.where(empty, torch.nan, value) for key, value in values.items()}


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return (_unit(a) - _unit(b)).square().mean(dim=(1, 2, 3))


def _ssim_maps(a: Tensor, b: Tensor) -> Tensor:
    """Similarity at every place, (n, 3, h, w), image by image, because the window unfolds in memory."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    window: Any = {"kernel_size": SSIM_WINDOW, "sigma": SSIM_SIGMA, "data_range": 1.0, "reduction": "none"}
    pairs = zip(_unit(a).split(1), _unit(b).split(1), strict=True)
    return torch.cat([structural_similarity_index_measure(*p, **window, return_full_image=True)[1] for p in pairs])


def _unit(image: Tensor) -> Tensor:
    return image.double() / 255

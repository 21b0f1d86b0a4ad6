"""Faithfulness of one image to another, per image; a table's number is the mean over images.

Every function takes two uint8 tensors (n, 3, h, w), decoded PNGs, and returns float64 (n,). The definitions are those
of the official evaluators of CycleDiffusion (ChenWu98/cycle-diffusion) and EGSDE (ML-GSAI/EGSDE), which agree on them.
"""

import torch
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mse) on [0, 1]; 100 for equal images, as both evaluators have it.

    The mean over images of dB is not the dB of the pooled error that many libraries compute.
    """
    mse = (_unit(a) - _unit(b)).square().mean(dim=(1, 2, 3))
    return torch.where(mse == 0, 100.0, -10 * mse.clamp(min=1e-300).log10())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11×11 Gaussian window, sigma 1.5, per channel, where the window fits.

    Images must be larger than the window.
    """
    return torch.cat([_ssim(x, y) for x, y in zip(a.split(1), b.split(1), strict=True)])  # the window unfolds in memory


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    result = structural_similarity_index_measure(
        _unit(a), _unit(b), kernel_size=SSIM_WINDOW, sigma=SSIM_SIGMA, data_range=1.0, reduction="none",
        return_full_image=True,
    )  # fmt: skip
    border = SSIM_WINDOW // 2  # torchmetrics reflects the image at its border; the papers leave the border out
    return result[1][..., border:-border, border:-border].mean(dim=(1, 2, 3))


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of the images on [0, 1], not divided by the number of pixels."""
    return (_unit(a) - _unit(b)).flatten(1).norm(dim=1)


def _unit(image: Tensor) -> Tensor:
    return image.double() / 255

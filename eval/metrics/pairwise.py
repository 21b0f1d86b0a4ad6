"""Faithfulness of one image to another, per image; a table's number is the mean over images.

Every function takes two uint8 tensors (n, 3, h, w), decoded PNGs, and returns float64 (n,). The definitions are those
of the official evaluators of CycleDiffusion (ChenWu98/cycle-diffusion) and EGSDE (ML-GSAI/EGSDE), which agree on them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from eval.metrics.metric import Metric

PSNR, SSIM, L2 = Metric("PSNR dB", 2, True), Metric("SSIM", 3, True), Metric("L2", 2, False)
GROUND_TRUTH_PSNR = Metric("ground-truth PSNR", 2, True)
BACKGROUND = {
    "psnr": Metric("background PSNR", 2, True),
    "ssim": Metric("background SSIM", 3, True),
    "mse": Metric("background MSE×10⁴", 2, False, 1e4),
}
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
BORDER = SSIM_WINDOW // 2
C1, C2 = 0.01**2, 0.03**2
BLOCK = 2**18  # numbers that the images compared at once may hold; more do not fit in a processor's cache


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mse) on [0, 1]; 100 for equal images, as both evaluators have it.

    The mean of dB over images is not the dB of the pooled error, which many libraries compute.
    """
    error = mse(a, b)
    return torch.where(error == 0, 100.0, -10 * error.clamp(min=1e-300).log10())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11×11 Gaussian window, sigma 1.5, per channel, where the window fits.

    The papers leave the border out; libraries such as torchmetrics reflect the image there, so their number is another.

    Raises:
        ValueError: if the images are smaller than the window.
    """
    height, width = a.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        size = f"{SSIM_WINDOW}×{SSIM_WINDOW}"
        raise ValueError(f"SSIM needs images of {size} pixels at least; got {height}×{width}")
    size = max(1, BLOCK // a[0].numel())
    pairs = zip(a.split(size), b.split(size), strict=True)
    return torch.cat([_similarity(*map(_unit, pair)) for pair in pairs])


def ssim_outside(a: Tensor, b: Tensor, outside: Tensor) -> Tensor:
    """SSIM of what is outside of a mask: the mean over places outside, whose windows see pixels outside only.

    In each window the weights of the pixels outside are divided by their sum, also at the image's border. So without
    a mask the places where the window fits have the values of `ssim`.

    Args:
        a: uint8 (n, 3, h, w).
        b: the same shape.
        outside: bool (n, 1, h, w), true outside of the mask, somewhere in each image.

    Returns:
        float64 (n,).
    """
    size = max(1, BLOCK // a[0].numel())
    found = []
    for one, other, part in zip(a.split(size), b.split(size), outside.split(size), strict=True):
        weight = part.double()
        x, y, share = (_padded(value * weight) for value in (_unit(one), _unit(other), torch.ones_like(weight)))
        windows = _smooth(share).clamp(min=1e-300)
        mean_x, mean_y, squares, products = (_smooth(v) / windows for v in (x, y, x * x + y * y, x * y))
        values = _similarity_of(mean_x, mean_y, squares, products) * weight
        found.append(values.sum(dim=(1, 2, 3)) / (3 * weight.sum(dim=(1, 2, 3))))
    return torch.cat(found)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of the images on [0, 1], not divided by the number of pixels."""
    return (_unit(a) - _unit(b)).flatten(1).norm(dim=1)


def background(a: Tensor, b: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """PSNR, SSIM and mean squared error on [0, 1] outside of an edit, as PnPInversion's evaluator defines them.

    Both images are multiplied by 1 - mask and compared as wholes: black where the edit was, so that the larger the
    mask, the better the numbers. The evaluator uses torchmetrics; so does SSIM here. PSNR and the error have the same
    definition as `psnr` and are not torchmetrics': it gives inf for equal images, and one number for a whole batch.

    Args:
        a: uint8 (n, 3, h, w).
        b: the same.
        mask: bool (n, 1, h, w), true where an edit may change something.

    Returns:
        float64 (n,) for each of psnr, ssim and mse; NaN where the mask leaves nothing.

    Raises:
        ValueError: if the images are smaller than half of SSIM's window.
    """
    a, b = (torch.where(mask, 0, image) for image in (a, b))
    values = {"psnr": psnr(a, b), "ssim": _ssim_with_border(a, b), "mse": mse(a, b)}
    empty = mask.all(dim=(1, 2, 3))
    return {key: torch.where(empty, torch.nan, value) for key, value in values.items()}


def _ssim_with_border(a: Tensor, b: Tensor) -> Tensor:
    """Torchmetrics' SSIM in float32, which reflects images at their border; one image at a time is fastest."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    height, width = a.shape[-2:]
    if min(height, width) <= BORDER:
        size = f"{BORDER + 1}×{BORDER + 1}"
        raise ValueError(f"SSIM needs images of {size} pixels at least; got {height}×{width}")
    pairs = zip((a.float() / 255).split(1), (b.float() / 255).split(1), strict=True)
    found: list[Any] = [structural_similarity_index_measure(*pair, data_range=1.0, reduction="none") for pair in pairs]
    return torch.cat([value.flatten().double() for value in found])


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error on [0, 1], over pixels and channels."""
    return (_unit(a) - _unit(b)).square().mean(dim=(1, 2, 3))


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Wang et al.'s Eq. (13), averaged over places and channels: float64 (n, 3, h, w) each → (n,)."""
    return _similarity_of(*(_smooth(x) for x in (a, b, a * a + b * b, a * b))).mean(dim=(1, 2, 3))


def _similarity_of(mean_a: Tensor, mean_b: Tensor, squares: Tensor, products: Tensor) -> Tensor:
    """Wang et al.'s Eq. (13) at each place, from the windows' means of a, b, a² + b² and ab."""
    means, product = mean_a.square() + mean_b.square(), mean_a * mean_b
    spread = (squares - means).clamp(min=0)  # rounding can leave it a hair below
    return (2 * product + C1) * (2 * (products - product) + C2) / ((means + C1) * (spread + C2))


def _smooth(x: Tensor) -> Tensor:
    """Weight places by the Gaussian window, one axis after the other: (n, 3, h, w) → (n, 3, h - 10, w - 10).

    Sums of shifted images take half the time of matrix products or convolutions in float64.
    """
    weights = [math.exp(-(offset**2) / (2 * SSIM_SIGMA**2)) for offset in range(-BORDER, BORDER + 1)]
    weights = [weight / sum(weights) for weight in weights]
    for axis in (-1, -2):
        size = x.shape[axis] - 2 * BORDER
        total = weights[0] * x.narrow(axis, 0, size)
        for shift in range(1, SSIM_WINDOW):
            total.add_(x.narrow(axis, shift, size), alpha=weights[shift])
        x = total
    return x


def _padded(x: Tensor) -> Tensor:
    """Zeros around images, half a window wide."""
    return torch.nn.functional.pad(x, (BORDER,) * 4)


def _unit(image: Tensor) -> Tensor:
    return image.double() / 255

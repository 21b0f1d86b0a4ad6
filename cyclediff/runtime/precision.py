"""Whether networks in a fast form give the images that they give in float32, not compiled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cyclediff.errors import UserError

LEAST = 40.0  # dB: a mean error of 1.3 in 255
IMAGES = 2  # on which it is measured


def exact(denoiser: Any) -> Any:
    """A pixel-space denoiser with its network in float32 and not compiled."""
    network = denoiser.network
    return replace(denoiser, network=network.exact or network)


def insist_on_bound(name: str, form: str, make: Callable[[bool], Tensor]) -> float:
    """Make some images both ways, say how far they are from one another, and refuse what is too far.

    Args:
        name: of the method.
        form: of the networks, for people.
        make: (whether in the exact form) → images (n, 3, h, w) in [-1, 1].

    Returns:
        PSNR in dB between the two, all pixels together.

    Raises:
        UserError: if it is less than `LEAST`, or not a number.
    """
    reference, images = make(True).double(), make(False).double()
    decibels = float(-10 * torch.log10((images - reference).square().mean() / 4))
    count = len(images)
    if not decibels >= LEAST:
        raise UserError(
            f"{name} with networks in {form} gives images {decibels:.1f} dB from float32's ({count} images), less than "
            f"the {LEAST:.0f} asked; choose dtype=float32, or float16 in place of bfloat16"
        )
    print(f"{name}: networks in {form}, {decibels:.1f} dB from float32's images ({count} images; at least {LEAST:.0f})")
    return decibels

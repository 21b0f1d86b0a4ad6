"""Whether networks in 16 bits, or compiled, give the images that they give in float32 and not compiled."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cyclediff.errors import UserError

LEAST = 40.0  # dB: a mean error of 1.3 in 255
IMAGES = 2  # on which it is measured


def precision_mode(nodes: Iterable[Any]) -> str:
    """How networks are computed, for people; empty where all are in float32 and not compiled.

    Args:
        nodes: configuration of the networks.
    """
    modes = []
    for node in nodes:
        dtype, compile_mode = node.get("dtype", "float32"), node.get("compile_mode")
        modes.append(dtype + (f" compiled ({compile_mode})" if compile_mode else ""))
    return "" if set(modes) == {"float32"} else " and ".join(dict.fromkeys(modes))


def exact(denoiser: Any) -> Any:
    """A pixel-space denoiser with its network in float32 and not compiled."""
    network = denoiser.network
    return replace(denoiser, network=network.exact or network)


def require_precision(name: str, mode: str, make: Callable[[bool], Tensor]) -> float:
    """Make some images both ways, print how far they are from one another, and refuse what is too far.

    Args:
        name: of the method.
        mode: of the networks, for people.
        make: (whether in float32 and not compiled) → images (n, 3, h, w) in [-1, 1].

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
            f"{name} with networks in {mode} gives images {decibels:.1f} dB from float32's ({count} images), less than "
            f"the {LEAST:.0f} that are required; choose dtype=float32, or float16 in place of bfloat16"
        )
    print(f"{name}: networks in {mode}, {decibels:.1f} dB from float32's images ({count} images; at least {LEAST:.0f})")
    return decibels

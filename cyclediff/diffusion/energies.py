"""Energies: functions of images that a method makes small by following their gradient.

An energy takes images (n, …), and whatever else it needs, and gives a number for each image, (n,). An image's number
depends on this image only. So one backward pass of their sum is the gradient of each image's number.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def gradient(energy: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    """The gradient of energy(x, *rest), (n,), of each image by x (n, …); same shape as x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(energy(leaf, *rest).sum(), leaf)[0]


def weighted_gradient(
    energies: Callable[[Tensor], Mapping[str, Tensor]], weights: Mapping[str, float], x: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Several energies of images, and the gradient of their weighted sum.

    Args:
        energies: x → its energies by name, each (n,).
        weights: of each name; a negative one makes its energy large.
        x: (n, …).

    Returns:
        The energies without their weights, (n,) each, and the gradient, in the shape of x.

    Raises:
        ValueError: if an energy does not depend on x.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = energies(leaf)
        constant = [name for name, value in values.items() if not value.requires_grad]
        if constant:
            raise ValueError(
                f"the energy {constant[0]} has no gradient, so it cannot guide; choose one that is differentiable"
            )
        total = torch.stack([weights[name] * value.sum() for name, value in values.items()]).sum()
        slope = torch.autograd.grad(total, leaf)[0]
    return {name: value.detach() for name, value in values.items()}, slope

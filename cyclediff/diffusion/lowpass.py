"""The low-pass filters of ILVR and EGSDE: shrink an image by N, enlarge it again.

It equals the resizer that both official codes use. Each output pixel is a weighted mean of input pixels. The kernel is
stretched by N when shrinking (antialiasing). Pixels beyond the border are mirrored, and the edge pixel is repeated.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["cubic", "linear"]


def cubic(r: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2; zero from distance 2 on."""
    near, far = 1.5 * r**3 - 2.5 * r**2 + 1, -0.5 * r**3 + 2.5 * r**2 - 4 * r + 2
    return torch.where(r <= 1, near, torch.where(r <= 2, far, 0.0))


def linear(r: Tensor) -> Tensor:
    """Triangle kernel; zero from distance 1 on."""
    return (1 - r).clamp(min=0)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"cubic": cubic, "linear": linear}
REACH = {"cubic": 2, "linear": 1}


def lowpass(x: Tensor, down_N: int, kernel: Kernel) -> Tensor:
    """phi_N of ILVR (arXiv 2108.02938, section 3.2): keep what 1/N of the resolution can hold.

    Args:
        x: (n, c, h, w).
        down_N: factor by which the image shrinks; h and w are multiples of it.
        kernel: "cubic" for ILVR, "linear" for EGSDE, as released.

    Returns:
        Same shape. Linear in x.

    Raises:
        ValueError: if down_N does not divide the size.
    """
    rows, columns = (_round_trip(size, down_N, kernel, x.dtype, x.device) for size in x.shape[-2:])
    return rows @ x @ columns.T


def resize_matrix(length: int, scale: float, kernel: Kernel) -> Tensor:
    """The weights that resize `length` pixels by `scale`, float64 (round(length * scale), length); rows sum to 1."""
    out = round(length * scale)
    stretch = min(scale, 1.0)
    reach = math.ceil(REACH[kernel] / stretch) + 1
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    pixel = centre.floor().long()[:, None] + torch.arange(-reach, reach + 1)
    weight = KERNELS[kernel]((centre[:, None] - pixel).abs() * stretch)
    weight = weight / weight.sum(1, keepdim=True)
    pixel = pixel % (2 * length)
    pixel = torch.where(pixel < length, pixel, 2 * length - 1 - pixel)
    return torch.zeros(out, length, dtype=torch.float64).scatter_add_(1, pixel, weight)


@cache
def _round_trip(length: int, down_N: int, kernel: Kernel, dtype: torch.dtype, device: torch.device) -> Tensor:
    if down_N < 1 or length % down_N:
        raise ValueError(f"down_N must divide the image size {length}; got {down_N}, try {math.gcd(length, 32)}")
    small = length // down_N
    return (resize_matrix(small, down_N, kernel) @ resize_matrix(length, 1 / down_N, kernel)).to(device, dtype)

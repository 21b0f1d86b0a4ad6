"""How an image of any shape meets a network: data.fit.

    crop      its centred square, resized to the task's size
    pad       the whole image, its longer side resized to the task's size; for the network it is padded to the square
    native    the whole image at its own size; for the network it is padded to multiples of what the model halves

What is on disk has no padding: prepared images, results and scores have the shape that `fitted` gives. Padding mirrors
the image at its border, on opposite sides alike. Networks know pictures: a mirrored one looks like one, and stripes of
edge pixels do not.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cyclediff.data.images import RESAMPLING, square
from cyclediff.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CROP, PAD, NATIVE = FITS = ("crop", "pad", "native")
LARGEST = 2048  # of a side of an image that is taken as it is; attention takes the fourth power of it


def fitted(image: Image.Image, size: int, resize: str, fit: str) -> Image.Image:
    """An image as it is edited and scored, see the module.

    Args:
        image: the picture as it was found.
        size: of the task.
        resize: "nearest", "bilinear" or "bicubic".
        fit: one of FITS.
    """
    if fit == NATIVE:
        return image
    if fit == CROP:
        return square(image, size, resize)
    share = size / max(image.size)
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), RESAMPLING[resize])


def require_taken(path: Path, width: int, height: int, fit: str) -> None:
    """Require that an image is not too large to be taken as it is.

    Raises:
        UserError: if it is.
    """
    if fit == NATIVE and max(width, height) > LARGEST:
        raise UserError(
            f"{path} has {width}×{height} pixels, and data.fit=native takes images of up to {LARGEST} a side; make it "
            "smaller, or choose data.fit=pad"
        )


def frame(height: int, width: int, size: int, multiple: int, fit: str) -> tuple[int, int]:
    """Height and width at which the network sees an image that `fitted` has made; `multiple` is the model's."""
    if fit == PAD:
        return size, size
    return (height, width) if fit == CROP else (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def padded(images: "Tensor", height: int, width: int) -> "Tensor":
    """Images (…, h, w), mirrored at their borders to a height and width that are no less; (…, height, width)."""
    import torch

    for axis, whole in ((-2, height), (-1, width)):
        missing = whole - images.shape[axis]
        if missing > 0:
            before = missing // 2
            places = np.pad(np.arange(images.shape[axis]), (before, missing - before), mode="reflect")
            images = images.index_select(axis, torch.from_numpy(places).to(images.device))
    return images


def cropped(images: "Tensor", height: int, width: int) -> "Tensor":
    """The opposite of `padded`: the middle of images (…, h, w)."""
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def label(size: int, fit: str) -> str:
    """How images keep their shape, for names of data and protocols: native-size, pad512; "" for squares."""
    return {CROP: "", PAD: f"pad{size}", NATIVE: "native-size"}[fit]

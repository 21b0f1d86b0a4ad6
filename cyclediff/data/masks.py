"""Where an edit may change its image: a picture, or run lengths as PIE-Bench writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclediff.data.fitting import CROP, fitted
from cyclediff.data.folders import read_photo
from cyclediff.errors import UserError

Mask = Path | tuple[int, ...]  # a picture, white where the image may change; or PIE-Bench's runs, see `decode_mask`
PIE_SIZE = 512  # of the images that PIE-Bench's masks are drawn on


def decode_mask(runs: Sequence[int], size: int = PIE_SIZE) -> np.ndarray:
    """PIE-Bench's run lengths → where the image may change, as PnPInversion's evaluator decodes them.

    Args:
        runs: start, length, start, length, … over the flattened image; what lies past its end is cut.
        size: height and width of the image.

    Returns:
        bool (size, size); the outermost rows and columns are True, because annotations err there.

    Raises:
        UserError: if the runs are not pairs of numbers from 0.
    """
    check_runs(runs, "a mask")
    mask = np.zeros(size * size, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = True
    mask = mask.reshape(size, size)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


def draw_mask(mask: Mask, image: Path, size: int, fit: str = CROP) -> Image.Image:
    """A mask, cut and resized as its image is: white where the image may change, else black.

    Args:
        mask: of the image.
        image: the picture to be edited.
        size: of the task.
        fit: see `fitting`.

    Raises:
        UserError: if it is no image, has another size than the image, or marks no pixel.
    """
    if not isinstance(mask, Path):
        drawn = Image.fromarray(decode_mask(mask).astype(np.uint8) * 255)
        if fit != CROP and (found := read_photo(image).size) != drawn.size:
            raise UserError(
                f"{image} has {found[0]}×{found[1]} pixels, and PIE-Bench's masks are drawn on {PIE_SIZE}×{PIE_SIZE}; "
                "take the published image, or choose data.fit=crop"
            )
        return fitted(drawn, size, "nearest", fit)
    picture, whole = read_photo(mask), read_photo(image).size
    if picture.size != whole:
        raise UserError(
            f"the mask {mask} has {picture.width}×{picture.height} pixels, its image {whole[0]}×{whole[1]}; draw it at "
            "the size of the image"
        )
    white = np.array(fitted(picture, size, "nearest", fit).convert("L")) >= 128
    if not white.any():
        what = "its image's centred square" if fit == CROP else "its image"
        raise UserError(f"the mask {mask} marks no pixel of {what}; white is what may change")
    return Image.fromarray(white.astype(np.uint8) * 255)


def check_runs(runs: Any, what: str) -> None:
    """Require that run lengths are pairs of whole numbers.

    Raises:
        UserError: if they are not.
    """
    good = isinstance(runs, list | tuple) and len(runs) % 2 == 0
    if not good or any(type(number) is not int or number < 0 for number in runs):
        raise UserError(
            f"{what} should be start, length, start, length, …, whole numbers from 0; got {str(runs)[:60]}; take the "
            "published file again"
        )

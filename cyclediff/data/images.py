"""Pictures in and out: any file → RGB, uint8 ↔ float, PNGs that are whole or absent."""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from cyclediff.errors import UserError
from eval import files

if TYPE_CHECKING:
    from torch import Tensor

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = bytes.fromhex("00000000 49454e44 ae426082")  # the IEND chunk: length, name, CRC
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def read_rgb(path: Path) -> Image.Image:
    """`eval.files.read_picture`: any picture as upright 8-bit RGB, on white where transparent.

    Raises:
        UserError: if the file cannot be decoded.
    """
    try:
        return files.read_picture(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def read_photo(path: Path) -> Image.Image:
    """`read_rgb` without Pillow's own warnings; not for several threads at once, which share their filters."""
    with warnings.catch_warnings(action="ignore"):
        return read_rgb(path)


def check_picture(path: Path) -> None:
    """`eval.files.check_picture`: what an image file's header says against reading it.

    Raises:
        UserError: if it is no image, too large, several pictures, or of 32 bits.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            files.check_picture(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header.

    Raises:
        UserError: if it is no image.
    """
    try:
        with Image.open(path, formats=files.FORMATS) as file:
            return file.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a readable image ({error}); replace or remove it") from error


def square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """The centred square of an image, resized as PIL does it (antialiased when it shrinks)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), RESAMPLING[resize])


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG under its name only when it is complete."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write_atomically(buffer.getvalue(), path, sync=False)  # `is_whole_png` notices what a power cut leaves of it


def is_whole_png(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does, at the cost of reading 20 bytes: false for cut and empty files.

    Damage in the middle passes; decoding finds it by the checksums.
    """
    try:
        with path.open("rb", buffering=0) as file:
            start = file.read(len(PNG_START))
            file.seek(-len(PNG_END), os.SEEK_END)
            return start == PNG_START and file.read() == PNG_END
    except OSError:  # not there, or too short to go back in
        return False


def write_atomically(content: bytes, path: Path, sync: bool = True) -> None:
    """`eval.files.write_atomically`: a file has its name only when it is complete.

    Raises:
        UserError: if it cannot be written; nothing is left of it then.
    """
    try:
        files.write_atomically(content, path, sync)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UserError:
    """The sentence for a file that the disk does not take."""
    return UserError(
        f"{path} cannot be written ({error.strerror}); what is finished is kept, make room or set paths.outputs=DIR"
    )


def read_batch(paths: list[Path]) -> "Tensor":
    """Decode PNGs of one size into a uint8 tensor (n, 3, h, w)."""
    import torch

    return torch.stack([torch.from_numpy(np.array(read_rgb(path))) for path in paths]).permute(0, 3, 1, 2)


def stretched(image: Image.Image, size: int) -> Image.Image:
    """An image resized to a square with Lanczos, whatever its shape: as DiffuseIT prepares target images."""
    return image.resize((size, size), Image.Resampling.LANCZOS)


def read_mask(path: Path, size: int) -> "Tensor":
    """A mask from a picture, prepared as source images are: its centred square, resized to the nearest pixels.

    Args:
        path: the picture; what is at least half white is marked.
        size: height and width.

    Returns:
        bool (1, size, size).

    Raises:
        UserError: if it cannot be decoded, or marks every pixel or none.
    """
    import torch

    grey = square(read_rgb(path), size, "nearest").convert("L")
    mask = torch.from_numpy(np.array(grey) >= 128)[None]
    if mask.all() or not mask.any():
        raise UserError(f"{path} marks {'every' if mask.all() else 'no'} pixel; a mask is white in some parts only")
    return mask


def from_uint8(image: "Tensor") -> "Tensor":
    """uint8 in 0 … 255 → float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: "Tensor", ids: Sequence[str] = ()) -> "Tensor":
    """Float in [-1, 1] → the nearest uint8; values outside are clamped.

    Args:
        image: (n, c, h, w), or one image without n.
        ids: of the images, for the message.

    Raises:
        UserError: if a pixel is NaN or Inf, which no uint8 shows.
    """
    if not image.isfinite().all():
        row = int(image.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
        raise UserError(
            f"the decoder gave NaN or Inf for image {ids[row] if ids else row}; finished images are kept, check the "
            "weights, and instead of float16 try dtype=bfloat16 or dtype=float32"
        )
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte()


def to_pil(image: "Tensor") -> Image.Image:
    """uint8 (3, h, w) → a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())

"""Pictures in and out: any file → RGB, uint8 ↔ float, PNGs that are whole or absent."""

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cyclediff.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = bytes.fromhex("00000000 49454e44 ae426082")  # the IEND chunk: length, name, CRC
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_rgb(path: Path) -> Image.Image:
    """Decode an image file completely, as a viewer would show it: upright, 8-bit RGB, on white where transparent.

    Raises:
        UserError: if the file cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a readable image ({error}); replace or remove it") from error
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255 instead of scaling
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header.

    Raises:
        UserError: if it is no image.
    """
    try:
        with Image.open(path) as file:
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
    """Write a file under its name only when it is complete.

    Args:
        content: of the file.
        path: of the file.
        sync: wait until it is on the disk (milliseconds), so that it is whole or absent also after a power cut.

    Raises:
        UserError: if it cannot be written; nothing is left of it then.
    """
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")  # two machines can share a process id
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
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


def from_uint8(image: "Tensor") -> "Tensor":
    """uint8 in 0 … 255 → float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: "Tensor") -> "Tensor":
    """Float in [-1, 1] → the nearest uint8; values outside are clamped."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte()


def to_pil(image: "Tensor") -> Image.Image:
    """uint8 (3, h, w) → a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())

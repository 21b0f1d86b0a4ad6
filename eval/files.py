"""Files: lists of images, pictures of any kind, and files that are written whole or not at all.

Folders and files can come from anyone. Nothing in a file is executed, and what cannot be used is named in one sentence.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # the only decoders that run on untrusted input; others run programs
MOST_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MiB of RGB
IN_USE = 3600  # seconds in which any file is written
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # these break tables, or are no text


def write_atomically(content: bytes, path: Path, sync: bool = True) -> None:
    """Write a file under its name only when it is complete.

    Args:
        content: of the file.
        path: of the file.
        sync: wait until it is on the disk (milliseconds), so that it is whole or absent also after a power cut.

    Raises:
        OSError: if it cannot be written; it names `path`, and nothing is left of the new content.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # a name of its own: several machines may write at once
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
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `write_atomically` in a folder; files of the last hour may be in use."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > IN_USE:
                path.unlink()


def list_images(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The image files of a folder, sorted by name; hidden and other files and all subfolders are left out.

    Raises:
        ValueError: if the folder is missing or not readable, or something with an image's name is no file (a link to
            nowhere or in a circle, a pipe, a device) or has control characters in its name.
    """
    if not folder.is_dir():
        raise ValueError(f"{printable(folder)} does not exist or is no folder; give a folder of images")
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.lower().endswith(tuple(suffixes)):
                    continue
                if UNFIT.search(entry.name):
                    name = f"{entry.name!r} in {printable(folder)}"
                    raise ValueError(f"{name} has control characters or no text in it; rename it")
                if not entry.is_file(follow_symlinks=False):  # a plain file costs no question to the disk
                    path = Path(entry.path)
                    if path.is_dir():
                        continue
                    if not path.is_file():
                        raise ValueError(f"{printable(path)} is a link to nowhere or no plain file; fix or remove it")
                names.append(entry.name)
    except OSError as error:
        raise ValueError(f"{printable(folder)} cannot be read ({error.strerror}); make it readable") from error
    return [folder / name for name in sorted(names)]


def read_picture(path: Path) -> Image.Image:
    """A picture as a viewer shows it: upright 8-bit RGB, on white where transparent; of an animation, the first.

    The content of a file decides what it is, not its suffix. For plain RGB files this is
    `Image.open(path).convert("RGB")`, as the published evaluators read them. Pillow alone would clip 16-bit grey, and
    show what is transparent.

    Raises:
        ValueError: if it is no PNG, JPEG, WebP, BMP or TIFF, has more than `MOST_PIXELS` pixels (found before memory is
            taken) or pixels of 32 bits, or is damaged.
    """
    reason = "is not a readable image: it is damaged, or no PNG, JPEG, WebP, BMP or TIFF; replace or remove it"
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if file.mode == "F" or (file.mode, file.format) == ("I", "TIFF"):
                reason = "has pixels of 32 bits, and their range is not known; save it with 8 or 16 bits"
                raise ValueError
            return _upright_rgb(file)
    except Image.DecompressionBombError as error:
        reason = f"has more than {MOST_PIXELS // 10**6} million pixels; make it smaller or remove it"
        raise ValueError(f"{printable(path)} {reason}") from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{printable(path)} {reason}") from error


def printable(path: Path) -> str:
    """A path for messages, without what would break a line."""
    return UNFIT.sub("_", str(path))


def _upright_rgb(file: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16-bit grey
        scaled = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")

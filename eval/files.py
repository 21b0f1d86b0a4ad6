"""Files: lists of images, pictures of any kind, and files that are written whole or not at all.

Folders and files can come from anyone. Nothing in a file is executed, and what cannot be used is named in one sentence.
"""

import contextlib
import os
import re
import secrets
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

T = TypeVar("T")
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tif",
    ".tiff",
)
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "PPM",
    "TIFF",
)  # the only decoders for untrusted input; others run programs
READABLE = "PNG, JPEG, WebP, BMP, GIF, PPM or TIFF"
UNMENTIONED = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")
UNMENTIONED += ("edits.csv", "manifest.json", "masks", "target_images")
SHOWN = 5  # suffixes in a message
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
    """The image files of a folder, sorted by name; hidden and other files and all subfolders are passed over.

    A warning says once how many were passed over. Hidden files, those that systems leave in folders, and what this
    project itself puts beside images are not worth a word.

    Args:
        folder: of images.
        suffixes: of image files, in small letters.

    Raises:
        ValueError: if the folder is missing or not readable, or something with an image's name is no file (a link to
            nowhere or in a circle, a pipe, a device) or has control characters in its name.
    """
    if not folder.is_dir():
        raise ValueError(f"{printable(folder)} does not exist or is no folder; give a folder of images")
    names, passed, subfolders = [], Counter[str](), 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in UNMENTIONED:
                    continue
                if not entry.name.lower().endswith(tuple(suffixes)):
                    if os.path.isdir(entry.path):
                        subfolders += 1
                    else:
                        passed[os.path.splitext(entry.name)[1].lower().removesuffix(".")] += 1
                    continue
                if UNFIT.search(entry.name):
                    name = f"{entry.name!r} in {printable(folder)}"
                    raise ValueError(f"{name} has control characters or no text in it; rename it")
                if not entry.is_file(follow_symlinks=False):  # a plain file costs no question to the disk
                    path = Path(entry.path)
                    if path.is_dir():
                        subfolders += 1
                        continue
                    if not path.is_file():
                        raise ValueError(f"{printable(path)} is a link to nowhere or no plain file; fix or remove it")
                names.append(entry.name)
    except OSError as error:
        raise ValueError(f"{printable(folder)} cannot be read ({error.strerror}); make it readable") from error
    if passed or subfolders:
        _warn_once(f"{printable(folder)}: {_passed_over(passed, subfolders)}")
    return [folder / name for name in sorted(names)]


def _passed_over(passed: Mapping[str, int], subfolders: int) -> str:
    """A line about files by their suffixes, the most frequent first, and folders."""
    files, folders = _counted(sum(passed.values()), "file"), _counted(subfolders, "subfolder")
    if not passed:
        return f"{folders} passed over"
    ordered = sorted(passed.items(), key=lambda kind: (-kind[1], kind[0]))
    kinds = [f"{count} {UNFIT.sub('_', suffix)[:12] or 'without a suffix'}" for suffix, count in ordered[:SHOWN]]
    more = [f"{len(passed) - SHOWN} other kinds"] if len(passed) > SHOWN else []
    return f"{files} passed over ({', '.join([*kinds, *more])})" + (f" and {folders}" if subfolders else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@cache
def _warn_once(line: str) -> None:
    warnings.warn(line, stacklevel=3)  # at who called `list_images`


def composed(name: str) -> str:
    """The spelling by which names are compared: macOS may write é as e and its accent, other systems as one letter."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, path: str) -> Path:
    """A path below a folder, or the same with letters and accents spelled as they are on the disk.

    Returns:
        The place as it is written if nothing is there under either spelling.

    Raises:
        OSError: if a folder on the way cannot be read.
        ValueError: if the path has a null character.
    """
    place = folder
    for part in Path(path).parts:
        written = place / part
        if not written.exists() and not part.isascii() and place.is_dir():
            same = [name for name in os.listdir(place) if composed(name) == composed(part)]
            written = place / min(same, default=part)
        place = written
    return place


def read_picture(path: Path) -> Image.Image:
    """A picture as a viewer shows it: upright 8-bit RGB, on white where transparent.

    The content of a file decides what it is, not its suffix. For plain RGB files this is
    `Image.open(path).convert("RGB")`, as the published evaluators read them. Pillow alone would clip 16-bit grey, and
    show what is transparent. Cameras write a photo's preview or depth into its JPEG; that is one picture.

    Raises:
        ValueError: if it is no PNG, JPEG, WebP, BMP, GIF, PPM or TIFF, has more than `MOST_PIXELS` pixels (found before
            memory is taken), several pictures (an animation, pages) or pixels of 32 bits, or is damaged.
    """
    return _open(path, _upright_rgb)


def check_picture(path: Path) -> None:
    """Raise what `read_picture` would, as far as a file's header says it; damage behind that is not found."""
    _open(path, lambda file: None)


def _open(path: Path, use: Callable[[Image.Image], T]) -> T:
    reason = f"is not a readable image: it is damaged, or no {READABLE}; replace or remove it"
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if getattr(file, "is_animated", False) and file.format != "MPO":
                reason = (
                    "has several pictures in it (an animation, or pages); save the one you mean as a PNG, or remove it"
                )
                raise ValueError
            if file.mode == "F" or (file.mode, file.format) == ("I", "TIFF"):
                reason = "has pixels of 32 bits, and their range is not known; save it with 8 or 16 bits"
                raise ValueError
            return use(file)
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

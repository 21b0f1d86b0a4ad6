"""Folders of PNGs → small pictures as text, for a page that must be one file."""

import base64
import hashlib
import io
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from eval.files import write_atomically

SMALL = 64  # pixels a side up to which a picture keeps its size; the page enlarges it
SAMPLE = 16  # pictures from which the size of all is guessed
LEVELS = ((160, 75, 100), (128, 70, 90), (112, 65, 80), (96, 60, 70), (80, 55, 60), (64, 50, 50))
"""Longest side in pixels and WEBP quality of large pictures, and quality of small ones, where 100 is lossless."""
VERSION = 1  # of `_encode`; with another one, all kept thumbnails are made again


def make_thumbnails(paths: Sequence[Path], budget: int, kept: Path) -> dict[Path, str]:
    """A WEBP of each picture in base64: as good as the budget allows.

    All pictures share one of LEVELS: the first with which a sample fits the budget, or else the last. A missing file is
    left out. Thumbnails are kept, by the contents of their pictures: the next call makes only the new ones. The file
    holds those of the last call. If it is damaged, it is made again.

    Args:
        paths: PNGs.
        budget: about how many bytes all of them together may have in base64.
        kept: the file of kept thumbnails. If it cannot be written, there is a warning.
    """
    there = [path for path in dict.fromkeys(paths) if path.is_file()]
    if not there:
        return {}
    sample = there[:: -(-len(there) // SAMPLE)]
    known, used = _read(kept), {}

    def thumbnail(path: Path, level: tuple[int, int, int]) -> str:
        content = path.read_bytes()
        key = f"{hashlib.sha256(content).hexdigest()} {level} {VERSION}"
        used[key] = used.get(key) or known.get(key) or _encode(content, level)
        return used[key]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for level in LEVELS[:-1]:
            tried = list(pool.map(thumbnail, sample, [level] * len(sample)))
            if sum(map(len, tried)) / len(tried) * len(there) <= budget:
                break
        else:
            level = LEVELS[-1]
        made = dict(zip(there, pool.map(thumbnail, there, [level] * len(there)), strict=True))
    if used != known:
        _write(used, kept)
    return made


def _encode(content: bytes, level: tuple[int, int, int]) -> str:
    side, quality, quality_of_small = level
    with Image.open(io.BytesIO(content)) as file:
        image = file.convert("RGB")
    if max(image.size) <= SMALL:
        quality = quality_of_small
    else:
        image.thumbnail((side, side), Image.Resampling.HAMMING)
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=quality == 100, quality=quality, method=2)
    return base64.b64encode(stream.getvalue()).decode()


def _read(kept: Path) -> dict[str, str]:
    """Thumbnails by picture and level; none if the file is missing or not as it was written."""
    try:
        checksum, _, content = kept.read_bytes().partition(b"\n")
    except OSError:
        return {}
    return json.loads(content) if checksum == hashlib.sha256(content).hexdigest().encode() else {}


def _write(thumbnails: dict[str, str], kept: Path) -> None:
    content = json.dumps(thumbnails).encode()
    try:
        write_atomically(hashlib.sha256(content).hexdigest().encode() + b"\n" + content, kept)
    except OSError as error:
        warnings.warn(
            f"thumbnails cannot be kept in {kept} ({error.strerror}); the next page makes them again", stacklevel=3
        )

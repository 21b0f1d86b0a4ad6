"""Folders of PNGs → small pictures as text, for a page that must be one file."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

SMALL = 64  # up to this many pixels a side, a picture keeps its size and is shown enlarged
SAMPLE = 16  # pictures from which the size of all is guessed
LEVELS = ((160, 75, 100), (128, 70, 90), (112, 65, 80), (96, 60, 70), (80, 55, 60), (64, 50, 50))
"""Longest side in pixels and WEBP quality of large pictures, and quality of small ones, where 100 is lossless."""


def make_thumbnails(paths: Sequence[Path], budget: int) -> dict[Path, str]:
    """A WEBP of each picture in base64: as good as the budget allows.

    All pictures share the first of LEVELS by which they fit, judged by a sample, or else the last. A file that is not
    there is left out.

    Args:
        paths: PNGs.
        budget: about how many bytes all of them together may have in base64.
    """
    there = [path for path in dict.fromkeys(paths) if path.is_file()]
    if not there:
        return {}
    sample = there[:: -(-len(there) // SAMPLE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for level in LEVELS[:-1]:
            tried = list(pool.map(_encode, sample, [level] * len(sample)))
            if sum(map(len, tried)) / len(tried) * len(there) <= budget:
                break
        else:
            level = LEVELS[-1]
        return dict(zip(there, pool.map(_encode, there, [level] * len(there)), strict=True))


def _encode(path: Path, level: tuple[int, int, int]) -> str:
    side, quality, quality_of_small = level
    with Image.open(path) as file:
        image = file.convert("RGB")
    if max(image.size) <= SMALL:
        quality = quality_of_small
    else:
        image.thumbnail((side, side), Image.Resampling.HAMMING)
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=quality == 100, quality=quality, method=2)
    return base64.b64encode(stream.getvalue()).decode()

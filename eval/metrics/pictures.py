"""Image files of an evaluation: which belong together, and their pixels at the protocol's size."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.files import SUFFIXES, composed, list_images, read_picture

T = TypeVar("T")
CHUNK = 32
THREADS = 4


@dataclass(frozen=True)
class Pairing:
    """Which images of two folders belong together, by stem.

    Args:
        stems: names in both, sorted.
        missing: sources without a result.
        extra: results without a source.
    """

    stems: list[str]
    missing: list[str]
    extra: list[str]


@dataclass(frozen=True)
class Folders:
    """Where the images of an evaluation are, by stem."""

    generated: dict[str, Path]
    source: dict[str, Path]
    ground_truth: dict[str, Path] | None


@dataclass(frozen=True)
class Triple:
    """A result, what it was made from, and the true result: uint8 (3, h, w), and the result as a picture."""

    stem: str
    picture: Image.Image
    image: Tensor
    source: Tensor
    truth: Tensor | None


def by_stem(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """The images of a folder by stem.

    Raises:
        ValueError: if there is no such folder, or two files have one stem, however its accents are spelled.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder, suffixes):
        other = found.setdefault(composed(path.stem), path)
        if other is not path:
            raise ValueError(f"{other} and {path.name} have one stem, which pairs images; rename one")
    return {path.stem: path for path in found.values()}


def spelled_like(found: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """What is found by stem; where a name is another spelling of a stem, under that name."""
    spellings = {composed(name): name for name in names}
    return {spellings.get(composed(stem), stem): value for stem, value in found.items()}


def pair(generated: Path, source: Path, ground_truth: Path | None) -> tuple[Folders, Pairing]:
    """Pair results with their sources, and with the true results where a folder of them is given.

    Stems are those of the sources; é as one letter and as e with its accent are one name.

    Raises:
        ValueError: if there is nothing to pair, or a true result is missing.
    """
    results, sources = by_stem(generated, [".png"]), by_stem(source)
    truths = spelled_like(by_stem(ground_truth), sources) if ground_truth else None
    folders = Folders(spelled_like(results, sources), sources, truths)
    stems = sorted(folders.generated.keys() & folders.source.keys())
    if not stems:
        raise ValueError(f"no PNG in {generated} has the name of an image in {source}; there is nothing to score")
    untrue = [stem for stem in stems if folders.ground_truth is not None and stem not in folders.ground_truth]
    if untrue:
        raise ValueError(f"{ground_truth} has no image for {len(untrue)} results ({untrue[0]}, …); add them")
    return folders, Pairing(
        stems, sorted(folders.source.keys() - set(stems)), sorted(folders.generated.keys() - set(stems))
    )


def at_size(picture: Image.Image, size: int | None, resize: str, path: Path) -> Image.Image:
    """A picture as a protocol compares it: a larger square is resized to `size` by the filter `resize`.

    Raises:
        ValueError: if it is not a square, or smaller.
    """
    if size is None or picture.size == (size, size):
        return picture
    if picture.width != picture.height or picture.width < size:
        raise ValueError(
            f"{path} has {picture.width}×{picture.height} pixels; this protocol takes squares of at least "
            f"{size}×{size}: prepare the images, or choose another protocol"
        )
    return picture.resize((size, size), Image.Resampling[resize.upper()])


def read_triples(
    folders: Folders, stems: Sequence[str], size: int | None, resize: str
) -> Iterator[tuple[list[Triple], list[str]]]:
    """Chunks of decoded images, each file once, with unreadable names; the next is read while this one is scored.

    Raises:
        ValueError: if a result is not of its source's size at the protocol's.
    """

    def load(stem: str) -> Triple | None:
        paths = [folders.generated[stem], folders.source[stem]]
        paths += [] if folders.ground_truth is None else [folders.ground_truth[stem]]
        try:
            pictures = [read_picture(path) for path in paths]
        except ValueError:
            return None
        result, *rest = pictures
        rest = [at_size(picture, size, resize, path) for picture, path in zip(rest, paths[1:], strict=True)]
        for picture, path in zip(rest, paths[1:], strict=True):
            if picture.size != result.size:
                raise ValueError(
                    f"{paths[0]} has {result.width}×{result.height} pixels and {path} {picture.width}×{picture.height} "
                    "under this protocol; they must have equal sizes"
                )
        tensors = [to_tensor(picture) for picture in (result, *rest)]
        return Triple(stem, result, tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None)

    chunks = [list(stems[start : start + CHUNK]) for start in range(0, len(stems), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: list[Future] = []
        for index, chunk in enumerate(chunks):
            current = waiting or [pool.submit(load, stem) for stem in chunk]
            waiting = [pool.submit(load, stem) for stem in chunks[index + 1]] if index + 1 < len(chunks) else []
            loaded = [future.result() for future in current]
            yield (
                [triple for triple in loaded if triple is not None],
                [stem for stem, triple in zip(chunk, loaded, strict=True) if triple is None],
            )


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture → uint8 (3, h, w)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def to_picture(image: Tensor) -> Image.Image:
    """uint8 (3, h, w) → an RGB picture."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())

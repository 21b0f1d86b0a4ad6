"""Image files of an evaluation: which belong together, and their pixels at the protocol's size."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

CHUNK = 32
THREADS = 4
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # decoders that strangers may reach: some others run programs
MOST_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MiB of RGB


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


def list_images(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The images of a folder, sorted by name; hidden and other files and all subfolders are passed over.

    Raises:
        ValueError: if there is no such folder, or what has an image's name is no file (a link to nowhere or in a
            circle, a pipe, a device).
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder of images")
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(tuple(suffixes)):
                continue
            if not entry.is_file(follow_symlinks=False):  # no question to the disk for a plain file
                path = Path(entry.path)
                if path.is_dir():
                    continue
                if not path.is_file():
                    raise ValueError(f"{str(path)!r} is a link to nowhere or no plain file; mend or remove it")
            names.append(entry.name)
    return [folder / name for name in sorted(names)]


def by_stem(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """The images of a folder by stem.

    Raises:
        ValueError: if there is no such folder, or two files have one stem.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder, suffixes):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path.name} have one stem, which pairs images; rename one")
        found[path.stem] = path
    return found


def pair(generated: Path, source: Path, ground_truth: Path | None) -> tuple[Folders, Pairing]:
    """Pair results with their sources, and with the true results where a folder of them is given.

    Raises:
        ValueError: if there is nothing to pair, or a true result is missing.
    """
    folders = Folders(by_stem(generated, [".png"]), by_stem(source), by_stem(ground_truth) if ground_truth else None)
    stems = sorted(folders.generated.keys() & folders.source.keys())
    if not stems:
        raise ValueError(f"no PNG in {generated} has the name of an image in {source}; there is nothing to score")
    untrue = [stem for stem in stems if folders.ground_truth is not None and stem not in folders.ground_truth]
    if untrue:
        raise ValueError(f"{ground_truth} has no image for {len(untrue)} results ({untrue[0]}, …); add them")
    return folders, Pairing(
        stems, sorted(folders.source.keys() - set(stems)), sorted(folders.generated.keys() - set(stems))
    )


def read_picture(path: Path) -> Image.Image:
    """A picture as a viewer shows it: upright 8-bit RGB, on white where transparent; of an animation, the first.

    For plain RGB files this is `Image.open(path).convert("RGB")`, as the published evaluators read them. Pillow alone
    would clip 16-bit grey, and show what is transparent.

    Raises:
        ValueError: if it is no PNG, JPEG, WebP, BMP or TIFF, has more than `MOST_PIXELS` pixels (told before memory is
            taken) or pixels of 32 bits, or is damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if file.mode == "F" or (file.mode, file.format) == ("I", "TIFF"):
                raise ValueError("pixels of 32 bits do not tell their range")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey
                scaled = np.asarray(image).astype(np.float64) / 257
                image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{str(path)!r} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller or remove it"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{str(path)!r} is not a readable image: it is damaged, has pixels of 32 bits, or is no PNG, JPEG, WebP, "
            "BMP or TIFF; replace or remove it"
        ) from error


def at_size(picture: Image.Image, size: int | None, resize: str, path: Path) -> Image.Image:
    """A picture as a protocol compares it: brought down to `size` by the filter `resize`, if it is a larger square.

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

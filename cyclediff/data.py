"""From a source (a folder of photos, or the embedded world) to prepared PNGs of one size with ids."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cyclediff.errors import UserError
from cyclediff.images import image_size, read_rgb, square, to_pil, to_uint8, write_atomically, write_png

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PETS = "pets"
PETS_VERSION = 1  # of the renderer: a change of its pixels is another data set
CAPTIONS_VERSION = 1  # of its captions and edits
PETS_SEEDS = {"source": 1001, "reference": 2002, "edits": 3003}  # the networks were trained on factors of other seeds


@dataclass(frozen=True)
class Expected:
    """What a data set's folder should hold; None is not checked.

    Args:
        name: of the data set.
        suffix: of its files.
        size: height and width of its images.
        count: number of its images.
    """

    name: str
    suffix: str | None
    size: int | None
    count: int | None


@dataclass(frozen=True)
class Folder:
    """Prepared images: `<path>/<id>.png` for each id, all of one size (a raw folder: as they are).

    Args:
        path: the folder.
        ids: image ids, sorted.
        name: what the images are, for people.
        digest: names the content; equal digests mean equal images.
    """

    path: Path
    ids: tuple[str, ...]
    name: str
    digest: str

    def named(self, name: str | None, suffix: str = "") -> "Folder":
        """The same images under another name (None keeps it), followed by what was done to them."""
        return replace(self, name=(name or self.name) + suffix)


@dataclass(frozen=True)
class Sources:
    """The images of one cell.

    Args:
        source: to be translated.
        counterpart: their true translations, where there are such.
        reference: of the target domain, for FID and KID; None for no such scores.
        dataset: the published data set that source and reference are, checked and whole; None for other images.
        missing: images that a list names and that are not there.
        found: how many images of that list are there, before a limit; None: as many as `source` has.
    """

    source: Folder
    counterpart: Folder | None
    reference: Folder | None
    dataset: str | None
    missing: tuple[str, ...] = ()
    found: int | None = None

    def record(self) -> dict[str, str | int | list[str] | None]:
        """For run.json."""
        found = len(self.source.ids) if self.found is None else self.found
        partial = {"of": found + len(self.missing), "missing": list(self.missing)} if self.missing else {}
        return {
            "name": self.source.name,
            "dataset": self.dataset,
            "digest": self.source.digest,
            "n": len(self.source.ids),
            "source": self.source.path.name,
            "counterpart": self.counterpart and self.counterpart.path.name,
            "reference": self.reference and self.reference.name,
            **partial,
        }


def prepare_photos(folder: Path, limit: int | None, size: int, resize: str, cache: Path) -> Folder:
    """Cut the photos of a folder to squares of `size` pixels, once.

    Args:
        folder: holds the images, not in subfolders; other files are passed over. The id of an image is its stem.
        limit: take the first `limit` images in the order of their names.
        size: height and width of the prepared images.
        resize: "bilinear" or "bicubic".
        cache: where prepared folders are kept.

    Raises:
        UserError: if the folder is missing or empty, a file is no image, or two files have one stem.
    """
    paths = list_images(folder)[:limit]
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise UserError(
                f"{other.name} and {path.name} in {folder} would both become {path.stem}.png; rename one of them"
            )
    hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    digest = digest_of({"images": hashes, "size": size, "resize": resize})

    def draw(target: Path) -> None:
        images = [square(read_rgb(path), size, resize) for path in paths]  # all are decoded before one is written
        for path, image in zip(paths, images, strict=True):
            write_png(image, target / f"{path.stem}.png")

    return cached_folder(
        cache / f"{folder.resolve().name}-{digest}", tuple(hashes), folder.resolve().name, digest, draw
    )


def raw_folder(folder: Path) -> Folder:
    """A folder of images that is used as it is."""
    paths = list_images(folder)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return Folder(folder, tuple(path.stem for path in paths), folder.resolve().name, digest_of(hashes))


def check_dataset(folder: Path, expected: Expected) -> None:
    """Insist that a folder holds the data set that the protocol means.

    AFHQ v1 and v2 have the same file stems and other pixels, so a mix-up would only show in the numbers.

    Raises:
        UserError: if the type, number or size of the files is another.
    """
    paths = list_images(folder)
    advice = "check the protocol (cyclediffusion: AFHQ v2, egsde: AFHQ v1) or set data.check=false"
    for path in paths:
        if expected.suffix and path.suffix.lower() != expected.suffix:
            raise UserError(f"{folder} should hold {expected.name}, {expected.suffix} files; got {path.name}; {advice}")
    if expected.count is not None and len(paths) != expected.count:
        raise UserError(
            f"{folder} should hold the {expected.count} images of {expected.name}; got {len(paths)}; {advice}"
        )
    for path in paths if expected.size else ():
        size = image_size(path)
        if size != (expected.size, expected.size):
            raise UserError(
                f"{folder} should hold {expected.name}, {expected.size}×{expected.size} pixels; {path.name} has "
                f"{size[0]}×{size[1]}; {advice}"
            )


def prepare_pets(species: str, split: str, count: int, size: int, cache: Path) -> Folder:
    """Render animals of the embedded world, once. Equal splits of two species are counterparts, image by image.

    Args:
        species: "cat" or "dog".
        split: "source" or "reference": disjoint random streams, neither of which a network was trained on.
        count: number of images.
        size: height and width in pixels.
        cache: where prepared folders are kept.
    """
    name = f"pets-{species}-{split}"
    ids = tuple(f"{split}{i:04d}" for i in range(count))

    def draw(target: Path) -> None:
        import torch

        from cyclediff.pets.render import render, sample_factors

        factors = sample_factors(count, torch.Generator().manual_seed(PETS_SEEDS[split]))
        images = (image for chunk in factors.split(64) for image in to_uint8(render(chunk, species, size)))
        for image_id, image in zip(ids, images, strict=True):
            write_png(to_pil(image), target / f"{image_id}.png")

    digest = digest_of({"name": name, "version": PETS_VERSION, "count": count, "size": size})
    return cached_folder(cache / f"{name}-{digest}", ids, name, digest, draw)


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name.

    Raises:
        UserError: if the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist or is no folder; data.source and data.reference are folders of images"
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"there is no image in {folder}; expected files ending in {' '.join(SUFFIXES)}")
    return paths


def cached_folder(
    path: Path,
    ids: tuple[str, ...],
    name: str,
    digest: str,
    draw: Callable[[Path], None],
    extra: tuple[str, ...] = (),
) -> Folder:
    """Draw a prepared folder unless all of its files are there as its manifest, written last, lists them.

    Args:
        path: the folder, which is made if need be.
        ids: of its images.
        name: for people.
        digest: of everything that `draw` draws from.
        draw: fills the folder that it is given.
        extra: other files that `draw` makes, relative to the folder.
    """
    manifest = path / "manifest.json"
    files = {image_id: f"{image_id}.png" for image_id in ids} | {file: file for file in extra}
    if not manifest.exists() or json.loads(manifest.read_bytes()) != _hashes(path, files):
        path.mkdir(parents=True, exist_ok=True)
        draw(path)
        write_atomically(json.dumps(_hashes(path, files), indent=1).encode(), manifest)
    return Folder(path, ids, name, digest)


def digest_of(content: object) -> str:
    """A short name for JSON-like content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _hashes(path: Path, files: dict[str, str]) -> dict[str, str | None]:
    places = {key: path / file for key, file in files.items()}
    return {
        k: hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else None for k, place in places.items()
    }

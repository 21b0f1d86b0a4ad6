"""From a folder of photos to prepared PNGs of one size with ids."""

import csv
import hashlib
import io
import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from cyclediff.data.assets import file_sha256
from cyclediff.data.fitting import CROP, fitted, require_taken
from cyclediff.data.images import check_picture, image_size, read_photo, write_atomically, write_png
from cyclediff.errors import UserError
from eval import files

EDITS = "edits.csv"  # texts and masks in a prepared folder of edits
TARGETS = "target_images"  # folder of target images beside it
EDIT_COLUMNS = ("id", "source", "target", "category", "mask", "target_image")


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
    """Prepared images: `<path>/<id>.png` for each id, of the shapes that `fitting` gives (a raw folder: as they are).

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


def prepare_photos(folder: Path, limit: int | None, size: int, resize: str, cache: Path, fit: str = CROP) -> Folder:
    """Bring the photos of a folder to the shape in which they are edited and scored, once.

    Args:
        folder: holds the images; see `list_images`. The id of an image is its stem.
        limit: take the first `limit` images in the order of their names.
        size: height and width of the prepared images, if they are squares.
        resize: "bilinear" or "bicubic".
        cache: where prepared folders are kept.
        fit: see `fitting`.

    Raises:
        UserError: if the folder is missing or empty, a file is no image or too large, or two files have one stem;
            nothing is prepared then.
    """
    paths = list_images(folder)[:limit]
    by_stem: dict[str, Path] = {}
    for path in paths:  # for some file systems a.png and A.png are the same, or é and e with its accent
        other = by_stem.setdefault(unicodedata.normalize("NFC", path.stem.casefold()), path)
        if other is not path:
            raise UserError(
                f"{other.name} and {path.name} in {folder} would both become {path.stem}.png; rename one of them"
            )
    hashes = {path.stem: sha256_of(path) for path in paths}
    digest = digest_of({"images": hashes, "size": size, "resize": resize} | named_fit(fit))

    def draw(target: Path) -> None:
        for path in paths:
            write_png(read_fitted(path, size, resize, fit), target / f"{path.stem}.png")

    name = plain(folder.resolve().name)
    return cached_folder(cache / f"{name}-{digest}", tuple(hashes), name, digest, draw)


def read_fitted(path: Path, size: int, resize: str, fit: str) -> Image.Image:
    """A photo as it is edited and scored, see `fitting.fitted`.

    Raises:
        UserError: if it is no image, or too large for its own size.
    """
    photo = read_photo(path)
    require_taken(path, photo.width, photo.height, fit)
    return fitted(photo, size, resize, fit)


def named_fit(fit: str) -> dict[str, str]:
    """What a digest has of `fit`: nothing for centred squares, as before there was anything else."""
    return {} if fit == CROP else {"fit": fit}


def raw_folder(folder: Path) -> Folder:
    """A folder of images that is used as it is.

    Raises:
        UserError: if the folder is missing or empty, or a file's header says that it cannot be read as one picture.
    """
    paths = list_images(folder)
    for path in paths:
        check_picture(path)
    hashes = {path.name: sha256_of(path) for path in paths}
    return Folder(folder, tuple(path.stem for path in paths), plain(folder.resolve().name), digest_of(hashes))


def check_dataset(folder: Path, expected: Expected) -> None:
    """Check that a folder holds the data set that the protocol means.

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


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; see `eval.files.list_images`.

    Raises:
        UserError: as that function, and if there is no image.
    """
    try:
        found = files.list_images(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not found:
        raise UserError(f"there is no image in {folder}; expected files ending in {' '.join(files.SUFFIXES)}")
    return found


def cached_folder(
    path: Path,
    ids: tuple[str, ...],
    name: str,
    digest: str,
    draw: Callable[[Path], None],
    extra: tuple[str, ...] = (),
) -> Folder:
    """Draw a prepared folder unless all of its files are there as its manifest, written last, lists them.

    It is drawn beside its place and moved there when complete, so that an error leaves nothing. Processes may share it.

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
    if _listed(manifest) != _hashes(path, files):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=path.parent) as staging:
            draw(Path(staging))
            hashes = _hashes(Path(staging), files)
            for file in files.values():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(staging, file), path / file)
        write_atomically(json.dumps(hashes, indent=1).encode(), manifest)
    return Folder(path, ids, name, digest)


def write_edits(rows: Iterable[Sequence[str]], path: Path) -> None:
    """Write the edits.csv of a prepared folder, rows of `EDIT_COLUMNS`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([EDIT_COLUMNS, *rows])
    write_atomically(text.getvalue().encode(), path)


def plain(name: str) -> str:
    """A name that fits into tables and, with a digest, into a file's name: no control characters, 200 bytes at most."""
    return files.UNFIT.sub("_", name).encode()[:200].decode(errors="ignore")


def sha256_of(path: Path) -> str:
    """Of an image's file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fix or remove it") from error


def digest_of(content: object) -> str:
    """A short name for JSON-like content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _listed(manifest: Path) -> object:
    try:
        return json.loads(manifest.read_bytes())
    except (OSError, ValueError):  # not there, or damaged: the folder is drawn again
        return None


def _hashes(path: Path, files: dict[str, str]) -> dict[str, str | None]:
    places = {key: path / file for key, file in files.items()}
    return {
        k: hashlib.sha256(place.read_bytes()).hexdigest() if place.exists() else None for k, place in places.items()
    }

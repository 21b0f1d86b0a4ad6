"""The tuples of zero-shot editing (image, what is on it, what should be on it): from a list to a prepared folder.

A prepared folder holds `<id>.png`, `edits.csv` (id, source, target, category, mask) and, where a list marks the region
that may change, `masks/<id>.png`.
"""

import csv
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclediff.data.fitting import CROP
from cyclediff.data.folders import (
    EDITS,
    TARGETS,
    Folder,
    cached_folder,
    digest_of,
    named_fit,
    plain,
    read_fitted,
    read_photo,
    sha256_of,
    write_edits,
)
from cyclediff.data.images import stretched, write_atomically, write_png
from cyclediff.data.masks import Mask, check_runs, draw_mask
from cyclediff.data.pie_bench import BLEND, blended_words, category_of, refuse_plus_plus
from cyclediff.data.tables import read_table
from cyclediff.errors import UserError
from eval.files import find_file

FORMATS = (
    "CycleDiffusion's translate-text.json, PIE-Bench's mapping_file.json, Emu Edit's test set as JSON or CSV, or a CSV "
    "in UTF-8 with the columns image, source and target"
)
NEEDED, EXTRA = ("image", "source", "target"), ("id", "category", "mask", "target_image")  # columns of a CSV
TRANSLATE_TEXT = ("img_path", "encode_text", "decode_text")
EMU_EDIT = ("image", "input_caption", "output_caption")  # of Emu Edit's test set; the kind of an edit is `task`
EMU_EDIT_EXTRA = ("task", "instruction", "split", "idx", "hash")


@dataclass(frozen=True)
class EditTuple:
    """One task of a list.

    Args:
        id: names it, and the files made for it.
        image: the picture to be edited.
        source: what is on it.
        target: what should be on it.
        category: the kind of edit, where the list has it.
        mask: where it may change, if the list says.
        target_image: a picture to whose style it is led, if the list has one.
        blend: words of source and target between which it is blended, if the list names them.
    """

    id: str
    image: Path
    source: str
    target: str
    category: str = ""
    mask: Mask | None = None
    target_image: Path | None = None
    blend: tuple[str, str] | None = None


@dataclass(frozen=True)
class EditList:
    """What a list names.

    Args:
        name: for people.
        found: tuples whose image is there, in the order of the list.
        missing: the images of the other tuples as the list writes them, one per tuple, in its order.
    """

    name: str
    found: tuple[EditTuple, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A tuple whose files have not been looked for yet; `where` is its place in the list, for people."""

    where: str
    id: str
    image: str
    source: str
    target: str
    category: str = ""
    mask: str | tuple[int, ...] | None = None
    target_image: str | None = None
    blend: tuple[str, str] | None = None


def read_edit_list(path: Path) -> EditList:
    """Read the tuples of a list; its content says which format it has.

    Args:
        path: translate-text.json (images below its folder or the folder above, as in CycleDiffusion's repository),
            mapping_file.json (images below annotation_images beside it, or below its folder) or a CSV with the columns
            image, source, target and, if wanted, id, category, mask and target_image (images below its folder).

    Raises:
        UserError: if the list is malformed or empty, a text is blank, an id comes twice, an image lies elsewhere, none
            of the images is there, or a mask or target image is not there.
    """
    text = _read_text(path)
    folder = Path(os.path.abspath(path)).parent
    if text.lstrip().startswith("["):
        rows, places = _translate_text(_parse_json(text, path), path.name), (folder, folder.parent)
    elif text.lstrip().startswith("{"):
        rows, places = _pie_bench(_parse_json(text, path), path.name), (folder / "annotation_images", folder)
    else:
        rows, places = _own(text, path), (folder,)
    if not rows:
        raise UserError(f"{path} lists no edit; expected {FORMATS}, with at least one")
    _refuse_equal_ids(rows)
    images = [_find(row.image, "image", row.where, places) for row in rows]
    found = tuple(
        EditTuple(
            row.id,
            image,
            row.source,
            row.target,
            row.category,
            row.mask if not isinstance(row.mask, str) else _found(row.mask, "mask", row.where, places),
            _found(row.target_image, "target image", row.where, places) if row.target_image else None,
            row.blend,
        )
        for row, image in zip(rows, images, strict=True)
        if image
    )
    if not found:
        looked = " and ".join(" ".join(str(place / rows[0].image).split()) for place in places)
        raise UserError(
            f"none of the images of the {len(rows)} edits in {path} is there; the first was looked for at {looked}; "
            "put the images there"
        )
    return EditList(
        plain(path.stem), found, tuple(row.image for row, image in zip(rows, images, strict=True) if not image)
    )


def prepare_edits(edits: EditList, limit: int | None, size: int, resize: str, cache: Path, fit: str = CROP) -> Folder:
    """Bring the images of a list to the shape in which they are edited and scored, with texts and masks, once.

    Args:
        edits: the list; what it misses is passed over here.
        limit: take the first `limit` tuples that were found.
        size: height and width of the prepared images, if they are squares.
        resize: "bilinear" or "bicubic".
        cache: where prepared folders are kept.
        fit: see `fitting`.

    Raises:
        UserError: if a file is no image or too large, or a mask does not fit its image.
    """
    chosen = sorted(edits.found[:limit], key=lambda edit: edit.id)
    paths = sorted({edit.image for edit in chosen})
    hashes = {path: sha256_of(path) for path in paths}
    content = [
        (edit.id, hashes[edit.image], edit.source, edit.target, edit.category,
         sha256_of(edit.mask) if isinstance(edit.mask, Path) else edit.mask,
         edit.target_image and sha256_of(edit.target_image), *((edit.blend,) if edit.blend else ()))
        for edit in chosen
    ]  # fmt: skip
    digest = digest_of({"edits": content, "size": size, "resize": resize} | named_fit(fit))
    masks = {edit.id: f"masks/{edit.id}.png" for edit in chosen if edit.mask is not None}
    blend = {edit.id: edit.blend for edit in chosen if edit.blend}
    targets = {edit.id: f"{TARGETS}/{edit.id}.png" for edit in chosen if edit.target_image}

    def draw(target: Path) -> None:
        drawn: dict[Path, Path] = {}
        for edit in chosen:
            place = target / f"{edit.id}.png"
            if edit.image in drawn:
                shutil.copyfile(drawn[edit.image], place)
            else:
                write_png(read_fitted(edit.image, size, resize, fit), place)
                drawn[edit.image] = place
            if edit.mask is not None:
                (target / "masks").mkdir(exist_ok=True)
                write_png(draw_mask(edit.mask, edit.image, size, fit), target / masks[edit.id])
            if edit.target_image:
                (target / TARGETS).mkdir(exist_ok=True)
                write_png(stretched(read_photo(edit.target_image), size), target / targets[edit.id])
        rows = [
            (edit.id, edit.source, edit.target, edit.category, masks.get(edit.id, ""), targets.get(edit.id, ""))
            for edit in chosen
        ]
        write_edits(rows, target / EDITS)
        if blend:
            write_atomically(json.dumps(blend).encode(), target / BLEND)

    ids, extra = (
        tuple(edit.id for edit in chosen),
        (EDITS, *masks.values(), *targets.values(), *([BLEND] if blend else [])),
    )
    return cached_folder(cache / f"{edits.name}-{digest}", ids, edits.name, digest, draw, extra)


def read_prompts(folder: Folder) -> dict[str, tuple[str, str]]:
    """Source and target text of each image of a prepared folder, in the order of its ids."""
    with (folder.path / EDITS).open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: (row["source"], row["target"]) for row in csv.DictReader(file)}
    return {image_id: rows[image_id] for image_id in folder.ids}


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a list of edits is a file: {FORMATS}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error.reason}); expected {FORMATS}") from error


def _parse_json(text: str, path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise UserError(f"{path} has the key {twice!r} twice in one object; rename or remove one")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fix it, or take the published file again") from error


def _translate_text(entries: list[Any], file: str) -> list[_Row]:
    rows = []
    for i, entry in enumerate(entries):
        where = f"{file}, tuple {i} (the first is 0)"
        of_emu_edit = isinstance(entry, dict) and EMU_EDIT[1] in entry
        image, source, target = _fields(entry, EMU_EDIT if of_emu_edit else TRANSLATE_TEXT, where)
        category = str(entry.get("task", "")) if of_emu_edit else ""
        rows.append(_Row(where, _numbered(i, image), image, source, target, category))
    return rows


def _pie_bench(entries: dict[str, Any], file: str) -> list[_Row]:
    rows = []
    for key, entry in entries.items():
        where = f"{file}, entry {key!r}"
        refuse_plus_plus(entry, where)
        image, *prompts = _fields(entry, ("image_path", "original_prompt", "editing_prompt"), where)
        category, mask, blend = category_of(entry, where), entry.get("mask"), blended_words(entry, where)
        if mask is not None:
            check_runs(mask, f"{where}: the mask")
        source, target = (prompt.replace("[", "").replace("]", "").strip() for prompt in prompts)
        runs = None if mask is None else tuple(mask)
        rows.append(_Row(where, _checked_id(key, where), image, source, target, category, runs, blend=blend))
    return rows


def _own(text: str, path: Path) -> list[_Row]:
    rows = []
    of_emu_edit = EMU_EDIT[1] in text.partition("\n")[0].lower()
    needed = EMU_EDIT if of_emu_edit else NEEDED
    for where, cells in read_table(text, path, needed, (*EXTRA, *EMU_EDIT_EXTRA) if of_emu_edit else EXTRA):
        image, source, target = _fields(cells, needed, where)
        cells = {"category": cells.get("task", ""), **cells} if of_emu_edit else cells
        own, category, mask, target_image = (cells.get(name, "").strip() for name in EXTRA)
        row_id = _checked_id(own, where) if own else _numbered(len(rows), image)
        rows.append(_Row(where, row_id, image, source, target, category, mask or None, target_image or None))
    return rows


def _fields(entry: object, keys: Sequence[str], where: str) -> list[str]:
    """Image, source and target of an entry, whatever a format calls them (`keys`, in this order)."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} should be an object with {', '.join(keys)}; got {json.dumps(entry)[:60]}")
    for key, what in zip(keys, ("image", "source prompt", "target prompt"), strict=True):
        # PIE-Bench puts [ ] around words that change; between brackets alone there is no text
        value = entry.get(key)
        if not isinstance(value, str) or not any(c.isprintable() and c not in "[] " for c in value):
            raise UserError(f"{where}: no {what}; write it as text under {key!r}, or remove the entry")
        if re.search("[\x00\ud800-\udfff]", value):
            raise UserError(f"{where}: the {what} has a null character or half a character in it; remove that")
    return [entry[key].strip() for key in keys]


def _numbered(index: int, image: str) -> str:
    """The tuple's place in its list, which is unique, and the image's name, which is readable."""
    return f"{index:03d}-{_slug(Path(image).stem)}".rstrip("-")


def _slug(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")[:40].rstrip("-")


def _checked_id(own: str, where: str) -> str:
    """An id becomes the name of files."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", own):
        raise UserError(f"{where}: the id {own!r} should be 1 to 80 of a-z, A-Z, 0-9, - and _, a letter or digit first")
    return own


def _refuse_equal_ids(rows: Iterable[_Row]) -> None:
    seen: dict[str, _Row] = {}
    for row in rows:
        other = seen.setdefault(row.id.casefold(), row)  # on some file systems a.png and A.png are one file
        if other is not row:
            raise UserError(f"{row.where}: the id {row.id!r} is that of {other.where} as well; rename one of them")


def _find(name: str, what: str, where: str, places: Sequence[Path]) -> Path | None:
    """The image or mask below one of the places, links followed; what leads out of them is refused, not read."""
    try:
        candidates = [find_file(place, name).resolve() for place in places]
        roots = [place.resolve() for place in places]
        if not all(any(candidate.is_relative_to(root) for root in roots) for candidate in candidates):
            raise UserError(
                f"{where}: the {what} {name!r} lies outside {places[-1]}; copy it into that folder and write "
                "its path relative to that"
            )
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a null character
        raise UserError(f"{where}: {name[:80]!r} is no usable path ({str(error)[:80]}); fix it") from error


def _found(name: str, what: str, where: str, places: Sequence[Path]) -> Path:
    """A file that must be there, see `_find`."""
    found = _find(name, what, where, places)
    if found is None:
        raise UserError(
            f"{where}: the {what} {name!r} is not there; put it below {places[-1]}, or leave the cell empty"
        )
    return found

"""The images of a run, prepared on disk: what the task's data and the protocol's size and filter make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cyclediff.data.assets import locate
from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.data.fitting import CROP, FITS, NATIVE, cropped, frame, label, padded
from cyclediff.data.folders import Expected, Folder, check_dataset, prepare_photos, raw_folder
from cyclediff.data.images import image_size
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS, prepare_pet_edits, prepare_pets
from cyclediff.pets.styles import STYLES, prepare_pet_styles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONTROL = "cyclediff.attention_control.AttentionControl"
SHAPED = ("edit", "translate")  # studies whose results have the shape of their images


@dataclass(frozen=True)
class Sources:
    """The images of one run.

    Args:
        source: what is translated or edited.
        ground_truth: the true results, where there are such.
        reference: images of the target domain, for FID and KID; None for no such scores.
        dataset: the published data set that source and reference are, checked and whole; None for other images.
        missing: images that a list names and that are not there.
        found: how many images of that list are there, before a limit; None: as many as `source` has.
        fit: what was done to their shape, see `cyclediff.data.fitting`.
        size: of the task.
    """

    source: Folder
    ground_truth: Folder | None
    reference: Folder | None
    dataset: str | None
    missing: tuple[str, ...] = ()
    found: int | None = None
    fit: str = CROP
    size: int = 0

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Height and width of each source image by its id; empty where all are squares of the task's size."""
        if self.fit == CROP:
            return {}
        sizes = {item: image_size(self.source.path / f"{item}.png") for item in self.source.ids}
        return {item: (height, width) for item, (width, height) in sizes.items()}

    @property
    def shape(self) -> str:
        """How images keep their shape, for names and protocols; "" for squares."""
        return label(self.size, self.fit)

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """By id what items of one batch must have in common, see `Items`: the network sees images at their own size."""
        return self.shapes if self.fit == NATIVE else {}

    def frame(self, item: str, multiple: int) -> tuple[int, int]:
        """Height and width at which a model sees an image; `multiple` is what they are multiples of."""
        return frame(*self.shapes.get(item, (self.size, self.size)), self.size, multiple, self.fit)

    def read(self, ids: Sequence[str], device: "torch.device", multiple: int = 1) -> "Tensor":
        """Source images as a model sees them, uint8 (n, 3, h, w), on the CPU; in pinned memory if they are for a GPU.

        Args:
            ids: of the images, all of one kind.
            device: of the model.
            multiple: of what the model halves.
        """
        import torch

        from cyclediff.data.images import read_batch

        paths = [self.source.path / f"{i}.png" for i in ids]
        if self.shapes:
            read = zip(ids, (read_batch([path]) for path in paths), strict=True)
            images = torch.cat([self.padded(image, item, multiple) for item, image in read])
        else:
            images = read_batch(paths)
        return images.pin_memory() if device.type == "cuda" else images

    def padded(self, image: "Tensor", item: str, multiple: int) -> "Tensor":
        """A source image or its mask, (1, c, h, w), as a model sees it."""
        return padded(image, *self.frame(item, multiple)) if self.shapes else image

    def shaped(self, images: Sequence["Tensor"], ids: Sequence[str]) -> list["Tensor"]:
        """What a model has made, (c, h, w) each, in the shapes of the source images: without what `read` has added."""
        return [cropped(image, *self.shapes[i]) if self.shapes else image for i, image in zip(ids, images, strict=True)]

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
            "ground_truth": self.ground_truth and self.ground_truth.path.name,
            **partial,
        }

    def identity(self) -> dict[str, Any]:
        """What of the images can change artifacts."""
        return {"digest": self.source.digest, "n": len(self.source.ids)}

    def score_identity(self) -> dict[str, Any]:
        """What of the images can change nothing but numbers."""
        folders = {"reference": self.reference, "ground_truth": self.ground_truth}
        return {part: folder and [folder.name, folder.digest] for part, folder in folders.items()}


def prepare_images(cfg: DictConfig, cache: Path) -> Sources:
    """Source, ground truth (pets have it) and reference of a translation.

    Raises:
        UserError: if a folder does not hold usable images, or not those of the data set that the protocol means.
    """
    task, data, protocol = cfg.task, cfg.data, cfg.protocol
    limit: Any = data.limit
    ground_truth = reference = dataset = None
    names, shape = {}, label(protocol.size, data.fit)
    if not task.synthetic and data.check:
        node, splits = task.dataset, (task.dataset.source_split, task.dataset.reference_split)
        domains = (task.source_domain, task.target_domain)
        for part, split, domain in zip(("source", "reference"), splits, domains, strict=True):
            if data[part] == task[part]:
                count = node.counts.get(split, {}).get(domain)
                check_dataset(locate(data[part]), Expected(node.name, node.suffix, node.size, count))
                names[part] = f"{node.name}-{split}-{domain}"
        dataset = node.name if len(names) == 2 and data.limit is None and not shape else None
    if data.source == PETS:
        species = (task.source_domain, task.target_domain)
        source, ground_truth = (prepare_pets(kind, "source", limit, protocol.size, cache) for kind in species)
    else:
        source = prepare_photos(locate(data.source), limit, protocol.size, protocol.resize, cache, data.fit)
        source = source.named(names.get("source"), at(shape))
    if data.reference == PETS:
        number: Any = task.reference_count
        reference = prepare_pets(task.target_domain, "reference", number, protocol.size, cache)
    elif data.reference and protocol.reference_resize:
        reference = prepare_photos(locate(data.reference), None, protocol.size, protocol.resize, cache, data.fit)
        reference = reference.named(names.get("reference"), at(shape or protocol.size))
    elif data.reference:
        reference = raw_folder(locate(data.reference)).named(names.get("reference"), "@raw")
    return Sources(source, ground_truth, reference, dataset, fit=data.fit, size=protocol.size)


def prepare_texts_and_images(cfg: DictConfig, cache: Path) -> Sources:
    """Images with their texts and, for pets, the true edited images.

    Raises:
        UserError: if the list of edits or an image cannot be used.
    """
    data, protocol = cfg.data, cfg.protocol
    limit: Any = data.limit
    if data.source == PETS:
        return Sources(*prepare_pet_edits(limit, protocol.size, cache), None, None, size=protocol.size)
    if data.source == STYLES:
        return Sources(*prepare_pet_styles(limit, protocol.size, cache), None, None, size=protocol.size)
    edits, shape = read_edit_list(locate(data.source)), label(protocol.size, data.fit)
    source = prepare_edits(edits, limit, protocol.size, protocol.resize, cache, data.fit)
    all_of_it = limit is None and not edits.missing and data.source == cfg.task.source and not shape
    return Sources(
        source.named(None, at(shape)), None, None, edits.name if all_of_it else None, edits.missing, len(edits.found),
        data.fit, protocol.size,
    )  # fmt: skip


def at(size: int | str) -> str:
    """The end of a name that says at which size images are; nothing for ""."""
    return f"@{size}" if size else ""


def require_fit(cfg: DictConfig) -> None:
    """Require that a run can have images of the shape that data.fit asks for.

    Raises:
        UserError: if there is no such fit, or the study, the images, the method or the protocol needs squares.
    """
    fit, data = cfg.data.fit, cfg.data
    if fit not in FITS:
        raise UserError(f"data.fit must be one of {', '.join(FITS)}; got {fit}")
    if fit == CROP:
        return
    method, size = cfg.method, cfg.protocol.size
    other = bool(method.get("attention")) and method.attention.get("_target_") != CONTROL
    layers = f"{method.name} chooses layers by how many positions they have, which follows the size of an image"
    against = [  # whether, why, and what else to choose
        (cfg.study.name not in SHAPED, f"study={cfg.study.name} works on squares", ""),
        (data.source in (PETS, STYLES), f"the images of {data.source} are squares already", ""),
        (data.reference == PETS, "the reference images of pets are squares", "data.reference=null or "),
        (cfg.protocol.judge is not None, "the judge of pets reads squares", ""),
        (
            cfg.study.name == "translate" and fit == NATIVE,
            f"networks on pixels work at the size that they are for, {size}",
            "data.fit=pad or ",
        ),
        (method.get("mask") is not None, "method.mask is cut as a square", "method.mask=null or "),
        (fit == NATIVE and other, "only this project's attention control follows a size", "data.fit=pad or "),
        (fit == NATIVE and method.get("masks") not in (None, "noise"), layers, "data.fit=pad, method.masks=noise or "),
    ]
    for holds, reason, instead in against:
        if holds:
            raise UserError(f"data.fit={fit} is not for this run, because {reason}; choose {instead}data.fit=crop")

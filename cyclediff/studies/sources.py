"""The images of a run, prepared on disk: what the task's data and the protocol's size and filter make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cyclediff.data.assets import locate
from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.data.folders import Expected, Folder, check_dataset, prepare_photos, raw_folder
from cyclediff.pets.folders import PETS, prepare_pet_edits, prepare_pets
from cyclediff.pets.styles import STYLES, prepare_pet_styles

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    """

    source: Folder
    ground_truth: Folder | None
    reference: Folder | None
    dataset: str | None
    missing: tuple[str, ...] = ()
    found: int | None = None

    def read(self, ids: Sequence[str], device: "torch.device") -> "Tensor":
        """Source images, uint8 (n, 3, h, w), on the CPU; in pinned memory if they are for a GPU."""
        from cyclediff.data.images import read_batch

        images = read_batch([self.source.path / f"{i}.png" for i in ids])
        return images.pin_memory() if device.type == "cuda" else images

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
    names = {}
    if not task.synthetic and data.check:
        node, splits = task.dataset, (task.dataset.source_split, task.dataset.reference_split)
        domains = (task.source_domain, task.target_domain)
        for part, split, domain in zip(("source", "reference"), splits, domains, strict=True):
            if data[part] == task[part]:
                count = node.counts.get(split, {}).get(domain)
                check_dataset(locate(data[part]), Expected(node.name, node.suffix, node.size, count))
                names[part] = f"{node.name}-{split}-{domain}"
        dataset = node.name if len(names) == 2 and data.limit is None else None
    if data.source == PETS:
        species = (task.source_domain, task.target_domain)
        source, ground_truth = (prepare_pets(kind, "source", limit, protocol.size, cache) for kind in species)
    else:
        source = prepare_photos(locate(data.source), limit, protocol.size, protocol.resize, cache)
        source = source.named(names.get("source"))
    if data.reference == PETS:
        number: Any = task.reference_count
        reference = prepare_pets(task.target_domain, "reference", number, protocol.size, cache)
    elif data.reference and protocol.reference_resize:
        reference = prepare_photos(locate(data.reference), None, protocol.size, protocol.resize, cache)
        reference = reference.named(names.get("reference"), f"@{protocol.size}")
    elif data.reference:
        reference = raw_folder(locate(data.reference)).named(names.get("reference"), "@raw")
    return Sources(source, ground_truth, reference, dataset)


def prepare_texts_and_images(cfg: DictConfig, cache: Path) -> Sources:
    """Images with their texts and, for pets, the true edited images.

    Raises:
        UserError: if the list of edits or an image cannot be used.
    """
    data, protocol = cfg.data, cfg.protocol
    limit: Any = data.limit
    if data.source == PETS:
        return Sources(*prepare_pet_edits(limit, protocol.size, cache), None, None)
    if data.source == STYLES:
        return Sources(*prepare_pet_styles(limit, protocol.size, cache), None, None)
    edits = read_edit_list(locate(data.source))
    source = prepare_edits(edits, limit, protocol.size, protocol.resize, cache)
    whole = edits.name if limit is None and not edits.missing and data.source == cfg.task.source else None
    return Sources(source, None, None, whole, missing=edits.missing, found=len(edits.found))

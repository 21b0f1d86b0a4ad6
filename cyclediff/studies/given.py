"""What some methods are given of each image besides it: its texts, or a target image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cyclediff.data.assets import file_sha256, locate
from cyclediff.data.folders import TARGETS
from cyclediff.data.images import read_photo
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS, prepare_pets
from cyclediff.studies.sources import Sources

if TYPE_CHECKING:
    import torch

TEXTS, TARGET_IMAGE = "texts", "target_image"


class Given:
    """The texts and target images of a run; each comes from the list of images, or is one for all of the task.

    Args:
        cfg: of the run.
        prepared: where prepared images are kept.
    """

    def __init__(self, cfg: DictConfig, prepared: Path):
        self.cfg, self.prepared = cfg, prepared
        self.wanted: list[str] = list(cfg.method.get("given", []))
        self.listed = "texts" in cfg.task.inputs and bool(self.wanted)

    def require(self) -> None:
        """Require what the method is given.

        Raises:
            UserError: if the task has none, or its picture cannot be read.
        """
        name, task = self.cfg.method.name, self.cfg.task
        if "texts" in task.inputs and "target_model" in task and not self.wanted:
            raise UserError(
                f"{name} looks at no texts or target images, and task {task.name} is about them; choose "
                "method=diffuseit_text or diffuseit_image"
            )
        if TEXTS in self.wanted and not self.listed:
            texts = task.get("texts") or {}
            if not all(str(texts.get(side) or "").strip() for side in ("source", "target")):
                raise UserError(
                    f"{name} needs a source and a target text; set task.texts='{{source: a …, target: a …}}'"
                )
        if TARGET_IMAGE in self.wanted and not self.listed:
            image = task.get(TARGET_IMAGE)
            if not image or (image != PETS and not locate(image).is_file()):
                raise UserError(
                    f"{name} needs a target image, and task.target_image={image} is no picture; set "
                    "task.target_image=FILE, or give each image its own (column target_image of a list)"
                )
            if image != PETS:
                read_photo(locate(image))  # one that cannot be read is found before networks are loaded

    def identity(self, sources: Sources) -> Mapping[str, Any]:
        """What of it can change results, besides settings; that of a list is in its digest."""
        if TARGET_IMAGE not in self.wanted or self.listed:
            return {}
        return {TARGET_IMAGE: file_sha256(self._one())}

    def require_each(self, sources: Sources) -> None:
        """Require that every image of a list has a target image, where one is wanted.

        Raises:
            UserError: if one has none.
        """
        if TARGET_IMAGE in self.wanted and self.listed:
            ids = sources.source.ids
            without = [item for item in ids if not self._of(sources, item).is_file()]
            if without:
                raise UserError(
                    f"{self.cfg.method.name} needs a target image for each image, and {len(without)} of {len(ids)} "
                    f"have none, the first {without[0]}; fill the column target_image"
                )

    def read(self, sources: Sources, ids: Sequence[str], device: "torch.device") -> dict[str, Any]:
        """What the method is given of some images: `texts`, or `targets`, float (n, 3, h, w) in [-1, 1]."""
        from cyclediff.data.edit_lists import read_prompts
        from cyclediff.data.images import from_uint8, read_batch, read_rgb, stretched

        found: dict[str, Any] = {}
        if TEXTS in self.wanted:
            one = None if self.listed else (self.cfg.task.texts.source, self.cfg.task.texts.target)
            known = {} if one else read_prompts(sources.source)
            found["texts"] = [one or known[item] for item in ids]
        if TARGET_IMAGE in self.wanted and self.listed:
            found["targets"] = from_uint8(read_batch([self._of(sources, item) for item in ids]).to(device))
        elif TARGET_IMAGE in self.wanted:
            import numpy as np
            import torch

            picture = stretched(read_rgb(self._one()), self.cfg.protocol.size)
            image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(device)
            found["targets"] = from_uint8(image)[None].repeat(len(ids), 1, 1, 1)
        return found

    def _of(self, sources: Sources, item: str) -> Path:
        return sources.source.path / TARGETS / f"{item}.png"

    def _one(self) -> Path:
        task = self.cfg.task
        if task[TARGET_IMAGE] != PETS:
            return locate(task[TARGET_IMAGE])
        folder = prepare_pets(task.target_domain, "reference", 1, self.cfg.protocol.size, self.prepared)
        return folder.path / f"{folder.ids[0]}.png"

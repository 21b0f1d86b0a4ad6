"""Edits of the embedded world: animals with texts, and the same animals edited, drawn once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclediff.data.folders import (
    CAPTIONS_VERSION,
    EDITS,
    PETS_SEEDS,
    PETS_VERSION,
    Folder,
    cached_folder,
    digest_of,
    write_edits,
)
from cyclediff.data.images import to_pil, to_uint8, write_png

if TYPE_CHECKING:
    from cyclediff.pets.captions import Description, Edit


def prepare_pet_edits(count: int, size: int, cache: Path) -> tuple[Folder, Folder]:
    """Render edits of the embedded world, once.

    Args:
        count: number of edits.
        size: height and width in pixels.
        cache: where prepared folders are kept.

    Returns:
        The pictures to be edited, with their texts, and the true edited pictures under the same ids.
    """
    ids = tuple(f"edit{i:04d}" for i in range(count))
    versions = {"version": PETS_VERSION, "captions": CAPTIONS_VERSION, "count": count, "size": size}

    def draw_source(target: Path) -> None:
        edits = _sample(count)
        _draw([edit.source for edit in edits], ids, size, target)
        rows = [(i, e.source_text, e.target_text, e.trait, "") for i, e in zip(ids, edits, strict=True)]
        write_edits(rows, target / EDITS)

    def draw_target(target: Path) -> None:
        _draw([edit.target for edit in _sample(count)], ids, size, target)

    source, target = (digest_of({"name": f"pets-edits-{part}", **versions}) for part in ("source", "target"))
    return (
        cached_folder(cache / f"pets-edits-source-{source}", ids, "pets-edits-source", source, draw_source, (EDITS,)),
        cached_folder(cache / f"pets-edits-target-{target}", ids, "pets-edits-target", target, draw_target),
    )


def _sample(count: int) -> "list[Edit]":
    import torch

    from cyclediff.pets.captions import sample_edits
    from cyclediff.pets.render import sample_factors

    seed = PETS_SEEDS["edits"]
    factors = sample_factors(count, torch.Generator().manual_seed(seed))
    return sample_edits(factors, torch.Generator().manual_seed(seed + 1))


def _draw(animals: "Sequence[Description]", ids: Sequence[str], size: int, target: Path) -> None:
    import torch

    from cyclediff.pets.render import SPECIES, render

    factors = torch.stack([animal.factors for animal in animals])
    for species in SPECIES:
        places = torch.tensor([i for i, animal in enumerate(animals) if animal.species == species], dtype=torch.long)
        for chunk in places.split(64):
            for i, image in zip(chunk.tolist(), to_uint8(render(factors[chunk], species, size)), strict=True):
                write_png(to_pil(image), target / f"{ids[i]}.png")

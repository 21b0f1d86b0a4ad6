"""Images of pets on disk: animals, and edits of animals with their texts, each drawn once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclediff.data.folders import EDITS, Folder, cached_folder, digest_of, write_edits
from cyclediff.data.images import to_pil, to_uint8, write_png

if TYPE_CHECKING:
    from torch import Tensor

    from cyclediff.pets.captions import Description, Edit

PETS = "pets"  # as a data source
PETS_VERSION = 1  # of the renderer: a change of its pixels is another data set
CAPTIONS_VERSION = 1  # of its captions and edits
PETS_SEEDS = {  # the networks that are shipped were trained on factors of others or, those of CUT, on the last two
    "source": 1001, "reference": 2002, "edits": 3003, "training_source": 4004, "training_target": 5005,
}  # fmt: skip


def prepare_pets(species: str, split: str, count: int, size: int, cache: Path) -> Folder:
    """Render animals, once. Equal splits of two species are each other's ground truth, image by image.

    Args:
        species: "cat" or "dog"; before it perhaps the fur of all of them, as a caption calls it: "purple cat".
        split: "source" or "reference": disjoint random streams, neither of which a network was trained on.
        count: number of images.
        size: height and width in pixels.
        cache: where prepared folders are kept.
    """
    *fur, animal = species.split()
    name = f"pets-{'-'.join([*fur, animal])}-{split}"
    ids = tuple(f"{split}{i:04d}" for i in range(count))

    def draw(target: Path) -> None:
        import torch

        from cyclediff.pets.captions import Description
        from cyclediff.pets.render import render, sample_factors

        factors = sample_factors(count, torch.Generator().manual_seed(PETS_SEEDS[split]))
        for word in fur:
            factors = torch.stack([Description(row, animal).with_word("fur", word).factors for row in factors])
        images = (image for chunk in factors.split(64) for image in to_uint8(render(chunk, animal, size)))
        for image_id, image in zip(ids, images, strict=True):
            write_png(to_pil(image), target / f"{image_id}.png")

    digest = digest_of({"name": name, "version": PETS_VERSION, "count": count, "size": size})
    return cached_folder(cache / f"{name}-{digest}", ids, name, digest, draw)


def prepare_pet_edits(count: int, size: int, cache: Path) -> tuple[Folder, Folder]:
    """Render animals before and after an edit, once.

    Args:
        count: number of edits.
        size: height and width in pixels.
        cache: where prepared folders are kept.

    Returns:
        The pictures to be edited, with their texts and masks of what truly changes, and the true edited pictures under
        the same ids.
    """
    ids = tuple(f"edit{i:04d}" for i in range(count))
    versions = {"version": PETS_VERSION, "captions": CAPTIONS_VERSION, "count": count, "size": size}

    masks = [f"masks/{i}.png" for i in ids]

    def draw_source(target: Path) -> None:
        edits = _sample(count)
        before, after = (
            _pictures(animals, size) for animals in zip(*((e.source, e.target) for e in edits), strict=True)
        )
        _write(before, ids, target)
        (target / "masks").mkdir()
        changed = (before != after).any(1, keepdim=True).byte() * 255
        _write(changed.expand_as(before), ids, target / "masks")
        rows = [(i, e.source_text, e.target_text, e.trait, m, "") for i, e, m in zip(ids, edits, masks, strict=True)]
        write_edits(rows, target / EDITS)

    def draw_target(target: Path) -> None:
        _write(_pictures([edit.target for edit in _sample(count)], size), ids, target)

    source, target = (digest_of({"name": f"pets-edits-{part}", **versions}) for part in ("source", "target"))
    place, extra = cache / f"pets-edits-source-{source}", (EDITS, *masks)
    return (
        cached_folder(place, ids, "pets-edits-source", source, draw_source, extra),
        cached_folder(cache / f"pets-edits-target-{target}", ids, "pets-edits-target", target, draw_target),
    )


def _sample(count: int) -> "list[Edit]":
    import torch

    from cyclediff.pets.captions import sample_edits
    from cyclediff.pets.render import sample_factors

    seed = PETS_SEEDS["edits"]
    factors = sample_factors(count, torch.Generator().manual_seed(seed))
    return sample_edits(factors, torch.Generator().manual_seed(seed + 1))


def _pictures(animals: "Sequence[Description]", size: int) -> "Tensor":
    import torch

    from cyclediff.pets.render import SPECIES, render

    factors = torch.stack([animal.factors for animal in animals])
    pictures = torch.empty(len(animals), 3, size, size, dtype=torch.uint8)
    for species in SPECIES:
        places = torch.tensor([i for i, animal in enumerate(animals) if animal.species == species], dtype=torch.long)
        for chunk in places.split(64):
            pictures[chunk] = to_uint8(render(factors[chunk], species, size))
    return pictures


def _write(pictures: "Tensor", ids: Sequence[str], target: Path) -> None:
    for i, image in zip(ids, pictures, strict=True):
        write_png(to_pil(image), target / f"{i}.png")

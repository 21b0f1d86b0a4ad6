"""Cats that should become dogs of other colours, as a text says or another dog shows, with the true results."""

from pathlib import Path
from typing import TYPE_CHECKING

from cyclediff.data.folders import EDITS, TARGETS, Folder, cached_folder, digest_of, write_edits
from cyclediff.data.images import to_pil, to_uint8, write_png
from cyclediff.pets.folders import PETS_VERSION

if TYPE_CHECKING:
    from torch import Tensor

STYLES = "pets_styles"  # as a data source
STYLES_VERSION = 1
SEED = 5005  # of factors that no network was trained on
COLOURS = ("fur_hue", "fur_lightness", "background_hue", "background_lightness", "eye_hue")
TEMPLATE = "a {fur} {animal} on a {background} background"


def prepare_pet_styles(count: int, size: int, cache: Path) -> tuple[Folder, Folder]:
    """Render cats, and the dogs that they should become, once.

    Each has another dog as its target image, of another pose, whose colours the result should have.

    Args:
        count: number of images.
        size: height and width in pixels.
        cache: where prepared folders are kept.

    Returns:
        The cats with texts and target images, and the true results under the same ids.
    """
    ids = tuple(f"style{i:04d}" for i in range(count))
    versions = {"version": PETS_VERSION, "styles": STYLES_VERSION, "count": count, "size": size}
    targets = [f"{TARGETS}/{i}.png" for i in ids]

    def draw_source(folder: Path) -> None:
        from cyclediff.pets.captions import Description

        pose, style, result = _factors(count)
        _write(pose, "cat", size, ids, folder)
        (folder / TARGETS).mkdir()
        _write(style, "dog", size, ids, folder / TARGETS)
        before, after = (
            [Description(row, animal).caption(TEMPLATE) for row in factors]
            for factors, animal in ((pose, "cat"), (result, "dog"))
        )
        rows = [(i, s, t, "fur", "", p) for i, s, t, p in zip(ids, before, after, targets, strict=True)]
        write_edits(rows, folder / EDITS)

    def draw_result(folder: Path) -> None:
        _write(_factors(count)[2], "dog", size, ids, folder)

    source, result = (digest_of({"name": f"pets-styles-{part}", **versions}) for part in ("source", "result"))
    extra = (EDITS, *targets)
    return (
        cached_folder(cache / f"pets-styles-source-{source}", ids, "pets-styles-source", source, draw_source, extra),
        cached_folder(cache / f"pets-styles-result-{result}", ids, "pets-styles-result", result, draw_result),
    )


def _factors(count: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Of the cats, of the target images, and of the results: the cat's pose with the target's colours."""
    import torch

    from cyclediff.pets.render import FACTORS, sample_factors

    pose, style = (sample_factors(count, torch.Generator().manual_seed(SEED + part)) for part in (0, 1))
    columns = torch.tensor([factor.name in COLOURS for factor in FACTORS])
    return pose, style, torch.where(columns, style, pose)


def _write(factors: "Tensor", species: str, size: int, ids: tuple[str, ...], folder: Path) -> None:
    from cyclediff.pets.render import render

    images = (image for chunk in factors.split(64) for image in to_uint8(render(chunk, species, size)))
    for image_id, image in zip(ids, images, strict=True):
        write_png(to_pil(image), folder / f"{image_id}.png")

"""Scores of zero-shot edits, per image: fit to the text, and how much of the background stayed."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.edits import Edit
from eval.files import FORMATS
from eval.metrics.clip import CLIP, DIRECTIONAL_CLIP, ClipScorer, changed, clip_score, directional_clip
from eval.metrics.lpips import BACKGROUND_LPIPS, Lpips
from eval.metrics.metric import Metric
from eval.metrics.pairwise import BACKGROUND, background
from eval.metrics.pictures import to_picture

SHOWN = 5  # ids in a message


def text_columns(scorer: ClipScorer, faithful: str) -> dict[str, tuple[Metric, str]]:
    """Columns and protocols of `text_scores`; `faithful` says how images were read and averaged."""
    return {
        "clip": (CLIP, f"clip/{scorer.protocol}/{faithful}/vs-target-text"),
        "dclip": (DIRECTIONAL_CLIP, f"dclip/{scorer.protocol}/{faithful}/unchanged-image=0/unchanged-text=none"),
    }


def text_scores(images: Tensor, sources: Tensor, edits: Sequence[Edit], scorer: ClipScorer) -> dict[str, Tensor]:
    """CLIP and directional CLIP of edited images and their sources, uint8 (n, 3, h, w).

    An edit whose texts are the same to CLIP has no directional CLIP: NaN.
    """
    edited, original = (scorer.images([to_picture(image) for image in part]) for part in (images, sources))
    source, target = scorer.texts([edit.source for edit in edits]), scorer.texts([edit.target for edit in edits])
    return {"clip": clip_score(edited, target), "dclip": directional_clip(edited, original, source, target)}


def without_direction(edits: Mapping[str, Edit], scorer: ClipScorer) -> list[str]:
    """The edits, by id, whose source and target text are the same to CLIP: they have no directional CLIP.

    Texts can be the same because they are equal, or because CLIP does not read the end in which they differ.
    """
    if not edits:
        return []
    source, target = (scorer.texts([getattr(edit, side) for edit in edits.values()]) for side in ("source", "target"))
    return [name for name, differs in zip(edits, changed(source, target).tolist(), strict=True) if not differs]


def warn_without_direction(ids: Sequence[str], count: int, what_follows: str) -> None:
    """Warn that some of so many images have no directional CLIP; `what_follows` ends the sentence."""
    if ids:
        named = ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
        warnings.warn(
            f"{DIRECTIONAL_CLIP.header} is undefined for {len(ids)} of {count} images ({named}), because their source "
            f"and target texts are the same to CLIP; {what_follows}",
            stacklevel=2,
        )


def background_columns(faithful: str, lpips: Lpips | None) -> dict[str, tuple[Metric, str]]:
    """Columns and protocols of `background_scores`."""
    how = f"{faithful}/image×(1-mask)/vs-source"
    names = {"psnr": "psnr", "ssim": "ssim/gauss11-1.5-reflected", "mse": "mse"}
    found = {f"background_{key}": (BACKGROUND[key], f"{name}/{how}") for key, name in names.items()}
    if lpips is not None:
        found["background_lpips"] = BACKGROUND_LPIPS, f"{lpips.protocol}/{how}"
    return found


def background_scores(
    images: Tensor, sources: Tensor, edits: Sequence[Edit], lpips: Lpips | None = None
) -> dict[str, Tensor]:
    """Scores of what is outside of the masks; NaN if an edit has no mask, or its mask covers everything."""
    keys = background_columns("", lpips)
    values = {key: torch.full((len(edits),), torch.nan, dtype=torch.float64) for key in keys}
    masks = read_masks(edits, (images.shape[2], images.shape[3]))
    rows = [i for i, mask in enumerate(masks) if mask is not None]
    if rows:
        mask = torch.stack([mask for mask in masks if mask is not None])[:, None]
        for key, value in background(images[rows], sources[rows], mask).items():
            values[f"background_{key}"][rows] = value
        if lpips is not None:
            left = ~mask.all(dim=(1, 2, 3))
            distance = lpips(*(torch.where(mask, 0, image[rows]) for image in (images, sources)))
            values["background_lpips"][rows] = torch.where(left, distance, torch.nan)
    return values


def read_masks(edits: Sequence[Edit], size: tuple[int, int]) -> list[Tensor | None]:
    """The mask of each edit, see `read_mask`; None where it has none."""
    return [read_mask(edit.mask, size) if edit.mask else None for edit in edits]


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """A mask's file → bool (h, w), true where it is white.

    Raises:
        ValueError: if it is not of the images' size.
    """
    with Image.open(path, formats=FORMATS) as image:
        mask = torch.from_numpy(np.array(image.convert("L"))) > 127
    if mask.shape != size:
        height, width = size
        raise ValueError(f"the mask {path} has {mask.shape[1]}×{mask.shape[0]} pixels, its image {width}×{height}")
    return mask

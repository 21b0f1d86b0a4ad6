"""Scores of candidates while they are made, with the definitions and the preparation of the final scores."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.edits import read_edits
from eval.metrics.clip import ClipScorer, clip_score, directional_clip, is_defined
from eval.metrics.pairwise import l2, psnr, ssim
from eval.metrics.pictures import to_picture

KEPT = 64  # originals in memory


def candidate_scores(
    scorer: ClipScorer, source: Path, device: torch.device
) -> Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]:
    """A function that scores edited pictures, uint8 (n, 3, h, w), by the ids of their sources.

    Args:
        scorer: of pictures and texts.
        source: a prepared folder with edits.csv.
        device: where pairwise scores are computed.

    Returns:
        (ids, pictures) → clip, dclip (NaN where the texts are the same to CLIP), dclip_defined, psnr, ssim and l2, each
        (n,).
    """
    edits = read_edits(source)
    known: dict[str, tuple[Tensor, Tensor]] = {}

    def original(image_id: str) -> tuple[Tensor, Tensor]:
        if image_id not in known:
            with Image.open(source / f"{image_id}.png") as file:
                picture = file.convert("RGB")
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            if len(known) >= KEPT:
                known.clear()
            known[image_id] = scorer.images([picture])[0], pixels
        return known[image_id]

    def scores(ids: Sequence[str], pictures: Tensor) -> Mapping[str, Tensor]:
        originals = [original(image_id) for image_id in ids]
        before = torch.stack([features for features, _ in originals])
        pixels = torch.stack([pixels for _, pixels in originals]).to(device)
        after = scorer.images([to_picture(picture) for picture in pictures.cpu()])
        texts = [scorer.texts([getattr(edits[i], side) for i in ids]) for side in ("source", "target")]
        pictures = pictures.to(device)
        return {
            "clip": clip_score(after, texts[1]),
            "dclip": directional_clip(after, before, *texts),
            "dclip_defined": is_defined(after, before, *texts),
            "psnr": psnr(pictures, pixels).cpu(),
            "ssim": ssim(pictures, pixels).cpu(),
            "l2": l2(pictures, pixels).cpu(),
        }

    return scores

"""Scores of candidates while they are made, with the definitions and the preparation of the final scores."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.edits import read_edits
from eval.metrics.clip import ClipScorer, clip_score, directional_clip, is_defined
from eval.metrics.pairwise import psnr, ssim
from eval.metrics.pictures import to_picture

KEPT = 64  # originals in memory
PAIRWISE = {"psnr": psnr, "ssim": ssim}


def candidate_scores(
    scorer: ClipScorer, source: Path, device: torch.device, metric: str
) -> Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]:
    """A function that scores edited pictures, uint8 (n, 3, h, w), by the ids of their sources.

    Only what ranks them is computed, as the protocol scores the winner in full: of a 512×512 picture, SSIM and PSNR
    would take 30 times as long as preparing it for CLIP.

    Args:
        scorer: of pictures and texts.
        source: a prepared folder with edits.csv.
        device: where pairwise scores are computed.
        metric: the score that ranks: dclip, clip, psnr or ssim.

    Returns:
        (ids, pictures) → the score, (n,). Of dclip and clip, which have the same features, both: clip, dclip (NaN where
        the texts are the same to CLIP) and dclip_defined.
    """
    edits = read_edits(source)

    @lru_cache(KEPT)
    def original(image_id: str) -> Image.Image:
        with Image.open(source / f"{image_id}.png") as file:
            return file.convert("RGB")

    @lru_cache(KEPT)
    def features(image_id: str) -> Tensor:
        return scorer.images([original(image_id)])[0]

    @lru_cache(KEPT)
    def pixels(image_id: str) -> Tensor:
        return torch.from_numpy(np.array(original(image_id))).permute(2, 0, 1)

    def of_clip(ids: Sequence[str], pictures: Tensor) -> Mapping[str, Tensor]:
        before, after = torch.stack(list(map(features, ids))), scorer.images(list(map(to_picture, pictures.cpu())))
        texts = [scorer.texts([getattr(edits[i], side) for i in ids]) for side in ("source", "target")]
        return {
            "clip": clip_score(after, texts[1]),
            "dclip": directional_clip(after, before, *texts),
            "dclip_defined": is_defined(after, before, *texts),
        }

    def pairwise(ids: Sequence[str], pictures: Tensor) -> Mapping[str, Tensor]:
        originals = torch.stack(list(map(pixels, ids)))
        return {metric: PAIRWISE[metric](pictures.to(device), originals.to(device)).cpu()}

    return pairwise if metric in PAIRWISE else of_clip

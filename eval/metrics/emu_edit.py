"""The offline metrics of Emu Edit's test set (arXiv 2311.10089): does an edit follow the captions, and what stayed?

The paper names the metrics and no code of it is known. So their networks and preparation are this protocol's own:
CLIP ViT-B/32 and DINO's ViT-S/16, as in the evaluators of DreamBooth and MagicBrush.
"""

from collections.abc import Sequence

from torch import Tensor

from eval.edits import Edit
from eval.metrics.clip import DIRECTIONAL_CLIP, ClipScorer, clip_score, directional_clip
from eval.metrics.features import Extractor
from eval.metrics.metric import Metric
from eval.metrics.pictures import to_picture

DIRECTION, IMAGE = Metric("CLIP direction", 3, True), Metric("CLIP image", 3, True)
OUTPUT, L1, DINO = Metric("CLIP output", 3, True), Metric("L1", 4, False), Metric("DINO", 3, True)


def emu_columns(dino: Extractor, clip: ClipScorer | None, faithful: str) -> dict[str, tuple[Metric, str]]:
    """Columns and protocols of `emu_scores`; `faithful` says how images were read and averaged."""
    scorer = _required(clip).protocol
    return {
        "dclip": (DIRECTION, f"dclip/{scorer}/{faithful}/unchanged-image=0/unchanged-text=none"),
        "clip_image": (IMAGE, f"clip-image/{scorer}/{faithful}/vs-source"),
        "clip": (OUTPUT, f"clip/{scorer}/{faithful}/vs-target-text"),
        "l1": (L1, f"l1-mean/{faithful}/vs-source"),
        "dino": (DINO, f"cosine/{dino.protocol}/{faithful}/vs-source"),
    }


def emu_scores(
    images: Tensor, sources: Tensor, edits: Sequence[Edit], dino: Extractor, clip: ClipScorer | None
) -> dict[str, Tensor]:
    """Scores of edited images and their sources, uint8 (n, 3, h, w) each.

    Args:
        images: the results.
        sources: what they were made from.
        edits: n of them; their texts are the captions of input and output.
        dino: the features of DINO.
        clip: of images and captions.

    Returns:
        float64 (n,) each: dclip, the cosine of the change of captions and of images, NaN where CLIP sees no change of
        the captions; clip_image and dino, cosines of source and result; clip, the cosine of result and output caption;
        l1, the mean absolute difference on [0, 1].
    """
    scorer = _required(clip)
    pictures = [to_picture(image) for image in (*images, *sources)]
    after, before = scorer.images(pictures).tensor_split(2)
    source, target = scorer.texts([edit.source for edit in edits]), scorer.texts([edit.target for edit in edits])
    found, original = dino(pictures).tensor_split(2)
    return {
        "dclip": directional_clip(after, before, source, target),
        "clip_image": clip_score(after, before),
        "clip": clip_score(after, target),
        "l1": (images.double() - sources.double()).abs().mean(dim=(1, 2, 3)) / 255,
        "dino": clip_score(found, original),
    }


def _required(clip: ClipScorer | None) -> ClipScorer:
    if clip is None:
        raise ValueError(f"{DIRECTIONAL_CLIP.header} and other scores of Emu Edit need a CLIP; set protocol.clip")
    return clip

"""PIE-Bench (PnPInversion, arXiv 2310.01506): its scores by the rules of its official code, and by clean ones.

    official    cure-lab/PnPInversion@07f97f4, evaluation/: with all that moves its numbers, see docs/pie_bench.md
    clean       of the PNG; outside of a mask means over the pixels outside and nothing else

Both are computed in one pass: files are decoded once, and networks see what both need in one batch.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eval.edits import Edit
from eval.metrics.clip import ClipScorer, clip_score
from eval.metrics.editing import read_masks
from eval.metrics.lpips import BACKGROUND_LPIPS, Lpips
from eval.metrics.metric import Metric
from eval.metrics.pairwise import BACKGROUND, mse, psnr, ssim, ssim_outside
from eval.metrics.pictures import to_picture, to_tensor
from eval.metrics.structure import STRUCTURE, Structure, Way

CLEAN, OFFICIAL = "pie_bench/3", "pie_bench/official"
PREFIX = {CLEAN: "", OFFICIAL: "official_"}  # of the columns' keys
WAYS: dict[str, Way] = {CLEAN: "unit-antialias", OFFICIAL: "255-noantialias"}
QUALITY = 75  # Pillow's own, with which the official code saves its results
CLIP_EDITED = Metric("CLIP edited", 3, True)
OFFICIAL_CLIP, OFFICIAL_CLIP_EDITED = Metric("CLIP whole", 2, True), Metric("CLIP edited", 2, True)
SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class PieBench:
    """By which rules PIE-Bench is scored, and their networks.

    Args:
        rules: CLEAN, OFFICIAL or both, in the order of the columns.
        structure: the structure distance's network; None leaves it out.
        lpips: with the authors' rule for lengths, of CLEAN; None leaves it out.
        official_lpips: with torchmetrics' rule, of OFFICIAL.
    """

    rules: tuple[str, ...]
    structure: Structure | None = None
    lpips: Lpips | None = None
    official_lpips: Lpips | None = None

    def __post_init__(self):
        unknown = [rule for rule in self.rules if rule not in PREFIX]
        if unknown or not self.rules or len(set(self.rules)) < len(self.rules):
            raise ValueError(f"protocol.rules must be some of {', '.join(PREFIX)}, each once; got {list(self.rules)}")


def pie_columns(
    pie: PieBench, edits: Sequence[Edit], clip: ClipScorer | None, faithful: str
) -> dict[str, tuple[Metric, str]]:
    """Columns and protocols of `pie_scores`; `faithful` says how images were read and averaged."""
    found: dict[str, tuple[Metric, str]] = {}
    masked = any(edit.mask for edit in edits)
    for rule in pie.rules:
        columns = _official_columns if rule == OFFICIAL else _clean_columns
        found |= columns(pie, masked, clip, faithful)
    return found


def _clean_columns(
    pie: PieBench, masked: bool, clip: ClipScorer | None, faithful: str
) -> dict[str, tuple[Metric, str]]:
    found: dict[str, tuple[Metric, str]] = {}
    if pie.structure is not None:
        found["structure"] = STRUCTURE, f"{pie.structure.protocol(WAYS[CLEAN])}/{faithful}/vs-source"
    if masked:
        how = f"{faithful}/outside-mask-only/whole-mask=none/vs-source"
        names = {"psnr": "psnr", "ssim": "ssim/gauss11-1.5-outside-mask", "mse": "mse"}
        found |= {f"background_{key}": (BACKGROUND[key], f"{name}/{how}") for key, name in names.items()}
        if pie.lpips is not None:
            found["background_lpips"] = BACKGROUND_LPIPS, f"{pie.lpips.protocol}/source-inside-mask/{how}"
        if clip is not None:
            text = f"clip/{clip.protocol}/{faithful}/image×mask/vs-target-text"
            found["clip_edited"] = CLIP_EDITED, text
    return found


def _official_columns(
    pie: PieBench, masked: bool, clip: ClipScorer | None, faithful: str
) -> dict[str, tuple[Metric, str]]:
    found: dict[str, tuple[Metric, str]] = {}
    faithful = f"jpeg{QUALITY}/{faithful}"
    if pie.structure is not None:
        found["structure"] = STRUCTURE, f"{pie.structure.protocol(WAYS[OFFICIAL])}/{faithful}/vs-source"
    if masked:
        how = f"{faithful}/image×(1-mask)/whole-mask=none/vs-source"
        names = {"psnr": "psnr/equal=100", "ssim": "ssim/gauss11-1.5-valid", "mse": "mse"}
        found["psnr"] = BACKGROUND["psnr"], f"{names['psnr']}/{how}"
        if pie.official_lpips is not None:
            found["lpips"] = BACKGROUND_LPIPS, f"{pie.official_lpips.protocol}/{how}"
        found |= {key: (BACKGROUND[key], f"{names[key]}/{how}") for key in ("mse", "ssim")}
    if clip is not None:
        text = f"clip×100-from-0/{clip.protocol}/{faithful}"
        found["clip"] = OFFICIAL_CLIP, f"{text}/vs-target-text"
        if masked:
            found["clip_edited"] = OFFICIAL_CLIP_EDITED, f"{text}/image×mask/vs-target-text"
    return {f"{PREFIX[OFFICIAL]}{key}": (metric, f"{OFFICIAL}: {text}") for key, (metric, text) in found.items()}


def pie_scores(
    images: Tensor, sources: Tensor, edits: Sequence[Edit], pie: PieBench, clip: ClipScorer | None
) -> dict[str, Tensor]:
    """All columns of some images of one size.

    Args:
        images: the results, uint8 (n, 3, h, w).
        sources: what they were made from.
        edits: n of them.
        pie: the rules and their networks.
        clip: scores texts; None leaves that out.

    Returns:
        float64 (n,) each; NaN where an edit has no mask, or where its mask leaves nothing outside.
    """
    mask = read_masks(edits, (images.shape[2], images.shape[3]))
    pictures = {rule: compressed(images) if rule == OFFICIAL else images for rule in pie.rules}
    found: dict[str, Tensor] = {}
    for rule, scored in pictures.items():
        values: dict[str, Tensor] = {}
        if pie.structure is not None:
            values["structure"] = pie.structure(scored, sources, WAYS[rule])
        rows = [i for i, one in enumerate(mask) if one is not None and not one.all()]
        if rows:
            outside = ~torch.stack([one for one in mask if one is not None and not one.all()])[:, None]
            background = official_background if rule == OFFICIAL else clean_background
            network = pie.official_lpips if rule == OFFICIAL else pie.lpips
            name = "" if rule == OFFICIAL else "background_"
            for key, value in background(scored[rows], sources[rows], outside, network).items():
                values[name + key] = torch.full((len(edits),), torch.nan, dtype=torch.float64)
                values[name + key][rows] = value
        found |= {PREFIX[rule] + key: value for key, value in values.items()}
    return found | (_clip_scores(pictures, edits, mask, clip) if clip is not None else {})


def _clip_scores(
    pictures: dict[str, Tensor], edits: Sequence[Edit], mask: Sequence[Tensor | None], clip: ClipScorer
) -> dict[str, Tensor]:
    """CLIP of whole and of edited parts, (n,) each; whole pictures of CLEAN are scored by `editing.text_scores`."""
    texts = clip.texts([edit.target for edit in edits])
    rows = [i for i, one in enumerate(mask) if one is not None]
    asked: list[tuple[str, list[int], list[Image.Image]]] = []
    for rule, images in pictures.items():
        if rule == OFFICIAL:
            asked.append((f"{PREFIX[rule]}clip", list(range(len(edits))), [to_picture(image) for image in images]))
        edited = [to_picture(images[i] * one) for i, one in enumerate(mask) if one is not None]
        if edited:
            asked.append((f"{PREFIX[rule]}clip_edited", rows, edited))
    if not asked:
        return {}
    features = clip.images([picture for _, _, some in asked for picture in some])
    found, begin = {}, 0
    for key, places, some in asked:
        score = clip_score(features[begin : begin + len(some)], texts[places])
        begin += len(some)
        found[key] = torch.full((len(edits),), torch.nan, dtype=torch.float64)
        found[key][places] = 100 * score.clamp(min=0) if key.startswith(PREFIX[OFFICIAL]) else score
    return found


def compressed(images: Tensor) -> Tensor:
    """Images as Pillow's JPEG of quality 75 gives them back: uint8 (n, 3, h, w) → the same shape.

    The official code saves four pictures side by side in one file, and scores the last 512 columns. Blocks of a JPEG
    end there, and what the decoder smoothes across the border is the first column, which no background score counts.
    """
    found = []
    for image in images:
        file = io.BytesIO()
        to_picture(image).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
        found.append(to_tensor(Image.open(file)))
    return torch.stack(found)


def official_background(a: Tensor, b: Tensor, outside: Tensor, lpips: Lpips | None) -> dict[str, Tensor]:
    """Scores of images that are multiplied by 1 - mask, over all pixels: the larger the mask, the better they are.

    SSIM is over the places where its window fits, as in torchmetrics before its pull request 2721 (September 2024),
    which the published numbers must have used. PSNR of equal images is 100 dB; there it is infinite.

    Args:
        a: uint8 (n, 3, h, w).
        b: the same shape.
        outside: bool (n, 1, h, w), true outside of the mask.
        lpips: with torchmetrics' rule for lengths.

    Returns:
        psnr, mse, ssim and, with its network, lpips; float64 (n,) each.
    """
    a, b = a * outside, b * outside
    found = {"psnr": psnr(a, b), "mse": mse(a, b), "ssim": ssim(a, b)}
    return found if lpips is None else found | {"lpips": lpips(a, b)}


def clean_background(a: Tensor, b: Tensor, outside: Tensor, lpips: Lpips | None) -> dict[str, Tensor]:
    """Scores of the pixels outside of a mask; what is inside has no part in them.

    Means are over the pixels outside. SSIM weights the pixels of its window that are outside, for each place outside.
    LPIPS compares with the source where the source has been put inside the mask, and each layer's mean weights its
    places by their share of pixels outside. Without a mask, mean squared error and PSNR are the usual ones.

    Args:
        a: uint8 (n, 3, h, w), results.
        b: the same shape, sources.
        outside: bool (n, 1, h, w), true outside of the mask, somewhere in each image.
        lpips: with the authors' rule for lengths.

    Returns:
        psnr, mse, ssim and, with its network, lpips; float64 (n,) each.
    """
    squares = ((a.double() - b.double()) / 255).square() * outside
    error = squares.sum(dim=(1, 2, 3)) / (3 * outside.sum(dim=(1, 2, 3)))
    decibels = torch.where(error == 0, 100.0, -10 * error.clamp(min=1e-300).log10())
    found = {"psnr": decibels, "mse": error, "ssim": ssim_outside(a, b, outside)}
    if lpips is not None:
        found["lpips"] = _lpips_outside(lpips, torch.where(outside, a, b), b, outside)
    return found


@torch.no_grad()
def _lpips_outside(lpips: Lpips, a: Tensor, b: Tensor, outside: Tensor) -> Tensor:
    """LPIPS whose means over places are weighted by the share of each that is outside of a mask; float64 (n,)."""
    found = []
    for one, other, part in zip(a, b, outside, strict=True):
        x, y = (side.to(lpips.device).float()[None] / 127.5 - 1 for side in (one, other))
        layers = zip(*(lpips.network.net(lpips.network.scaling_layer(side)) for side in (x, y)), strict=True)
        total = 0.0
        for (f, g), weigh in zip(layers, lpips.network.lins, strict=True):
            f, g = (side / lpips.length(side.square().sum(dim=1, keepdim=True)) for side in (f, g))
            share = F.adaptive_avg_pool2d(part[None].to(f), f.shape[2:])
            total += ((weigh((f - g).square()) * share).sum() / share.sum()).item()
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def warn_of_whole_masks(edits: dict[str, Edit], values: dict[str, float]) -> None:
    """Warn of images that have a mask and no background score: their mask covers everything.

    Args:
        edits: of the images.
        values: a background score of each image, NaN where it has none.
    """
    names = [name for name, value in values.items() if edits[name].mask and value != value]  # NaN
    if names:
        named = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        warnings.warn(
            f"the masks of {len(names)} of {len(values)} images cover everything ({named}): these have no background "
            "scores, and the means are over the others",
            stacklevel=2,
        )

"""From folders of images to numbers, each with the protocol it was made by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.clip import ClipScorer
from eval.editing import background_columns, background_scores, text_columns, text_scores
from eval.edits import EDITS, Edit, read_edits
from eval.features import Extractor, cached, file_digest
from eval.frechet import frechet_distance
from eval.kid import kernel_distance
from eval.pairwise import l2, psnr, ssim
from eval.pets import edit_error, factor_error, kept_error, load_pets_judge, observe
from eval.statistics import bootstrap_mean

CHUNK = 32
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Protocol:
    """How numbers are made.

    Args:
        name: of the protocol, with its version: pets/1.
        size: height and width at which images are compared.
        resize: the filter that brought the source images to that size.
        features: of FID and KID; None leaves them out.
        reference: what the reference images are, for protocol strings.
        judge: weights of the embedded world's judge, for factor errors; None for photos.
        clip: scores edits by their texts; None leaves that out.
    """

    name: str
    size: int
    resize: str
    features: Extractor | None
    reference: str
    judge: Path | None = None
    clip: ClipScorer | None = None


def evaluate(
    generated: Path,
    source: Path,
    reference: Path | None,
    counterpart: Path | None,
    protocol: Protocol,
    cache: Path | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float | None]]]:
    """Score a folder of translations or edits; images are paired by stem.

    Args:
        generated: the results, PNGs; those without a source are passed over.
        source: what they were made from, PNGs, and for edits their texts (edits.csv).
        reference: images of the target domain, for FID and KID.
        counterpart: the true results, where there are such.
        protocol: how to score.
        cache: folder for features of the reference.

    Returns:
        Per metric its value, 95 % interval over images where it is a mean, number of images that have it, direction and
        protocol string; and per image id its own values, None where it has none.

    Raises:
        ValueError: if there is nothing to score, or an image has no line in edits.csv.
    """
    stems = sorted({path.stem for path in generated.glob("*.png")} & {path.stem for path in source.glob("*.png")})
    edits = read_edits(source)
    _check(stems, edits, generated, source)
    columns = _columns([edits[stem] for stem in stems if edits], bool(counterpart), protocol)
    parts = []
    for chunk in (stems[start : start + CHUNK] for start in range(0, len(stems), CHUNK)):
        truths = _read(counterpart, chunk) if counterpart else None
        wanted = [edits[stem] for stem in chunk if edits]
        parts.append(_scores(_read(generated, chunk), _read(source, chunk), truths, wanted, protocol))
    values = {key: torch.cat([part[key] for part in parts]) for key in columns}
    metrics = _distances([generated / f"{stem}.png" for stem in stems], reference, protocol, cache)
    for key, (higher, text) in columns.items():
        metrics[key] = {**_mean(values[key]), "n_reference": None, "higher_is_better": higher, "protocol": text}
    known = {key: [None if x != x else x for x in value.tolist()] for key, value in values.items()}  # x != x: NaN
    rows = {stem: {key: value[i] for key, value in known.items()} for i, stem in enumerate(stems)}
    return metrics, rows


def list_images(folder: Path) -> list[Path]:
    """The images of a reference folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")


def _check(stems: list[str], edits: dict[str, Edit], generated: Path, source: Path) -> None:
    if not stems:
        raise ValueError(f"no PNG in {generated} has the name of one in {source}; there is nothing to score")
    without = [stem for stem in stems if stem not in edits]
    if edits and without:
        raise ValueError(f"{source / EDITS} has no line for {len(without)} images ({without[0]}, …); add them")


def _columns(edits: Sequence[Edit], truth: bool, protocol: Protocol) -> dict[str, tuple[bool, str]]:
    """Metrics that are means over images: whether higher is better, and the protocol string."""
    faithful = f"png{protocol.size}/{protocol.resize}/per-image-mean"
    columns = {
        "psnr": (True, f"psnr/{faithful}/vs-source"),
        "ssim": (True, f"ssim/gauss11-1.5-valid/{faithful}/vs-source"),
        "l2": (False, f"l2/{faithful}/vs-source"),
    }
    if truth:
        columns["counterpart_psnr"] = True, f"psnr/{faithful}/vs-counterpart"
    if protocol.judge:
        judge = f"pets-judge-{file_digest(protocol.judge)}/per-image-mean"
        if edits and truth:
            columns["edit_error"] = False, f"factor-error/{judge}/edited-factor/vs-counterpart"
            columns["kept_error"] = False, f"factor-error/{judge}/other-factors/vs-source"
        else:
            columns["factor_error"] = False, f"factor-error/{judge}/vs-source"
    if edits and protocol.clip:
        columns |= text_columns(protocol.clip, faithful)
    if any(edit.mask for edit in edits):
        columns |= background_columns(faithful)
    return columns


def _scores(
    images: Tensor, sources: Tensor, truths: Tensor | None, edits: Sequence[Edit], protocol: Protocol
) -> dict[str, Tensor]:
    """The values of all columns for some images, uint8 (n, 3, h, w); float64 (n,) each."""
    values = {"psnr": psnr(images, sources), "ssim": ssim(images, sources), "l2": l2(images, sources)}
    if truths is not None:
        values["counterpart_psnr"] = psnr(images, truths)
    if protocol.judge:
        judge = load_pets_judge(protocol.judge)
        seen, kept = (observe(judge, part)[1] for part in (images, sources))
        if edits and truths is not None:
            categories = [edit.category for edit in edits]
            values["edit_error"] = edit_error(seen, observe(judge, truths)[1], categories)
            values["kept_error"] = kept_error(seen, kept, categories)
        else:
            values["factor_error"] = factor_error(seen, kept)
    if edits and protocol.clip:
        values |= text_scores(images, sources, edits, protocol.clip)
    if edits:
        values |= background_scores(images, sources, edits)
    return values


def _mean(values: Tensor) -> dict[str, Any]:
    """Mean, interval and number of the images that have a value."""
    values = values[~values.isnan()]
    some = len(values) > 0
    mean, interval = (values.mean().item(), bootstrap_mean(values)) if some else (None, None)
    return {"value": mean, "ci95": interval, "n": len(values)}


def _distances(
    generated: list[Path], reference: Path | None, protocol: Protocol, cache: Path | None
) -> dict[str, dict[str, Any]]:
    """FID and KID, which need two images; fewer leave the cells empty."""
    extractor = protocol.features
    if extractor is None or reference is None:
        return {}
    features, target = extractor(generated), cached(extractor, list_images(reference), cache)
    entry = {"ci95": None, "n": len(features), "n_reference": len(target), "higher_is_better": False}
    functions = {"fid": (frechet_distance, "fid"), "kid": (kernel_distance, "kid-unbiased-poly3-all")}
    enough = min(len(features), len(target)) > 1
    return {
        key: {
            "value": distance(features, target) if enough else None,
            **entry,
            "protocol": f"{name}/{extractor.protocol}/vs-{protocol.reference}",
        }
        for key, (distance, name) in functions.items()
    }


def _read(folder: Path, stems: list[str]) -> Tensor:
    """uint8 (n, 3, h, w)."""
    arrays = []
    for stem in stems:
        with Image.open(folder / f"{stem}.png") as image:
            arrays.append(np.array(image.convert("RGB")))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

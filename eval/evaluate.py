"""From folders of images to numbers, each with the protocol it was made by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.features import Extractor, cached, file_digest
from eval.frechet import frechet_distance
from eval.kid import kernel_distance
from eval.pairwise import l2, psnr, ssim
from eval.pets import factor_error, load_pets_judge, observe
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
    """

    name: str
    size: int
    resize: str
    features: Extractor | None
    reference: str
    judge: Path | None = None


def evaluate(
    generated: Path,
    source: Path,
    reference: Path | None,
    counterpart: Path | None,
    protocol: Protocol,
    cache: Path | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Score a folder of translations; images are paired by stem.

    Args:
        generated: the translations, PNGs.
        source: what they were translated from, PNGs.
        reference: images of the target domain, for FID and KID.
        counterpart: the true translations, where there are such.
        protocol: how to score.
        cache: folder for features of the reference.

    Returns:
        Per metric its value, 95 % interval over images where it is a mean, numbers of images, direction and protocol
        string; and per image id its own values.
    """
    stems = sorted(path.stem for path in generated.glob("*.png"))
    faithful = f"png{protocol.size}/{protocol.resize}/per-image-mean"
    columns = {
        "psnr": (True, f"psnr/{faithful}/vs-source"),
        "ssim": (True, f"ssim/gauss11-1.5-valid/{faithful}/vs-source"),
        "l2": (False, f"l2/{faithful}/vs-source"),
    }
    if counterpart:
        columns["counterpart_psnr"] = True, f"psnr/{faithful}/vs-counterpart"
    if protocol.judge:
        network = f"pets-judge-{file_digest(protocol.judge)}"
        columns["factor_error"] = False, f"factor-error/{network}/per-image-mean/vs-source"
    chunks = [stems[start : start + CHUNK] for start in range(0, len(stems), CHUNK)]
    parts = [_pairwise(generated, source, counterpart, chunk, protocol.judge) for chunk in chunks]
    values = {key: torch.cat([part[key] for part in parts]) for key in columns}
    metrics = _distances([generated / f"{stem}.png" for stem in stems], reference, protocol, cache)
    for key, (higher, text) in columns.items():
        entry = {"value": values[key].mean().item(), "ci95": bootstrap_mean(values[key]), "n": len(stems)}
        metrics[key] = {**entry, "n_reference": None, "higher_is_better": higher, "protocol": text}
    rows = {stem: {key: value[i].item() for key, value in values.items()} for i, stem in enumerate(stems)}
    return metrics, rows


def list_images(folder: Path) -> list[Path]:
    """The images of a reference folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")


def _pairwise(
    generated: Path, source: Path, counterpart: Path | None, stems: list[str], judge: Path | None
) -> dict[str, Tensor]:
    images, sources = _read(generated, stems), _read(source, stems)
    values = {"psnr": psnr(images, sources), "ssim": ssim(images, sources), "l2": l2(images, sources)}
    if counterpart:
        values["counterpart_psnr"] = psnr(images, _read(counterpart, stems))
    if judge:
        seen, kept = (observe(load_pets_judge(judge), part)[1] for part in (images, sources))
        values["factor_error"] = factor_error(seen, kept)
    return values


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

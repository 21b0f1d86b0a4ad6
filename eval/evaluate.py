"""From folders of PNGs to numbers, each with the protocol it was made by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.features import PetsJudge, factor_error, file_digest, load_pets_judge, observe
from eval.frechet import frechet_distance
from eval.kid import kernel_distance
from eval.pairwise import l2, psnr, ssim
from eval.statistics import bootstrap_mean


@dataclass(frozen=True)
class Protocol:
    """How numbers are made.

    Args:
        name: of the protocol, with its version: pets/1.
        size: height and width at which images are compared.
        resize: the filter that brought the source images to that size.
        judge: weights of the embedded features.
    """

    name: str
    size: int
    resize: str
    judge: Path


def evaluate(
    generated: Path, source: Path, reference: Path, counterpart: Path | None, protocol: Protocol
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Score a folder of translations; images are paired by stem.

    Args:
        generated: the translations.
        source: what they were translated from.
        reference: images of the target domain, for FID and KID.
        counterpart: the true translations, where there are such.
        protocol: how to score.

    Returns:
        Per metric its value, 95 % interval over images where it is a mean, numbers of images, direction and protocol
        string; and per image id its own values.
    """
    stems = sorted(path.stem for path in generated.glob("*.png"))
    images, sources = _read(generated, stems), _read(source, stems)
    references = _read(reference, sorted(path.stem for path in reference.glob("*.png")))
    judge = load_pets_judge(protocol.judge)
    faithful = f"png{protocol.size}/{protocol.resize}/per-image-mean"
    columns = {
        "psnr": (psnr(images, sources), True, f"psnr/{faithful}/vs-source"),
        "ssim": (ssim(images, sources), True, f"ssim/gauss11-1.5-valid/{faithful}/vs-source"),
        "l2": (l2(images, sources), False, f"l2/{faithful}/vs-source"),
    }
    if counterpart:
        value = psnr(images, _read(counterpart, stems))
        columns["counterpart_psnr"] = value, True, f"psnr/{faithful}/vs-counterpart"
    network = f"pets-judge-{file_digest(protocol.judge)}"
    seen, kept = observe(judge, images), observe(judge, sources)
    columns["factor_error"] = factor_error(seen[1], kept[1]), False, f"factor-error/{network}/per-image-mean/vs-source"
    metrics = _distances(judge, seen[0], references, f"{network}/png{protocol.size}/vs-{reference.name}")
    for key, (values, higher, text) in columns.items():
        entry = {"value": values.mean().item(), "ci95": bootstrap_mean(values), "n": len(stems), "n_reference": None}
        metrics[key] = {**entry, "higher_is_better": higher, "protocol": text}
    rows = {s: {key: values[i].item() for key, (values, *_) in columns.items()} for i, s in enumerate(stems)}
    return metrics, rows


def _distances(judge: PetsJudge, features: Tensor, references: Tensor, protocol: str) -> dict[str, dict[str, Any]]:
    """FID and KID, which need two images; fewer leave the cells empty."""
    target, _ = observe(judge, references)
    entry = {"ci95": None, "n": len(features), "n_reference": len(target), "higher_is_better": False}
    functions = {"fid": (frechet_distance, "fid"), "kid": (kernel_distance, "kid-unbiased-poly3-all")}
    return {
        key: {
            "value": distance(features, target) if len(features) > 1 else None,
            **entry,
            "protocol": f"{name}/{protocol}",
        }
        for key, (distance, name) in functions.items()
    }


def _read(folder: Path, stems: list[str]) -> Tensor:
    """uint8 (n, 3, h, w)."""
    arrays = [np.asarray(Image.open(folder / f"{stem}.png").convert("RGB")) for stem in stems]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

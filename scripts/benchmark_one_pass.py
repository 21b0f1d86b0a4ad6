"""FID, KID, PSNR and SSIM of a folder, against clean-fid and torchmetrics one after the other: part of `make bench`.

Both have the same Inception network with random weights, on the same files, and nothing is cached.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

SIDE = 256


def draw(folder: Path, count: int, seed: int) -> None:
    """Smooth random pictures with some grain, 256×256."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for k in range(count):
        small = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        large = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        grained = (large + random.integers(-8, 9, large.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grained).save(folder / f"{k:04d}.png")


def ours(folder: Path) -> tuple[float, dict[str, float], float]:
    """Seconds, numbers, and GiB above what the loaded network takes."""
    from eval.evaluate import evaluate
    from eval.metrics.inception import clean_fid
    from eval.protocols import Protocol

    extractor = clean_fid(str(folder / "inception-2015-12-05.pt"))
    with torch.no_grad():
        extractor.network(torch.zeros(1, 3, 299, 299))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    protocol = Protocol("bench/1", SIDE, "bilinear", extractor, "reference")
    began = time.perf_counter()
    scores = evaluate(folder / "generated", folder / "source", folder / "reference", None, protocol)
    took = time.perf_counter() - began
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 2 ** (30 if sys.platform == "darwin" else 20)
    return took, {key: scores.metrics[key]["value"] or 0.0 for key in ("fid", "kid", "psnr", "ssim")}, above


def theirs(folder: Path) -> tuple[float, dict[str, float], float]:
    """Seconds and numbers of clean-fid's compute_fid and compute_kid, then torchmetrics image by image."""
    import warnings

    from cleanfid import fid
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    from eval.metrics.inception import clean_fid

    network = clean_fid(str(folder / "inception-2015-12-05.pt")).network
    settings: dict[str, Any] = {"num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    settings |= {f"fdir{k}": str(folder / name) for k, name in ((1, "generated"), (2, "reference"))}
    began = time.perf_counter()
    with (
        patch.object(fid, "build_feature_extractor", lambda *_, **__: network),
        warnings.catch_warnings(action="ignore"),
    ):
        found: dict[str, Any] = {"fid": fid.compute_fid(**settings), "kid": fid.compute_kid(**settings)}
    values = []
    for path in sorted((folder / "generated").iterdir()):
        pair = [torch.from_numpy(np.array(Image.open(folder / name / path.name))) for name in ("generated", "source")]
        a, b = (image.permute(2, 0, 1)[None].double() / 255 for image in pair)
        similarity: Any = structural_similarity_index_measure(a, b, data_range=1.0)
        values.append((peak_signal_noise_ratio(a, b, data_range=1.0).item(), similarity.item()))
    psnr, ssim = np.mean(values, axis=0)
    return time.perf_counter() - began, found | {"psnr": float(psnr), "ssim": float(ssim)}, 0.0


def rows_of_one_pass(table: Table, count: int = 500) -> None:
    """Measure both in processes of their own."""
    from make_random_checkpoints import write_torchscript

    with TemporaryDirectory() as name:
        folder = Path(name)
        for seed, part in enumerate(("generated", "source", "reference")):
            draw(folder / part, count, seed)
        write_torchscript(folder / "inception-2015-12-05.pt")
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            mine, values, above = pool.apply(ours, (folder,))
            other, official, _ = pool.apply(theirs, (folder,))
    shown = f"{mine:.0f} s against {other:.0f} s: {mine / other:.2f} ×"
    table.add_row(
        f"FID, KID, PSNR, SSIM of {count} pairs with intervals, against clean-fid and torchmetrics", shown, "≤ 0.60 ×"
    )
    table.add_row("  memory above the network", f"{above:.2f} GiB", "≤ 1 GB")
    for key in ("fid", "kid", "psnr"):
        table.add_row(f"  {key}, both", f"{values[key]:.6g} {official[key]:.6g}", "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    table = Table("what", "measured", "promised")
    rows_of_one_pass(table, parser.parse_args().count)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()

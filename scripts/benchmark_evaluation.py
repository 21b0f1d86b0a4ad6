"""Fréchet distance against clean-fid's, and the price of its intervals: part of `make bench`.

Times are wall clock. Both forms run one after the other in the same process, with the same features and threads.
"""

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.metrics.frechet import frechet_distance, frechet_replicates
from eval.metrics.kid import kernel_replicates
from eval.metrics.pairwise import ssim
from eval.metrics.statistics import resamples

LENGTH = 2048  # of Inception's features


def features(n: int, seed: int, shift: float = 0.0) -> Tensor:
    """(n, 2048) float64 like Inception's: not negative, with a few hundred directions that matter."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(256, LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 16
    noise = torch.randn(n, LENGTH, generator=generator, dtype=torch.float64)
    return (torch.randn(n, 256, generator=generator, dtype=torch.float64) @ mixing + noise / 2 + shift).relu()


def seconds(form: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Best time of some rounds, and what came out."""
    best, found = float("inf"), None
    for _ in range(rounds):
        began = time.perf_counter()
        found = form()
        best = min(best, time.perf_counter() - began)
    return best, found


def rows_of_frechet(table: Table) -> None:
    """clean-fid's function on features, and ours."""
    from cleanfid.fid import fid_from_feats

    for n, promise in ((500, "≥ 50 ×"), (5000, "≥ 5 ×")):
        a, b = features(n, 1), features(n, 2, 0.1)
        mine, value = seconds(lambda a=a, b=b: frechet_distance(a, b), 3 if n == 500 else 2)
        with warnings.catch_warnings(action="ignore"):  # it passes a deprecated argument
            theirs, official = seconds(lambda a=a, b=b: fid_from_feats(a.numpy(), b.numpy()), 1)
        shown = f"{mine:.2f} s against {theirs:.1f} s: {theirs / mine:.0f} ×"
        table.add_row(f"Fréchet distance, n = {n}, against clean-fid", shown, promise)
        table.add_row("  relative difference", f"{abs(value / official - 1):.0e}", "≤ 1e-5")


def row_of_replicates(table: Table, count: int = 100) -> None:
    """What an interval costs for each resample."""
    a, b = features(500, 1), features(500, 2, 0.1)
    counts = resamples(500, count)
    for name, form, promise in (("FID", frechet_replicates, "≤ 30 ms"), ("KID", kernel_replicates, "")):
        spent, _ = seconds(lambda form=form: form(a, b, counts), 2)
        table.add_row(f"{name} of a resample, n = 500, {count} of them", f"{1000 * spent / count:.1f} ms", promise)


def row_of_ssim(table: Table) -> None:
    """SSIM against torchmetrics' at 256×256."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(0, 256, (4, 3, 256, 256), generator=generator, dtype=torch.uint8) for _ in range(2))
    mine, _ = seconds(lambda: ssim(a, b), 3)
    theirs, _ = seconds(
        lambda: structural_similarity_index_measure(a.double() / 255, b.double() / 255, data_range=1.0), 2
    )
    shown = f"{250 * mine:.0f} ms an image against {250 * theirs:.0f} ms: {theirs / mine:.0f} ×"
    table.add_row("SSIM at 256×256, against torchmetrics", shown, "≥ 5 ×")


def main() -> None:
    """Measure and print."""
    parts = {"frechet": rows_of_frechet, "replicates": row_of_replicates, "ssim": row_of_ssim}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*parts, []], help="default: all")
    title = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
    table = Table("what", "measured", "promised", title=f"{title}torch {torch.__version__}")
    for name in parser.parse_args().names or parts:
        parts[name](table)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()

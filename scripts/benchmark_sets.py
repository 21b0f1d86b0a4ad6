"""PIE-Bench's two protocols in one pass, its structure distance, and metrics of sets: part of `make bench`.

Networks have random weights. Those of a paper's size are measured on a few pairs, whose time is given for 700.
"""

import argparse
import os
import platform
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from benchmark_evaluation import features, seconds
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.evaluate import evaluate
from eval.metrics.clip import ClipScorer
from eval.metrics.lpips import lpips_network
from eval.metrics.neighbours import coverage, density
from eval.metrics.pie_bench import CLEAN, OFFICIAL, PieBench
from eval.metrics.structure import Structure
from eval.protocols import Protocol

PAIRS = 700
SIDE = 512
SMALL, LARGE = "vit_tiny_patch16_224", "vit_base_patch8_224"


def pictures(n: int, seed: int) -> Tensor:
    """Smooth random pictures with some grain, uint8 (n, 3, 512, 512)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(n, 3, 16, 16, generator=generator)
    grain = 16 * torch.rand(n, 3, SIDE, SIDE, generator=generator) - 8
    return (F.interpolate(coarse, (SIDE, SIDE), mode="bicubic") + grain).clamp(0, 255).to(torch.uint8)


def structure(model: str) -> Structure:
    """The network of structure distances, untrained."""
    torch.manual_seed(0)
    network: Any = timm.create_model(model, num_classes=0, dynamic_img_size=True).eval().requires_grad_(False)
    return Structure(model, network, 224)


def official_loop(measure: Structure) -> Callable[[Tensor, Tensor], Tensor]:
    """Structure distances as the official code takes them: an image at a time, all blocks, attention maps in full."""
    network = measure.network

    def attention(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        maps = (q @ k.mT * self.scale).softmax(-1)
        return self.proj((maps @ v).transpose(1, 2).flatten(2))

    for block in network.blocks:
        block.attn.forward = types.MethodType(attention, block.attn)

    def similarity(image: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = network.blocks[-1].attn.qkv.register_forward_hook(lambda module, given, out: seen.append(out))
        network(measure.prepare(image[None], "255-noantialias"))
        handle.remove()
        keys = seen[0][0].chunk(3, dim=1)[1]
        lengths = keys.norm(dim=1, keepdim=True)
        return keys @ keys.T / (lengths @ lengths.T).clamp(min=1e-8)

    def distances(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([F.mse_loss(similarity(x), similarity(y)) for x, y in zip(a, b, strict=True)])

    return distances


def rows_of_structure(table: Table) -> None:
    """Structure distances in batches against one image at a time."""
    for model, n in ((SMALL, 64), (LARGE, 4)):
        a, b = pictures(n, 1), pictures(n, 2)
        measure, loop = structure(model), official_loop(structure(model))
        mine, found = seconds(lambda m=measure, a=a, b=b: m(a, b, "255-noantialias"), 2)
        theirs, official = seconds(lambda f=loop, a=a, b=b: f(a, b), 2)
        shown = f"{mine * PAIRS / n:.0f} s against {theirs * PAIRS / n:.0f} s: {theirs / mine:.1f} ×"
        table.add_row(f"structure distance of {PAIRS} pairs (of {n}), {model}, against one by one", shown, "≥ 3 ×")
        table.add_row("  relative difference", f"{(found / official - 1).abs().max().item():.0e}", "≤ 1e-3")


def clip_of(model: str) -> ClipScorer:
    """A CLIP, untrained."""
    import open_clip

    torch.manual_seed(0)
    made: Any = open_clip.create_model_and_transforms(model, load_weights=False, pretrained_text=False)
    return ClipScorer("benchmark", made[2], made[0].eval().requires_grad_(False), open_clip.get_tokenizer(model))


def write_bench(folder: Path, n: int) -> None:
    """Results, sources, texts and masks of a third of each image."""
    lines = ["id,source,target,category,mask"]
    for name in ("generated", "source", "source/masks"):
        (folder / name).mkdir()
    for k in range(n):
        for seed, name in enumerate(("generated", "source")):
            image = pictures(1, 2 * k + seed)[0].permute(1, 2, 0).numpy()
            Image.fromarray(image).save(folder / name / f"{k:03d}.png")
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[100:400, 100:400] = mask[[0, -1]] = mask[:, [0, -1]] = 255
        Image.fromarray(mask).save(folder / "source" / "masks" / f"{k:03d}.png")
        lines.append(f"{k:03d},a cat,a dog number {k},random,masks/{k:03d}.png")
    (folder / "source" / "edits.csv").write_text("\n".join(lines))


def rows_of_protocols(table: Table) -> None:
    """One pass for both protocols against a pass for one."""
    from torchvision.models import squeezenet1_1

    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(squeezenet1_1().state_dict(), folder / "squeezenet.pth")
        lpips = [
            lpips_network(str(folder / "squeezenet.pth"), "squeeze", rule=rule) for rule in ("lpips", "torchmetrics")
        ]
        write_bench(folder, 16)
        for vit, clip, n in ((SMALL, "ViT-B-32-quickgelu", 16), (LARGE, "ViT-L-14-quickgelu", 2)):
            for extra in sorted((folder / "generated").iterdir())[n:]:
                extra.unlink()
            whole = PieBench((CLEAN, OFFICIAL), structure(vit), *lpips)
            protocol = Protocol(
                "benchmark/1", None, "bilinear", None, "", clip=clip_of(clip), lpips=lpips[0], pie=whole
            )
            spent = {}
            for rules in ((CLEAN,), (OFFICIAL,), (CLEAN, OFFICIAL)):
                some = replace(protocol, pie=replace(whole, rules=rules))
                began = time.perf_counter()
                evaluate(folder / "generated", folder / "source", None, None, some)
                spent[rules] = (time.perf_counter() - began) / n
            one, both = spent[(CLEAN,)], spent[(CLEAN, OFFICIAL)]
            shown = f"{both:.2f} s a pair, {CLEAN} {one:.2f}, official {spent[(OFFICIAL,)]:.2f}: {both / one:.2f} ×"
            table.add_row(
                f"both protocols of PIE-Bench in one pass ({n} pairs; {vit}, CLIP {clip[:8]})", shown, "≤ 1.3 ×"
            )
            table.add_row("  against two passes", f"{both / (one + spent[(OFFICIAL,)]):.2f} ×", "")


def rows_of_neighbours(table: Table) -> None:
    """Density and coverage on features of DINOv2's length."""
    a, b = features(500, 1)[:, :1024], features(500, 2, 0.1)[:, :1024]
    spent, _ = seconds(lambda: (density(a, b), coverage(a, b)), 2)
    table.add_row("density and coverage of 500 and 500 images, 1024 features", f"{spent:.2f} s", "")


def rows_of_sets(table: Table) -> None:
    """All of them."""
    for rows in (rows_of_structure, rows_of_protocols, rows_of_neighbours):
        rows(table)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.simplefilter("ignore")
    title = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
    table = Table("what", "measured", "promised", title=f"{title}torch {torch.__version__}")
    rows_of_sets(table)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()

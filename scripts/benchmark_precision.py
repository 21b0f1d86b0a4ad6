"""What 16 bits and compiling change of the images of pets, and of the time: part of `make bench`."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from baselines.ddib import DDIB
from baselines.sdedit import SDEdit
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.pets.networks import load
from cyclediff.pets.render import render, sample_factors
from cyclediff.runtime.precision import LEAST, require_precision

WEIGHTS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
MODES = {"bfloat16": ("bfloat16", None), "float16": ("float16", None), "compiled": ("float32", "default")}
IMAGES = 2


@torch.no_grad()
def rows_of_precision(table: Table) -> None:
    """PSNR between images of a precision mode and of float32, and the time of one evaluation of 16 images of both."""
    x0 = render(sample_factors(IMAGES, torch.Generator().manual_seed(1)), "cat")
    methods: list[Any] = [
        CycleDiffusion(T=100, T_es=85, eta=0.1, refine_steps=10), SDEdit(T=100, t0=50), DDIB("100", clip_denoised=True),
    ]  # fmt: skip
    plain = pair()
    for name, mode in MODES.items():
        fast = pair(*mode)
        for method in methods:

            def make(exactly: bool, method: Any = method, fast: Any = fast) -> Tensor:
                noise = Noise(1, [str(i) for i in range(IMAGES)])
                return method(x0, *(plain if exactly else fast), noise).clamp(-1, 1)

            shown = f"{require_precision(method.name, name, make):.1f} dB"
            table.add_row(f"{method.name}, {name}: images against float32's", shown, f"≥ {LEAST:.0f} dB")
        xt, t = x0.repeat(16 // IMAGES, 1, 1, 1), torch.full((16,), 500)
        ours, theirs = (best(partial(models[1], xt, t)) for models in (fast, plain))
        table.add_row(f"  one evaluation of 16 images, {name}, against float32", f"{ours / theirs:.2f} ×", "")


def pair(dtype: str = "float32", compile_mode: str | None = None) -> list[Any]:
    """The networks of cats and dogs in one precision mode."""
    paths = (str(WEIGHTS / f"{name}.safetensors") for name in ("cat", "dog"))
    return [load(path, "cpu", dtype, compile_mode).condition() for path in paths]


def best(work: Callable[[], Any], rounds: int = 5) -> float:
    """Shortest time of a few rounds."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)

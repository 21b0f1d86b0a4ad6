"""CycleDiffusion on a transformer like Stable Diffusion 3's: rows of a step, and the time outside of the network.

The weights are random, and the network is SD 3's with fewer and narrower layers, so that a CPU evaluates it in some
tenths of a second. The whole one takes far longer, and what is outside of it does not.
"""

import time
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import FlowSchedule
from cyclediff.models import sd3
from cyclediff.models.text_to_image import caller

LAYERS, HEADS, SIDE, STEPS, TOKENS = 2, 4, 64, 10, 333
WIDTHS = 4096, 2048
PROMPT = Prompt("a cat", (0, 1, 2, 3), ((0, 0), (0, 1), (2, 5), (0, 0)))


@torch.no_grad()
def rows_of_backbones(table: Table) -> None:
    """Both prompts under guidance, one image of 512 pixels."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(0)
    network: Any = SD3Transformer2DModel(
        sample_size=SIDE, num_layers=LAYERS, num_attention_heads=HEADS, attention_head_dim=64,
        caption_projection_dim=64 * HEADS, joint_attention_dim=WIDTHS[0], pooled_projection_dim=WIDTHS[1],
    )  # fmt: skip
    call = caller(network.eval().requires_grad_(False), torch.float32, torch.channels_last, sd3.evaluate)
    seconds, rows = [], []

    def timed(*arguments: Any) -> Tensor:
        began = time.perf_counter()
        out = call(*arguments)
        seconds.append(time.perf_counter() - began)
        rows.append(len(out))
        return out

    def under(seed: int) -> GuidedDenoiser:
        generator = torch.Generator().manual_seed(seed)
        tokens, pooled = torch.randn(1, TOKENS, WIDTHS[0], generator=generator), torch.randn(1, WIDTHS[1])
        context, empty = Conditioning(tokens, pooled), Conditioning(torch.zeros_like(tokens), torch.zeros_like(pooled))
        return GuidedDenoiser(
            timed, FlowSchedule(3.0), "flow", context, empty, (3.5,), (PROMPT,), "one", abilities=sd3.ABILITIES
        )

    source, target, x0 = under(1), under(2), torch.randn(1, 16, SIDE, SIDE)
    method = CycleDiffusion(T=STEPS, T_es=STEPS, eta=0.1, spacing="latent")
    method(x0, source, target, Noise(1, ["a"]))  # warms up
    seconds.clear()
    rows.clear()
    began = time.perf_counter()
    method(x0, source, target, Noise(1, ["a"]))
    whole = time.perf_counter() - began
    each = sum(seconds) / len(seconds)
    title = f"CycleDiffusion, {LAYERS} narrow layers of SD 3, {SIDE}×{SIDE} latents, both prompts guided"
    table.add_row(f"{title}: rows of a step", f"{sum(rows) / STEPS:.3g}", "4")
    table.add_row("  one evaluation of the network", f"{1000 * each:.0f} ms", "≥ 100 ms, or the next is not meant")
    table.add_row("  share of the time outside of the network", f"{1 - sum(seconds) / whole:.1%}", "≤ 3 %")

"""Write the tables of docs/backbones.md: which method runs on which text-to-image network, and how large each is.

    python scripts/backbones_table.py

A method is run on an empty network of each kind, as a run does before its slow part; so the table says what a run says.
Sizes are counted on the published architectures, which are built without weights.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from cyclediff.diffusion.conditioning import OF_UNETS, Abilities
from cyclediff.diffusion.schedule import (
    DiffusionSchedule,
    DynamicShift,
    FlowSchedule,
    Schedule,
    alpha_bar_from_betas,
    scaled_linear_betas,
)
from cyclediff.models import flux, sd3
from cyclediff.studies.candidates import count_rows
from cyclediff.studies.context import build_method
from cyclediff.studies.selection import Grid

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backbones.md"
GUIDED = Grid(1, (3.0,), (0,), (3.0,))  # both prompts under guidance
UNGUIDED = Grid(1, (1.0,), (0,), (3.0,))  # for methods that refuse a guided source
FLOW_SPACING = "scheduler"
SD_LEVELS = DiffusionSchedule(alpha_bar_from_betas(scaled_linear_betas()))


class Kind(NamedTuple):
    """A kind of network: its levels, and what a method may ask of it."""

    schedule: Schedule
    abilities: Abilities


KINDS = {
    "SD 1, 2, LDM": Kind(SD_LEVELS, OF_UNETS),
    "SDXL": Kind(SD_LEVELS, OF_UNETS),
    "flow UNet": Kind(FlowSchedule(3.0), OF_UNETS),
    "SD 3, 3.5": Kind(FlowSchedule(3.0), sd3.ABILITIES),
    "FLUX.1": Kind(FlowSchedule(DynamicShift().shift(4096), double_shift=False), flux.ABILITIES),
}


class Cell(NamedTuple):
    """What a method does on a kind of network: rows of a step, the spacing that it needs, or why it refuses."""

    rows: float | None
    spacing: str | None
    refusal: str | None


@cache
def text_methods() -> dict[str, Any]:
    """Every method that follows texts, by name, with few timesteps."""
    found = {}
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        for file in sorted((ROOT / "conf" / "method").glob("*.yaml")):
            node: Any = OmegaConf.load(file)
            if "text" not in (node.get("conditions") or ()):
                continue
            cfg = compose("config", [f"method={file.stem}", "experiment=pie_bench_sd14", "timesteps=ldm", "tier=few"])
            found[file.stem] = build_method(cfg, {})
    return found


def cell(method: Any, kind: Kind) -> Cell:
    """What a method does on a kind of network. On a flow its own spacing is tried first, then that of its pipelines."""
    refusals = []
    is_flow = isinstance(kind.schedule, FlowSchedule)
    for spacing in [None, FLOW_SPACING] if is_flow and hasattr(method, "spacing") else [None]:
        some = method if spacing is None else replace(method, spacing=spacing)
        for grid in (GUIDED, UNGUIDED):
            try:
                rows = count_rows(some, kind.schedule, grid, 1, False, False, kind.abilities)
            except ValueError as error:
                refusals.append(str(error))
            else:
                return Cell(rows / method.num_steps, spacing, None)
    return Cell(None, None, refusals[-1])


def methods_table() -> str:
    """Rows of the network in a step of one image, both prompts guided where the method allows it."""
    notes: dict[str, str] = {}
    lines = [f"| method | {' | '.join(KINDS)} |", f"|---|{'---:|' * len(KINDS)}"]
    for name, method in text_methods().items():
        shown = []
        for kind in KINDS.values():
            rows, spacing, refusal = cell(method, kind)
            if rows is not None and spacing is None:
                shown.append(f"{rows:.3g}")
                continue
            note = refusal or f"with `method.spacing={spacing}`"
            mark = notes.setdefault(note, chr(ord("a") + len(notes)))
            shown.append(f"{rows:.3g} ({mark})" if rows is not None else f"– ({mark})")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"- ({mark}) {note}" for note, mark in notes.items())])


def clip_l() -> nn.Module:
    """CLIP ViT-L/14's text encoder."""
    return _clip(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)


def clip_g() -> nn.Module:
    """OpenCLIP ViT-bigG/14's text encoder."""
    return _clip(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )


def _clip(**shape: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    cls = CLIPTextModelWithProjection if "projection_dim" in shape else CLIPTextModel
    return cls(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **shape))


def t5_xxl() -> nn.Module:
    """T5 v1.1 XXL's encoder."""
    from transformers import T5Config, T5EncoderModel  # pyright: ignore[reportAttributeAccessIssue]

    config = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def codec(channels: int) -> nn.Module:
    """The autoencoder of latent diffusion; SD 3's and FLUX's have no quantisation layers, which hardly counts."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shape: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(**shape, layers_per_block=2, latent_channels=channels)


def unet(**shape: Any) -> nn.Module:
    """A UNet with cross attention."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**shape)


def sdxl_unet() -> nn.Module:
    """Stable Diffusion XL's."""
    return unet(
        block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=2048,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def sd3_transformer(layers: int, **more: Any) -> nn.Module:
    """Stable Diffusion 3's or 3.5's; it has as many heads as layers."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, num_attention_heads=layers,
        attention_head_dim=64, caption_projection_dim=64 * layers, joint_attention_dim=4096, pooled_projection_dim=2048,
        **{"pos_embed_max_size": 192, **more},
    )  # fmt: skip


def flux_transformer(guided: bool) -> nn.Module:
    """FLUX.1's."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=guided)  # the class's own defaults are FLUX.1's


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[Callable[[], nn.Module], ...], int]] = {
    "SD 1.4": (lambda: unet(cross_attention_dim=768, attention_head_dim=8), (clip_l,), 4),
    "SDXL": (sdxl_unet, (clip_l, clip_g), 4),
    "SD 3 medium": (lambda: sd3_transformer(24), (clip_l, clip_g, t5_xxl), 16),
    "SD 3.5 medium": (
        lambda: sd3_transformer(24, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)), pos_embed_max_size=384),
        (clip_l, clip_g, t5_xxl),
        16,
    ),
    "SD 3.5 large": (lambda: sd3_transformer(38, qk_norm="rms_norm"), (clip_l, clip_g, t5_xxl), 16),
    "FLUX.1 dev": (lambda: flux_transformer(True), (clip_l, t5_xxl), 16),
    "FLUX.1 schnell": (lambda: flux_transformer(False), (clip_l, t5_xxl), 16),
}


@cache
def parameters(make: Callable[[], nn.Module]) -> int:
    """Numbers in a network, which is built without them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def sizes() -> dict[str, tuple[int, int, int]]:
    """Parameters of each model's network, text encoders and codec."""
    codecs = {channels: parameters(lambda channels=channels: codec(channels)) for channels in (4, 16)}
    return {
        name: (parameters(network), sum(map(parameters, encoders)), codecs[channels])
        for name, (network, encoders, channels) in NETWORKS.items()
    }


def memory_table() -> str:
    """Parameters in billions, and GiB of weights in float32 and in 16 bits."""
    lines = ["| model | network | text encoders | codec | float32, GiB | 16 bits, GiB |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, counts in sizes().items():
        shown = " | ".join(f"{count / 1e9:.2f} B" for count in counts)
        lines.append(f"| {name} | {shown} | {sum(counts) * 4 / 2**30:.1f} | {sum(counts) * 2 / 2**30:.1f} |")
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """The page with its tables between their markers."""
    for name, table in (("methods", methods_table()), ("memory", memory_table())):
        pattern = rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end of {name} -->)"
        page, found = re.subn(pattern, lambda m, table=table: m[1] + table + m[2], page, flags=re.DOTALL)
        assert found == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))

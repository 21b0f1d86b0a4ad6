"""DDPM UNets (arXiv 2006.11239, as SDEdit and EGSDE use them) as diffusers networks."""

from collections.abc import Mapping
from typing import Any, cast

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

RESNET = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
ENDS = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}


def build(
    image_size: int, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, attn_resolutions: tuple[int, ...]
) -> UNet2DModel:
    """The diffusers network that equals a DDPM UNet.

    Args:
        image_size: height and width in pixels.
        ch: base width.
        ch_mult: width of each level in units of the base.
        num_res_blocks: residual blocks per level of the encoder.
        attn_resolutions: resolutions in pixels at which there is attention.
    """
    attention = [image_size // 2**level in attn_resolutions for level in range(len(ch_mult))]
    return UNet2DModel(
        sample_size=image_size,
        block_out_channels=tuple(ch * m for m in ch_mult),
        layers_per_block=num_res_blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        downsample_padding=0,
        attention_head_dim=None,  # type: ignore[arg-type]  # one head as wide as the level
        norm_num_groups=32,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def convert(state: Mapping[str, Tensor], unet: UNet2DModel) -> dict[str, Tensor]:
    """Rename a DDPM state dict for `unet`, from `build`.

    Raises:
        ValueError: if a key belongs to no layer of the network.
    """
    levels = len(cast(Any, unet.config).block_out_channels)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        head, _, kind = key.rpartition(".")
        block, layer = _place(head, levels)
        if "attentions" in block:
            layer = ATTENTION[layer]
            value = value.flatten(1) if kind == "weight" and value.dim() == 4 else value  # 1×1 convolutions
        converted[".".join(filter(None, (block, RESNET.get(layer, layer), kind)))] = value
    return converted


def _place(key: str, levels: int) -> tuple[str, str]:
    """Split the name of a layer into its block's name in diffusers and the rest."""
    for prefix, block in ENDS.items():
        if key == prefix or key.startswith(f"{prefix}."):
            return block, key.removeprefix(prefix).removeprefix(".")
    match key.split("."):
        case ["down" | "up" as side, level, "block" | "attn" as kind, index, layer]:
            block = f"{'resnets' if kind == 'block' else 'attentions'}.{index}"
        case ["down" | "up" as side, level, "downsample" | "upsample" as kind, layer]:
            block = f"{kind}rs.0"
        case _:
            raise ValueError(f"{key} belongs to no layer of a DDPM network; check the network's configuration")
    return f"{side}_blocks.{int(level) if side == 'down' else levels - 1 - int(level)}.{block}", layer

"""guided-diffusion (ADM) UNets as diffusers networks (arXiv 2105.05233)."""

from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def build(
    image_size: int,
    model_channels: int,
    channel_mult: tuple[int, ...],
    num_res_blocks: int,
    attention_downsampling: tuple[int, ...],
    num_head_channels: int,
    out_channels: int = 6,
) -> UNet2DModel:
    """The diffusers network that equals an ADM UNet with scale-shift norm and resampling residual blocks.

    Args:
        image_size: height and width in pixels.
        model_channels: base width.
        channel_mult: width of each level in units of the base.
        num_res_blocks: residual blocks per level of the encoder.
        attention_downsampling: downsampling factors (image size / resolution) at which there is attention.
        num_head_channels: width of an attention head.
        out_channels: 6 with a learned variance, 3 without.
    """
    attention = [2**level in attention_downsampling for level in range(len(channel_mult))]
    down = tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention)
    up = tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention))
    return UNet2DModel(
        sample_size=image_size,
        out_channels=out_channels,
        block_out_channels=tuple(model_channels * m for m in channel_mult),
        layers_per_block=num_res_blocks,
        down_block_types=down,
        up_block_types=up,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=num_head_channels,
        attn_norm_num_groups=32,
        norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    )


def convert(state: Mapping[str, Tensor], unet: UNet2DModel, new_attention_order: bool = False) -> dict[str, Tensor]:
    """Rename an ADM state dict for `unet`, from `build`.

    Args:
        state: parameters under their guided-diffusion names.
        unet: the network they are for.
        new_attention_order: whether qkv holds all q, all k, all v; the published checkpoints hold q, k, v head by head.

    Raises:
        ValueError: if a key belongs to no layer of the network.
    """
    config: Any = unet.config
    prefixes = {**ENDS, **_blocks(config)}
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        for length in (3, 2):
            prefix, layer, kind = ".".join(parts[:length]), ".".join(parts[length:-1]), parts[-1]
            if prefix in prefixes:
                break
        else:
            raise ValueError(f"{key} belongs to no layer of this ADM network; check the network's configuration")
        target = prefixes[prefix]
        if layer == "qkv":
            for name, part in zip(
                "qkv", _split_qkv(value, config.attention_head_dim, new_attention_order), strict=True
            ):
                converted[f"{target}.to_{name}.{kind}"] = part
        elif layer == "proj_out":
            converted[f"{target}.to_out.0.{kind}"] = value.squeeze(-1) if kind == "weight" else value
        else:
            name = "group_norm" if layer == "norm" else RESNET.get(layer, layer)
            converted[".".join(filter(None, (target, name, kind)))] = value
    return converted


def _blocks(config: Any) -> dict[str, str]:
    """guided-diffusion numbers the blocks of encoder and decoder in one row each; diffusers by level."""
    names = {f"middle_block.{2 * i}": f"mid_block.resnets.{i}" for i in range(2)}
    names["middle_block.1"] = "mid_block.attentions.0"
    levels, index = len(config.down_block_types), 1
    for level, kind in enumerate(config.down_block_types):
        for layer in range(config.layers_per_block):
            names[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{layer}"
            if "Attn" in kind:
                names[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{layer}"
            index += 1
        if level < levels - 1:
            names[f"input_blocks.{index}.0"] = f"down_blocks.{level}.downsamplers.0"
            index += 1
    index = 0
    for level, kind in enumerate(config.up_block_types):
        for layer in range(config.layers_per_block + 1):
            names[f"output_blocks.{index}.0"] = f"up_blocks.{level}.resnets.{layer}"
            if "Attn" in kind:
                names[f"output_blocks.{index}.1"] = f"up_blocks.{level}.attentions.{layer}"
            if layer == config.layers_per_block and level < levels - 1:
                names[f"output_blocks.{index}.{2 if 'Attn' in kind else 1}"] = f"up_blocks.{level}.upsamplers.0"
            index += 1
    return names


def _split_qkv(value: Tensor, head_channels: int, new_attention_order: bool) -> tuple[Tensor, ...]:
    value = value.flatten(1) if value.dim() > 1 else value
    if not new_attention_order:
        heads = value.shape[0] // (3 * head_channels)
        value = value.unflatten(0, (heads, 3, head_channels)).transpose(0, 1).flatten(0, 2)
    return value.chunk(3)

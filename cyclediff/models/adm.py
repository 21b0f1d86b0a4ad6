"""guided-diffusion (ADM) UNets as diffusers networks (arXiv 2105.05233)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

AttentionOrder = Literal["legacy", "new"]
LAYERS = {  # diffusers → guided-diffusion, within a block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def build(
    image_size: int,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_downsampling: Sequence[int],
    num_head_channels: int,
    in_channels: int = 3,
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
        in_channels: 3 for images.
        out_channels: 6 with a learned variance, 3 without.
    """
    attention = [2**level in attention_downsampling for level in range(len(channel_mult))]
    down = tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention)
    up = tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention))
    return UNet2DModel(
        sample_size=image_size,
        in_channels=in_channels,
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


def names(config: Any, parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """guided-diffusion's name of each tensor → the names of its parts in diffusers.

    Args:
        config: of the UNet2DModel, from `build`.
        parameters: names in diffusers, of the network or of a part of it.
    """
    blocks = ENDS | {ours: theirs for theirs, ours in _blocks(config).items()}
    found: dict[str, tuple[str, ...]] = {}
    for name in parameters:
        parts = name.split(".")
        length = next(n for n in (4, 3, 2, 1) if ".".join(parts[:n]) in blocks)
        layer, kind = ".".join(parts[length:-1]), parts[-1]
        key = ".".join(filter(None, (blocks[".".join(parts[:length])], LAYERS.get(layer, layer), kind)))
        found[key] = (*found.get(key, ()), name)
    return found


def split_qkv(value: Tensor, head_channels: int, order: AttentionOrder) -> tuple[Tensor, ...]:
    """q, k and v of guided-diffusion's one tensor.

    Args:
        value: weight (3 C, C, 1) or bias (3 C,).
        head_channels: width of an attention head.
        order: "legacy": q, k, v head by head, as in the published checkpoints; "new": all q, all k, all v. Names and
            shapes are the same in both, so it cannot be seen in a file.

    Returns:
        q, k and v, each with C rows.
    """
    if order == "legacy":
        heads = value.shape[0] // (3 * head_channels)
        value = value.unflatten(0, (heads, 3, head_channels)).transpose(0, 1).flatten(0, 2)
    return value.chunk(3)


def _blocks(config: Any) -> dict[str, str]:
    """guided-diffusion numbers the blocks of encoder and decoder in one row each; diffusers by level."""
    blocks = {f"middle_block.{2 * i}": f"mid_block.resnets.{i}" for i in range(2)}
    blocks["middle_block.1"] = "mid_block.attentions.0"
    levels, index = len(config.down_block_types), 1
    for level, kind in enumerate(config.down_block_types):
        for layer in range(config.layers_per_block):
            blocks[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{layer}"
            if "Attn" in kind:
                blocks[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{layer}"
            index += 1
        if level < levels - 1:
            blocks[f"input_blocks.{index}.0"] = f"down_blocks.{level}.downsamplers.0"
            index += 1
    index = 0
    for level, kind in enumerate(config.up_block_types):
        for layer in range(config.layers_per_block + 1):
            blocks[f"output_blocks.{index}.0"] = f"up_blocks.{level}.resnets.{layer}"
            if "Attn" in kind:
                blocks[f"output_blocks.{index}.1"] = f"up_blocks.{level}.attentions.{layer}"
            if layer == config.layers_per_block and level < levels - 1:
                blocks[f"output_blocks.{index}.{2 if 'Attn' in kind else 1}"] = f"up_blocks.{level}.upsamplers.0"
            index += 1
    return blocks

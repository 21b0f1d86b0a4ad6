"""DDPM UNets (arXiv 2006.11239, as SDEdit and EGSDE use them) as diffusers networks."""

from collections.abc import Iterable, Sequence

from diffusers.models.unets.unet_2d import UNet2DModel

LAYERS = {  # diffusers → DDPM, within a block
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
ENDS = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
}


def build(
    image_size: int, ch: int, ch_mult: Sequence[int], num_res_blocks: int, attn_resolutions: Sequence[int]
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


def names(levels: int, parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """DDPM's name of each tensor → its name in diffusers.

    Args:
        levels: of the UNet, from `build`.
        parameters: names in diffusers.
    """
    found = {}
    for name in parameters:
        place, _, kind = name.rpartition(".")
        found[f"{_place(place, levels)}.{kind}"] = (name,)
    return found


def _place(name: str, levels: int) -> str:
    """A layer's name in DDPM."""
    for ours, theirs in ENDS.items():
        if name == ours or name.startswith(f"{ours}."):
            layer = name.removeprefix(ours).removeprefix(".")
            return ".".join(filter(None, (theirs, LAYERS.get(layer, layer))))
    side, level, kind, index, layer = name.split(".", 4)
    level = int(level) if side == "down_blocks" else levels - 1 - int(level)  # both sides counted from the image
    block = {"resnets": f"block.{index}", "attentions": f"attn.{index}"}.get(kind, kind.removesuffix("rs"))
    return f"{side.removesuffix('_blocks')}.{level}.{block}.{LAYERS.get(layer, layer)}"

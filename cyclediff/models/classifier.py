"""EGSDE's noise-aware domain classifier: the encoder of an ADM UNet with an attention pool (arXiv 2207.06635)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclediff.models import adm

HEAD = {  # here → EGSDE's released code
    "norm": "I2Iout.0",
    "pool.positional_embedding": "I2Iout.2.positional_embedding",
    "pool.qkv": "I2Iout.2.qkv_proj",
    "pool.out": "I2Iout.2.c_proj",
}


class DomainClassifier(nn.Module):
    """The domain of a noisy image; its feature map is EGSDE's domain-specific extractor.

    Args:
        image_size: height and width in pixels.
        classes: number of domains.
        model_channels: base width.
        channel_mult: width of each level in units of the base.
        num_res_blocks: residual blocks per level.
        attention_downsampling: downsampling factors at which there is attention.
        num_head_channels: width of an attention head.
        in_channels: 3 for images.
    """

    def __init__(
        self,
        image_size: int,
        classes: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_downsampling: Sequence[int],
        num_head_channels: int,
        in_channels: int = 3,
    ):
        super().__init__()
        encoder = adm.build(
            image_size, model_channels, channel_mult, num_res_blocks, attention_downsampling, num_head_channels,
            in_channels,
        )  # fmt: skip
        del encoder.up_blocks, encoder.conv_norm_out, encoder.conv_act, encoder.conv_out
        self.encoder = encoder
        width = model_channels * channel_mult[-1]
        self.norm = nn.GroupNorm(32, width, eps=1e-5)
        self.pool = AttentionPool(width, image_size // 2 ** (len(channel_mult) - 1), num_head_channels, classes)

    def features(self, xt: Tensor, t: Tensor) -> Tensor:
        """Feature map (n, C, h, w) of a noisy image: the output of the middle block."""
        encoder: Any = self.encoder
        embedding = encoder.time_embedding(encoder.time_proj(t).to(xt))
        h = encoder.conv_in(xt)
        for block in encoder.down_blocks:
            h, _ = block(h, embedding)
        return encoder.mid_block(h, embedding)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.pool(F.silu(self.norm(self.features(xt, t))))


class AttentionPool(nn.Module):
    """One token for the whole image attends to all positions (CLIP's pooling, arXiv 2103.00020, section 2.4)."""

    def __init__(self, width: int, resolution: int, head_channels: int, out: int):
        super().__init__()
        self.heads = width // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(width, resolution**2 + 1) / width**0.5)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, out)."""
        x = x.flatten(2)
        tokens = (torch.cat((x.mean(dim=2, keepdim=True), x), dim=2) + self.positional_embedding).mT
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=2))
        return self.out(F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1))


def names(network: DomainClassifier) -> dict[str, tuple[str, ...]]:
    """EGSDE's name of each tensor → the names of its parts here."""
    own = network.state_dict()
    encoder = [key.removeprefix("encoder.") for key in own if key.startswith("encoder.")]
    found = {
        key: tuple(f"encoder.{part}" for part in parts)
        for key, parts in adm.names(network.encoder.config, encoder).items()
    }
    for ours, theirs in HEAD.items():
        found |= {key.replace(ours, theirs, 1): (key,) for key in own if key == ours or key.startswith(f"{ours}.")}
    return found

"""An ADM UNet as guided-diffusion's code runs it, operation by operation: what `make bench` measures ours against.

It follows the published architecture (arXiv 2105.05233) and runs on a state dict under its official names: group norms
in float32, attention as two einsums with a softmax in between, resampling between normalisation and convolution.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def forward(
    weights: Weights,
    x: Tensor,
    t: Tensor,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_downsampling: Sequence[int],
    head_channels: int,
) -> Tensor:
    """Evaluate the network on x (n, c, h, w) at timesteps t (n,)."""
    embedding = _timestep_embedding(weights, t)
    h = _conv(weights, "input_blocks.0.0", x)
    skips, index, down = [h], 1, 1
    for level in range(len(channel_mult)):
        for _ in range(num_res_blocks):
            h = _residual(weights, f"input_blocks.{index}.0", h, embedding)
            if down in attention_downsampling:
                h = _attention(weights, f"input_blocks.{index}.1", h, head_channels)
            skips.append(h)
            index += 1
        if level < len(channel_mult) - 1:
            h = _residual(weights, f"input_blocks.{index}.0", h, embedding, "down")
            skips.append(h)
            index, down = index + 1, down * 2
    h = _residual(weights, "middle_block.0", h, embedding)
    h = _attention(weights, "middle_block.1", h, head_channels)
    h = _residual(weights, "middle_block.2", h, embedding)
    index = 0
    for level in reversed(range(len(channel_mult))):
        for layer in range(num_res_blocks + 1):
            h = _residual(weights, f"output_blocks.{index}.0", torch.cat((h, skips.pop()), dim=1), embedding)
            attends = down in attention_downsampling
            if attends:
                h = _attention(weights, f"output_blocks.{index}.1", h, head_channels)
            if level and layer == num_res_blocks:
                h = _residual(weights, f"output_blocks.{index}.{1 + attends}", h, embedding, "up")
                down //= 2
            index += 1
    return _conv(weights, "out.2", F.silu(_norm(weights, "out.0", h)))


def _timestep_embedding(weights: Weights, t: Tensor) -> Tensor:
    half = weights["time_embed.0.weight"].shape[1] // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    waves = torch.cat((angles.cos(), angles.sin()), dim=1)
    return _linear(weights, "time_embed.2", F.silu(_linear(weights, "time_embed.0", waves)))


def _residual(weights: Weights, name: str, x: Tensor, embedding: Tensor, resample: str = "") -> Tensor:
    h = F.silu(_norm(weights, f"{name}.in_layers.0", x))
    if resample == "down":
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    elif resample == "up":
        h, x = (F.interpolate(part, scale_factor=2, mode="nearest") for part in (h, x))
    h = _conv(weights, f"{name}.in_layers.2", h)
    scale, shift = _linear(weights, f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
    h = _norm(weights, f"{name}.out_layers.0", h) * (1 + scale) + shift
    h = _conv(weights, f"{name}.out_layers.3", F.silu(h))
    if f"{name}.skip_connection.weight" in weights:
        x = _conv(weights, f"{name}.skip_connection", x)
    return x + h


def _attention(weights: Weights, name: str, x: Tensor, head_channels: int) -> Tensor:
    n, c, height, width = x.shape
    flat = x.reshape(n, c, -1)
    heads = c // head_channels
    qkv = F.conv1d(_norm(weights, f"{name}.norm", flat), weights[f"{name}.qkv.weight"], weights[f"{name}.qkv.bias"])
    q, k, v = qkv.reshape(n * heads, 3 * head_channels, -1).split(head_channels, dim=1)
    scale = head_channels**-0.25
    share = torch.einsum("bct,bcs->bts", q * scale, k * scale).float().softmax(dim=-1)
    mixed = torch.einsum("bts,bcs->bct", share, v).reshape(n, c, -1)
    out = F.conv1d(mixed, weights[f"{name}.proj_out.weight"], weights[f"{name}.proj_out.bias"])
    return (flat + out).reshape(n, c, height, width)


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x.float(), 32, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5).to(x.dtype)


def _conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

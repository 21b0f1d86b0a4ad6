"""Vision transformers of timm: the keys of a layer and its CLS token, with a gradient to the image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclediff.diffusion.vit_losses import Features
from cyclediff.errors import UserError
from cyclediff.models.checkpoint import StateDict, is_torchscript, read_checkpoint
from cyclediff.models.state_dicts import choose
from cyclediff.models.weights import load_weights, wanted_shapes
from eval.weight_files import require_finite

HUB = "hf-hub:"
LONGEST = 480 / 224  # of an image's sides to the shorter one: the official codes' Resize(224, max_size=480)
SHOWN = 5
CLIP_NAMES = {  # open_clip → timm
    "visual.conv1.": "patch_embed.proj.",
    "visual.class_embedding": "cls_token",
    "visual.positional_embedding": "pos_embed",
    "visual.ln_pre.": "norm_pre.",
    "visual.ln_post.": "norm.",
    "visual.transformer.resblocks.": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


@dataclass(frozen=True, eq=False)
class ViT:
    """A vision transformer as a network of features.

    Args:
        network: prepared images (n, 3, h, w) → (n, 2, tokens, d): the keys of a layer, then the tokens of its output.
        size: length of an image's shorter side when it enters the network.
        patch: of which the sides are multiples; what is beyond is cut off, as a convolution does.
        mean: of each channel, in [0, 1].
        std: of each channel.
    """

    network: Callable[[Tensor], Tensor]
    size: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor) -> Features:
        """Features of images (n, 3, h, w) in [-1, 1], not clamped; the CLS token is that before the last norm."""
        out = self.network(self.prepare(image))
        return Features(out[:, 0], out[:, 1, 0])

    def prepare(self, image: Tensor) -> Tensor:
        """Images as the network reads them: resized as the official codes do it, bilinear and without antialiasing."""
        x = (image + 1) / 2
        height, width = resized(image.shape[2], image.shape[3], self.size)
        if (height, width) != x.shape[2:]:
            x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=False)
        x = x[..., : height // self.patch * self.patch, : width // self.patch * self.patch]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std


def resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side becomes `size`, unless the longer one is more than 15/7 of it."""
    short, long = sorted((height, width))
    longest = int(size * LONGEST)
    new_short, new_long = size, int(size * long / short)
    if new_long > longest:
        new_short, new_long = int(longest * new_short / new_long), longest
    return (new_short, new_long) if height <= width else (new_long, new_short)


@cache
def load_vit(
    path: str,
    model: str | None = None,
    layer: int = -1,
    size: int | None = None,
    ema: bool = True,
    state_dict: str | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> ViT:
    """A vision transformer with its weights, for features; in float32.

    Args:
        path: one of
            a file of weights under timm's names, which are also those of DINO's official files;
            a file of a CLIP under open_clip's names, of which the image tower is taken;
            "hf-hub:" and the id of a repository of timm's form, which is downloaded once.
        model: timm's name of the network in a file, such as vit_base_patch8_224.dino; its tag says how images are
            normalised. A repository has its own. OpenAI's CLIPs need a name with quickgelu.
        layer: the block whose features are taken, from 0; -1 is the last one.
        size: shorter side of an image when it enters the network; None for the size that it was trained on. At another
            one the positional embedding is interpolated.
        ema: take the moving average where the file holds a network and its average.
        state_dict: place of the state dict in the file, where `ema` does not say which is meant; see `choose`.
        device: where it runs.
        revision: commit, branch or tag of a repository.

    Raises:
        UserError: if there is no such network or layer, or its weights do not fit.
    """
    network = _from_hub(path, revision) if path.startswith(HUB) else _from_file(path, model, ema, state_dict)
    return features_of(network, model or path, layer, size, device)


def features_of(network: nn.Module, name: str, layer: int = -1, size: int | None = None, device: str = "cpu") -> ViT:
    """A network of timm as a network of features.

    Args:
        network: built with dynamic_img_size. Its parameters are frozen and moved in place.
        name: of the network, for messages.
        layer: see `load_vit`.
        size: see `load_vit`.
        device: where it runs.

    Raises:
        UserError: if it is no plain vision transformer with a CLS token, or has no such layer or size.
    """
    vit: Any = network
    _require_vit(vit, name)
    depth, patch = len(vit.blocks), vit.patch_embed.patch_size[0]
    if not -depth <= layer < depth:
        raise UserError(f"{name} has the layers 0 … {depth - 1} (-1 is the last one); got layer={layer}")
    if size is not None and size < patch:
        raise UserError(f"{name} reads patches of {patch} pixels, so size must be at least {patch}; got {size}")
    network.eval().requires_grad_(False).to(device)
    config = vit.pretrained_cfg
    return ViT(
        partial(keys_and_tokens, network, layer % depth),
        size or vit.patch_embed.img_size[0],
        patch,
        tuple(config["mean"]),
        tuple(config["std"]),
    )


def keys_and_tokens(network: Any, layer: int, prepared: Tensor) -> Tensor:
    """The keys of a layer and the tokens of its output, (n, 2, tokens, d); later layers are not evaluated."""
    seen: list[Tensor] = []
    handle = network.blocks[layer].attn.qkv.register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        ((patches, prefix),) = network.forward_intermediates(
            prepared, [layer], return_prefix_tokens=True, stop_early=True, output_fmt="NLC", intermediates_only=True
        )
    finally:
        handle.remove()
    _, keys, _ = seen[0].chunk(3, dim=2)
    return torch.stack((keys, torch.cat((prefix, patches), dim=1)), dim=1)


def build(name: str, **settings: Any) -> nn.Module:
    """A network of timm without weights, on torch's default device.

    Args:
        name: timm's.
        settings: of timm's constructor.

    Raises:
        UserError: if timm has no such vision transformer; the sentence lists names that are like it.
    """
    import timm

    architecture, _, tag = name.partition(".")
    there = [*timm.list_models(module="vision_transformer"), *timm.list_models(module="deit")]
    if architecture not in there:
        like = get_close_matches(architecture, there, SHOWN) or ["vit_small_patch8_224", "vit_base_patch8_224"]
        raise UserError(f"timm has no vision transformer {architecture}; it has {', '.join(like)}, …")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tags and tag not in tags:
        raise UserError(
            f"a tag says how the network was trained, and so how images are normalised; got {name}, choose "
            f"{', '.join(f'{architecture}.{known}' for known in tags)}"
        )
    try:
        return timm.create_model(name, pretrained=False, dynamic_img_size=True, **settings)
    except TypeError as error:
        raise UserError(
            f"{name} is no plain vision transformer; choose one, such as vit_base_patch8_224.dino"
        ) from error


def _from_file(path: str, model: str | None, ema: bool, state_dict: str | None) -> nn.Module:
    if model is None:
        raise UserError(
            f"{path} is a file, which does not say its architecture; name it: model=vit_base_patch8_224.dino"
        )
    if Path(path).is_file() and is_torchscript(Path(path)):
        raise UserError(
            f"{path} is a TorchScript program; take the same network as safetensors, as open_clip or timm publish it"
        )
    with torch.device("meta"):
        plain, tower = build(model), build(model, num_classes=0)
    _require_vit(plain, model)
    groups = read_checkpoint(Path(path))
    of_clip = {place: found for place, tensors in groups.items() if (found := _of_clip(tensors))}
    network = tower if of_clip else plain
    names = {key: (key,) for key in network.state_dict()}
    state = choose(of_clip or groups, wanted_shapes(network, names), ema, state_dict, path)
    load_weights(network, state, path)
    return network


def _from_hub(path: str, revision: str | None) -> nn.Module:
    import timm

    where = f"{path}@{revision}" if revision else path
    try:
        network = timm.create_model(where, pretrained=True, dynamic_img_size=True)
    except Exception as error:  # a library and the network can raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} could not be read from the hub; check the name and the connection, or download its weights and "
            f"name the file ({reason})"
        ) from error
    try:
        require_finite(network.state_dict(), path)
    except ValueError as error:
        raise UserError(str(error)) from error
    return network


def _of_clip(state: Mapping[str, Tensor]) -> StateDict:
    """The image tower of a CLIP under timm's names; its last projection is not part of the features."""
    if "visual.conv1.weight" not in state:
        return {}
    found = {}
    for key, value in state.items():
        if key.startswith("visual.") and key != "visual.proj":
            new = key
            for theirs, ours in CLIP_NAMES.items():
                new = new.replace(theirs, ours)
            lacking = {"cls_token": 2, "pos_embed": 1}.get(new, 0)
            found[new] = value.reshape(*(1,) * lacking, *value.shape)
    return found


def _require_vit(network: Any, name: str) -> None:
    from timm.models.vision_transformer import VisionTransformer

    plain = isinstance(network, VisionTransformer) and network.has_class_token
    block: Any = network.blocks[0] if plain else None
    qkv = getattr(block.attn, "qkv", None) if plain else None
    if qkv is None or qkv.out_features != 3 * network.embed_dim:
        raise UserError(
            f"{name} is no plain vision transformer with a CLS token; choose one, such as vit_base_patch8_224.dino"
        )
    config: Any = network.pretrained_cfg
    if config.get("tag") == "openai" and type(block.mlp.act).__name__ != "QuickGELU":
        better = f"{config['architecture'].replace('_clip_', '_clip_quickgelu_')}.openai"
        raise UserError(f"{name} was trained with QuickGELU and timm builds it with GELU; choose {better}")
